//! The admin endpoint of the watchdog: `/healthz`, `/status` and `/metrics` over HTTP.

#![forbid(unsafe_code)]

use std::path::Path;

use serde::Serialize;

use super::{ListenAddress, ListenerConfig, quantity};

/// `admin.sock` in the runtime directory, and an optional TCP address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdminConfig {
    /// A TCP address in addition to `admin.sock`. Every client that can connect may read: there is no authentication.
    pub address: Option<ListenAddress>,
    /// Host names that requests to the TCP address may name, as for a listener.
    pub allowed_hosts: Vec<String>,
    /// Permissions of `admin.sock`, 0 to 0o777.
    #[serde(serialize_with = "quantity::serialize_mode")]
    pub mode: u32,
    /// Owner of `admin.sock`, a user name or ID. `None`: the user that runs patou, root under systemd.
    pub owner: Option<String>,
    /// Group of `admin.sock`, a group name or ID. `None`: as for `owner`.
    pub group: Option<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { address: None, allowed_hosts: Vec::new(), mode: ListenerConfig::MODE, owner: None, group: None }
    }
}

impl AdminConfig {
    /// The file name of its socket in the runtime directory.
    pub const SOCKET: &str = "admin.sock";

    /// The warning for a TCP address beyond loopback.
    pub fn exposure_warning(&self) -> Option<String> {
        let tcp = self
            .address
            .as_ref()
            .filter(|address| matches!(address, ListenAddress::Tcp(tcp) if !tcp.ip().is_loopback()))?;
        Some(format!(
            "admin.address: every client that can connect to {tcp} can read the status of the set, without authentication"
        ))
    }

    /// The address of its socket.
    pub fn socket(runtime_dir: &Path) -> ListenAddress {
        ListenAddress::Unix(runtime_dir.join(Self::SOCKET))
    }
}
