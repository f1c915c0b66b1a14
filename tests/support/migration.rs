//! The old and the new set-up of a migration, and a client that compares them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::*;

pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn example(path: &str) -> String {
    let file = root().join("examples/migrate").join(path);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Where a service listens.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl Place {
    pub(crate) fn try_send(&self, request: &[u8]) -> Result<Vec<u8>, std::io::Error> {
        fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Result<Vec<u8>, std::io::Error> {
            stream.write_all(request)?;
            let mut response = Vec::new();
            stream.read_to_end(&mut response)?;
            Ok(response)
        }
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(EVENT_TIMEOUT))?;
                exchange(stream, request)
            }
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address)?;
                stream.set_read_timeout(Some(EVENT_TIMEOUT))?;
                exchange(stream, request)
            }
        }
    }

    pub(crate) fn accepts(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Tcp(address) => TcpStream::connect(address).is_ok(),
        }
    }
}

/// A client that keeps its cookies.
pub(crate) struct Browser {
    pub(crate) place: Place,
    pub(crate) cookies: BTreeMap<String, String>,
}

/// What both set-ups must agree on.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<String>,
    pub(crate) body: String,
}

/// The headers that matter to clients. The others describe the connection, the time and the server.
pub(crate) const COMPARED: [&str; 9] = [
    "content-type",
    "content-length",
    "location",
    "set-cookie",
    "vary",
    "allow",
    "cache-control",
    "x-content-type-options",
    "referrer-policy",
];

impl Browser {
    pub(crate) fn new(place: &Place) -> Self {
        Self { place: place.clone(), cookies: BTreeMap::new() }
    }

    pub(crate) fn send(&mut self, method: &str, target: &str, more: &str, body: &[u8]) -> Reply {
        let cookies: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let cookies = if cookies.is_empty() { String::new() } else { format!("Cookie: {}\r\n", cookies.join("; ")) };
        let token = self.cookies.get("csrftoken").map_or(String::new(), |token| format!("X-CSRFToken: {token}\r\n"));
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{cookies}{token}{length}{more}\r\n"
        );
        let received = self.place.try_send(&[head.as_bytes(), body].concat()).unwrap();
        let (mut response, head_length) = HttpResponse::parse_head(&received).unwrap().expect("a whole head");
        if method == "HEAD" {
            response.body = received[head_length..].to_vec();
        } else {
            response = read_response(&mut received.as_slice()).unwrap();
        }
        let mut headers = Vec::new();
        for line in response.head.lines().skip(1) {
            let Some((name, value)) = line.split_once(": ") else { continue };
            let name = name.to_ascii_lowercase();
            if name == "set-cookie" {
                let (pair, attributes) = value.split_once("; ").unwrap_or((value, ""));
                let (cookie, content) = pair.split_once('=').unwrap();
                self.cookies.insert(cookie.to_owned(), content.to_owned());
                // The content is signed together with the time.
                let lasting = attributes.split("; ").filter(|attribute| !attribute.starts_with("expires="));
                headers.push(format!("{name}: {cookie}; {}", lasting.collect::<Vec<_>>().join("; ")));
            } else if COMPARED.contains(&name.as_str()) {
                let mut items: Vec<_> = value.split(", ").collect();
                items.sort_unstable(); // the methods in `Allow` have no order
                headers.push(format!("{name}: {}", items.join(", ")));
            }
        }
        headers.sort();
        Reply { status: response.status, headers, body: response.text() }
    }
}

/// A request, and a part of the body of its response.
pub(crate) type Step<'s> = (&'s str, &'s str, &'s str, &'s [u8], u16, &'s str);

