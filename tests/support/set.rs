//! A set under test.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{EVENT_TIMEOUT, PATOU, signal_to, text};

/// A running set. Its processes, segments and files do not outlive the test, whether it passes or fails.
pub(crate) struct TestSet {
    name: String,
    dir: PathBuf,
    child: Option<Child>,
    /// The set has stopped and left nothing behind.
    stopped: bool,
}

impl TestSet {
    /// Starts `patou run` on this configuration, without `[set]`, and waits until every part is up.
    pub(crate) fn start(toml: &str) -> Self {
        Self::start_with(|_| toml.to_owned())
    }

    /// Like [`start`](Self::start), for a configuration that needs files: `toml` gets the directory for them.
    pub(crate) fn start_with(toml: impl FnOnce(&Path) -> String) -> Self {
        let mut set = Self::prepare("");
        set.configure(&toml(&set.dir));
        set.run();
        set.wait_until_up();
        set
    }

    /// Writes the configuration without starting anything.
    pub(crate) fn prepare(toml: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("patou-{name}"));
        fs::create_dir_all(&dir).unwrap();
        let set = Self { name, dir, child: None, stopped: false };
        set.configure(toml);
        set
    }

    /// Replaces the configuration file.
    pub(crate) fn configure(&self, toml: &str) {
        let head = format!("[set]\nname = \"{}\"\nruntime_dir = \"{}\"\n", self.name, self.runtime_dir().display());
        fs::write(self.config_file(), head + toml).unwrap();
    }

    /// Starts `patou run`.
    pub(crate) fn run(&mut self) {
        self.spawn(self.command(&["run"]));
    }

    /// Starts `patou run` with this limit of open files, soft and hard.
    pub(crate) fn run_with_open_files(&mut self, limit: u32) {
        let patou = self.command(&["run"]);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {limit} && exec \"$@\""), "sh"]);
        command.arg(patou.get_program()).args(patou.get_args()).stdin(Stdio::null());
        for (name, value) in patou.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        self.spawn(command);
    }

    /// Starts `patou run` with another log level than `debug`.
    pub(crate) fn run_with_log_level(&mut self, level: &str) {
        let mut command = self.command(&["run"]);
        command.env("PATOU_LOG", level);
        self.spawn(command);
    }

    /// Starts `patou run` as the last arguments of another program, which executes it.
    pub(crate) fn run_through(&mut self, launcher: &[&str]) {
        let run = self.command(&["run"]);
        let mut command = Command::new(launcher[0]);
        command.args(&launcher[1..]).arg(run.get_program()).args(run.get_args()).stdin(Stdio::null());
        command.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?)))).env_remove("PATOU_CONFIG");
        self.spawn(command);
    }

    /// Starts a `patou run` that the test has prepared, for instance with another stderr.
    pub(crate) fn run_command(&mut self, command: &mut Command) {
        self.child = Some(command.stdout(Stdio::null()).spawn().unwrap());
    }

    /// Starts a prepared `patou run`, which logs to the file of the set.
    pub(crate) fn spawn(&mut self, mut command: Command) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// A patou command for this set.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PATOU);
        command.args(args).arg("--config").arg(self.config_file()).stdin(Stdio::null());
        command.env_remove("PATOU_CONFIG");
        if std::env::var_os("PATOU_LOG").is_none() {
            command.env("PATOU_LOG", "debug");
        }
        command
    }

    /// Runs a patou command and waits until it exits.
    pub(crate) fn patou(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn wait_until_up(&self) {
        let output = self.patou(&["status", "--wait", "20s"]);
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), self.log());
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// A directory for the files of the test.
    pub(crate) fn test_dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.join("patou.toml")
    }

    /// Everything that the set has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The pid of `patou run`.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// The address of listener `index`, counted from 0.
    pub(crate) fn address(&self, index: usize) -> SocketAddr {
        self.status()["listeners"][index].as_str().unwrap().parse().unwrap()
    }

    /// `patou status --json`.
    pub(crate) fn status(&self) -> Value {
        let output = self.patou(&["status", "--json"]);
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), self.log());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// One worker in the status, `pool/number`.
    pub(crate) fn worker(&self, id: &str) -> Value {
        worker_of(&self.status(), id)
    }

    pub(crate) fn worker_pid(&self, id: &str) -> u32 {
        self.worker(id)["pid"].as_u64().unwrap() as u32
    }

    pub(crate) fn dispatcher_pid(&self) -> u32 {
        self.status()["dispatcher"]["pid"].as_u64().unwrap() as u32
    }

    /// Waits until the status meets the condition, and returns it.
    pub(crate) fn wait_for(&self, event: &str, condition: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + EVENT_TIMEOUT;
        loop {
            let output = self.patou(&["status", "--json"]);
            if let Ok(status) = serde_json::from_slice::<Value>(&output.stdout)
                && condition(&status)
            {
                return status;
            }
            let state = || format!("{}\n{}", text(&output.stdout), self.log());
            assert!(Instant::now() < deadline, "timed out waiting for: {event}\n{}", state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a worker is in this state, and returns it.
    pub(crate) fn wait_for_worker(&self, id: &str, state: &str) -> Value {
        let event = format!("worker {id} is {state}");
        worker_of(&self.wait_for(&event, |status| worker_of(status, id)["state"] == state), id)
    }

    /// Waits until the log has a line that contains all these substrings.
    pub(crate) fn wait_for_log(&self, substrings: &[&str]) -> String {
        let deadline = Instant::now() + EVENT_TIMEOUT;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| substrings.iter().all(|part| line.contains(part))) {
                return line.to_owned();
            }
            assert!(Instant::now() < deadline, "the log has no line with {substrings:?}\n{log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends a signal to `patou run`.
    pub(crate) fn signal(&self, signal: Signal) {
        signal_to(self.pid(), signal);
    }

    /// Waits until `patou run` exits; returns its exit code.
    pub(crate) fn wait_for_exit(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("`patou run` was started");
        let deadline = Instant::now() + EVENT_TIMEOUT * 2;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("`patou run` did not exit\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Stops the set with SIGTERM and checks that nothing is left.
    pub(crate) fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait_for_exit(), Some(0), "{}", self.log());
        self.assert_nothing_left();
        self.stopped = true;
    }

    /// Checks that no process, segment, FIFO or socket of this set is left.
    pub(crate) fn assert_nothing_left(&self) {
        assert!(self.processes().is_empty(), "processes left: {:?}\n{}", self.processes(), self.log());
        assert!(self.segments().is_empty(), "segments left: {:?}\n{}", self.segments(), self.log());
        let dir = self.runtime_dir();
        let left: Vec<_> =
            fs::read_dir(&dir).map(|dir| dir.flatten().map(|e| e.file_name()).collect()).unwrap_or_default();
        assert!(!dir.exists(), "{} is left with {left:?}\n{}", dir.display(), self.log());
    }

    /// The pids of all processes that were started for this set.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let applied = self.runtime_dir().join("applied.toml").into_os_string().into_encoded_bytes();
        let config = self.config_file().into_os_string().into_encoded_bytes();
        let is_of_set = |pid: u32| {
            let read = |file| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            let contains = |bytes: Vec<u8>, path: &[u8]| bytes.windows(path.len()).any(|window| window == path);
            contains(read("environ"), &applied) || contains(read("cmdline"), &config)
        };
        let pids = fs::read_dir("/proc").unwrap().flatten();
        pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| is_of_set(*pid)).collect()
    }

    /// The names of this set's segments.
    pub(crate) fn segments(&self) -> Vec<String> {
        let infix = format!(".{}.", self.name);
        let names = fs::read_dir("/dev/shm").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok());
        names.filter(|name| name.starts_with("patou.") && name.contains(&infix)).collect()
    }
}

impl Drop for TestSet {
    fn drop(&mut self) {
        if !self.stopped {
            if let Some(mut child) = self.child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            for pid in self.processes() {
                signal_to(pid, Signal::SIGKILL);
            }
            for segment in self.segments() {
                let _ = fs::remove_file(Path::new("/dev/shm").join(segment));
            }
            if std::thread::panicking() {
                eprintln!("the log of set {}:\n{}", self.name, self.log());
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// The worker `pool/number` in a status; `Null` if there is none.
pub(crate) fn worker_of(status: &Value, id: &str) -> Value {
    let pools = status["pools"].as_array().into_iter().flatten();
    let mut workers = pools.flat_map(|pool| pool["workers"].as_array().into_iter().flatten());
    workers.find(|worker| worker["id"] == id).cloned().unwrap_or(Value::Null)
}
