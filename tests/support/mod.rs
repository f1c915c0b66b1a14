//! A set under test: the real binary, a private runtime directory, ports that the kernel chooses. Knows only
//! the binary, its configuration and the public protocols.

#![allow(dead_code)] // each test file uses its own part

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a test waits for an event before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The binary under test.
pub const PATOU: &str = env!("CARGO_BIN_EXE_patou");

/// One echo pool of two workers behind one redirect listener.
pub const ECHO: &str = r#"
[[listener]]
address = "127.0.0.1:0"
pool = "default"

[[pool]]
name = "default"
workers = 2
address = "127.0.0.1:0"
"#;

/// A running set. Whatever happens to the test, its processes, segments and files do not outlive it.
pub struct Set {
    name: String,
    top: PathBuf,
    child: Option<Child>,
    /// What the test was told to expect to be left is checked at the end.
    clean: bool,
}

impl Set {
    /// Starts `patou run` on this configuration, without `[set]`, and waits until every part is up.
    pub fn start(toml: &str) -> Self {
        let mut set = Self::prepare(toml);
        set.run();
        set.wait_until_up();
        set
    }

    /// Writes the configuration without starting anything.
    pub fn prepare(toml: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let top = std::env::temp_dir().join(format!("patou-{name}"));
        fs::create_dir_all(&top).unwrap();
        let set = Self { name, top, child: None, clean: false };
        set.configure(toml);
        set
    }

    /// Replaces the configuration file.
    pub fn configure(&self, toml: &str) {
        let head = format!("[set]\nname = \"{}\"\nruntime_dir = \"{}\"\n", self.name, self.dir().display());
        fs::write(self.file(), head + toml).unwrap();
    }

    /// Starts `patou run`.
    pub fn run(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.top.join("log")).unwrap();
        let child = self.command(&["run"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }

    /// A patou command for this set.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PATOU);
        command.args(args).arg("--config").arg(self.file()).stdin(Stdio::null());
        command.env_remove("PATOU_CONFIG");
        if std::env::var_os("PATOU_LOG").is_none() {
            command.env("PATOU_LOG", "debug");
        }
        command
    }

    /// Runs a patou command to its end.
    pub fn patou(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub fn wait_until_up(&self) {
        let output = self.patou(&["status", "--wait", "20s"]);
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), self.log());
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The runtime directory.
    pub fn dir(&self) -> PathBuf {
        self.top.join("run")
    }

    /// A directory for the test's own files.
    pub fn top(&self) -> &Path {
        &self.top
    }

    /// The configuration file.
    pub fn file(&self) -> PathBuf {
        self.top.join("patou.toml")
    }