/// Sends the same requests to both, each client with its own session, and compares the responses.
#[track_caller]
pub(crate) fn compare(old: &Place, new: &Place, steps: &[Step<'_>]) {
    compare_replies(old, new, steps, |_, _| ());
}

/// The same for front servers that choose between a length and chunks by what has arrived.
#[track_caller]
pub(crate) fn compare_behind_fronts(old: &Place, new: &Place, steps: &[Step<'_>]) {
    compare_replies(old, new, steps, |before, after| {
        let is_length = |line: &String| line.starts_with("content-length: ");
        if before.headers.iter().any(is_length) != after.headers.iter().any(is_length) {
            before.headers.retain(|line| !is_length(line));
            after.headers.retain(|line| !is_length(line));
        }
    });
}

#[track_caller]
fn compare_replies(old: &Place, new: &Place, steps: &[Step<'_>], prepare: impl Fn(&mut Reply, &mut Reply)) {
    let (mut before, mut after) = (Browser::new(old), Browser::new(new));
    for (method, target, more, body, status, part) in steps {
        let mut expected = before.send(method, target, more, body);
        assert_eq!(expected.status, *status, "{method} {target}: {expected:?}");
        assert!(expected.body.contains(part), "{method} {target}: {expected:?}");
        if *method == "HEAD" {
            expected.body.clear(); // gunicorn sends a body that Django has not removed, and patou does not
        }
        let mut reply = after.send(method, target, more, body);
        prepare(&mut expected, &mut reply);
        assert_eq!(reply, expected, "{method} {target}");
    }
}

/// The old service: the command of a unit, or of another program that starts it.
pub(crate) struct OldService {
    pub(crate) process: Child,
    pub(crate) place: Place,
}

impl OldService {
    pub(crate) fn start(command: &mut Command, place: Place) -> Self {
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let process = process.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        wait_until("the old service accepts", || place.accepts());
        Self { process, place }
    }

    /// The command in a unit file, with other values in the place of some.
    pub(crate) fn of_unit(unit: &str, directory: &Path, place: Place, replaced: &[(&str, &str)]) -> Self {
        let unit = replaced.iter().fold(unit.to_owned(), |unit, (old, new)| {
            assert!(unit.contains(old), "{old}");
            unit.replace(old, new)
        });
        let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key));
        let mut words = value("ExecStart=").unwrap().split(' ');
        let mut command = Command::new(words.next().unwrap());
        command.args(words).current_dir(directory);
        if let Some((name, value)) = value("Environment=").and_then(|variable| variable.split_once('=')) {
            command.env(name, value);
        }
        Self::start(&mut command, place)
    }
}

impl Drop for OldService {
    fn drop(&mut self) {
        signal_to(self.process.id(), Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.process.try_wait().unwrap().is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.process.id() as i32), Signal::SIGKILL);
        let _ = self.process.wait();
    }
}

/// A copy of the application of an example, in which Python may leave its files.
pub(crate) fn copy_application(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for file in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
        let copy = to.join(file.file_name().unwrap());
        if file.is_dir() {
            copy_application(&file, &copy);
        } else {
            fs::copy(&file, &copy).unwrap();
        }
    }
}

/// The new configuration of an example, in a set of the test with the application in `app`: `replaced` are its addresses
/// and directories.
pub(crate) fn new_set(migration: &str, replaced: &[(&str, &str)]) -> TestSet {
    let mut set = TestSet::prepare("");
    copy_application(&root().join("examples/migrate").join(migration), &set.test_dir().join("app"));
    let dir = set.test_dir().display().to_string();
    let file = example(&format!("{migration}/patou.toml"));
    let (_, file) = file.split_once("[[listener]]").unwrap();
    let mut file = format!("[[listener]]{file}");
    for (old, new) in replaced {
        assert!(file.contains(old), "{old}");
        file = file.replace(old, &new.replace("DIR", &dir));
    }
    // Four applications start at once, perhaps on a busy machine.
    set.configure(&format!("{file}address = \"127.0.0.1:0\"\n[watchdog]\nstart_timeout = \"60s\"\n"));
    set.run();
    set.wait_until_up();
    set
}

pub(crate) const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
