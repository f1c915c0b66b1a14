//! Request bodies that are stored before a program gets the request.

mod support;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use support::*;

/// A pool of one worker behind a handoff listener.
fn pool(handler: &str, more: &str) -> String {
    one_pool(1, handler, more).replace("pool = \"default\"\n\n", "pool = \"default\"\ndelivery = \"handoff\"\n\n")
}

/// A CGI program that creates the file `started`, and responds with `CONTENT_LENGTH` and the number of bytes.
fn counting(dir: &Path) -> String {
    let script = format!(
        "touch {}/started; n=$(wc -c); printf 'Content-Type: text/plain\\n\\n%s %s' \"${{CONTENT_LENGTH-none}}\" $n",
        dir.display()
    );
    format!("{{ exec = {} }}", toml_array(&["sh", "-c", &script]))
}

fn head(address: SocketAddr, more: &str) -> String {
    request_head("POST", "/", address, &format!("Connection: close\r\n{more}"))
}

const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

/// A request with its body in chunks of 64 KiB.
fn send_chunked(address: SocketAddr, body: &[u8]) -> HttpResponse {
    let mut stream = start_chunked(address, body);
    stream.write_all(b"0\r\n\r\n").unwrap();
    read_response(&mut stream).unwrap()
}

/// The same without its end.
fn start_chunked(address: SocketAddr, body: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    stream.write_all(head(address, CHUNKED).as_bytes()).unwrap();
    for data in body.chunks(64 << 10) {
        if stream.write_all(&chunk(data)).is_err() {
            break; // there is a response already
        }
    }
    stream
}

/// How many files without a name in `dir` the process holds.
fn unnamed_files(pid: u32, dir: &Path) -> usize {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = links.filter_map(|link| fs::read_link(link.path()).ok());
    targets.filter(|target| target.starts_with(dir) && target.to_string_lossy().ends_with(" (deleted)")).count()
}

#[test]
fn large_body_is_in_a_file_without_a_name_until_its_request_is_done() {
    let mut spool = None;
    let set = TestSet::start_with(|dir| {
        let spool = spool.insert(dir.join("spool"));
        fs::create_dir(&spool).unwrap();
        pool(&counting(dir), &format!("spool_dir = {:?}", spool.display().to_string()))
    });
    let (spool, started) = (spool.unwrap(), set.test_dir().join("started"));
    let (address, worker) = (set.address(0), set.worker_pid("default/1"));
    let body = vec![b'x'; 5 << 20];
    let mut stream = start_chunked(address, &body);
    wait_until("the body is in a file", || unnamed_files(worker, &spool) == 1);
    assert_eq!(fs::read_dir(&spool).unwrap().count(), 0);
    assert!(!started.exists(), "the program has started before the end of its body");
    stream.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(read_response(&mut stream).unwrap().text(), format!("{0} {0}", body.len()));
    assert!(started.exists());
    wait_until("the file is closed", || unnamed_files(worker, &spool) == 0);

    // A client that goes away leaves nothing either.
    fs::remove_file(&started).unwrap();
    let stream = start_chunked(address, &body);
    wait_until("the body is in a file", || unnamed_files(worker, &spool) == 1);
    close_with_reset(stream);
    wait_until("the file is closed", || unnamed_files(worker, &spool) == 0);
    assert_eq!(send_chunked(address, b"").text(), "0 0");
    assert_eq!(send_chunked(address, b"small").text(), "5 5");
    set.stop();
}

