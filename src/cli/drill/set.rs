//! The set that is drilled: one of the drill's own, or one that runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::checker::{Bounds, Door};
use super::generator::Keeper;
use crate::cli::{Failure, failed, load_applied, no_set};
use crate::config::{Config, Delivery, HandlerConfig};
use crate::ids::WorkerId;
use crate::ipc;
use crate::process_tree;
use crate::status::SavedState;
use crate::units;

/// How often it is looked whether something has happened.
pub const LOOK: Duration = Duration::from_millis(2);

/// A set under drill.
pub struct Set {
    pub config: Config,
    pub keeper: Keeper,
    pub workers: Vec<WorkerId>,
    own: Option<Own>,
}

/// What is the drill's to start and to remove.
struct Own {
    top: PathBuf,
    child: Child,
}

/// What is known of a pool's answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// `patou record FILE`: bodies come back, and each start is on record in this file.
    Record(PathBuf),
    /// Bodies come back.
    Echo,
    /// Something: only its end can be judged.
    Other,
}

impl Set {
    /// Starts a set of the drill's own, with every kind of handler and listener and short times.
    pub fn own() -> Result<Self, Failure> {
        // What is aborted by hundreds leaves no cores.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed)?;
        let name = format!("drill{}", std::process::id());
        let top = std::env::temp_dir().join(format!("patou-{name}"));
        fs::create_dir(&top).map_err(|error| failed(format!("{}: {error}", top.display())))?;
        let made = || -> Result<(Config, Child), Failure> {
            let program = std::env::current_exe().map_err(failed)?;
            let text = configuration(&name, &top, &program);
            fs::write(top.join("patou.toml"), &text).map_err(failed)?;
            let config = Config::parse(&text, "the drill's own configuration");
            let config = config.map_err(|faults| Failure::Config(faults.to_string()))?;
            Ok((config, launch(&top)?))
        };
        let (config, child) = made().inspect_err(|_| drop(fs::remove_dir_all(&top)))?;
        let workers = config.workers().collect();
        let set = Self { config, keeper: Keeper::Own, workers, own: Some(Own { top, child }) };
        match set.wait_until_up(set.config.watchdog.start_timeout * 2) {
            true => Ok(set),
            false => Err(failed(format!("the drill's own set does not start: {}", set.log_fatal()))),
        }
    }

    /// The set that runs on this configuration.
    pub fn running(path: Option<&Path>) -> Result<Self, Failure> {
        let config = load_applied(path)?;
        let dir = &config.set.runtime_dir;
        SavedState::read(dir).ok().filter(|state| state.watchdog().is_some()).ok_or_else(|| no_set(dir))?;
        let keeper = if ipc::is_run_by_systemd(dir) { Keeper::Units } else { Keeper::Run };
        let workers = config.workers().collect();
        Ok(Self { config, keeper, workers, own: None })
    }

    pub fn dir(&self) -> &Path {
        &self.config.set.runtime_dir
    }

    /// Which pool each worker is of, by their places in the configuration.
    pub fn pool_of(&self) -> Vec<usize> {
        let place = |id: &WorkerId| self.config.pools.iter().position(|pool| pool.name == id.pool);
        self.workers.iter().map(|id| place(id).unwrap_or(0)).collect()
    }

    /// What the handler of pool `index` answers.
    pub fn speaks(&self, index: usize) -> Speaks {
        match &self.config.pools[index].handler {
            HandlerConfig::Echo => Speaks::Echo,
            HandlerConfig::Exec(words) | HandlerConfig::Coprocess(words) | HandlerConfig::Inetd(words) => {
                match words.as_slice() {
                    [_, command, file] if command == "record" => Speaks::Record(file.into()),
                    _ => Speaks::Other,
                }
            }
            HandlerConfig::Program(_) => Speaks::Other,
        }
    }

    /// Whether nobody but the programs of pool `index` knows what is spoken with them.
    pub fn is_inetd(&self, index: usize) -> bool {
        matches!(self.config.pools[index].handler, HandlerConfig::Inetd(_))
    }

