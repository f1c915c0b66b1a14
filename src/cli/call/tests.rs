use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::thread;

use clap::Parser;

use super::*;
use crate::client::Step;

#[derive(Parser)]
struct Door {
    #[command(flatten)]
    call: Call,
}

fn parse(args: &[&str]) -> Result<Call, clap::Error> {
    Door::try_parse_from([&["call"], args].concat()).map(|door| door.call)
}

/// Dispatcher and worker on one port: a lease for each question, then `answer`; returns what the worker got.
fn serve(listener: TcpListener, answer: String) -> thread::JoinHandle<String> {
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let lease =
            format!(r#"{{"worker":"default/1","address":"{address}","token":"{:032x}","expires_ms":1000}}"#, 0xabc);
        let lease = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{lease}", lease.len());
        let mut got = String::new();
        for answer in [lease, answer] {
            let (mut stream, _) = listener.accept().unwrap();
            got = read_request(&stream);
            stream.write_all(answer.as_bytes()).unwrap();
        }
        got
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

/// A path of its own for this test process.
fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("patou-call-{}-{name}", std::process::id()))
}

fn call(args: &[&str], answer: &str) -> (Result<(), String>, String, Option<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("http://{}", listener.local_addr().unwrap());
    let output = temporary(&format!("{:?}", thread::current().id()));
    let server = serve(listener, answer.to_owned());
    let call = parse(&[args, &["-o", output.to_str().unwrap()]].concat()).unwrap();
    let result = run(&call, || Ok(target.parse().unwrap()));
    let got = server.join().unwrap();
    let body = std::fs::read_to_string(&output).ok();
    let _ = std::fs::remove_file(&output);
    (result, got, body)
}

#[test]
fn a_call_sends_its_arguments_and_writes_the_answer() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npong";
    let (result, got, body) = call(&["-d", "ping", "-H", "X-Dog: patou", "/a?b=c"], answer);
    assert_eq!((result, body.as_deref()), (Ok(()), Some("pong")));
    assert!(got.starts_with("POST /.patou/00000000000000000000000000000abc/a?b=c HTTP/1.1\r\n"), "{got}");
    assert!(got.contains("\r\nx-dog: patou\r\n") && got.ends_with("\r\n\r\nping"), "{got}");
}

#[test]
fn a_refusal_is_an_error_that_names_the_problem() {
    let problem = r#"{"title":"Too large","detail":"no more than 10 bytes"}"#;
    let answer = format!(
        "HTTP/1.1 413 Content Too Large\r\nContent-Type: application/problem+json\r\nContent-Length: {}\r\n\r\n{problem}",
        problem.len()
    );
    let message = "default/1 answered 413 Payload Too Large: no more than 10 bytes".to_owned();
    let (result, _, body) = call(&[], &answer);
    assert_eq!((result, body.as_deref()), (Err(message.clone()), Some(problem)));
    let (result, _, body) = call(&["--fail"], &answer);
    assert_eq!((result, body), (Err(message), None));
}

#[test]
fn an_answer_cut_short_is_an_error() {
    let (result, _, body) = call(&[], "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npong");
    assert_eq!(body.as_deref(), Some("pong"));
    assert!(result.unwrap_err().starts_with("default/1 may or may not have carried out the request"));
}

#[test]
fn a_dispatcher_that_is_not_there_comes_with_a_remedy() {
    let target = format!("unix:{}", temporary("nobody").display());
    let call = parse(&["--target", &target, "--retry", "0s"]).unwrap();
    let message = run(&call, || unreachable!()).unwrap_err();
    assert!(
        message.starts_with(&format!("cannot connect to {target}: ")) && message.contains("patou status"),
        "{message}"
    );
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let call = parse(&["-d", "@/nowhere/flock", "--target", "http://127.0.0.1:9"]).unwrap();
    let message = run(&call, || unreachable!()).unwrap_err();
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
fn the_steps_are_numbered_and_timed() {
    let address: crate::client::Address = "127.0.0.1:7300".parse().unwrap();
    let worker: crate::ids::WorkerId = "default/1".parse().unwrap();
    let steps = [
        (0, Step::Connected { to: "http://127.0.0.1:7286".parse().unwrap() }),
        (40, Step::Asked),
        (900, Step::Leased { worker: worker.clone(), address: address.clone() }),
        (1100, Step::Sending { address, length: 3 }),
        (1200, Step::Progress { bytes: 1, of: 3 }),
        (1200, Step::Progress { bytes: 3, of: 3 }),
        (12000, Step::Answered { status: http::StatusCode::OK, worker: Some(worker) }),
        (12100, Step::Finished { bytes: 4 }),
    ];
    let mut text = Vec::new();
    for (at, step) in steps {
        narration::tell(&mut text, Duration::from_micros(at), &step);
    }
    let expected = "  1      +0.0 ms  connected to http://127.0.0.1:7286
         +0.0 ms  asking for a lease
  2      +0.9 ms  the dispatcher asked default/1 (known from its answer)
  3      +0.9 ms  default/1 accepted (known from the same answer)
  4      +0.9 ms  leased default/1 at 127.0.0.1:7300
  5      +1.1 ms  sending the request to 127.0.0.1:7300, 3 bytes
         +1.2 ms  3 bytes sent
  6     +12.0 ms  default/1 answers 200 OK
  7     +12.1 ms  finished, 4 bytes read
";
    assert_eq!(String::from_utf8(text).unwrap(), expected);
}
