//! A request head, as hyper parses it for dispatcher and worker: the dispatcher's checks, the redirect to the worker
//! and back, and the request as a CGI program and a co-process receive it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::ffi::OsStrExt;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::dispatcher::redirect::location;
use crate::ids::Token;
use crate::net::request_head::{BodyFraming, HeadScanner};
use crate::net::{LEASE_PATH, check_request};
use crate::worker::handler::{self, cgi, framing, head};
use crate::worker::lease_url;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response, Uri};
use http_body_util::Empty;
use hyper::rt::ReadBufCursor;
use hyper::server::conn::http1;
use hyper::service::service_fn;

/// A client that has sent its whole request and reads every response.
struct Client(Bytes);

impl hyper::rt::Read for Client {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, mut to: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let fits = to.remaining().min(self.0.len());
        to.put_slice(&self.0.split_to(fits));
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Client {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The head of the request in these bytes.
fn read(bytes: &[u8]) -> Option<Request<()>> {
    let heads = RefCell::new(Vec::new());
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        heads.borrow_mut().push(request.map(drop));
        async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .half_close(true)
        .header_read_timeout(None)
        .max_buf_size(16 * 1024)
        .serve_connection(Client(Bytes::copy_from_slice(bytes)), service);
    let mut connection = pin!(connection);
    let mut task = Context::from_waker(Waker::noop());
    let is_complete = (0..64).any(|_| connection.as_mut().poll(&mut task).is_ready());
    assert!(is_complete, "hyper waits for a client that has sent everything");
    let mut heads = heads.take();
    assert!(heads.len() <= 1, "one connection is one request");
    heads.pop()
}

/// The check before hyper gives the same verdict for reads of any size. Of a head that passes, hyper sees the same body.
fn check_scan(bytes: &[u8], request: Option<&Request<()>>) {
    let verdict = |scanner: &mut HeadScanner, bytes: &[u8]| scanner.scan(bytes).map_err(|problem| problem.status);
    let whole = verdict(&mut HeadScanner::new(16 * 1024), bytes);
    for size in [1, 2, 3, 7] {
        let mut scanner = HeadScanner::new(16 * 1024);
        let reads = (size..bytes.len()).step_by(size).chain([bytes.len()]);
        let found = reads.map(|end| verdict(&mut scanner, &bytes[..end])).find(|found| *found != Ok(None));
        assert_eq!(found.unwrap_or(Ok(None)), whole, "reads of {size} bytes");
    }
    let (Ok(Some(head)), Some(request)) = (whole, request) else { return };
    let header = |name| request.headers().get(name).map(|value| value.to_str().expect("a number or a coding").trim());
    match head.body {
        BodyFraming::Chunked => {
            assert!(header(CONTENT_LENGTH).is_none());
            assert!(header(TRANSFER_ENCODING).is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")));
        }
        BodyFraming::Length(length) => {
            assert!(header(TRANSFER_ENCODING).is_none());
            assert_eq!(header(CONTENT_LENGTH).map_or(Ok(0), str::parse), Ok(length));
        }
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let request = read(bytes);
    check_scan(bytes, request.as_ref());
    let Some(request) = request else { return };
    let named = ["api.example".to_owned()];
    for (allowed, listens_on) in [(&[][..], Some(IpAddr::V4(Ipv4Addr::LOCALHOST))), (&[], None), (&named, None)] {
        match check_request(&request, allowed, listens_on, 100) {
            Ok((host, target)) => {
                let host = host.unwrap_or_else(|| "127.0.0.1".into());
                check_redirect(&request, &host, &target);
            }
            Err(problem) => {
                assert!(problem.status.is_client_error() && !problem.detail.is_empty());
                problem.response();
            }
        }
    }
    check_handler_input(request);
}

/// The `Location` of the worker leads to the worker, and the one back leads to the original target.
fn check_redirect(request: &Request<()>, host: &str, target: &str) {
    if request.uri().path() == LEASE_PATH {
        return;
    }
    let token = Token::new(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
    let Some(to) = location(host, 7300, token, target) else {
        panic!("no location for {host:?} {target:?}");
    };
    let uri = Uri::try_from(to.as_bytes()).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    let authority = uri.authority().map(|authority| authority.as_str());
    assert_eq!(authority, Some(&*format!("{host}:7300")), "{to:?} names another authority");
    let Some((Some(read), rest)) = lease_url::split(request.method(), &uri) else { panic!("{to:?} has no token") };
    assert!(read.matches(token));
    assert_eq!(rest.as_str(), target, "{to:?}");
    let back = lease_url::return_location(host, 7286, Some(&rest)).expect("a location of the dispatcher");
    let uri = Uri::try_from(back.as_bytes()).unwrap_or_else(|error| panic!("{back:?}: {error}"));
    assert_eq!(uri.authority().map(|authority| authority.as_str()), Some(&*format!("{host}:7286")));
    if target != "*" {
        assert_eq!(uri.path_and_query().map(|target| target.as_str()), Some(target));
    }
}

/// The head for a co-process is well formed, and the variables for a CGI program are valid and unique.
fn check_handler_input(request: Request<()>) {
    let parts = request.into_parts().0;
    let context = handler::RequestContext {
        peer: None,
        is_https: false,
        port: None,
        user: None,
        server: None,
        worker: "default-1".parse().unwrap(),
        lease: "3.7".into(),
        body_timeout: Duration::from_secs(1),
        max_body: 0,
    };
    let written = framing::encode_request_head(&parts, &context, 12);
    let lines = written.split(|&byte| byte == b'\n').filter(|line| !line.starts_with(b"\r") && !line.is_empty());
    let fields = head::parse_fields(&written).expect("a well-formed head");
    assert_eq!(lines.count(), fields.len(), "a line is no field: {fields:?}");
    assert_eq!(fields.keys_len(), fields.len(), "a name occurs twice: {fields:?}");
    assert!(fields["lease"] == "3.7" && !fields.contains_key("http-proxy"), "{fields:?}");
    let Ok(variables) = cgi::meta_variables(&parts, &context, Some(12)) else { return };
    let mut names = BTreeSet::new();
    for (name, value) in &variables {
        assert!(!name.contains(['=', '\0']) && !value.as_bytes().contains(&0), "{name}={value:?}");
        assert!(names.insert(name), "{name} twice");
    }
    assert!(!names.contains(&"HTTP_PROXY".to_owned()));
}
