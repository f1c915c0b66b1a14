use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use clap::Parser;

use super::*;
use crate::client::Step;

#[derive(Parser)]
struct CallCommand {
    #[command(flatten)]
    args: CallArgs,
}

fn parse(args: &[&str]) -> Result<CallArgs, clap::Error> {
    CallCommand::try_parse_from([&["call"], args].concat()).map(|command| command.args)
}

/// Dispatcher and worker on one port: responds with a lease, then with `response`; returns the worker's request.
fn serve(listener: TcpListener, response: String) -> thread::JoinHandle<String> {
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let lease =
            format!(r#"{{"worker":"default/1","address":"{address}","token":"{:032x}","expires_ms":1000}}"#, 0xabc);
        let lease = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{lease}", lease.len());
        let mut request = String::new();
        for response in [lease, response] {
            let (mut stream, _) = listener.accept().unwrap();
            request = read_request(&stream);
            stream.write_all(response.as_bytes()).unwrap();
        }
        request
    })
}

fn read_request(stream: &std::net::TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        text.push_str(&line);
        if let Some(bytes) = line.strip_prefix("content-length: ") {
            length = bytes.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    text + &String::from_utf8(body).unwrap()
}

/// A path that no other test process uses.
fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("patou-call-{}-{name}", std::process::id()))
}

/// Calls a server that responds with `response`; the result, the worker's request and the written body.
fn call(args: &[&str], response: &str) -> (Result<(), String>, String, Option<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("http://{}", listener.local_addr().unwrap());
    let output = temporary(&format!("{:?}", thread::current().id()));
    let server = serve(listener, response.to_owned());
    let args = parse(&[args, &["-o", output.to_str().unwrap()]].concat()).unwrap();
    let result = run(&args, || Ok(target.parse().unwrap()));
    let request = server.join().unwrap();
    let body = std::fs::read_to_string(&output).ok();
    let _ = std::fs::remove_file(&output);
    (result, request, body)
}

#[test]
fn call_sends_its_arguments_and_writes_the_response_body() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong";
    let (result, request, body) = call(&["-d", "ping", "-H", "X-Dog: patou", "/a?b=c"], response);
    assert_eq!((result, body.as_deref()), (Ok(()), Some("pong")));
    assert!(request.starts_with("POST /.patou/00000000000000000000000000000abc/a?b=c HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("\r\nx-dog: patou\r\n") && request.ends_with("\r\n\r\nping"), "{request}");
}

#[test]
fn error_status_fails_with_the_detail_of_the_problem() {
    let problem = r#"{"title":"Too large","detail":"no more than 10 bytes"}"#;
    let response = format!(
        "HTTP/1.1 413 Content Too Large\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{problem}",
        problem.len()
    );
    let message = "default/1 responded 413 Payload Too Large: no more than 10 bytes".to_owned();
    let (result, _, body) = call(&[], &response);
    assert_eq!((result, body.as_deref()), (Err(message.clone()), Some(problem)));
    let (result, _, body) = call(&["--fail"], &response);
    assert_eq!((result, body), (Err(message), None));
}

#[test]
fn truncated_response_is_an_error() {
    let (result, _, body) = call(&[], "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npong");
    assert_eq!(body.as_deref(), Some("pong"));
    assert!(result.unwrap_err().starts_with("default/1 may or may not have carried out the request"));
}

#[test]
fn unreachable_dispatcher_is_an_error_with_a_remedy() {
    let target = format!("unix:{}", temporary("no-dispatcher").display());
    let args = parse(&["--target", &target, "--retry", "0s"]).unwrap();
    let message = run(&args, || unreachable!()).unwrap_err();
    assert!(
        message.starts_with(&format!("cannot connect to {target}: ")) && message.contains("patou status"),
        "{message}"
    );
}

#[test]
fn missing_data_file_is_named() {
    let args = parse(&["-d", "@/nowhere/flock", "--target", "http://127.0.0.1:9"]).unwrap();
    let message = run(&args, || unreachable!()).unwrap_err();
    assert!(message.starts_with("/nowhere/flock: "), "{message}");
}

#[test]
fn wrong_arguments_are_usage_errors() {
    for bad in [
        &["path"][..],
        &["/a b"],
        &["-H", "no colon"],
        &["-H", "a b: c"],
        &["-H", "a: \u{1}"],
        &["-X", "GET IT"],
        &["--target", "127.0.0.1:7286"],
        &["--retry", "ten"],
    ] {
        assert_eq!(parse(bad).unwrap_err().kind(), clap::error::ErrorKind::ValueValidation, "{bad:?}");
    }
    assert_eq!(parse(&["//double/slash"]).unwrap().path.path(), "//double/slash");
}

#[test]
fn steps_are_numbered_and_timed() {
    let address: crate::client::Address = "127.0.0.1:7300".parse().unwrap();
    let worker: crate::ids::WorkerId = "default/1".parse().unwrap();
    let steps = [
        (0, Step::Connected { to: "http://127.0.0.1:7286".parse().unwrap() }),
        (40, Step::Requesting),
        (900, Step::Leased { worker: worker.clone(), address: address.clone() }),
        (1100, Step::Sending { address, length: 3 }),
        (1200, Step::Progress { bytes: 1, of: 3 }),
        (1200, Step::Progress { bytes: 3, of: 3 }),
        (12000, Step::Responded { status: http::StatusCode::OK, worker: Some(worker) }),
        (12100, Step::Finished { bytes: 4 }),
    ];
    let mut text = Vec::new();
    for (at, step) in steps {
        write_step(&mut text, Duration::from_micros(at), &step);
    }
    let expected = "  1      +0.0 ms  connected to http://127.0.0.1:7286
         +0.0 ms  requesting a lease
  2      +0.9 ms  the dispatcher offered the request to default/1 (known from the lease)
  3      +0.9 ms  default/1 accepted (known from the lease)
  4      +0.9 ms  leased default/1 at 127.0.0.1:7300
  5      +1.1 ms  sending the request to 127.0.0.1:7300, 3 bytes
         +1.2 ms  3 bytes sent
  6     +12.0 ms  default/1 responds 200 OK
  7     +12.1 ms  finished, 4 bytes read
";
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}
