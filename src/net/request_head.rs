//! The check of a request head on its bytes, before hyper parses it. Pure code.
//!
//! hyper accepts what other HTTP servers and proxies read differently: a bare LF as the end of a line, `Content-Length`
//! beside `Transfer-Encoding`. Where two parsers disagree about the end of a request, a client can smuggle a second one
//! past the first of them (RFC 9112, section 11.2). So patou accepts the strict grammar only, and knows itself where the
//! body of each request ends.
//!
//! The bytes are judged one after the other: how they are divided into reads does not matter.

#![forbid(unsafe_code)]

use http::StatusCode;

use super::ProblemResponse;

/// Empty lines that are skipped before the request line (RFC 9112, section 2.2).
const EMPTY_LINES_MAX: u32 = 4;

/// The longest target that hyper accepts, in bytes.
pub(crate) const TARGET_MAX: usize = 65_534;

/// Where the body of a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyFraming {
    /// After so many bytes; 0 without a body.
    Length(u64),
    /// After the last chunk.
    Chunked,
}

/// A head that has passed the check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedHead {
    /// Where the request line starts: after empty lines.
    pub start: usize,
    /// Where the head ends: after its empty line.
    pub end: usize,
    pub body: BodyFraming,
}

/// A rejected head: its status, and the reason.
type HeadFault = (StatusCode, &'static str);

/// Scans a head while it is received.
#[derive(Debug)]
pub(crate) struct HeadScanner {
    /// The longest accepted head, in bytes.
    limit: usize,
    /// How many bytes have been judged.
    judged: usize,
    /// Where the current line starts.
    line: usize,
    start: usize,
    empty_lines: u32,
    /// Set by the request line.
    version: Option<HttpVersion>,
    hosts: u32,
    length: Option<u64>,
    coding: TransferCoding,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HttpVersion {
    Http10,
    Http11,
}

/// The transfer codings of a head, in the order of all its `Transfer-Encoding` lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TransferCoding {
    Absent,
    /// `chunked` and nothing else.
    Chunked,
    /// Other codings, and not `chunked`.
    Other,
    /// Other codings, then `chunked`: a valid request that patou does not implement.
    OtherThenChunked,
    /// `chunked` twice or not last, or not a list of codings.
    Invalid,
}

impl HeadScanner {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            judged: 0,
            line: 0,
            start: 0,
            empty_lines: 0,
            version: None,
            hosts: 0,
            length: None,
            coding: TransferCoding::Absent,
        }
    }

    /// Judges the bytes that are new since the last call. `bytes` are all that were received; `None` while the head is
    /// incomplete.
    ///
    /// # Errors
    /// The response to a rejected head.
    pub(crate) fn scan(&mut self, bytes: &[u8]) -> Result<Option<CheckedHead>, ProblemResponse> {
        self.judge(bytes).map_err(|(status, detail)| ProblemResponse::not_started(status, detail))
    }

    fn judge(&mut self, bytes: &[u8]) -> Result<Option<CheckedHead>, HeadFault> {
        let until = bytes.len().min(self.limit);
        loop {
            self.judged += text_length(&bytes[self.judged..until]);
            let Some(&byte) = bytes[..until].get(self.judged) else { break };
            match (byte, bytes[..until].get(self.judged + 1)) {
                (b'\r', Some(b'\n')) => {
                    let line = &bytes[self.line..self.judged];
                    self.judged += 2;
                    self.line = self.judged;
                    if self.judge_line(line)? {
                        return self.body().map(|body| Some(CheckedHead { start: self.start, end: self.judged, body }));
                    }
                }
                (b'\r', None) => break,
                (b'\r', Some(_)) => return bad("the request head contains a CR that no LF follows"),
                (b'\n', _) => return bad("a line of the request head ends with LF and not with CRLF"),
                _ => return bad("the request head contains a control character"),
            }
        }
        match self.version {
            _ if bytes.len() < self.limit => Ok(None),
            None => Err((StatusCode::URI_TOO_LONG, "the request line is longer than head_bytes")),
            Some(_) => Err((StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "the request head is larger than head_bytes")),
        }
    }

    /// Judges a line without its end. Returns whether it ends the head.
    fn judge_line(&mut self, line: &[u8]) -> Result<bool, HeadFault> {
        match self.version {
            None if line.is_empty() => {
                self.empty_lines += 1;
                self.start = self.judged;
                if self.empty_lines > EMPTY_LINES_MAX {
                    return bad("there are empty lines where a request was expected");
                }
                Ok(false)
            }
            None => {
                self.version = Some(request_line(line)?);
                Ok(false)
            }
            Some(_) if line.is_empty() => Ok(true),
            Some(version) => self.field(version, line).map(|()| false),
        }
    }

    fn field(&mut self, version: HttpVersion, line: &[u8]) -> Result<(), HeadFault> {
        let end = line.iter().position(|byte| !is_token(*byte)).unwrap_or(line.len());
        let (name, value) = match (end, line.get(end)) {
            (1.., Some(b':')) => (&line[..end], &line[end + 1..]),
            (0, Some(b' ' | b'\t')) => return bad("a header line starts with white space: folded lines are obsolete"),
            (_, None) => return bad("a header line has no colon"),
            _ => return bad("the name of a header contains a character that is not valid there"),
        };
        let value = trim(value);
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                self.hosts += 1;
                if self.hosts > 1 {
                    return bad("the request has more than one Host header");
                }
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = content_length(value)?;
                if self.length.replace(length).is_some() {
                    return bad("the request has more than one Content-Length header");
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if version == HttpVersion::Http10 {
                    return bad("Transfer-Encoding is not part of HTTP/1.0");
                }
                self.coding = value.split(|byte| *byte == b',').fold(self.coding, TransferCoding::followed_by);
            }
            _ => {}
        }
        Ok(())
    }

    /// After the last line (RFC 9112, section 6.3).
    fn body(&self) -> Result<BodyFraming, HeadFault> {
        if self.version == Some(HttpVersion::Http11) && self.hosts == 0 {
            return bad("an HTTP/1.1 request needs a Host header");
        }
        match (self.coding, self.length) {
            (TransferCoding::Absent, length) => Ok(BodyFraming::Length(length.unwrap_or(0))),
            (_, Some(_)) => bad("the request has both Content-Length and Transfer-Encoding"),
            (TransferCoding::Chunked, None) => Ok(BodyFraming::Chunked),
            (TransferCoding::OtherThenChunked, None) => {
                Err((StatusCode::NOT_IMPLEMENTED, "the only supported transfer coding is chunked"))
            }
            (TransferCoding::Other | TransferCoding::Invalid, None) => {
                bad("chunked must be the last transfer coding of a request, once")
            }
        }
    }
}

