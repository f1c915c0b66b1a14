//! A pool of identical workers, its handler and its limits.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{ListenAddress, placeholder, quantity};
use crate::ids::{PoolName, WorkerNumber};

/// A named group of identical workers with one handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PoolConfig {
    /// Its name, unique within the set.
    pub name: PoolName,
    /// Number of workers, 1 to 10000.
    pub workers: u16,
    /// How a worker handles a request.
    pub handler: HandlerConfig,
    /// The address of the workers; see [`PoolConfig::worker_address`].
    pub address: ListenAddress,
    /// How long a worker may take to answer an offer.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub offer_timeout: Duration,
    /// How long a leased worker waits for its client; at least `offer_timeout`.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub claim_timeout: Duration,
    /// How long a claimed request may take.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub request_timeout: Duration,
    /// How many clients may queue for a worker; 0: no queue.
    pub queue: usize,
    /// How long a client may be queued.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub queue_timeout: Duration,
    /// How long a draining worker may take to finish its request; 0: the request is aborted.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub drain_timeout: Duration,
    /// A worker is recycled after about this many requests; 0: never.
    pub max_requests: u64,
    /// A worker is recycled at about this age; 0: never.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub max_age: Duration,
    /// A worker is recycled above about this many bytes; 0: never.
    #[serde(serialize_with = "quantity::serialize_bytes")]
    pub max_memory: u64,
    /// The path that a warm `http` program responds to with 2xx when it is ready; empty: it is ready when it accepts
    /// connections.
    pub ready_path: String,
    /// A co-process writes a frame `Ready: 1` when it is ready.
    pub ready_frame: bool,
    /// How often an idle warm process is pinged, and how long it may take to respond; 0: never.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub ping: Duration,
    /// When the successor of a warm process starts.
    pub replace: Replacing,
    /// When a program gets the body of a request.
    pub request_body: RequestBodyMode,
    /// The largest request body in bytes that is stored; 0: unlimited.
    #[serde(serialize_with = "quantity::serialize_bytes")]
    pub spool_max: u64,
    /// Where request bodies are stored; empty: the worker's directory for temporary files.
    pub spool_dir: String,
    /// Whether a program gets the `Authorization` of a request.
    pub authorization: AuthorizationMode,
    /// Whether a program that ends with a failure has completed its response.
    pub exit_status: ExitStatusMode,
    /// What becomes of processes that a program leaves running.
    pub background: BackgroundMode,
    /// The protocols to which a connection may switch (RFC 9110, section 7.8).
    pub upgrade: Vec<UpgradeProtocol>,
    /// How long a connection may last that has switched.
    #[serde(serialize_with = "quantity::serialize_duration")]
    pub session_timeout: Duration,
    /// The most of them at the same time; 0: one less than `workers`.
    pub max_sessions: u16,
    /// The working directory of the handler's processes; empty: that of the worker.
    pub working_dir: String,
    /// Added to the environment of the workers.
    pub environment: BTreeMap<String, String>,
    /// The user that its workers run as; empty: the user of the set. Takes effect under systemd.
    pub user: String,
    /// Limits of each worker; without systemd see [`LimitsConfig::as_rlimits`].
    pub limits: LimitsConfig,
}

impl PoolConfig {
    /// A message that names the keys of this pool that `patou run` ignores; `None` if it supports all of them.
    pub fn unsupported_by_run(&self) -> Option<String> {
        let limits = &self.limits;
        let is_percentage = limits.memory_max.as_deref().is_some_and(|text| text.ends_with('%'));
        let unsupported = [
            (!self.user.is_empty(), "user"),
            (limits.cpu_quota.is_some(), "limits.cpu_quota"),
            (limits.tasks_max.as_deref().is_some_and(|text| text != "infinity"), "limits.tasks_max"),
            (is_percentage, "limits.memory_max as a percentage"),
        ];
        let keys: Vec<_> = unsupported.into_iter().filter_map(|(set, key)| set.then_some(key)).collect();
        let keys = match keys.as_slice() {
            [] => return None,
            [one] => (*one).to_owned(),
            [first @ .., last] => format!("{} and {last}", first.join(", ")),
        };
        Some(format!("pool {}: patou run ignores {keys} (supported under systemd only)", self.name))
    }

