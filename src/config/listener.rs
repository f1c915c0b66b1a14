//! A listener of the dispatcher.

#![forbid(unsafe_code)]

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::{IpNetwork, ListenAddress, ProxyTrust, quantity};
use crate::ids::PoolName;

/// An address on which the dispatcher accepts clients for one pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Its address. Port 0 lets the kernel choose.
    pub address: ListenAddress,
    /// Permissions of the socket file, 0 to 0o777; Unix sockets only.
    pub mode: u32,
    /// Owner of the socket file, a user name or ID; Unix sockets only. `None`: the user that runs patou.
    pub owner: Option<String>,
    /// Group of the socket file, a group name or ID; Unix sockets only. `None`: the group of the user that runs patou.
    pub group: Option<String>,
    /// How client and worker meet.
    pub delivery: Delivery,
    /// What its clients speak.
    pub protocol: ListenerProtocol,
    /// The peers that may connect; FastCGI on TCP only. Empty: all, which must be processes of this machine.
    pub allowed_clients: Vec<IpNetwork>,
    /// The pool that serves its clients.
    pub pool: PoolName,
    /// Host names (without port, compared case-insensitively) that requests may name. Empty: loopback names on a
    /// loopback address, which prevents DNS rebinding; any name elsewhere. `*`: any name; `*.example.com`: the names
    /// below `example.com`.
    pub allowed_hosts: Vec<String>,
    /// The proxies in front of it; handoff only.
    pub proxies: ProxyTrust,
    /// What a request body of unknown length meets; redirect only.
    pub unknown_length: UnknownLength,
    /// Whether each connection starts with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// Whether each request is logged.
    pub access_log: bool,
}

impl ListenerConfig {
    /// The longest list of `allowed_hosts` with handoff delivery, in bytes as the message to the worker has them: each
    /// name and two bytes.
    pub const HOSTS_MAX: usize = 15 << 10;

    /// The default of `mode`.
    pub const MODE: u32 = 0o660;

    /// The size of `allowed_hosts`; see [`ListenerConfig::HOSTS_MAX`].
    pub fn hosts_size(&self) -> usize {
        self.allowed_hosts.iter().map(|host| host.len() + 2).sum()
    }

    /// The built-in listeners: redirect on 127.0.0.1:7286 and handoff on 127.0.0.1:7287, to pool `default`.
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
            protocol: ListenerProtocol::default(),
            allowed_clients: Vec::new(),
            pool: PoolName::new("default").expect("a valid name"),
            allowed_hosts: Vec::new(),
            proxies: ProxyTrust::default(),
            unknown_length: UnknownLength::default(),
            proxy_protocol: false,
            access_log: false,
        }
    }
}

/// `mode`, `owner` and `group` are omitted on TCP, where a configuration must not contain them.
impl Serialize for ListenerConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("ListenerConfig", 15)?;
        out.serialize_field("address", &self.address)?;
        if self.address.is_unix() {
            out.serialize_field("mode", &quantity::octal(self.mode))?;
            out.serialize_field("owner", &self.owner)?;
            out.serialize_field("group", &self.group)?;
        }
        out.serialize_field("delivery", &self.delivery)?;
        out.serialize_field("protocol", &self.protocol)?;
        let clients: Vec<String> = self.allowed_clients.iter().map(IpNetwork::to_string).collect();
        out.serialize_field("allowed_clients", &clients)?;
        out.serialize_field("pool", &self.pool)?;
        out.serialize_field("allowed_hosts", &self.allowed_hosts)?;
        out.serialize_field("trusted_proxies", &self.proxies.trusted)?;
        out.serialize_field("forwarded", &self.proxies.forwarded)?;
        let user_header = self.proxies.user_header.as_ref().map_or("", |name| name.as_str());
        out.serialize_field("remote_user_header", user_header)?;
        out.serialize_field("unknown_length", &self.unknown_length)?;
        out.serialize_field("proxy_protocol", &self.proxy_protocol)?;
        out.serialize_field("access_log", &self.access_log)?;
        out.end()
    }
}

/// What a redirect listener does with a request whose body has no known length (`Transfer-Encoding: chunked`), and whose
/// client does not wait for a permission to send it (`Expect: 100-continue`, RFC 9110 section 10.1.1). Some clients have
/// used up such a body when they follow the redirect, and send an empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum UnknownLength {
    /// 411 (RFC 9110 section 15.5.12).
    #[default]
    #[serde(rename = "411")]
    Refuse,
    /// The redirect.
    #[serde(rename = "allow")]
    Allow,
}

impl UnknownLength {
    /// The value of this name in the configuration.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "411" => Some(Self::Refuse),
            "allow" => Some(Self::Allow),
            _ => None,
        }
    }
}

/// How client and worker meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// The client receives the worker's address.
    Redirect,
    /// The accepted socket is passed to the worker.
    Handoff,
}

/// What the clients of a listener speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ListenerProtocol {
    /// HTTP/1.1 and HTTP/1.0; to an inetd pool, whatever its program speaks.
    #[default]
    Http,
    /// FastCGI 1.0, as the front servers speak it that take patou for an application.
    Fastcgi,
}

impl ListenerProtocol {
    /// The value of this name in the configuration.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "http" => Some(Self::Http),
            "fastcgi" => Some(Self::Fastcgi),
            _ => None,
        }
    }
}

impl Delivery {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Delivery::Redirect => "redirect",
            Delivery::Handoff => "handoff",
        }
    }
}