#[test]
fn request_that_fails_before_its_body_is_stored_has_not_started() {
    let keys = "spool_max = \"100K\"\nrequest_timeout = \"1s\"";
    let set = TestSet::start_with(|dir| pool(&counting(dir), &format!("{keys}\n[front]\nbody_timeout = \"300ms\"")));
    let (address, started) = (set.address(0), set.test_dir().join("started"));
    let assert_not_started = |response: HttpResponse, status: u16, reason: &str| {
        let outcome = response.header("patou-outcome");
        assert_eq!((response.status, outcome), (status, Some("not-started")), "{response:?}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        assert!(response.text().contains(reason), "{}", response.text());
        assert!(!started.exists());
    };
    assert_not_started(send_chunked(address, &vec![0; 300_000]), 413, "larger than spool_max, 102400 bytes");
    // Silence, and then a body that grows steadily and never ends.
    let mut silent = start_chunked(address, b"part");
    assert_not_started(read_response(&mut silent).unwrap(), 408, "body_timeout");
    let mut slow = start_chunked(address, b"part");
    let mut writer = slow.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        while writer.write_all(&chunk(b"x")).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    assert_not_started(read_response(&mut slow).unwrap(), 408, "request_timeout");
    drop(slow);
    writing.join().unwrap();
    assert_eq!(send_chunked(address, &[0; 102_400]).text(), "102400 102400");
    set.stop();
}

#[test]
fn full_directory_is_a_507_and_the_worker_goes_on() {
    let mut set = TestSet::prepare("");
    let spool = set.test_dir().join("spool");
    fs::create_dir(&spool).unwrap();
    let path = spool.display().to_string();
    set.configure(&pool(&counting(set.test_dir()), &format!("spool_dir = {path:?}")));
    // A file system of 4 MiB that only this set has.
    let mount = format!("mount -t tmpfs -o size=4m spool {path} && exec \"$@\"");
    let namespace: &[&str] = if nix::unistd::geteuid().is_root() {
        &["unshare", "--mount"]
    } else {
        &["unshare", "--user", "--map-current-user", "--keep-caps", "--mount"]
    };
    if !Command::new(namespace[0]).args(&namespace[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        is_installed("unshare with the right to mount"); // which it is not, and this says so
        return;
    }
    set.run_through(&[namespace, &["sh", "-c", &mount, "sh"]].concat());
    set.wait_until_up();
    let (address, started) = (set.address(0), set.test_dir().join("started"));
    for _ in 0..3 {
        let response = send_chunked(address, &vec![0; 8 << 20]);
        let outcome = response.header("patou-outcome");
        assert_eq!((response.status, outcome), (507, Some("not-started")), "{response:?}\n{}", set.log());
        assert!(response.text().contains("spool_dir") && !started.exists(), "{}", response.text());
        assert_eq!(send_chunked(address, &vec![0; 3 << 20]).text(), format!("{0} {0}", 3 << 20));
        fs::remove_file(&started).unwrap();
    }
    set.stop();
}

#[test]
fn pool_that_stores_every_body_starts_its_program_afterwards() {
    let set = TestSet::start_with(|dir| pool(&counting(dir), "request_body = \"spool\""));
    let (address, started) = (set.address(0), set.test_dir().join("started"));
    let mut slow = connect(address);
    slow.write_all((head(address, "Content-Length: 8\r\n") + "half").as_bytes()).unwrap();
    set.wait_for_worker("default/1", "busy");
    assert!(!started.exists());
    slow.write_all(b"half").unwrap();
    assert_eq!(read_response(&mut slow).unwrap().text(), "8 8");
    let expecting = head(address, "Content-Length: 4\r\nExpect: 100-continue\r\n") + "body";
    assert_eq!(send_request(address, expecting.as_bytes()).unwrap().text(), "4 4");
    let get = request_head("GET", "/", address, "Connection: close\r\n");
    assert_eq!(send_request(address, get.as_bytes()).unwrap().text(), "none 0");
    let large = head(address, "Content-Length: 67108865\r\n");
    let response = send_request(address, large.as_bytes()).unwrap();
    assert_eq!((response.status, response.header("patou-outcome")), (413, Some("not-started")));
    set.stop();
}

/// The server gets a length, and does not wait for the client.
#[test]
fn http_server_gets_a_stored_body_with_its_length() {
    if !is_installed("python3") {
        return;
    }
    let server = "import http.server, os, socketserver\n\
        class Handler(http.server.BaseHTTPRequestHandler):\n\
        \x20   protocol_version = 'HTTP/1.1'\n\
        \x20   def address_string(self): return 'patou'\n\
        \x20   def do_POST(self):\n\
        \x20       got = len(self.rfile.read(int(self.headers['Content-Length'])))\n\
        \x20       text = f\"{got} {self.headers['Transfer-Encoding']} {self.headers['Expect']}\".encode()\n\
        \x20       self.send_response(200)\n\
        \x20       self.send_header('Content-Length', str(len(text)))\n\
        \x20       self.end_headers()\n\
        \x20       self.wfile.write(text)\n\
        socketserver.UnixStreamServer(os.environ['PATOU_SOCKET'], Handler).serve_forever()\n";
    let command = toml_array(&["python3", "-c", server, "{socket}"]);
    let set = TestSet::start(&pool(&format!("{{ http = {command} }}"), "request_body = \"spool\""));
    let address = set.address(0);
    for size in [0, 5, 3 << 20] {
        let (body, expected) = (vec![b'x'; size], format!("{size} None None"));
        // An empty chunked body is not stored.
        if size > 0 {
            assert_eq!(send_chunked(address, &body).text(), expected);
        }
        let mut bytes = head(address, &format!("Content-Length: {size}\r\nExpect: 100-continue\r\n")).into_bytes();
        bytes.extend(body);
        let response = send_request(address, &bytes).unwrap();
        assert!(response.text().starts_with(&format!("{size} None ")), "{}", response.text());
        assert!(size == 0 || response.text() == expected, "{}", response.text());
    }
    set.stop();
}

#[test]
fn chunked_upload_reaches_php() {
    if !is_installed("php-cgi") {
        return;
    }
    let set = TestSet::start_with(|dir| {
        let script = dir.join("count.php");
        let php = "<?php header('Content-Type: text/plain'); \
            echo $_SERVER['CONTENT_LENGTH'], ' ', strlen(file_get_contents('php://input')), ' ', $_POST['a'] ?? '-';";
        fs::write(&script, php).unwrap();
        let variables =
            format!("{{ REDIRECT_STATUS = \"200\", SCRIPT_FILENAME = {:?} }}", script.display().to_string());
        pool("{ exec = [\"php-cgi\"] }", &format!("environment = {variables}"))
    });
    let address = set.address(0);
    for size in [1, 3 << 20] {
        let response = send_chunked(address, &vec![b'x'; size]);
        assert_eq!((response.status, response.text()), (200, format!("{size} {size} -")), "{}", set.log());
    }
    let form = [head(address, &format!("{CHUNKED}Content-Type: application/x-www-form-urlencoded\r\n")).into_bytes()];
    let form = [form.concat(), chunk(b"a=fo"), chunk(b"rm"), b"0\r\n\r\n".to_vec()].concat();
    assert_eq!(send_request(address, &form).unwrap().text(), "6 6 form");
    set.stop();
}

#[test]
fn check_refuses_these_keys_where_they_have_no_effect() {
    for (handler, more) in [
        ("\"echo\"", "request_body = \"spool\""),
        ("{ program = [\"sh\"] }", "spool_max = \"1M\""),
        ("\"echo\"", "spool_dir = \"/tmp\""),
        ("{ exec = [\"sh\"] }", "spool_dir = \"tmp\""),
        ("{ exec = [\"sh\"] }", "request_body = \"file\""),
    ] {
        let set = TestSet::prepare(&pool(handler, more));
        let output = set.patou(&["check"]);
        let (errors, key) = (text(&output.stderr), more.split(' ').next().unwrap());
        let file = fs::read_to_string(set.config_file()).unwrap();
        let line = file.lines().position(|line| line == more).unwrap() + 1;
        let place = format!("patou.toml:{line}: pool[1].{key}");
        assert!(!output.status.success() && errors.contains(&place), "{handler} {more}: {errors}");
    }
}

#[test]
fn reload_changes_the_bound() {
    let toml = |dir: &Path, max: &str| pool(&counting(dir), &format!("spool_max = {max:?}"));
    let set = TestSet::start_with(|dir| toml(dir, "1K"));
    let address = set.address(0);
    assert_eq!(send_chunked(address, &[0; 2048]).status, 413);
    set.configure(&toml(set.test_dir(), "2K"));
    set.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the larger body is accepted", || send_chunked(address, &[0; 2048]).status == 200);
    set.stop();
}
