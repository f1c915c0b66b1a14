//! Where clients arrive.

use super::ListenAddress;
use crate::ids::PoolName;

/// One address on which the dispatcher accepts clients for one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Where it listens. Port 0 lets the kernel choose.
    pub address: ListenAddress,
    /// Permissions of the socket file, 0 to 0o777; Unix sockets only.
    pub mode: u32,
    /// Owner of the socket file, a name or a number; Unix sockets only. `None`: whoever runs patou.
    pub owner: Option<String>,
    /// Group of the socket file, as `owner`.
    pub group: Option<String>,
    /// How client and worker meet.
    pub delivery: Delivery,
    /// The pool that serves its clients.
    pub pool: PoolName,
    /// Host names (without port, compared without regard to case) a request may ask for. Empty: loopback
    /// names on a loopback address, which defeats DNS rebinding; any name elsewhere.
    pub allowed_hosts: Vec<String>,
    /// Whether each connection begins with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Whether each request is logged.
    pub access_log: bool,
}

impl ListenerConfig {
    /// What `mode` is unless the file says otherwise.
    pub const MODE: u32 = 0o660;

    /// The built-in ones: redirect on 127.0.0.1:7286 and handoff on 127.0.0.1:7287, to pool `default`.
    pub fn built_in() -> Vec<Self> {
        let address = ListenAddress::Tcp(([127, 0, 0, 1], 7287).into());
        vec![Self::default(), Self { address, delivery: Delivery::Handoff, ..Self::default() }]
    }
}

/// The built-in listener: redirect on 127.0.0.1:7286 to pool `default`.
impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            address: ListenAddress::Tcp(([127, 0, 0, 1], 7286).into()),
            mode: Self::MODE,
            owner: None,
            group: None,
            delivery: Delivery::Redirect,
            pool: PoolName::new("default").expect("a valid name"),
            allowed_hosts: Vec::new(),
            proxy_protocol: false,
            access_log: false,
        }
    }
}

/// How client and worker meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The client is told the worker's address.
    Redirect,
    /// The accepted socket is passed to the worker.
    Handoff,
}

impl Delivery {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Delivery::Redirect => "redirect",
            Delivery::Handoff => "handoff",
        }
    }
}
