//! What systemd requires of a valid configuration.

use std::path::Path;

use super::names::{OWNER, RUNTIME_DIR};
use super::render::redirect_listener;
use crate::config::{Config, Delivery, ListenAddress};

/// Every reason why systemd cannot run this configuration.
pub(crate) fn check(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    let dir = config.set.runtime_dir.display();
    if config.set.runtime_dir != Path::new(RUNTIME_DIR) {
        faults.push(format!("set.runtime_dir is {dir}; under systemd it must be {RUNTIME_DIR}, created by tmpfiles.d"));
    }
    let has_no_port = |address: &ListenAddress| matches!(address, ListenAddress::Tcp(tcp) if tcp.port() == 0);
    let addresses = config.listeners.iter().map(|l| ("listener", &l.address));
    let admin = config.admin.address.iter().map(|address| ("admin", address));
    for (section, address) in addresses.chain(config.pools.iter().map(|p| ("pool", &p.address))).chain(admin) {
        if has_no_port(address) {
            faults.push(format!("{section}.address is {address}; under systemd it needs a port other than 0"));
        }
        // systemd removes white space there, and joins lines at a backslash (systemd.syntax(7)).
        if matches!(address, ListenAddress::Unix(path) if path.to_string_lossy().ends_with(['\\', ' '])) {
            faults
                .push(format!("{section}.address is `{address}`; under systemd it must not end with a space or `\\`"));
        }
    }
    for pool in &config.pools {
        for (name, _) in pool.environment.iter().filter(|(name, value)| !is_variable(name, value)) {
            faults.push(format!(
                "environment of pool {}: systemd ignores {name:?}; a name has letters, digits and _, a value no control \
                 characters",
                pool.name
            ));
        }
    }
    // Both sockets of a worker have the same owner and mode, and the dispatcher connects to one of them.
    for pool in config.pools.iter().filter(|pool| pool.address.is_unix()) {
        let has_handoff = config.listeners.iter().any(|l| l.pool == pool.name && l.delivery == Delivery::Handoff);
        let Some(listener) = redirect_listener(config, pool).filter(|_| has_handoff) else { continue };
        let is_dispatcher = |account: &Option<String>| account.as_deref().is_none_or(|account| account == OWNER);
        let write_bit = if is_dispatcher(&listener.owner) {
            0o200
        } else if is_dispatcher(&listener.group) {
            0o020
        } else {
            0o002
        };
        if listener.mode & write_bit == 0 {
            let (name, address) = (&pool.name, &listener.address);
            faults.push(format!(
                "listener.owner, group and mode of {address} also apply to the workers of pool {name}, and keep user \
                 {OWNER} from passing connections to them: set owner = \"{OWNER}\", or give each listener its own pool"
            ));
        }
    }
    faults
}

/// Whether `Environment=` passes a variable on (systemd.exec(5)).
fn is_variable(name: &str, value: &str) -> bool {
    let is_name = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !value.contains(|c: char| c.is_control() && c != '\n' && c != '\t')
}
