#!/usr/bin/env python3
"""A co-process for patou: it starts once and answers request after request, so what it loads or
counts stays warm. In the configuration of the pool:

    handler = { coprocess = ["python3", "/path/to/coprocess.py"] }
    ping = "5s"

Requests come on descriptor 3 and responses go to descriptor 4, each as `Name: value` lines, an empty
line, and exactly Content-Length bytes: see patou-coprocess(7). What it prints goes to the journal. When
descriptor 3 ends, there will be no more requests: finish within a second.
"""
import os


def read_request(stream):
    """The next request as (headers, body), or None when there will be no more."""
    headers = {}
    while line := stream.readline():
        if not line.strip():
            return headers, stream.read(int(headers["content-length"]))
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return None


def write_response(stream, body, status=200, kind="text/plain; charset=utf-8"):
    head = f"Content-Length: {len(body)}\r\nStatus: {status}\r\nContent-Type: {kind}\r\n\r\n"
    stream.write(head.encode("latin-1") + body)
    stream.flush()


def main():
    requests, responses = os.fdopen(3, "rb"), os.fdopen(4, "wb")
    count = 0
    while request := read_request(requests):
        headers, body = request
        if "ping" in headers:  # only with `ping` in the configuration
            responses.write(b"Ping: 1\r\n\r\n")
            responses.flush()
            continue
        count += 1
        text = f"{headers['method']} {headers['target']}: request {count}, {len(body)} bytes\n"
        write_response(responses, text.encode())


if __name__ == "__main__":
    main()