    /// The bounds of its sessions; `None` if its connections may not switch to another protocol.
    pub(crate) fn sessions(&self) -> Option<SessionBounds> {
        let max = if self.max_sessions == 0 { self.workers.saturating_sub(1) } else { self.max_sessions };
        let bounds = SessionBounds { timeout: self.session_timeout, drain: self.drain_timeout, max };
        (!self.upgrade.is_empty()).then_some(bounds)
    }

    /// Whether `Authorization` is removed from its requests.
    pub(crate) fn drops_authorization(&self) -> bool {
        self.handler.may_lack_authorization() && self.authorization == AuthorizationMode::Drop
    }

    /// Whether the command or the environment of the pool has this placeholder.
    pub(crate) fn mentions(&self, placeholder: &str) -> bool {
        let mut texts = self.handler.command().iter().chain(self.environment.values());
        texts.any(|text| placeholder::contains(text, placeholder))
    }

    /// The most workers one pool may have.
    pub const WORKERS_MAX: u16 = 10_000;

    /// The address of worker `n`. TCP: the port plus `n - 1`, except that port 0 stays 0 and the kernel chooses. Unix:
    /// the path with `{n}` replaced by the number.
    ///
    /// For `n` up to `workers` of a checked configuration the port does not overflow; above that it stays at 65535.
    pub fn worker_address(&self, n: WorkerNumber) -> ListenAddress {
        match &self.address {
            ListenAddress::Tcp(address) => {
                let mut address = *address;
                if address.port() != 0 {
                    address.set_port(address.port().saturating_add(n.get() - 1));
                }
                ListenAddress::Tcp(address)
            }
            ListenAddress::Unix(path) => ListenAddress::Unix(match path.to_str() {
                Some(text) => text.replace("{n}", &n.to_string()).into(),
                None => path.clone(),
            }),
        }
    }
}

/// The built-in pool: `default`, two echo workers on 127.0.0.1:7300 and 7301.
impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            name: PoolName::new("default").expect("a valid name"),
            workers: 2,
            handler: HandlerConfig::Echo,
            address: ListenAddress::Tcp(([127, 0, 0, 1], 7300).into()),
            offer_timeout: Duration::from_millis(50),
            claim_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(30),
            queue: 128,
            queue_timeout: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
            max_requests: 0,
            max_age: Duration::ZERO,
            max_memory: 0,
            ready_path: String::new(),
            ready_frame: false,
            ping: Duration::ZERO,
            replace: Replacing::Before,
            request_body: RequestBodyMode::Stream,
            spool_max: 64 << 20,
            spool_dir: String::new(),
            authorization: AuthorizationMode::Drop,
            exit_status: ExitStatusMode::Strict,
            background: BackgroundMode::Kill,
            upgrade: Vec::new(),
            session_timeout: Duration::from_secs(3600),
            max_sessions: 0,
            working_dir: String::new(),
            environment: BTreeMap::new(),
            user: String::new(),
            limits: LimitsConfig::default(),
        }
    }
}

/// What a handler's program gets of a request body, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RequestBodyMode {
    /// Each part as it arrives. A body whose length is not known is stored first if the program needs its length.
    Stream,
    /// All of it, stored before the program gets the request.
    Spool,
}

/// Whether a program gets the header field `Authorization` (RFC 9110, section 11.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AuthorizationMode {
    /// It checks credentials itself.
    Pass,
    /// It does not see credentials (RFC 3875, section 9.2).
    Drop,
}

/// What the exit status of a CGI program means for its response. RFC 3875 gives it no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExitStatusMode {
    /// A status other than 0 is a failure: the response is incomplete, unless it delimits itself.
    Strict,
    /// The response is complete when the program exits, with any status. A program that is killed has failed.
    Ignore,
}

/// What becomes of the processes that a CGI program has started and that run after it has exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BackgroundMode {
    /// They are killed before the worker gets another client.
    Kill,
    /// They run as long as their worker.
    Keep,
}

