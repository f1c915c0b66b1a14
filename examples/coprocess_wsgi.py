#!/usr/bin/env python3
"""Serves a WSGI application of Flask, Django and others, unchanged, as a co-process of patou: see patou-coprocess(7).

    handler = { coprocess = ["python3", "/path/to/coprocess_wsgi.py", "module:application"] }
    working_dir = "/srv/app"    # where the module is
    ping = "5s"                 # no request before the application is loaded
"""
import importlib, io, os, shutil, sys, tempfile, urllib.parse

class RequestBody(io.RawIOBase):
    readable = lambda self: True

    def __init__(self, stream, length):
        self.stream, self.left = stream, length

    def readinto(self, buffer):
        read = self.stream.readinto1(memoryview(buffer)[:self.left])
        self.left -= read
        return read

def read_head(stream):
    """The fields of the next frame, named as in CGI; none at the end of the stream."""
    fields = {}
    while (line := stream.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        fields[name.upper().replace("-", "_")] = value.strip()
    return fields

def respond(application, fields, body, responses):
    path, _, query = fields["TARGET"].partition("?")
    environ = {**fields, "REQUEST_METHOD": fields["METHOD"], "SCRIPT_NAME": "", "QUERY_STRING": query,
               "PATH_INFO": urllib.parse.unquote_to_bytes(path).decode("latin-1"), "SERVER_PROTOCOL": "HTTP/1.1",
               "REMOTE_ADDR": fields["REMOTE_ADDRESS"], "wsgi.url_scheme": fields["SCHEME"], "wsgi.version": (1, 0),
               "wsgi.input": io.BufferedReader(body), "wsgi.errors": sys.stderr, "wsgi.run_once": False,
               "wsgi.multithread": False, "wsgi.multiprocess": True}
    # Collected, because the length comes first; on disk if it is large.
    start, content = [], tempfile.SpooledTemporaryFile(1 << 20)
    result = application(environ, lambda *arguments: (start.append(arguments), content.write)[1])
    for piece in result:
        content.write(piece)
    getattr(result, "close", lambda: None)()
    (status, headers), is_head, length = start[-1][:2], fields["METHOD"] == "HEAD", content.tell()
    lines = [("Status", status), *(field for field in headers if field[0].lower() != "content-length")]
    announced = next((value for name, value in headers if name.lower() == "content-length"), length)
    lines += [("Http-Content-Length", announced)] * bool(is_head and announced) + [("Content-Length", 0 if is_head else length)]
    responses.write("".join(f"{name}: {value}\r\n" for name, value in lines).encode("latin-1") + b"\r\n")
    content.seek(0, os.SEEK_END if is_head else os.SEEK_SET)
    shutil.copyfileobj(content, responses)

sys.path.insert(0, os.getcwd())
module, _, name = sys.argv[1].partition(":")
application, requests, responses = getattr(importlib.import_module(module), name), open(3, "rb"), open(4, "wb")
while fields := read_head(requests):
    if "PING" in fields:
        responses.write(b"Ping: 1\r\n\r\n")
    else:
        body = RequestBody(requests, int(fields["CONTENT_LENGTH"]))
        respond(application, fields, body, responses)
        requests.read(body.left)  # what the application has not read
    responses.flush()
