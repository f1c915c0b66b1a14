//! The dispatcher that `patou call` connects to without `--target`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::cli::config_source::load_applied;
use crate::client::Target;
use crate::config::{ListenerConfig, ListenerProtocol};
use crate::status::SavedState;

/// The first listener for HTTP of the running set, or of the configuration if no set is running.
///
/// # Errors
/// The message to print.
pub(crate) fn default_target(path: Option<&Path>) -> Result<Target, String> {
    let config = load_applied(path).map_err(|error| error.text().to_owned())?;
    let speaks_http = |listener: &ListenerConfig| listener.protocol == ListenerProtocol::Http;
    let index = config.listeners.iter().position(speaks_http);
    let index = index.ok_or("no listener of the set speaks HTTP: all have protocol = \"fastcgi\"")?;
    let running = SavedState::read(&config.set.runtime_dir).ok();
    let running = running.and_then(|state| state.listeners.into_iter().nth(index));
    let address = running.unwrap_or_else(|| config.listeners[index].address.to_string());
    let target = match address.parse::<SocketAddr>() {
        Ok(mut tcp) => {
            if tcp.ip().is_unspecified() {
                tcp.set_ip(match tcp.ip() {
                    IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                });
            }
            format!("http://{tcp}")
        }
        Err(_) => address,
    };
    target.parse().map_err(|error| format!("{target}: {error}"))
}
