//! A private set: `patou run` as a child of the drill, with its own directory and configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::pausable_log::{LogGate, PausableLog};
use crate::cli::error::{CommandError, failed};
use crate::cli::patou_run::{POLL_INTERVAL, launch};
use crate::config::Config;
use crate::ids::PoolName;

pub(super) struct PrivateDrillSet {
    dir: PathBuf,
    child: Child,
    log: PausableLog,
}

impl PrivateDrillSet {
    /// Starts one, with its configuration.
    pub(super) fn start() -> Result<(Self, Config), CommandError> {
        // The drill aborts hundreds of processes: they leave no core files.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed)?;
        let name = format!("drill{}", std::process::id());
        let dir = std::env::temp_dir().join(format!("patou-{name}"));
        fs::create_dir(&dir).map_err(|error| failed(format!("{}: {error}", dir.display())))?;
        let start = || -> Result<(Config, Child, PausableLog), CommandError> {
            let text = write_configuration(&name, &dir, None)?;
            let config = Config::parse(&text, "the drill's own configuration");
            let config = config.map_err(|faults| CommandError::Config(faults.to_string()))?;
            let log = PausableLog::start(&dir.join("log")).map_err(failed)?;
            Ok((config, launch(&dir, log.stdio().map_err(failed)?)?, log))
        };
        let (config, child, log) = start().inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        Ok((Self { dir, child, log }, config))
    }

    /// Writes the configuration, without the last worker of pool `smaller`.
    pub(super) fn configure(&self, name: &str, smaller: Option<&PoolName>) -> Result<(), CommandError> {
        write_configuration(name, &self.dir, smaller).map(drop)
    }

    /// Starts a second `patou run` on the same configuration.
    pub(super) fn start_second(&self) -> std::io::Result<Child> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["run", "--config"]).arg(self.dir.join("patou.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn()
    }

    pub(super) fn log_gate(&self) -> LogGate {
        self.log.gate()
    }

    /// The pid of `patou run`, which is the watchdog.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_none())
    }

    pub(super) fn kill_watchdog(&mut self) -> Result<(), CommandError> {
        self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(failed)
    }

    pub(super) fn restart_watchdog(&mut self) -> Result<(), CommandError> {
        self.child = launch(&self.dir, self.log.stdio().map_err(failed)?)?;
        Ok(())
    }

    /// Stops it with SIGTERM, and with SIGKILL after `timeout`. Returns what was wrong.
    pub(super) fn stop(&mut self, timeout: Duration) -> Option<String> {
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM); // if it has ended, its status is reported
        let deadline = Instant::now() + timeout;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return None,
                Ok(Some(status)) => return Some(format!("patou run ended with {status}")),
                Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL_INTERVAL),
                _ => {
                    let _ = self.child.kill().and_then(|()| self.child.wait());
                    return Some(format!("patou run did not stop within {timeout:?} and was killed"));
                }
            }
        }
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("; ")
    }

    /// Removes its directory.
    pub(super) fn remove(mut self) {
        self.log.close();
        let _ = fs::remove_dir_all(self.dir); // below the temporary directory, which systemd-tmpfiles cleans
    }
}

fn write_configuration(name: &str, dir: &Path, smaller: Option<&PoolName>) -> Result<String, CommandError> {
    let program = std::env::current_exe().map_err(failed)?;
    let text = configuration(name, dir, &program, smaller);
    fs::write(dir.join("patou.toml"), &text).map_err(failed)?;
    Ok(text)
}