    /// The listeners for the judge.
    pub fn doors(&self) -> Vec<Door> {
        let pool =
            |name: &crate::ids::PoolName| self.config.pools.iter().position(|pool| pool.name == *name).unwrap_or(0);
        let door = |listener: &crate::config::ListenerConfig| {
            let pool = pool(&listener.pool);
            let records = matches!(self.speaks(pool), Speaks::Record(_));
            let mute_after = self.is_inetd(pool).then(|| queues(&self.config.pools[pool]));
            Door { pool, records, handed: listener.delivery == Delivery::Handoff, mute_after }
        };
        self.config.listeners.iter().map(door).collect()
    }

    /// Whether clients of listener `index` are told where to go.
    pub fn redirects(&self, index: usize) -> bool {
        self.config.listeners[index].delivery == Delivery::Redirect
    }

    /// How long things may take, as the configuration says.
    pub fn bounds(&self) -> Bounds {
        let Config { pools, front, watchdog, .. } = &self.config;
        // What the worker allows itself beyond request_timeout to end who does not end (BLOCKED, PARTING).
        let parting = Duration::from_secs(1);
        // Until the dispatcher answers in the place of a worker that has not.
        let aborted = if self.config.listeners.iter().any(|l| l.delivery == Delivery::Handoff) {
            parting
        } else {
            Duration::ZERO
        };
        let attempt = pools.iter().map(|pool| {
            queues(pool) + pool.offer_timeout + pool.request_timeout + parting + aborted + front.linger_timeout
        });
        let drain = pools.iter().map(|pool| pool.drain_timeout).max().unwrap_or_default();
        let leave = drain + front.linger_timeout + parting;
        let restart = watchdog.restarts.delay_max.mul_f64(1.25) + watchdog.start_timeout;
        // WatchdogSec= and TimeoutAbortSec= of its unit.
        let by_systemd = Duration::from_secs(6);
        Bounds {
            attempt: attempt.collect(),
            // Asked at one probe, told at another.
            worker: watchdog.worker_timeout + watchdog.probe_interval * 2 + watchdog.abort_grace,
            dispatcher: watchdog.dispatcher_timeout + watchdog.probe_interval + watchdog.abort_grace,
            watchdog: restart * 2 + if self.keeper == Keeper::Units { by_systemd } else { leave },
            leave,
            restart,
            store_after: front.store_after,
            slack: Duration::from_millis(250),
            orphans_leave: self.keeper != Keeper::Units,
        }
    }

    /// How long it takes at most until it is known that a process was not harmed.
    pub fn settle(&self) -> Duration {
        let bounds = self.bounds();
        bounds.worker.max(bounds.dispatcher) + Duration::from_millis(50)
    }

