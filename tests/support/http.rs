//! A plain HTTP client: it writes the bytes of the test and parses the response.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use httparse::Status;
use serde_json::Value;

use super::{EVENT_TIMEOUT, text};

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct HttpResponse {
    pub(crate) status: u16,
    pub(crate) head: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl HttpResponse {
    /// Parses a response head: the response without its body, and the length of the head. `None` if the head is
    /// incomplete.
    pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<(Self, usize)>, String> {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Response::new(&mut headers);
        let parse = parsed.parse(bytes).map_err(|e| format!("not an HTTP response ({e}): {:?}", text(bytes)))?;
        let Status::Complete(length) = parse else { return Ok(None) };
        let headers = parsed.headers.iter().map(|header| (header.name.to_owned(), text(header.value))).collect();
        let head = text(&bytes[..length]);
        Ok(Some((Self { status: parsed.code.unwrap(), head, headers, body: Vec::new() }, length)))
    }

    /// The value of a header; names are case-insensitive.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.as_str())
    }

    /// The `Location` header, split into authority and request target; the target may be empty.
    pub(crate) fn location(&self) -> (&str, &str) {
        let rest = self.header("location").unwrap().strip_prefix("http://").unwrap();
        rest.split_at(rest.find('/').unwrap_or(rest.len()))
    }

    pub(crate) fn text(&self) -> String {
        text(&self.body)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// The status of a response, even of one that is cut after its status line.
pub(crate) fn response_status(bytes: &[u8]) -> Option<u16> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    let _ = parsed.parse(bytes);
    parsed.code
}

/// Reads until the end of the stream and parses the final response. An incomplete response is an error: nothing at
/// all, part of a head, or a body shorter than announced.
pub(crate) fn read_response(stream: &mut impl Read) -> Result<HttpResponse, String> {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    loop {
        let head = HttpResponse::parse_head(&bytes)?;
        let (mut response, length) = head.ok_or_else(|| format!("no head ({end:?}): {:?}", text(&bytes)))?;
        let mut body = bytes.split_off(length);
        // Interim responses are skipped.
        if (100..200).contains(&response.status) {
            bytes = body;
            continue;
        }
        if response.header("transfer-encoding") == Some("chunked") {
            body = dechunk(&body).ok_or_else(|| format!("incomplete chunks ({end:?})"))?;
        } else if let Some(length) = response.header("content-length").and_then(|l| l.parse::<usize>().ok()) {
            if body.len() < length {
                return Err(format!("{} of {length} bytes ({end:?})", body.len()));
            }
        } else {
            end.map_err(|e| format!("cut: {e}"))?;
        }
        response.body = body;
        return Ok(response);
    }
}

fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Ok(Status::Complete((start, size))) = httparse::parse_chunk_size(bytes) else { return None };
        if size == 0 {
            return Some(body);
        }
        let end = start + usize::try_from(size).ok()?;
        body.extend(bytes.get(start..end)?);
        bytes = bytes.get(end + 2..)?; // behind the CRLF of the chunk
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream
}

/// Connects from another loopback address, which the set counts as another peer.
pub(crate) fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let connecting = async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(to).await?.into_std()
    };
    let stream = runtime.block_on(connecting).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream
}

/// Closes a connection with a reset instead of a FIN (socket(7), `SO_LINGER`).
pub(crate) fn close_with_reset(stream: TcpStream) {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
}

/// Sends these bytes on a new connection and reads one response.
pub(crate) fn send_request(address: SocketAddr, request: &[u8]) -> Result<HttpResponse, String> {
    let mut stream = TcpStream::connect(address).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
    stream.write_all(request).map_err(|e| format!("write: {e}"))?;
    read_response(&mut stream)
}

/// A request head for `address`; `more` are header lines.
pub(crate) fn request_head(method: &str, target: &str, address: SocketAddr, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\n{more}\r\n")
}

/// One request through the set; follows up to ten redirects.
pub(crate) fn request(address: SocketAddr, method: &str, target: &str, body: &[u8]) -> Result<HttpResponse, String> {
    let (mut address, mut target) = (address, target.to_owned());
    for _ in 0..10 {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let mut bytes = request_head(method, &target, address, &length).into_bytes();
        // The dispatcher needs only the head; a 307 keeps method and body.
        if target.starts_with("/.patou/") {
            bytes.extend(body);
        }
        let response = send_request(address, &bytes)?;
        if response.status != 307 || response.header("location").is_none() {
            return Ok(response);
        }
        let (host, path) = response.location();
        (address, target) = (host.parse().map_err(|e| format!("{host}: {e}"))?, path.to_owned());
    }
    Err("too many redirects".into())
}

/// GET through the set.
pub(crate) fn get(address: SocketAddr, target: &str) -> Result<HttpResponse, String> {
    request(address, "GET", target, b"")
}

/// Requests a lease: the worker's address and the target to use there.
pub(crate) fn request_lease(address: SocketAddr, target: &str) -> Result<(SocketAddr, String), HttpResponse> {
    let head = request_head("POST", "/.patou/lease", address, "Content-Length: 0\r\n");
    let response = send_request(address, head.as_bytes()).unwrap();
    if response.status != 200 {
        return Err(response);
    }
    let lease = response.json();
    let token = lease["token"].as_str().unwrap();
    Ok((lease["address"].as_str().unwrap().parse().unwrap(), format!("/.patou/{token}{target}")))
}

/// Requests a lease and sends this request to the worker: `version` is `1.0` or `1.1`, `more` are header lines.
pub(crate) fn send_to_worker(
    address: SocketAddr,
    method: &str,
    target: &str,
    version: &str,
    more: &str,
    body: &[u8],
) -> TcpStream {
    let (worker, target) = request_lease(address, target).unwrap_or_else(|response| panic!("no lease: {response:?}"));
    let mut stream = connect(worker);
    let head = format!("{method} {target} HTTP/{version}\r\nHost: {worker}\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}