    /// Everything that was logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.top.join("log")).unwrap_or_default()
    }

    /// The pid of `patou run`.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The address of listener `index`, counted from 0.
    pub fn address(&self, index: usize) -> SocketAddr {
        self.status()["listeners"][index].as_str().unwrap().parse().unwrap()
    }

    /// `patou status --json`.
    pub fn status(&self) -> Value {
        let output = self.patou(&["status", "--json"]);
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// One worker in the status, `pool/number`.
    pub fn worker(&self, id: &str) -> Value {
        worker_of(&self.status(), id)
    }

    pub fn worker_pid(&self, id: &str) -> u32 {
        self.worker(id)["pid"].as_u64().unwrap() as u32
    }

    pub fn dispatcher_pid(&self) -> u32 {
        self.status()["dispatcher"]["pid"].as_u64().unwrap() as u32
    }

    /// Waits until the status is as wanted, and returns it.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let output = self.patou(&["status", "--json"]);
            if let Ok(status) = serde_json::from_slice::<Value>(&output.stdout)
                && wanted(&status)
            {
                return status;
            }
            assert!(Instant::now() < give_up, "{what} did not happen\n{}\n{}", text(&output.stdout), self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the log has a line with all these words.
    pub fn wait_for_log(&self, words: &[&str]) -> String {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < give_up, "the log has no line with {words:?}\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to `patou run`.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        signal_to(self.pid(), signal);
    }

    /// Waits for `patou run` to end; its exit code.
    pub fn wait_for_end(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("it runs");
        let give_up = Instant::now() + PATIENCE * 2;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > give_up {
                let _ = child.kill();
                panic!("patou run did not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops the set with SIGTERM and checks that nothing is left.
    pub fn stop(mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(self.wait_for_end(), Some(0), "{}", self.log());
        self.assert_nothing_left();
        self.clean = true;
    }

    /// No process, segment, FIFO or socket of this set.
    pub fn assert_nothing_left(&self) {
        assert!(self.processes().is_empty(), "processes left: {:?}\n{}", self.processes(), self.log());
        assert!(self.segments().is_empty(), "segments left: {:?}\n{}", self.segments(), self.log());
        let dir = self.dir();
        let left: Vec<_> =
            fs::read_dir(&dir).map(|dir| dir.flatten().map(|e| e.file_name()).collect()).unwrap_or_default();
        assert!(!dir.exists(), "{} is left with {left:?}\n{}", dir.display(), self.log());
    }

    /// The pids of all processes that were started for this set.
    pub fn processes(&self) -> Vec<u32> {
        let mark = self.dir().join("applied.toml").into_os_string().into_encoded_bytes();
        let file = self.file().into_os_string().into_encoded_bytes();
        let mine = |pid: u32| {
            let read = |what| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let has = |bytes: Vec<u8>, word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
            has(read("environ"), &mark) || has(read("cmdline"), &file)
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| mine(*pid)).collect()
    }

    /// The names of this set's segments.
    pub fn segments(&self) -> Vec<String> {
        let mark = format!(".{}.", self.name);
        let names = fs::read_dir("/dev/shm").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok());
        names.filter(|name| name.starts_with("patou.") && name.contains(&mark)).collect()
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        if !self.clean {
            if let Some(mut child) = self.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            for pid in self.processes() {
                signal_to(pid, nix::sys::signal::Signal::SIGKILL);
            }
            for segment in self.segments() {
                let _ = fs::remove_file(Path::new("/dev/shm").join(segment));
            }
            if std::thread::panicking() {
                eprintln!("the log of set {}:\n{}", self.name, self.log());
            }
        }
        let _ = fs::remove_dir_all(&self.top);
    }
}

pub fn signal_to(pid: u32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), signal);
}

pub fn worker_of(status: &Value, id: &str) -> Value {
    let pools = status["pools"].as_array().into_iter().flatten();
    let mut workers = pools.flat_map(|pool| pool["workers"].as_array().into_iter().flatten());
    workers.find(|worker| worker["id"] == id).cloned().unwrap_or(Value::Null)
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header; names are compared in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.trim())
    }

    pub fn text(&self) -> String {
        text(&self.body)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Reads everything until the other side closes, and takes it apart. An error if there is no whole answer:
/// nothing at all, half a head, or fewer bytes than announced.
pub fn read_answer(stream: &mut impl Read) -> Result<Answer, String> {
    let mut bytes = Vec::new();
    let ended = stream.read_to_end(&mut bytes);
    // Interim responses are no answers.
    loop {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n");
        let end = end.ok_or_else(|| format!("no head ({ended:?}): {:?}", text(&bytes)))?;
        let head = text(&bytes[..end]);
        let mut body = bytes.split_off(end + 4);
        let status: u16 = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(format!("no status: {head}"))?;
        if (100..200).contains(&status) {
            bytes = body;
            continue;
        }
        let mut answer = Answer { status, head, body: Vec::new() };
        if answer.header("transfer-encoding") == Some("chunked") {
            body = dechunk(&body).ok_or_else(|| format!("chunks cut ({ended:?})"))?;
        } else if let Some(length) = answer.header("content-length").and_then(|l| l.parse::<usize>().ok()) {
            if body.len() < length {
                return Err(format!("{} of {length} bytes ({ended:?})", body.len()));
            }
        } else {
            ended.map_err(|e| format!("cut: {e}"))?;
        }
        answer.body = body;
        return Ok(answer);
    }
}

fn dechunk(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = bytes.windows(2).position(|w| w == b"\r\n")?;
        let size = usize::from_str_radix(text(&bytes[..end]).split(';').next()?.trim(), 16).ok()?;
        bytes = &bytes[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend(bytes.get(..size)?);
        bytes = bytes.get(size + 2..)?;
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes and reads one answer.
pub fn exchange(address: SocketAddr, request: &[u8]) -> Result<Answer, String> {
    let mut stream = TcpStream::connect(address).map_err(|e| format!("connect: {e}"))?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request).map_err(|e| format!("write: {e}"))?;
    read_answer(&mut stream)
}

/// A request head for `address`.
pub fn head(method: &str, target: &str, address: SocketAddr, more: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\n{more}\r\n")
}

/// One request through the set, following redirects with the whole request each time (at most ten).
pub fn request(address: SocketAddr, method: &str, target: &str, body: &[u8]) -> Result<Answer, String> {
    let (mut address, mut target) = (address, target.to_owned());
    for _ in 0..10 {
        let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let mut bytes = head(method, &target, address, &length).into_bytes();
        // To a dispatcher the head is enough; 307 keeps method and body.
        if target.starts_with("/.patou/") {
            bytes.extend(body);
        }
        let answer = exchange(address, &bytes)?;
        match (answer.status, answer.header("location")) {
            (307, Some(location)) => {
                let rest = location.strip_prefix("http://").unwrap();
                let (host, path) = rest.split_at(rest.find('/').unwrap());
                (address, target) = (host.parse().map_err(|e| format!("{host}: {e}"))?, path.to_owned());
            }
            _ => return Ok(answer),
        }
    }
    Err("too many redirects".into())
}

/// GET through the set.
pub fn get(address: SocketAddr, target: &str) -> Result<Answer, String> {
    request(address, "GET", target, b"")
}

/// Asks for a lease: the worker's address and the target to use there.
pub fn lease(address: SocketAddr, target: &str) -> Result<(SocketAddr, String), Answer> {
    let answer = exchange(address, head("POST", "/.patou/lease", address, "Content-Length: 0\r\n").as_bytes()).unwrap();
    if answer.status != 200 {
        return Err(answer);
    }
    let lease = answer.json();
    let token = lease["token"].as_str().unwrap();
    Ok((lease["address"].as_str().unwrap().parse().unwrap(), format!("/.patou/{token}{target}")))
}

/// One pool behind one redirect listener whose requests last until [`open_gate`]; a request for `/fast` does
/// not. `pool` is added to the pool, `more` to the file.
pub fn gated(set: &Set, workers: u16, pool: &str, more: &str) -> String {
    let top = set.top().display();
    let script = r#"case "$PATH_INFO" in /fast) ;; *) : >"$TOP/started${PATH_INFO#/}"; while ! [ -e "$TOP/gate" ]; do sleep 0.02; done;; esac; printf 'Content-Type: text/plain\r\n\r\ndone %s\n' "$WORD""#;
    format!(
        "{more}\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\n[[pool]]\nname = \"default\"\n\
         workers = {workers}\naddress = \"127.0.0.1:0\"\nenvironment = {{ TOP = \"{top}\", WORD = \"well\" }}\n\
         handler = {{ exec = [\"/bin/sh\", \"-c\", '''{script}'''] }}\n{pool}\n"
    )
}

/// Lets the gated requests end.
pub fn open_gate(set: &Set) {
    fs::write(set.top().join("gate"), "").unwrap();
}

/// Starts a gated request and waits until its handler runs.
pub fn start_gated(set: &Set, name: &str) -> std::thread::JoinHandle<Result<Answer, String>> {
    let (address, target) = (set.address(0), format!("/.{name}"));
    let client = std::thread::spawn(move || get(address, &target));
    let started = set.top().join(format!("started.{name}"));
    wait_until(&format!("request {name} starts"), || started.exists());
    client
}

/// Waits until something is so.
pub fn wait_until(what: &str, so: impl Fn() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < give_up, "{what}: it did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Clients that ask again and again, from several threads, until they are stopped. What was certainly not
/// started they ask again, as any client may.
pub struct Load {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    served: std::sync::Arc<AtomicU32>,
    clients: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    pub fn start(address: SocketAddr, target: &'static str, threads: usize) -> Self {
        let (stop, served) = Default::default();
        let load = Self { stop, served, clients: Vec::new() };
        let client = |_| {
            let (stop, served) = (load.stop.clone(), load.served.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match persistent_get(address, target) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(failure) => failures.push(failure),
                    }
                }
                failures
            })
        };
        let clients = (0..threads).map(client).collect();
        Self { clients, ..load }
    }

    pub fn served(&self) -> u32 {
        self.served.load(Ordering::Relaxed)
    }

    /// Waits until so many more have been served.
    pub fn wait_for(&self, more: u32) {
        let until = self.served() + more;
        wait_until("the clients are served", || self.served() >= until);
    }

    /// Ends it; every request that failed.
    pub fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    }
}