    /// Waits until every part is up.
    pub fn wait_until_up(&self, patience: Duration) -> bool {
        let child = self.own.as_ref().map(|own| own.child.id());
        let give_up = Instant::now() + patience;
        loop {
            if let Ok(state) = SavedState::read(self.dir())
                && state.watchdog().is_some()
                && child.is_none_or(|child| child == state.pid)
                && is_up(&state)
            {
                return true;
            }
            if Instant::now() > give_up {
                return false;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Kills the watchdog of the drill's own set as kill -9 does. Its parts drain and stop by themselves.
    pub fn kill_watchdog(&mut self) -> Result<(), Failure> {
        let Some(own) = &mut self.own else { return Err(failed("the watchdog is not the drill's own")) };
        own.child.kill().and_then(|()| own.child.wait()).map(drop).map_err(failed)
    }

    /// Starts it again, which clears what is left of it.
    pub fn start_again(&mut self) -> Result<(), Failure> {
        let Some(own) = &mut self.own else { return Ok(()) };
        own.child = launch(&own.top)?;
        Ok(())
    }

    /// Stops the drill's own set. What is wrong afterwards, in words.
    pub fn stop(&mut self) -> Vec<String> {
        let patience = self.bounds().leave * 2 + Duration::from_secs(5);
        let Some(own) = &mut self.own else { return Vec::new() };
        let mut wrong = Vec::new();
        let _ = kill(Pid::from_raw(own.child.id() as i32), Signal::SIGTERM); // gone: that is told below
        let give_up = Instant::now() + patience;
        loop {
            match own.child.try_wait() {
                Ok(Some(status)) if status.success() => break,
                Ok(Some(status)) => {
                    wrong.push(format!("patou run ended with {status}"));
                    break;
                }
                Ok(None) if Instant::now() < give_up => std::thread::sleep(LOOK),
                _ => {
                    wrong.push(format!("patou run did not stop within {patience:?}, and was killed"));
                    let _ = own.child.kill().and_then(|()| own.child.wait());
                    break;
                }
            }
        }
        wrong.extend(self.left());
        wrong
    }

    /// What there still is of a set that has stopped (P6).
    fn left(&self) -> Vec<String> {
        let mut left: Vec<_> = self.processes().iter().map(|pid| format!("process {pid} is left")).collect();
        let mark = format!(".{}.", self.config.set.name);
        let names = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let segments = names.filter(|name| name.starts_with("patou.") && name.contains(&mark));
        left.extend(segments.map(|name| format!("segment /dev/shm/{name} is left")));
        let sockets = self.config.listeners.iter().map(|listener| &listener.address);
        let addresses =
            self.workers.iter().filter_map(|id| Some(self.config.pool(&id.pool)?.worker_address(id.number)));
        let paths = sockets.cloned().chain(addresses).filter_map(|address| match address {
            crate::config::ListenAddress::Unix(path) => Some(path),
            crate::config::ListenAddress::Tcp(_) => None,
        });
        let paths = paths.chain([self.dir().to_owned()]);
        left.extend(paths.filter(|path| path.exists()).map(|path| format!("{} is left", path.display())));
        left
    }

    /// Every process that was started for this set.
    pub fn processes(&self) -> Vec<u32> {
        let marks = [self.dir().join("applied.toml"), self.dir().with_file_name("patou.toml")];
        let marks = marks.map(|path| path.into_os_string().into_encoded_bytes());
        let ours = |pid: u32| {
            let read = |what| fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
            let has = |bytes: &[u8], word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
            let (environment, command) = (read("environ"), read("cmdline"));
            marks.iter().any(|mark| has(&environment, mark) || has(&command, mark))
        };
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(|pid| *pid != std::process::id() && ours(*pid)).collect()
    }

    /// The end of its log.
    pub fn log_fatal(&self) -> String {
        let Some(own) = &self.own else { return String::new() };
        let log = fs::read_to_string(own.top.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("; ")
    }

    /// Where its log is, if it is the drill's own.
    pub fn log(&self) -> Option<PathBuf> {
        self.own.as_ref().map(|own| own.top.join("log"))
    }

    /// Removes what the drill has made for itself.
    pub fn forget(mut self, keep: bool) {
        if let Some(own) = self.own.take().filter(|_| !keep) {
            let _ = fs::remove_dir_all(own.top); // in the temporary directory, where others clear up too
        }
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        // Only after a failure: a set that was stopped has no process any more.
        if let Some(own) = &mut self.own
            && own.child.try_wait().is_ok_and(|ended| ended.is_none())
        {
            let _ = self.stop();
        }
    }
}

/// How long a client may wait for a worker of this pool.
fn queues(pool: &crate::config::PoolConfig) -> Duration {
    if pool.queue > 0 { pool.queue_timeout } else { Duration::ZERO }
}

/// Whether every part is up.
pub fn is_up(state: &SavedState) -> bool {
    !state.stopping && state.dispatcher.state == "up" && state.workers.values().all(|part| part.state == "up")
}

/// The unit of a part.
pub fn unit(set: &Set, part: super::generator::Part) -> String {
    match part {
        super::generator::Part::Watchdog => units::WATCHDOG.to_owned(),
        super::generator::Part::Dispatcher => units::DISPATCHER.to_owned(),
        super::generator::Part::Worker(index) => units::worker_service(&set.workers[index]),
    }
}

/// Whether there is such a process, and it is the one that started then.
pub fn is_still(pid: u32, started: u64) -> bool {
    process_tree::read_process(pid).is_some_and(|process| process.started == started && !process.zombie)
}

/// Starts `patou run` on `patou.toml` in `top` so that it stops when this process dies, and by nothing else that a
/// terminal sends.
pub fn launch(top: &Path) -> Result<Child, Failure> {
    use std::os::unix::process::CommandExt;
    let log = File::options().create(true).append(true).open(top.join("log")).map_err(failed)?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("patou").args(["launch", "--parent", &std::process::id().to_string(), "--", "run", "--config"]);
    command.arg(top.join("patou.toml")).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().map_err(|error| failed(format!("cannot start patou run: {error}")))
}

/// The configuration of the drill's own set.
fn configuration(name: &str, top: &Path, program: &Path) -> String {
    let quoted = |path: &Path| format!("{:?}", path.display().to_string());
    let (program, record) = (quoted(program), quoted(&top.join("records")));
    let (run, top) = (quoted(&top.join("run")), top.display());
    let handler = |kind| format!("{{ {kind} = [{program}, \"record\", {record}] }}");
    let listener = |address: &str, pool| format!("[[listener]]\naddress = \"{address}\"\npool = \"{pool}\"\n\n");
    let handing = |address: &str, pool| listener(address, pool).trim_end().to_owned() + "\ndelivery = \"handoff\"\n\n";
    let behind_proxy =
        |address: &str, pool| handing(address, pool).trim_end().to_owned() + "\nproxy_protocol = true\n\n";
    let pool = |name: &str, handler: &str, address: &str, more: &str| {
        format!(
            "[[pool]]\nname = \"{name}\"\nworkers = 3\nhandler = {handler}\naddress = \"{address}\"\n\
             claim_timeout = \"500ms\"\nrequest_timeout = \"3s\"\nqueue_timeout = \"2s\"\ndrain_timeout = \"2s\"\n{more}\n"
        )
    };
    [
        format!("[set]\nname = \"{name}\"\nruntime_dir = {run}\n\n"),
        listener("127.0.0.1:0", "echo"),
        listener(&format!("unix:{top}/echo.sock"), "echo"),
        listener("127.0.0.1:0", "program"),
        listener(&format!("unix:{top}/program.sock"), "program"),
        listener(&format!("unix:{top}/warm.sock"), "warm"),
        handing("127.0.0.1:0", "echo"),
        handing("127.0.0.1:0", "program"),
        handing(&format!("unix:{top}/program-handed.sock"), "program"),
        handing(&format!("unix:{top}/warm-handed.sock"), "warm"),
        behind_proxy("127.0.0.1:0", "program"),
        handing("127.0.0.1:0", "talk"),
        behind_proxy(&format!("unix:{top}/talk-handed.sock"), "talk"),
        pool("echo", "\"echo\"", "127.0.0.1:0", "max_requests = 200\n"),
        pool("program", &handler("exec"), "127.0.0.1:0", ""),
        pool("warm", &handler("coprocess"), &format!("unix:{top}/warm-{{n}}.sock"), "max_requests = 200\n"),
        pool("talk", &handler("inetd"), "127.0.0.1:0", ""),
        "[front]\nhead_timeout = \"1s\"\nbody_timeout = \"1s\"\nlinger_timeout = \"200ms\"\n\n".into(),
        "[watchdog]\nprobe_interval = \"50ms\"\nworker_timeout = \"200ms\"\ndispatcher_timeout = \"400ms\"\n\
         start_timeout = \"5s\"\nabort_grace = \"50ms\"\n\
         restarts = { max = 1000000, within = \"1s\", delay = \"10ms\", delay_max = \"50ms\" }\n"
            .into(),
    ]
    .concat()
}