impl TransferCoding {
    fn followed_by(self, coding: &[u8]) -> Self {
        let coding = trim(coding);
        let name = coding.split(|byte| *byte == b';').next().map(trim).unwrap_or_default();
        let is_valid = !name.is_empty() && name.iter().copied().all(is_token);
        // The coding `chunked` has no parameters (RFC 9112, section 7.1).
        let is_chunked = name.eq_ignore_ascii_case(b"chunked");
        match self {
            _ if !is_valid || is_chunked && name.len() < coding.len() => Self::Invalid,
            Self::Absent if is_chunked => Self::Chunked,
            Self::Other if is_chunked => Self::OtherThenChunked,
            Self::Absent | Self::Other => Self::Other,
            Self::Chunked | Self::OtherThenChunked | Self::Invalid => Self::Invalid,
        }
    }
}

/// Checks the request line (RFC 9112, section 3).
fn request_line(line: &[u8]) -> Result<HttpVersion, HeadFault> {
    let mut words = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return bad("the request line is not a method, a target and a version, separated by single spaces");
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return bad("the method contains a character that is not valid there");
    }
    let version = match version {
        b"HTTP/1.1" => HttpVersion::Http11,
        b"HTTP/1.0" => HttpVersion::Http10,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err((StatusCode::HTTP_VERSION_NOT_SUPPORTED, "this server speaks HTTP/1.1 and HTTP/1.0"));
        }
        _ => return bad("the version in the request line is not an HTTP version"),
    };
    if target.len() > TARGET_MAX {
        return Err((StatusCode::URI_TOO_LONG, "the target of the request is too long"));
    }
    let has_scheme = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    match target {
        _ if method == b"CONNECT" => Err((StatusCode::NOT_IMPLEMENTED, "this server opens no tunnels (CONNECT)")),
        b"*" if method == b"OPTIONS" => Ok(version),
        b"*" => bad("the target * is valid for OPTIONS only"),
        [b'/', ..] => Ok(version),
        _ if has_scheme(b"http://") || has_scheme(b"https://") => Ok(version),
        _ => bad("the target is neither a path nor a URI with http: or https:"),
    }
}