/// A configuration with every kind of handler and listener. Pool `smaller` has one worker less than the others.
fn configuration(name: &str, dir: &Path, program: &Path, smaller: Option<&PoolName>) -> String {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let (program, record) = (quoted(program), quoted(&dir.join("records")));
    let (run, dir) = (quoted(&dir.join("run")), dir.display());
    let handler = |kind| format!("{{ {kind} = [{program}, \"record\", {record}] }}");
    let http = format!("{{ http = [{program}, \"record\", {record}, \"--socket\", \"{{socket}}\"] }}");
    let fastcgi = format!("{{ fastcgi = [{program}, \"record\", {record}, \"--fastcgi\"] }}");
    let listener =
        |address: &str, pool, more| format!("[[listener]]\naddress = \"{address}\"\npool = \"{pool}\"\n{more}\n");
    let redirect = |address: &str, pool| listener(address, pool, "");
    let handoff = |address: &str, pool| listener(address, pool, "delivery = \"handoff\"\n");
    let proxied = |address: &str, pool| listener(address, pool, "delivery = \"handoff\"\nproxy_protocol = true\n");
    let over_fastcgi =
        |address: &str, pool| listener(address, pool, "delivery = \"handoff\"\nprotocol = \"fastcgi\"\n");
    let server = "max_requests = 200\nready_path = \"/\"\nping = \"500ms\"\nupgrade = [\"websocket\"]\n\
                  max_sessions = 1\nsession_timeout = \"1500ms\"\n";
    // It ends by itself after the fifth request.
    let application = "max_requests = 200\nping = \"500ms\"\nenvironment = { PHP_FCGI_MAX_REQUESTS = \"5\" }\n";
    let pool = |name: &str, handler: &str, address: &str, more: &str| {
        let workers = if smaller.is_some_and(|smaller| smaller.as_str() == name) { 2 } else { 3 };
        format!(
            "[[pool]]\nname = \"{name}\"\nworkers = {workers}\nhandler = {handler}\naddress = \"{address}\"\n\
             claim_timeout = \"500ms\"\nrequest_timeout = \"3s\"\nqueue_timeout = \"2s\"\ndrain_timeout = \"2s\"\n{more}\n"
        )
    };
    [
        format!("[set]\nname = \"{name}\"\nruntime_dir = {run}\n\n"),
        redirect("127.0.0.1:0", "echo"),
        redirect(&format!("unix:{dir}/echo.sock"), "echo"),
        redirect("127.0.0.1:0", "exec"),
        redirect(&format!("unix:{dir}/exec.sock"), "exec"),
        redirect(&format!("unix:{dir}/coprocess.sock"), "coprocess"),
        handoff("127.0.0.1:0", "echo"),
        handoff("127.0.0.1:0", "exec"),
        handoff(&format!("unix:{dir}/exec-handoff.sock"), "exec"),
        handoff(&format!("unix:{dir}/coprocess-handoff.sock"), "coprocess"),
        redirect("127.0.0.1:0", "http"),
        handoff("127.0.0.1:0", "http"),
        handoff(&format!("unix:{dir}/http-handoff.sock"), "http"),
        redirect("127.0.0.1:0", "fastcgi"),
        handoff(&format!("unix:{dir}/fastcgi-handoff.sock"), "fastcgi"),
        proxied("127.0.0.1:0", "exec"),
        handoff("127.0.0.1:0", "inetd"),
        proxied(&format!("unix:{dir}/inetd-handoff.sock"), "inetd"),
        over_fastcgi("127.0.0.1:0", "echo"),
        over_fastcgi("127.0.0.1:0", "exec"),
        over_fastcgi(&format!("unix:{dir}/exec-fastcgi.sock"), "exec"),
        over_fastcgi(&format!("unix:{dir}/coprocess-fastcgi.sock"), "coprocess"),
        over_fastcgi("127.0.0.1:0", "http"),
        pool("echo", "\"echo\"", "127.0.0.1:0", "max_requests = 200\n"),
        pool("exec", &handler("exec"), "127.0.0.1:0", ""),
        pool("coprocess", &handler("coprocess"), &format!("unix:{dir}/coprocess-{{n}}.sock"), "max_requests = 200\n"),
        pool("http", &http, "127.0.0.1:0", server),
        pool("fastcgi", &fastcgi, "127.0.0.1:0", application),
        pool("inetd", &handler("inetd"), "127.0.0.1:0", ""),
        "[front]\nhead_timeout = \"1s\"\nbody_timeout = \"1s\"\nlinger_timeout = \"200ms\"\n\n".into(),
        "[watchdog]\nprobe_interval = \"50ms\"\nworker_timeout = \"200ms\"\ndispatcher_timeout = \"400ms\"\n\
         start_timeout = \"5s\"\nabort_grace = \"50ms\"\n\
         restarts = { max = 1000000, within = \"1s\", delay = \"10ms\", delay_max = \"50ms\" }\n"
            .into(),
    ]
    .concat()
}
