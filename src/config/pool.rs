//! A pool of identical workers and what they run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ListenAddress, quantity};
use crate::ids::{PoolName, WorkerNumber};

/// A named group of identical workers with one handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Its name, unique within the set.
    pub name: PoolName,
    /// How many workers, 1 to 10000.
    pub workers: u16,
    /// What a worker does with a request.
    pub handler: HandlerConfig,
    /// Where the workers listen; see [`PoolConfig::worker_address`].
    pub address: ListenAddress,
    /// How long a worker may take to answer an offer.
    pub offer_timeout: Duration,
    /// How long a leased worker waits for its client to arrive; not shorter than `offer_timeout`.
    pub claim_timeout: Duration,
    /// How long a claimed request may take.
    pub request_timeout: Duration,
    /// How many clients may wait for a worker; 0: nobody waits.
    pub queue: usize,
    /// How long a client may wait for a worker.
    pub queue_timeout: Duration,
    /// How long a stopping worker may take to finish its request; 0: it is cut off.
    pub drain_timeout: Duration,
    /// A worker is renewed after about this many requests; 0: never.
    pub max_requests: u64,
    /// A worker is renewed at about this age; 0: never.
    pub max_age: Duration,
    /// A worker is renewed above about this many bytes; 0: never.
    pub max_memory: u64,
    /// Added to the environment of the workers.
    pub environment: BTreeMap<String, String>,
    /// The account its workers run under, empty for that of the set; takes effect under systemd.
    pub user: String,
    /// Limits of each worker; without systemd see [`LimitsConfig::of_a_process`].
    pub limits: LimitsConfig,
}

impl PoolConfig {
    /// What of this pool `patou run` cannot do, in words; `None` if it can do everything.
    pub fn beyond_run(&self) -> Option<String> {
        let limits = &self.limits;
        let share = limits.memory_max.as_deref().is_some_and(|text| text.ends_with('%'));
        let beyond = [
            (!self.user.is_empty(), "user"),
            (limits.cpu_quota.is_some(), "limits.cpu_quota"),
            (limits.tasks_max.as_deref().is_some_and(|text| text != "infinity"), "limits.tasks_max"),
            (share, "limits.memory_max as a percentage"),
        ];
        let keys: Vec<_> = beyond.into_iter().filter_map(|(set, key)| set.then_some(key)).collect();
        let (name, keys) = (
            &self.name,
            match keys.as_slice() {
                [] => return None,
                [one] => (*one).to_owned(),
                [first @ .., last] => format!("{} and {last}", first.join(", ")),
            },
        );
        Some(format!("pool {name}: {keys}: only systemd can do that, under patou run it has no effect"))
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

/// The built-in pool: `default`, two echo workers from 127.0.0.1:7300.
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
            environment: BTreeMap::new(),
            user: String::new(),
            limits: LimitsConfig::default(),
        }
    }
}

/// What a worker does with a request. A command is a program and its arguments, at least the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandlerConfig {
    /// Sends the request's body back; without one, method and target.
    Echo,
    /// One process per request, CGI/1.1 (RFC 3875).
    Exec(Vec<String>),
    /// One warm process per worker, framed requests and responses on descriptors 3 and 4.
    Coprocess(Vec<String>),
    /// The user's own worker binary, built on this library.
    Program(Vec<String>),
    /// One process per connection with the socket as stdin and stdout.
    Inetd(Vec<String>),
}

impl HandlerConfig {
    /// The word in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            HandlerConfig::Echo => "echo",
            HandlerConfig::Exec(_) => "exec",
            HandlerConfig::Coprocess(_) => "coprocess",
            HandlerConfig::Program(_) => "program",
            HandlerConfig::Inetd(_) => "inetd",
        }
    }

    /// The program and its arguments; empty for `echo`.
    pub fn command(&self) -> &[String] {
        match self {
            HandlerConfig::Echo => &[],
            HandlerConfig::Exec(c)
            | HandlerConfig::Coprocess(c)
            | HandlerConfig::Program(c)
            | HandlerConfig::Inetd(c) => c,
        }
    }
}

/// Limits of each worker in systemd's meaning and syntax; `None` sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitsConfig {
    /// `MemoryMax=`: bytes with K, M, G or T, a percentage, or `infinity`.
    pub memory_max: Option<String>,
    /// `CPUQuota=`: a percentage, of which 100% is one core.
    pub cpu_quota: Option<String>,
    /// `TasksMax=`: a number, a percentage, or `infinity`.
    pub tasks_max: Option<String>,
    /// `LimitNOFILE=`: a number, `SOFT:HARD`, or `infinity`.
    pub open_files: Option<String>,
}

/// What one process can be bound to (setrlimit(2)). A control group counts everything a worker starts together;
/// these bounds hold for each process by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessLimits {
    /// `RLIMIT_NOFILE`: soft and hard.
    pub open_files: Option<(u64, u64)>,
    /// `RLIMIT_DATA` in bytes: private writable memory. Not `RLIMIT_AS`: programs reserve address space by the
    /// gigabyte and never touch it.
    pub data: Option<u64>,
}

impl LimitsConfig {
    /// What `patou run` can do of these for each process.
    pub fn of_a_process(&self) -> ProcessLimits {
        ProcessLimits {
            open_files: self.open_files.as_deref().and_then(quantity::open_files),
            data: self.memory_max.as_deref().and_then(quantity::bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_run_can_do_of_the_limits_and_what_not() {
        let text = |text: &str| Some(text.to_owned());
        let mut pool = PoolConfig {
            limits: LimitsConfig { open_files: text("64:infinity"), ..LimitsConfig::default() },
            ..PoolConfig::default()
        };
        pool.limits.memory_max = text("512M");
        let can = ProcessLimits { open_files: Some((64, u64::MAX)), data: Some(512 << 20) };
        assert_eq!((pool.limits.of_a_process(), pool.beyond_run()), (can, None));
        pool.limits =
            LimitsConfig { memory_max: text("infinity"), tasks_max: text("infinity"), ..LimitsConfig::default() };
        assert_eq!((pool.limits.of_a_process(), pool.beyond_run()), (ProcessLimits::default(), None));
        pool.limits =
            LimitsConfig { memory_max: text("50%"), cpu_quota: text("20%"), tasks_max: text("9"), open_files: None };
        assert_eq!(pool.limits.of_a_process(), ProcessLimits::default());
        let words = pool.beyond_run().unwrap();
        assert!(words.contains("limits.cpu_quota, limits.tasks_max and limits.memory_max as a percentage:"), "{words}");
        pool = PoolConfig { user: "web".into(), ..PoolConfig::default() };
        assert!(pool.beyond_run().unwrap().starts_with("pool default: user: only systemd"));
    }

    fn at(address: &str, n: u16) -> String {
        PoolConfig { address: address.parse().unwrap(), ..PoolConfig::default() }
            .worker_address(WorkerNumber::of(n))
            .to_string()
    }

    #[test]
    fn each_worker_has_its_address() {
        assert_eq!(at("127.0.0.1:7300", 1), "127.0.0.1:7300");
        assert_eq!(at("[::1]:7300", 12), "[::1]:7311");
        assert_eq!(at("127.0.0.1:0", 12), "127.0.0.1:0");
        assert_eq!(at("127.0.0.1:65530", 100), "127.0.0.1:65535");
        assert_eq!(at("unix:/run/w{n}.sock", 12), "unix:/run/w12.sock");
        assert_eq!(at("unix:/run/one.sock", 1), "unix:/run/one.sock");
    }
}
