//! Pools that run real programs on real input, and co-processes that serve many requests.

mod support;

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use support::*;

/// A one-page PDF with this text, produced by `gs`.
fn pdf(line: &str) -> Vec<u8> {
    let page = format!("/Helvetica findfont 24 scalefont setfont 72 700 moveto ({line}) show showpage");
    let args = ["-q", "-dNOPAUSE", "-dBATCH", "-sDEVICE=pdfwrite", "-sOutputFile=-", "-"];
    run("gs", &args, page.as_bytes())
}

/// The output of a program that the test runs directly.
fn run(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success() && !output.stdout.is_empty(), "{program} {args:?}: {}", output.status);
    output.stdout
}

/// A pool with a program that writes this content type.
fn converter(workers: u16, content_type: &str, command: &str) -> TestSet {
    let script = format!("printf 'Content-Type: {content_type}\\r\\n\\r\\n'; exec {command}");
    TestSet::start(&one_pool(workers, &format!("{{ exec = {} }}", toml_array(&["sh", "-c", &script])), ""))
}

/// Each client sends another document.
#[test]
fn twenty_concurrent_clients_get_the_text_of_their_pdf() {
    if !is_installed("gs") || !is_installed("pdftotext") {
        return;
    }
    let set = converter(4, "text/plain", "pdftotext - -");
    let address = set.address(0);
    std::thread::scope(|scope| {
        for n in 0..20 {
            scope.spawn(move || {
                let pdf = pdf(&format!("This is letter {n}"));
                let response = request(address, "POST", "/text", &pdf).unwrap();
                assert_eq!((response.status, response.header("content-type")), (200, Some("text/plain")));
                assert!(response.text().contains(&format!("This is letter {n}")), "{}", response.text());
                assert!(response.body == run("pdftotext", &["-", "-"], &pdf));
            });
        }
    });
    let status = set.wait_for("all workers are idle", |s| {
        s["pools"][0]["workers"].as_array().unwrap().iter().all(|worker| worker["state"] == "idle")
    });
    let sum = |key: &str| -> u64 {
        status["pools"][0]["workers"].as_array().unwrap().iter().map(|w| w[key].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("served"), sum("failed"), sum("restarts")), (20, 0, 0));
    set.stop();
}

#[test]
fn ghostscript_renders_a_pdf_as_png() {
    if !is_installed("gs") {
        return;
    }
    let args = "-q -dNOPAUSE -dBATCH -dSAFER -sDEVICE=png16m -r72 -sOutputFile=- -";
    let set = converter(1, "image/png", &format!("gs {args}"));
    let pdf = pdf("An image");
    let response = request(set.address(0), "POST", "/", &pdf).unwrap();
    assert_eq!((response.status, response.header("content-type")), (200, Some("image/png")));
    assert!(response.body.starts_with(b"\x89PNG"));
    assert!(response.body == run("gs", &args.split(' ').collect::<Vec<_>>(), &pdf));
    set.stop();
}

#[test]
fn imagemagick_resizes_an_image() {
    const CONVERT: &str = "/usr/bin/convert";
    if !is_installed(CONVERT) {
        return;
    }
    let image = run(CONVERT, &["-size", "400x300", "gradient:red-blue", "ppm:-"], b"");
    let set = converter(2, "image/x-portable-pixmap", &format!("{CONVERT} - -resize 50% ppm:-"));
    let smaller = run(CONVERT, &["-", "-resize", "50%", "ppm:-"], &image);
    let address = set.address(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let response = request(address, "POST", "/", &image).unwrap();
                assert!(response.status == 200 && response.body == smaller, "{}", response.head);
            });
        }
    });
    set.stop();
}

/// The exit status counts even after the program has written its response head.
#[test]
fn program_that_fails_after_its_head_gets_502() {
    let set = converter(1, "text/plain", "false");
    let response = request(set.address(0), "POST", "/", b"this is no PDF").unwrap();
    assert_eq!((response.status, response.header("content-type")), (502, Some("application/problem+json")));
    assert_eq!(response.header("patou-outcome"), Some("started-unknown"));
    assert!(response.text().contains("exited with status 1"), "{}", response.text());
    set.wait_for("the failure is counted", |s| s["pools"][0]["workers"][0]["failed"] == 1);
    set.stop();
}