/// When the successor of a warm process starts, in a planned replacement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Replacing {
    /// Before the old process ends, which happens when the successor is ready.
    Before,
    /// After the old process has ended: for processes that own a device or a file.
    After,
}

/// The bounds of the sessions of a pool: connections that have switched to another protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionBounds {
    /// How long one may last.
    pub timeout: Duration,
    /// How long it may last in a worker that has to finish.
    pub drain: Duration,
    /// The most of them at the same time.
    pub max: u16,
}

/// A protocol to which a connection may switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UpgradeProtocol {
    /// RFC 6455.
    Websocket,
}

/// How a worker handles a request. A command is a program and its arguments, at least the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerConfig {
    /// Responds with the request body; without one, with method and target.
    Echo,
    /// One process per request, CGI/1.1 (RFC 3875).
    Exec(Vec<String>),
    /// The same for a directory of programs, of which the path of the request names one.
    Scripts(ScriptsConfig),
    /// One warm process per worker, framed requests and responses on descriptors 3 and 4.
    Coprocess(Vec<String>),
    /// One warm HTTP/1.1 server per worker, on a private address.
    Http(Vec<String>),
    /// A user's worker program, built on this library.
    Program(Vec<String>),
    /// One process per connection, with the socket as stdin and stdout.
    Inetd(Vec<String>),
    /// One warm FastCGI application per worker, with its listening socket as stdin.
    Fastcgi(FastcgiHandler),
}

impl HandlerConfig {
    /// The name in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            HandlerConfig::Echo => "echo",
            HandlerConfig::Exec(_) => "exec",
            HandlerConfig::Scripts(_) => "scripts",
            HandlerConfig::Coprocess(_) => "coprocess",
            HandlerConfig::Http(_) => "http",
            HandlerConfig::Program(_) => "program",
            HandlerConfig::Inetd(_) => "inetd",
            HandlerConfig::Fastcgi(_) => "fastcgi",
        }
    }

    /// Whether `authorization` decides what its program gets: a program that is a server of its own always gets the field.
    pub(crate) fn may_lack_authorization(&self) -> bool {
        self.is_cgi() || matches!(self, HandlerConfig::Coprocess(_) | HandlerConfig::Fastcgi(_))
    }

    /// Whether one process serves one request, with CGI/1.1.
    pub(crate) fn is_cgi(&self) -> bool {
        matches!(self, HandlerConfig::Exec(_) | HandlerConfig::Scripts(_))
    }

    /// The program and its arguments; empty for `echo` and `scripts`.
    pub fn command(&self) -> &[String] {
        match self {
            HandlerConfig::Echo | HandlerConfig::Scripts(_) => &[],
            HandlerConfig::Exec(c)
            | HandlerConfig::Coprocess(c)
            | HandlerConfig::Http(c)
            | HandlerConfig::Program(c)
            | HandlerConfig::Inetd(c) => c,
            HandlerConfig::Fastcgi(handler) => &handler.fastcgi,
        }
    }
}

/// As it stands in the file: `"echo"`, or a table with the name of the handler as its first key.
impl Serialize for HandlerConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut table = match self {
            HandlerConfig::Echo => return serializer.serialize_str(self.name()),
            _ => serializer.serialize_map(None)?,
        };
        match self {
            HandlerConfig::Scripts(scripts) => {
                table.serialize_entry(self.name(), &scripts.dir)?;
                table.serialize_entry("prefix", &scripts.prefix)?;
            }
            HandlerConfig::Fastcgi(FastcgiHandler { fastcgi, root, index, extensions }) => {
                table.serialize_entry(self.name(), fastcgi)?;
                if !root.is_empty() {
                    table.serialize_entry("root", root)?;
                    table.serialize_entry("extensions", extensions)?;
                }
                if !index.is_empty() {
                    table.serialize_entry("index", index)?;
                }
            }
            _ => table.serialize_entry(self.name(), self.command())?,
        }
        table.end()
    }
}