/// One number in decimal digits (RFC 9110, section 8.6).
fn content_length(value: &[u8]) -> Result<u64, HeadFault> {
    let digits = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match digits.and_then(|digits| digits.parse().ok()) {
        // hyper uses the two numbers above for other purposes.
        Some(length) if length <= u64::MAX - 2 => Ok(length),
        _ => bad("the Content-Length is not a number, or too large"),
    }
}

fn bad<T>(detail: &'static str) -> Result<T, HeadFault> {
    Err((StatusCode::BAD_REQUEST, detail))
}

/// Without white space at both ends.
fn trim(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = text.iter().position(|byte| !is_space(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !is_space(byte)).map_or(start, |last| last + 1);
    &text[start..end]
}

/// The length of the text before the first other byte.
fn text_length(bytes: &[u8]) -> usize {
    // In blocks, which the compiler turns into vector instructions.
    let is_all_text = |block: &&[u8; 16]| block.iter().fold(true, |all, byte| all & is_text(*byte));
    let start = bytes.as_chunks().0.iter().take_while(is_all_text).count() * 16;
    start + bytes[start..].iter().take_while(|byte| is_text(**byte)).count()
}

/// Whether the byte is valid within a line: no control character but the tabulator.
pub(super) fn is_text(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}

/// Whether the byte is valid in a name (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

const TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        token[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let (others, mut i) = (b"!#$%&'*+-.^_`|~", 0);
    while i < others.len() {
        token[others[i] as usize] = true;
        i += 1;
    }
    token
};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 200;

    /// The status of a rejection, or the head.
    fn scan(bytes: &[u8]) -> Result<Option<CheckedHead>, u16> {
        HeadScanner::new(LIMIT).scan(bytes).map_err(|problem| problem.status.as_u16())
    }

    /// What a head of these lines is: its body, or the status of its rejection.
    fn of(lines: &str) -> Result<BodyFraming, u16> {
        let head = lines.replace('\n', "\r\n") + "\r\n\r\n";
        let checked = scan(head.as_bytes())?.expect("a complete head");
        assert_eq!((checked.start, checked.end), (0, head.len()), "{lines}");
        Ok(checked.body)
    }

    #[test]
    fn valid_heads_have_a_known_body() {
        let none = Ok(BodyFraming::Length(0));
        assert_eq!(of("GET / HTTP/1.1\nHost: a"), none);
        assert_eq!(of("GET / HTTP/1.0"), none);
        assert_eq!(of("OPTIONS * HTTP/1.1\nHost:"), none);
        assert_eq!(of("GET HTTP://a/ HTTP/1.1\nhOST:a\nX:\t\u{e9} y "), none);
        assert_eq!(of("PUT / HTTP/1.1\nHost: a\nContent-Length: \t007 "), Ok(BodyFraming::Length(7)));
        assert_eq!(of("PUT / HTTP/1.1\nHost: a\nTransfer-Encoding:  CHUNKED\t"), Ok(BodyFraming::Chunked));
        let lines = b"\r\n\r\nGET / HTTP/1.0\r\n\r\nGET ";
        assert_eq!(scan(lines), Ok(Some(CheckedHead { start: 4, end: 22, body: BodyFraming::Length(0) })));
    }

    #[test]
    fn malformed_request_lines_are_rejected() {
        for line in [
            "GET",
            "GET /",
            "GET  / HTTP/1.1",
            "GET / HTTP/1.1 ",
            " GET / HTTP/1.1",
            "GET\t/\tHTTP/1.1",
            "G(T / HTTP/1.1",
            "GET foo HTTP/1.1",
            "GET * HTTP/1.1",
            "GET ftp://a/ HTTP/1.1",
            "GET http:/a HTTP/1.1",
            "GET / http/1.1",
            "GET / HTTP/1.1x",
            "GET / HTTP/11",
            "GET / HTTP/x.1",
            "GET /a b HTTP/1.1",
            "GET ?a HTTP/1.1",
            "GET a:80 HTTP/1.1",
        ] {
            assert_eq!(of(&format!("{line}\nHost: a")), Err(400), "{line}");
        }
        for line in ["GET / HTTP/2.0", "GET / HTTP/1.2", "GET / HTTP/0.9", "PRI * HTTP/2.0"] {
            assert_eq!(of(&format!("{line}\nHost: a")), Err(505), "{line}");
        }
        assert_eq!(scan(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Err(505));
        assert_eq!(of("CONNECT a:80 HTTP/1.1\nHost: a:80"), Err(501));
    }

    #[test]
    fn malformed_fields_are_rejected() {
        for field in [
            " X: 1",
            "\tX: 1",
            "X",
            "X : 1",
            ": 1",
            "X(: 1",
            "\u{e9}: 1",
            "Host: b",
            "Content-Length: +1",
            "Content-Length: -1",
            "Content-Length: 1 1",
            "Content-Length: 1,1",
            "Content-Length:",
            "Content-Length: 0x1",
            "Content-Length: 18446744073709551615",
            "Content-Length: 99999999999999999999",
            "Content-Length: 1\nContent-Length: 1",
            "Content-Length: 1\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\nContent-Length: 0",
            "Transfer-Encoding:",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: chunked\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\nTransfer-Encoding: gzip",
            "Transfer-Encoding: chunked;a=b",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: chunked,",
            "Transfer-Encoding: \"chunked\"",
            "Transfer-Encoding : chunked",
        ] {
            assert_eq!(of(&format!("PUT / HTTP/1.1\nHost: a\n{field}")), Err(400), "{field}");
        }
        for field in ["gzip, chunked", "gzip\nTransfer-Encoding: chunked", "xchunked ;q=1,\tchunked"] {
            assert_eq!(of(&format!("PUT / HTTP/1.1\nHost: a\nTransfer-Encoding: {field}")), Err(501), "{field}");
        }
        assert_eq!(of("PUT / HTTP/1.0\nTransfer-Encoding: chunked"), Err(400));
        assert_eq!(of("GET / HTTP/1.1"), Err(400), "no Host");
        assert_eq!(of("GET / HTTP/1.0\nHost: a\nHost: a"), Err(400));
    }

    /// A fault is found with its byte: no further byte is waited for.
    #[test]
    fn invalid_bytes_are_rejected_at_once() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\n";
        for tail in ["X: 1\n", "\n", "X: 1\rY", "\r\r", "X: \0", "X: \x7f", "\x16"] {
            assert_eq!(scan((head.to_owned() + tail).as_bytes()), Err(400), "{tail:?}");
            assert_eq!(scan((head.to_owned() + &tail[..tail.len() - 1]).as_bytes()), Ok(None), "{tail:?}");
        }
        for start in ["\n", "\x16\x03\x01", "GET / HTTP/1.1\n", "\r\n\r\n\r\n\r\n\r\n", "\r\nG\n"] {
            assert_eq!(scan(start.as_bytes()), Err(400), "{start:?}");
        }
    }

    #[test]
    fn long_heads_are_rejected_at_the_limit() {
        let with = |length: usize| {
            let start = "GET / HTTP/1.0\r\nX: ";
            start.to_owned() + &"x".repeat(length - start.len() - 4) + "\r\n\r\n"
        };
        assert!(scan(with(LIMIT).as_bytes()).unwrap().is_some());
        assert_eq!(scan(with(LIMIT + 1).as_bytes()), Err(431));
        assert_eq!(scan(&[b'A'; LIMIT]), Err(414));
        assert_eq!(scan(&[b'A'; LIMIT - 1]), Ok(None));
    }

    proptest! {
        #[test]
        fn reads_of_any_size_give_the_same_verdict(
            parts in prop::collection::vec(prop::sample::select(vec![
                "GET / HTTP/1.1", "PUT /a HTTP/1.0", "\r\n", "\r\n", "\r\n", "\n", "\r", "Host: a", "Content-Length: 1",
                "Transfer-Encoding: chunked", "X: 1", " ", "\0", "\r\n\r\n", "PRI * HTTP/2.0",
            ]), 0..14),
            splits in prop::collection::vec(1usize..9, 1..30),
        ) {
            let bytes = parts.concat().into_bytes();
            let whole = scan(&bytes);
            let (mut scanner, mut received, mut sizes) = (HeadScanner::new(LIMIT), 0, splits.iter().cycle());
            let mut verdict = Ok(None);
            while received < bytes.len() && verdict == Ok(None) {
                received = (received + sizes.next().unwrap()).min(bytes.len());
                verdict = scanner.scan(&bytes[..received]).map_err(|problem| problem.status.as_u16());
            }
            prop_assert_eq!(verdict, whole);
        }
    }
}