/// The program rejects the input; the worker stays in service.
#[test]
fn invalid_input_does_not_affect_the_next_client() {
    if !is_installed("pdftotext") || !is_installed("gs") {
        return;
    }
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/pdf-text");
    let set = TestSet::start(&one_pool(1, &format!("{{ exec = {} }}", toml_array(&[program])), ""));
    let address = set.address(0);
    let response = request(address, "POST", "/", b"this is no PDF").unwrap();
    assert_eq!((response.status, response.header("content-type")), (422, Some("text/plain")));
    assert!(response.text().contains("May not be a PDF file"), "{}", response.text());
    assert!(request(address, "POST", "/", &pdf("fine")).unwrap().text().contains("fine"));
    set.stop();
}

/// The example co-process with two more targets: `/hang` never responds, `/pid` returns the pid.
fn coprocess_pool(more: &str) -> TestSet {
    TestSet::start_with(|dir| {
        let script = format!(
            "import os, sys, time\nsys.dont_write_bytecode = True\nsys.path.insert(0, {:?})\nimport coprocess\n\
             read, write = coprocess.read_request, coprocess.write_response\ntarget = None\n\
             def reading(stream):\n    global target\n    request = read(stream)\n\
             \x20   target = request and request[0]['target']\n\
             \x20   if target == '/hang': time.sleep(1000)\n    return request\n\
             def writing(stream, body): write(stream, b'%d' % os.getpid() if target == '/pid' else body)\n\
             coprocess.read_request, coprocess.write_response = reading, writing\ncoprocess.main()\n",
            format!("{}/examples", env!("CARGO_MANIFEST_DIR")),
        );
        fs::write(dir.join("coprocess_with_pid.py"), script).unwrap();
        let file = dir.join("coprocess_with_pid.py").into_os_string().into_string().unwrap();
        one_pool(1, &format!("{{ coprocess = {} }}", toml_array(&["python3", &file])), more)
    })
}

#[test]
fn coprocess_serves_many_requests_and_is_replaced_when_it_dies_or_hangs() {
    if !is_installed("python3") {
        return;
    }
    let set = coprocess_pool("request_timeout = \"5s\"");
    let address = set.address(0);
    let worker = set.wait_for_worker("default/1", "idle");
    let pid = || get(address, "/pid").unwrap().text().parse::<u32>().unwrap();
    let first = pid();
    for n in 2..20 {
        let response = request(address, "POST", "/count", b"twelve bytes").unwrap();
        assert_eq!(response.text(), format!("POST /count: request {n}, 12 bytes\n"));
    }
    assert_eq!(pid(), first);

    // Killed between two requests: the worker starts another co-process before the next request.
    signal_to(first, nix::sys::signal::Signal::SIGKILL);
    let parent = worker["pid"].as_u64().unwrap() as u32;
    let second =
        wait_for_value("another co-process starts", || children_of(parent).into_iter().find(|pid| *pid != first));
    set.wait_for_log(&["the co-process", "SIGKILL", "worker=default/1"]);
    assert_eq!(pid(), second);

    let response = get(address, "/hang").unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (504, Some("started-unknown")));
    assert!(!is_alive(second));
    let third = pid();
    assert!(third != second && third != first);

    // Killed during a request.
    std::thread::scope(|scope| {
        let client = scope.spawn(|| get(address, "/hang").unwrap());
        set.wait_for_worker("default/1", "busy");
        signal_to(third, nix::sys::signal::Signal::SIGKILL);
        let response = client.join().unwrap();
        assert_eq!((response.status, response.header("patou-outcome")), (502, Some("started-unknown")));
    });
    assert_ne!(pid(), third);
    let after = set.wait_for_worker("default/1", "idle");
    for key in ["pid", "epoch", "restarts"] {
        assert_eq!(worker[key], after[key], "{key}");
    }
    assert_eq!(after["failed"], 2);
    set.stop();
}