/// A directory of CGI programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptsConfig {
    /// The absolute path of the directory.
    pub dir: String,
    /// The path of its URL, without a slash at the end; empty: `/`.
    pub prefix: String,
}

/// A FastCGI application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastcgiHandler {
    /// Its program and arguments.
    pub fastcgi: Vec<String>,
    /// The directory of its scripts; empty: it has none.
    pub root: String,
    /// The script of a directory, and the front controller; empty: none.
    pub index: String,
    /// How the names of scripts end.
    pub extensions: Vec<String>,
}

/// Limits of each worker, in systemd's meaning and syntax; `None` sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LimitsConfig {
    /// `MemoryMax=`: bytes with K, M, G or T, a percentage, or `infinity`.
    pub memory_max: Option<String>,
    /// `CPUQuota=`: a percentage; 100% is one core.
    pub cpu_quota: Option<String>,
    /// `TasksMax=`: a number, a percentage, or `infinity`.
    pub tasks_max: Option<String>,
    /// `LimitNOFILE=`: a number, `SOFT:HARD`, or `infinity`.
    pub open_files: Option<String>,
}

/// Resource limits of one process (setrlimit(2)). A control group limits a worker and its children together; these
/// limits hold for each process by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessLimits {
    /// `RLIMIT_NOFILE`: soft and hard limit.
    pub open_files: Option<(u64, u64)>,
    /// `RLIMIT_DATA` in bytes: private writable memory. Not `RLIMIT_AS`: programs reserve gigabytes of address space
    /// that they never use.
    pub data: Option<u64>,
}

impl LimitsConfig {
    /// The limits that `patou run` sets for each process.
    pub fn as_rlimits(&self) -> ProcessLimits {
        ProcessLimits {
            open_files: self.open_files.as_deref().and_then(quantity::parse_open_files),
            data: self.memory_max.as_deref().and_then(quantity::parse_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_sets_rlimits_and_names_the_keys_it_ignores() {
        let text = |text: &str| Some(text.to_owned());
        let mut pool = PoolConfig {
            limits: LimitsConfig { open_files: text("64:infinity"), ..LimitsConfig::default() },
            ..PoolConfig::default()
        };
        pool.limits.memory_max = text("512M");
        let rlimits = ProcessLimits { open_files: Some((64, u64::MAX)), data: Some(512 << 20) };
        assert_eq!((pool.limits.as_rlimits(), pool.unsupported_by_run()), (rlimits, None));
        pool.limits =
            LimitsConfig { memory_max: text("infinity"), tasks_max: text("infinity"), ..LimitsConfig::default() };
        assert_eq!((pool.limits.as_rlimits(), pool.unsupported_by_run()), (ProcessLimits::default(), None));
        pool.limits =
            LimitsConfig { memory_max: text("50%"), cpu_quota: text("20%"), tasks_max: text("9"), open_files: None };
        assert_eq!(pool.limits.as_rlimits(), ProcessLimits::default());
        let message = pool.unsupported_by_run().unwrap();
        assert!(
            message.contains("ignores limits.cpu_quota, limits.tasks_max and limits.memory_max as a percentage ("),
            "{message}"
        );
        pool = PoolConfig { user: "web".into(), ..PoolConfig::default() };
        assert!(pool.unsupported_by_run().unwrap().starts_with("pool default: patou run ignores user ("));
    }

    fn at(address: &str, n: u16) -> String {
        PoolConfig { address: address.parse().unwrap(), ..PoolConfig::default() }
            .worker_address(WorkerNumber::of(n))
            .to_string()
    }

    #[test]
    fn worker_address_depends_on_the_number() {
        assert_eq!(at("127.0.0.1:7300", 1), "127.0.0.1:7300");
        assert_eq!(at("[::1]:7300", 12), "[::1]:7311");
        assert_eq!(at("127.0.0.1:0", 12), "127.0.0.1:0");
        assert_eq!(at("127.0.0.1:65530", 100), "127.0.0.1:65535");
        assert_eq!(at("unix:/run/w{n}.sock", 12), "unix:/run/w12.sock");
        assert_eq!(at("unix:/run/one.sock", 1), "unix:/run/one.sock");
    }
}
