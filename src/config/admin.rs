//! Where the watchdog tells how the set is: `/healthz`, `/status` and `/metrics` over HTTP.

use std::path::Path;

use super::{ListenAddress, ListenerConfig};

/// `admin.sock` in the runtime directory, and a TCP address if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// A TCP address besides `admin.sock`. Who reaches it may read: there is no authentication.
    pub address: Option<ListenAddress>,
    /// Host names that a request to that address may ask for, as for a listener.
    pub allowed_hosts: Vec<String>,
    /// Permissions of `admin.sock`, 0 to 0o777.
    pub mode: u32,
    /// Owner of `admin.sock`, a name or a number. `None`: whoever runs patou; root under systemd.
    pub owner: Option<String>,
    /// Group of `admin.sock`, as `owner`.
    pub group: Option<String>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { address: None, allowed_hosts: Vec::new(), mode: ListenerConfig::MODE, owner: None, group: None }
    }
}

impl AdminConfig {
    /// The name of its socket in the runtime directory.
    pub const SOCKET: &str = "admin.sock";

    /// What there is to say of an address beyond loopback.
    pub fn exposed(&self) -> Option<String> {
        let tcp = self
            .address
            .as_ref()
            .filter(|address| matches!(address, ListenAddress::Tcp(tcp) if !tcp.ip().is_loopback()))?;
        Some(format!("admin.address: whoever reaches {tcp} reads how the set is, without authentication"))
    }

    /// The address of its socket.
    pub fn socket(runtime_dir: &Path) -> ListenAddress {
        ListenAddress::Unix(runtime_dir.join(Self::SOCKET))
    }
}
