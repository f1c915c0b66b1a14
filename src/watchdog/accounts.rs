//! Owners and groups of socket files, as numbers.
//!
//! A name service may need seconds, or never respond. So names are looked up when a configuration is read, which is
//! never in the thread that decides, and the configuration in force has numbers only.

use std::io;

use nix::unistd::{Group, User};

use super::sockets::SocketError;
use crate::config::{AdminConfig, Config, ListenAddress};

/// Replaces the owner and group of each Unix socket by their numbers.
///
/// # Errors
/// When there is no such user or group.
pub(crate) fn resolve(config: &mut Config) -> Result<(), SocketError> {
    let admin = AdminConfig::socket(&config.set.runtime_dir);
    let listeners = config.listeners.iter_mut().filter(|listener| listener.address.is_unix());
    let listeners = listeners.map(|l| (l.address.clone(), "the listener", &mut l.owner, &mut l.group));
    for (address, section, owner, group) in
        listeners.chain([(admin, "[admin]", &mut config.admin.owner, &mut config.admin.group)])
    {
        replace(owner, &address, "owner", section, user_id)?;
        replace(group, &address, "group", section, group_id)?;
    }
    Ok(())
}

fn replace(
    account: &mut Option<String>,
    address: &ListenAddress,
    key: &'static str,
    section: &str,
    look_up: fn(&str) -> io::Result<u32>,
) -> Result<(), SocketError> {
    if let Some(name) = account.as_deref().filter(|name| name.parse::<u32>().is_err()) {
        let number = look_up(name).map_err(|cause| SocketError::access(address, section, (key, cause)))?;
        *account = Some(number.to_string());
    }
    Ok(())
}

fn user_id(name: &str) -> io::Result<u32> {
    let user = User::from_name(name)?;
    user.map(|user| user.uid.as_raw()).ok_or_else(|| io::Error::other(format!("there is no user {name}")))
}

fn group_id(name: &str) -> io::Result<u32> {
    let group = Group::from_name(name)?;
    group.map(|group| group.gid.as_raw()).ok_or_else(|| io::Error::other(format!("there is no group {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_owner(owner: &str) -> Config {
        let mut config = Config::default();
        config.listeners[0].address = "unix:/run/x.sock".parse().unwrap();
        config.listeners[0].owner = Some(owner.to_owned());
        config.admin.group = Some("root".to_owned());
        config
    }

    #[test]
    fn names_become_numbers() {
        let mut config = with_owner("root");
        resolve(&mut config).unwrap();
        assert_eq!(config.listeners[0].owner.as_deref(), Some("0"));
        assert_eq!(config.admin.group.as_deref(), Some("0"));
        let mut numeric = with_owner("4242");
        resolve(&mut numeric).unwrap();
        assert_eq!(numeric.listeners[0].owner.as_deref(), Some("4242"));
    }

    #[test]
    fn unknown_name_is_refused_with_its_key() {
        let error = resolve(&mut with_owner("no-such-user")).unwrap_err().to_string();
        assert!(error.contains("cannot set the owner of unix:/run/x.sock: there is no user no-such-user"), "{error}");
    }
}