fn persistent_get(first: SocketAddr, target: &str) -> Result<(), String> {
    let (mut address, mut path) = (first, target.to_owned());
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        match exchange(address, head("GET", &path, address, "").as_bytes()) {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) if answer.status == 307 => {
                let location = answer.header("location").unwrap().strip_prefix("http://").unwrap().to_owned();
                let (host, rest) = location.split_at(location.find('/').unwrap());
                (address, path) = (host.parse().map_err(|e| format!("{host}: {e}"))?, rest.to_owned());
            }
            Ok(answer) if answer.status == 503 && answer.header("patou-outcome") == Some("not-started") => {
                (address, path) = (first, target.to_owned());
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(answer) => return Err(format!("from {address}: {answer:?}")),
            // A dispatcher that closes without a byte has started nothing.
            Err(error) if address == first && error.contains(": \"\"") => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(format!("from {address}{path}: {error}")),
        }
    }
    Err(format!("not served within {PATIENCE:?}"))
}

/// One redirect listener before a pool `default` with this handler; `more` goes on within the pool.
pub fn one_pool(workers: u16, handler: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\n[[pool]]\nname = \"default\"\n\
         workers = {workers}\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n{more}\n"
    )
}

/// A TOML array of these words, each as it stands.
pub fn words(words: &[&str]) -> String {
    serde_json::to_string(words).unwrap()
}

