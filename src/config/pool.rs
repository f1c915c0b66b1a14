//! A pool of identical workers and what they run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Address;
use crate::ids::PoolName;

/// A named group of identical workers with one handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Its name, unique within the set.
    pub name: PoolName,
    /// How many workers, 1 to 10000.
    pub workers: u16,
    /// What a worker does with a request.
    pub handler: Handler,
    /// Where the workers listen; see [`Pool::worker_address`].
    pub address: Address,
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
    /// Limits of each worker; they take effect under systemd.
    pub limits: Limits,
}

impl Pool {
    /// The most workers one pool may have.
    pub const WORKERS_MAX: u16 = 10_000;

    /// Where worker `n` (from 1) listens. TCP: the port plus `n - 1`, except that port 0 stays 0 and the
    /// kernel chooses. Unix: the path with `{n}` replaced by the number.
    ///
    /// For `n` up to `workers` of a checked configuration the port does not overflow; beyond it stays at 65535.
    pub fn worker_address(&self, n: u16) -> Address {
        debug_assert!(n > 0, "workers count from 1");
        match &self.address {
            Address::Tcp(address) => {
                let mut address = *address;
                if address.port() != 0 {
                    address.set_port(address.port().saturating_add(n.saturating_sub(1)));
                }
                Address::Tcp(address)
            }
            Address::Unix(path) => Address::Unix(match path.to_str() {
                Some(text) => text.replace("{n}", &n.to_string()).into(),
                None => path.clone(),
            }),
        }
    }
}

/// The built-in pool: `default`, two echo workers from 127.0.0.1:7300.
impl Default for Pool {
    fn default() -> Self {
        Self {
            name: PoolName::new("default").expect("a valid name"),
            workers: 2,
            handler: Handler::Echo,
            address: Address::Tcp(([127, 0, 0, 1], 7300).into()),
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
            limits: Limits::default(),
        }
    }
}

/// What a worker does with a request. A command is a program and its arguments, at least the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handler {
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

impl Handler {
    /// The word in the configuration.
    pub fn name(&self) -> &'static str {
        match self {
            Handler::Echo => "echo",
            Handler::Exec(_) => "exec",
            Handler::Coprocess(_) => "coprocess",
            Handler::Program(_) => "program",
            Handler::Inetd(_) => "inetd",
        }
    }

    /// The program and its arguments; empty for `echo`.
    pub fn command(&self) -> &[String] {
        match self {
            Handler::Echo => &[],
            Handler::Exec(c) | Handler::Coprocess(c) | Handler::Program(c) | Handler::Inetd(c) => c,
        }
    }
}

/// Limits of each worker in systemd's meaning and syntax; `None` sets no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `MemoryMax=`: bytes with K, M, G or T, a percentage, or `infinity`.
    pub memory_max: Option<String>,
    /// `CPUQuota=`: a percentage, of which 100% is one core.
    pub cpu_quota: Option<String>,
    /// `TasksMax=`: a number, a percentage, or `infinity`.
    pub tasks_max: Option<String>,
    /// `LimitNOFILE=`: a number, `SOFT:HARD`, or `infinity`.
    pub open_files: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, n: u16) -> String {
        Pool { address: address.parse().unwrap(), ..Pool::default() }.worker_address(n).to_string()
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
