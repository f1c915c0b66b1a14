//! `patou record FILE`: the handler of a drill. It records the start of each request durably before it does anything
//! else, and responds with the request's body.
//!
//! The path is `/REQUEST/ATTEMPT`, two numbers; `?ms=N` delays the response by N milliseconds. As `exec` it implements
//! CGI/1.1 (RFC 3875), as `coprocess` the framing on descriptors 3 and 4, as `inetd` and, with `--socket`, as `http` as
//! much of HTTP/1.1 as the drill's clients use, with `--fastcgi` FastCGI. `patou record --spin DURATION` keeps a core busy.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::stat::{SFlag, fstat};

use super::fastcgi_application;
use crate::cli::duration_arg::duration;
use crate::cli::error::{CommandError, failed};

#[derive(Debug, Args)]
pub(crate) struct RecordingHandler {
    /// The file to which each start is appended, one per line
    #[arg(required_unless_present = "spin")]
    file: Option<PathBuf>,
    /// Serve HTTP on this Unix socket
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Serve FastCGI on descriptor 0
    #[arg(long)]
    fastcgi: bool,
    /// Only keep a core busy for this time
    #[arg(long, value_parser = duration)]
    spin: Option<Duration>,
}

pub(crate) fn run(handler: &RecordingHandler) -> Result<(), CommandError> {
    if let Some(time) = handler.spin {
        let end = Instant::now() + time;
        while Instant::now() < end {}
        return Ok(());
    }
    let file = handler.file.as_deref().unwrap_or(Path::new("")); // clap requires it
    let named = |error: io::Error| failed(format!("{}: {error}", file.display()));
    let mut file = File::options().append(true).create(true).open(file).map_err(named)?;
    if let Some(socket) = &handler.socket {
        return serve_http(&mut file, socket).map_err(failed);
    }
    if handler.fastcgi {
        return fastcgi_application::serve(|path, query, body, out| serve_variables(&mut file, path, query, body, out))
            .map_err(failed);
    }
    let is_socket = fstat(io::stdin()).is_ok_and(|stdin| SFlag::from_bits_truncate(stdin.st_mode) == SFlag::S_IFSOCK);
    match std::env::var("GATEWAY_INTERFACE") {
        Ok(_) => serve_cgi(&mut file).map_err(named),
        Err(_) if is_socket => serve_inetd(&mut file).map_err(named),
        Err(_) => serve_coprocess(&mut file).map_err(named),
    }
}

/// The target of requests for a session, in which the handler sends back what it receives.
pub(super) const SESSION_TARGET: &str = "/session";

/// What a target requests.
#[derive(Debug, PartialEq, Eq)]
struct RecordedRequest {
    request: u64,
    attempt: u32,
    delay: Duration,
}

impl RecordedRequest {
    fn parse(path: &str, query: &str) -> Option<Self> {
        let (request, attempt) = path.strip_prefix('/')?.split_once('/')?;
        let ms = query.split('&').find_map(|pair| pair.strip_prefix("ms=")?.parse().ok()).unwrap_or(0);
        let delay = Duration::from_millis(ms);
        Some(Self { request: request.parse().ok()?, attempt: attempt.parse().ok()?, delay })
    }

    fn parse_target(target: &str) -> Option<Self> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self::parse(path, query)
    }

    /// One write to a file opened with O_APPEND: the lines of several processes do not mix (write(2)).
    fn record(&self, file: &mut File) -> io::Result<()> {
        file.write_all(format!("{} {}\n", self.request, self.attempt).as_bytes())?;
        file.sync_data()
    }

    /// Sends the rest of the response after `head`: a body of `length` bytes comes back, otherwise a default one.
    fn respond(&self, out: &mut impl Write, head: &str, length: u64, body: impl Read) -> io::Result<()> {
        std::thread::sleep(self.delay);
        if length == 0 {
            let body = default_body(self.request, self.attempt);
            write!(out, "{head}Content-Length: {}\r\n\r\n{body}", body.len())?;
        } else {
            write!(out, "{head}Content-Length: {length}\r\n\r\n")?;
            io::copy(&mut body.take(length), out)?;
        }
        out.flush()
    }
}

/// The recorded starts, as request and attempt numbers.
///
/// # Errors
/// The file cannot be read, or a line is not a record: only this handler writes there.
pub(crate) fn read_starts(file: &Path) -> io::Result<Vec<(u64, u32)>> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let start = |line: &str| {
        let (request, attempt) = line.split_once(' ')?;
        Some((request.parse().ok()?, attempt.parse().ok()?))
    };
    text.lines().map(|line| start(line).ok_or_else(|| io::Error::other(format!("`{line}` is not a record")))).collect()
}

/// The body of the response to a request without a body.
pub(crate) fn default_body(request: u64, attempt: u32) -> String {
    format!("{request} {attempt}\n")
}

fn serve_cgi(file: &mut File) -> io::Result<()> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let length = variable("CONTENT_LENGTH").parse().unwrap_or(0);
    let (path, query) = (variable("PATH_INFO"), variable("QUERY_STRING"));
    serve_variables(file, &path, &query, (length, &mut io::stdin().lock()), &mut io::stdout().lock())
}