/// Whether a program is there. Says so loudly when it is not; in CI nothing may be missing.
pub fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok();
    assert!(found || std::env::var("CI").as_deref() != Ok("true"), "{program} is not on this machine");
    if !found {
        // Not by a macro, which the harness would keep to itself.
        let test = std::thread::current().name().unwrap_or("?").to_owned();
        let _ = writeln!(std::io::stderr(), "{test}: SKIPPED, there is no {program} on this machine");
    }
    found
}

/// An example of this crate. `cargo test --test NAME` builds no examples: so it is done here, once.
pub fn example(name: &str) -> String {
    static BUILDING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let beside = Path::new(PATOU).parent().unwrap();
    let profile = match beside.file_name().and_then(|name| name.to_str()).unwrap() {
        "debug" => "dev",
        other => other,
    };
    let args = ["build", "--quiet", "--example", name, "--profile", profile, "--target-dir"];
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let mut cargo = Command::new(env!("CARGO"));
    let status = cargo.args(args).arg(beside.parent().unwrap()).arg("--manifest-path").arg(manifest).status();
    assert!(status.unwrap().success(), "the example {name} cannot be built");
    beside.join("examples").join(name).into_os_string().into_string().unwrap()
}

/// Waits until something is as wanted, and returns it.
pub fn wait_some<T>(what: &str, mut wanted: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = wanted() {
            return value;
        }
        assert!(Instant::now() < give_up, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The children of a process that are no zombies.
pub fn children_of(pid: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let parent = |child: u32| {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    pids.filter(|child| parent(*child) == Some(pid) && is_alive(*child)).collect()
}

/// Resident memory of a process in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

/// Takes a lease and sends this request to the worker: `version` is `1.0` or `1.1`, `more` are header lines.
pub fn to_worker(address: SocketAddr, method: &str, target: &str, version: &str, more: &str, body: &[u8]) -> TcpStream {
    let (worker, target) = lease(address, target).unwrap_or_else(|answer| panic!("no lease: {answer:?}"));
    let mut stream = connect(worker);
    let head = format!("{method} {target} HTTP/{version}\r\nHost: {worker}\r\n{more}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    stream
}

/// Connects from another loopback address: to the set it is another peer.
pub fn connect_from(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let connecting = async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind((from, 0).into())?;
        socket.connect(to).await?.into_std()
    };
    let stream = runtime.block_on(connecting).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

impl Set {
    /// Prepares a set whose configuration needs files of its own: `toml` gets the directory for them.
    pub fn start_with(toml: impl FnOnce(&Path) -> String) -> Self {
        let mut set = Self::prepare("");
        set.configure(&toml(&set.top));
        set.run();
        set.wait_until_up();
        set
    }

    /// Waits until a worker says that it is in this state, and returns it.
    pub fn wait_for_worker(&self, id: &str, state: &str) -> Value {
        let what = format!("{id} being {state}");
        worker_of(&self.wait_for(&what, |status| worker_of(status, id)["state"] == state), id)
    }

    /// Starts `patou run` with this log level.
    pub fn run_at(&mut self, level: &str) {
        let log = fs::File::options().create(true).append(true).open(self.top.join("log")).unwrap();
        let mut command = self.command(&["run"]);
        self.child = Some(command.env("PATOU_LOG", level).stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// Starts `patou run` with another level of the log than `debug`.
    pub fn run_logging(&mut self, level: &str) {
        let log = fs::File::options().create(true).append(true).open(self.top.join("log")).unwrap();
        let child = self.command(&["run"]).env("PATOU_LOG", level).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.child = Some(child);
    }
}
