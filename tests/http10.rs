//! HTTP/1.0 clients, as nginx is one by default: where their responses end, and what becomes of them when they go.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use support::*;

/// A set with one worker behind a handoff listener on TCP and one on a Unix socket. `script` writes the response of a
/// program to a head without a length; `$DIR` is the test's directory. `listener` are further keys of the TCP listener.
fn http10_set(script: &str, listener: &str) -> TestSet {
    TestSet::start_with(|dir| {
        let script = format!("DIR={}; printf 'Content-Type: text/plain\\n\\n'; {script}", dir.display());
        let handler = toml_array(&["sh", "-c", &script]);
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\n{listener}\n\
             [[listener]]\naddress = \"unix:{}/web.sock\"\ndelivery = \"handoff\"\n\
             [[pool]]\nname = \"default\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {{ exec = {handler} }}\n",
            dir.display()
        )
    })
}

fn unix(set: &TestSet) -> UnixStream {
    UnixStream::connect(set.test_dir().join("web.sock")).unwrap()
}

fn respond_to(mut stream: impl Read + Write, request: &str) -> HttpResponse {
    stream.write_all(request.as_bytes()).unwrap();
    read_response(&mut stream).unwrap()
}

const PLAIN: &str = "GET / HTTP/1.0\r\n\r\n";

#[test]
fn a_response_without_a_length_gets_one_and_keeps_the_connection() {
    let set = http10_set("echo hello $REQUEST_URI", "");
    for response in [respond_to(connect(set.address(0)), PLAIN), respond_to(unix(&set), PLAIN)] {
        assert_eq!((response.text().as_str(), response.header("content-length")), ("hello /\n", Some("8")));
        assert_eq!(response.header("keep-alive"), None, "{response:?}");
    }
    let mut stream = connect(set.address(0));
    for target in ["/1", "/2", "/3"] {
        let request = format!("GET {target} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        let (head, length) = loop {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            bytes.push(byte[0]);
            if let Some(parsed) = HttpResponse::parse_head(&bytes).unwrap() {
                break parsed;
            }
        };
        assert_eq!(length, bytes.len());
        assert_eq!(head.header("keep-alive"), Some("timeout=75"), "{head:?}");
        let mut body = vec![0; head.header("content-length").unwrap().parse().unwrap()];
        stream.read_exact(&mut body).unwrap();
        assert_eq!(text(&body), format!("hello {target}\n"));
    }
    set.stop();
}

#[test]
fn a_kept_connection_is_told_how_long_it_may_be_idle() {
    let set = http10_set("echo hello", "");
    let response =
        respond_to(connect(set.address(0)), "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    assert_eq!(response.header("keep-alive"), None);
    let mut stream = connect(set.address(0));
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut bytes = [0; 1000];
    let count = stream.read(&mut bytes).unwrap();
    assert!(text(&bytes[..count]).contains("\r\nkeep-alive: timeout=75\r\n"), "{}", text(&bytes[..count]));
    set.stop();
}

#[test]
fn a_long_response_is_streamed_over_tcp_and_ended_on_a_unix_socket() {
    let set = http10_set("echo $$ >$DIR/pid; head -c 3000000 /dev/zero | tr '\\0' x", "");
    let response = respond_to(connect(set.address(0)), PLAIN);
    assert_eq!((response.status, response.header("content-length"), response.body.len()), (200, None, 3_000_000));
    assert!(response.body.iter().all(|byte| *byte == b'x'));
    let response = respond_to(unix(&set), PLAIN);
    assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")), "{response:?}");
    assert!(response.text().contains("`proxy_http_version 1.1`"), "{response:?}");
    let pid: u32 = fs::read_to_string(set.test_dir().join("pid")).unwrap().trim().parse().unwrap();
    assert!(!is_alive(pid), "the program has ended before its client got the response");
    // HEAD has no body, and HTTP/1.1 has chunks.
    assert_eq!(respond_to(unix(&set), "HEAD / HTTP/1.0\r\n\r\n").status, 200);
    let response = respond_to(unix(&set), "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((response.status, response.body.len()), (200, 3_000_000));
    set.stop();
}

#[test]
fn a_response_that_takes_time_arrives_over_time_on_tcp() {
    let set = http10_set("echo first; while ! [ -e $DIR/go ]; do sleep 0.02; done; echo second", "");
    let mut stream = connect(set.address(0));
    stream.write_all(PLAIN.as_bytes()).unwrap();
    let (mut received, mut buffer) = (Vec::new(), [0; 1000]);
    while !text(&received).contains("first\n") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{:?}", text(&received));
        received.extend(&buffer[..count]);
    }
    fs::write(set.test_dir().join("go"), "").unwrap();
    stream.read_to_end(&mut received).unwrap();
    assert!(
        text(&received).ends_with("\r\n\r\nfirst\nsecond\n") && !text(&received).contains("content-length"),
        "{:?}",
        text(&received)
    );
    set.stop();
}

#[test]
fn a_program_that_fails_while_its_response_is_buffered_gets_502() {
    let set = http10_set("echo half; exit 3", "");
    for response in [respond_to(connect(set.address(0)), PLAIN), respond_to(unix(&set), PLAIN)] {
        assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")), "{response:?}");
    }
    set.stop();
}

fn start_endless(set: &TestSet, mut stream: impl Write) -> u32 {
    let file = set.test_dir().join("pid");
    let _ = fs::remove_file(&file);
    stream.write_all(PLAIN.as_bytes()).unwrap();
    wait_for_value("the program runs", || fs::read_to_string(&file).ok()?.strip_suffix('\n')?.parse().ok())
}

#[test]
fn a_proxy_that_closes_its_connection_cancels_its_request() {
    let set = http10_set("echo $$ >$DIR/pid; exec sleep 1000", "trusted_proxies = [\"127.0.0.1\"]");
    let stream = connect(set.address(0));
    let pid = start_endless(&set, &stream);
    drop(stream);
    wait_for_value("the program is killed over TCP", || (!is_alive(pid)).then_some(()));
    let stream = unix(&set);
    let pid = start_endless(&set, &stream);
    drop(stream);
    wait_for_value("the program is killed over a Unix socket", || (!is_alive(pid)).then_some(()));
    // Another client may end its sending direction after its request.
    let from_client: TcpStream = connect_from([127, 0, 0, 2], set.address(0));
    let pid = start_endless(&set, &from_client);
    from_client.shutdown(Shutdown::Write).unwrap();
    std::thread::sleep(Duration::from_millis(300)); // longer than it takes above
    assert!(is_alive(pid));
    close_with_reset(from_client);
    wait_for_value("the program is killed after a reset", || (!is_alive(pid)).then_some(()));
    set.stop();
}