/// Serves a request of CGI or FastCGI, whose body has so many bytes.
fn serve_variables(
    file: &mut File,
    path: &str,
    query: &str,
    (length, body): (u64, &mut dyn Read),
    out: &mut impl Write,
) -> io::Result<()> {
    let Some(request) = RecordedRequest::parse(path, query) else {
        return out.write_all(b"Status: 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    request.record(file)?;
    request.respond(out, "Content-Type: application/octet-stream\r\n", length, body)
}

/// Serves the first request of the connection that is standard input and output.
fn serve_inetd(file: &mut File) -> io::Result<()> {
    serve_request(file, &mut io::stdin().lock(), &mut io::stdout().lock(), "Connection: close\r\n").map(drop)
}

/// Serves one connection after the other. `/` says that the handler is ready.
fn serve_http(file: &mut File, socket: &Path) -> io::Result<()> {
    for connection in UnixListener::bind(socket)?.incoming() {
        let connection = connection?;
        let (mut client, mut out) = (BufReader::new(&connection), &connection);
        // The worker may close its connection at any time.
        while serve_request(file, &mut client, &mut out, "").unwrap_or(false) {}
    }
    Ok(())
}

/// Serves a request; `more`: further headers of the response. Returns whether there was one.
fn serve_request(file: &mut File, client: &mut impl BufRead, out: &mut impl Write, more: &str) -> io::Result<bool> {
    let Some(head) = read_head(client)? else { return Ok(false) };
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(&head).map_err(io::Error::other)?;
    let target = parsed.path.unwrap_or_default();
    if target == SESSION_TARGET && header_value(parsed.headers, "Upgrade").is_some() {
        out.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")?;
        return echo(client, out).map(|()| false);
    }
    let Some(request) = RecordedRequest::parse_target(target) else {
        let status = if target == "/" { "200 OK" } else { "404 Not Found" };
        write!(out, "HTTP/1.1 {status}\r\n{more}Content-Length: 0\r\n\r\n")?;
        return Ok(true);
    };
    let length = content_length(parsed.headers)?;
    request.record(file)?;
    if header_value(parsed.headers, "Expect").is_some() {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        out.flush()?;
    }
    request.respond(out, &format!("HTTP/1.1 200 OK\r\n{more}"), length, client)?;
    Ok(true)
}

fn serve_coprocess(file: &mut File) -> io::Result<()> {
    // Opened through /proc, which needs no unsafe conversion of the descriptor numbers; both are pipes.
    let mut requests = BufReader::new(File::open("/proc/self/fd/3")?);
    let mut responses = File::options().write(true).open("/proc/self/fd/4")?;
    while let Some(head) = read_head(&mut requests)? {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let headers = match httparse::parse_headers(&head, &mut headers).map_err(io::Error::other)? {
            httparse::Status::Complete((_, headers)) => headers,
            httparse::Status::Partial => &[],
        };
        let length = content_length(headers)?;
        let target = header_value(headers, "Target").map(String::from_utf8_lossy).unwrap_or_default();
        if let Some(request) = RecordedRequest::parse_target(&target) {
            request.record(file)?;
            request.respond(&mut responses, "", length, &mut requests)?;
        } else {
            io::copy(&mut (&mut requests).take(length), &mut io::sink())?;
            responses.write_all(b"Status: 404\r\nContent-Length: 0\r\n\r\n")?;
        }
    }
    Ok(())
}

/// Sends everything back, as it arrives.
fn echo(client: &mut impl BufRead, out: &mut impl Write) -> io::Result<()> {
    loop {
        let length = match client.fill_buf()? {
            [] => return Ok(()),
            bytes => {
                out.write_all(bytes)?;
                bytes.len()
            }
        };
        client.consume(length);
    }
}

const MAX_HEADERS: usize = 128;

/// The bytes up to and including the next empty line; `None` if the client has disconnected before it.
fn read_head(client: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let (mut head, mut line) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if client.read_until(b'\n', &mut line)? == 0 {
            return Ok(None);
        }
        head.extend(&line);
        if line.trim_ascii().is_empty() {
            return Ok(Some(head));
        }
    }
}

fn header_value<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

fn content_length(headers: &[httparse::Header<'_>]) -> io::Result<u64> {
    let Some(value) = header_value(headers, "Content-Length") else { return Ok(0) };
    std::str::from_utf8(value).map_err(io::Error::other)?.parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_names_request_and_attempt() {
        let ms = Duration::from_millis;
        let expected = RecordedRequest { request: 7, attempt: 2, delay: ms(0) };
        assert_eq!(RecordedRequest::parse("/7/2", ""), Some(expected));
        assert_eq!(RecordedRequest::parse_target("/7/2?a=b&ms=20").unwrap().delay, ms(20));
        for invalid in ["", "/", "/7", "/7/", "/x/1", "7/1", "/7/1/2", "/-7/1"] {
            assert_eq!(RecordedRequest::parse(invalid, ""), None, "{invalid}");
        }
    }

    #[test]
    fn recorded_starts_are_read_back_and_other_lines_are_errors() {
        let path = std::env::temp_dir().join(format!("patou-record-{}", std::process::id()));
        let mut file = File::options().append(true).create(true).open(&path).unwrap();
        for attempt in [1, 2] {
            RecordedRequest { request: 7, attempt, delay: Duration::ZERO }.record(&mut file).unwrap();
        }
        assert_eq!(read_starts(&path).unwrap(), [(7, 1), (7, 2)]);
        file.write_all(b"7 \n").unwrap();
        assert!(read_starts(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read_starts(&path).unwrap(), []);
    }
}
