//! The sections of the file, their keys and the valid values.

use toml::de::{DeTable, DeValue};

use super::address::is_valid_path;
use super::config_text::ConfigText;
use super::diagnostics::Diagnostics;
use super::fault::{ConfigFaults, UnusableFile};
use super::pool_section::pool;
use super::proxies::{allowed_clients, proxy_trust};
use super::read::Section;
use super::section_values::{ACCOUNT, NAME, account, address};
use super::validate;
use super::{
    AdminConfig, Config, Delivery, FrontConfig, ListenAddress, ListenerConfig, ListenerProtocol, PoolConfig,
    RestartConfig, SetConfig, UnknownLength, WatchdogConfig,
};
use crate::ids::PoolName;

/// What a text without pools and listeners means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WithoutPools {
    /// The built-in set.
    BuiltIn,
    /// A mistake: a file is more likely half written, or emptied, than a request for the built-in set.
    Refused,
}

/// Reads the whole text. `default_set` supplies missing keys of `[set]`; for `unusable` see
/// [`super::Loaded::check`].
pub(super) fn read(
    source: &ConfigText,
    default_set: SetConfig,
    without_pools: WithoutPools,
    unusable: &dyn Fn(&PoolConfig) -> Vec<UnusableFile>,
) -> Result<Config, ConfigFaults> {
    let text = source.as_str();
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut diagnostics = Diagnostics::new(source);
    errors.iter().for_each(|error| diagnostics.syntax_error(text, error));
    let config = Section::whole_file(&mut diagnostics, table.into_inner(), |file| {
        every_section(file, default_set, without_pools)
    });
    if diagnostics.is_toml() {
        validate::check(&config, &mut diagnostics);
        validate::pool_files(&config, unusable, &mut diagnostics);
    }
    match diagnostics.into_faults() {
        faults if faults.is_empty() => Ok(config),
        faults => Err(ConfigFaults(faults)),
    }
}

/// What an included file may contain.
const INCLUDED_SECTIONS: [&str; 2] = ["listener", "pool"];

/// Checks an included file by itself: a mistake in it must not change the meaning of the others.
///
/// # Errors
/// When it is not TOML, or has other sections than `[[pool]]` and `[[listener]]`.
pub(super) fn check_included(source: &ConfigText) -> Result<(), ConfigFaults> {
    let text = source.as_str();
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut diagnostics = Diagnostics::new(source);
    errors.iter().for_each(|error| diagnostics.syntax_error(text, error));
    for key in table.get_ref().keys().filter(|key| !INCLUDED_SECTIONS.contains(&key.get_ref().as_ref())) {
        let line = diagnostics.line_at(key.span());
        let expected = "[[pool]] or [[listener]], the sections of an included file".to_owned();
        diagnostics.wrong_value(line, String::new(), key.get_ref().to_string(), expected);
    }
    match diagnostics.into_faults() {
        faults if faults.is_empty() => Ok(()),
        faults => Err(ConfigFaults(faults)),
    }
}

fn every_section(file: &mut Section<'_, '_>, default_set: SetConfig, without_pools: WithoutPools) -> Config {
    let set = file.table("set", |section| set(section, &default_set)).unwrap_or(default_set);
    let only_pool = file.count("pool") == 1;
    let pools = file.tables("pool", |section| pool(section, only_pool));
    let listeners = file.tables("listener", |section| listener(section, pools.as_deref().unwrap_or_default()));
    let (listeners, pools) = match (listeners, pools) {
        (None, None) => {
            if without_pools == WithoutPools::Refused {
                let expected = "at least one [[pool]]; `patou config --defaults` prints those of the built-in set, which \
                                is used without a file only";
                file.report_missing("pool", expected);
            }
            (ListenerConfig::built_in(), vec![PoolConfig::default()])
        }
        (Some(listeners), None) => {
            file.report_missing("pool", "at least one [[pool]] for the listeners");
            (listeners, Vec::new())
        }
        (None, Some(pools)) => {
            if !pools.iter().any(|pool| pool.name == ListenerConfig::default().pool) {
                let expected = "at least one [[listener]]; the built-in listeners need a pool named \"default\"";
                file.report_missing("listener", expected);
            }
            (ListenerConfig::built_in(), pools)
        }
        (Some(listeners), Some(pools)) => (listeners, pools),
    };
    Config {
        set,
        listeners,
        pools,
        front: file.table("front", front).unwrap_or_default(),
        watchdog: file.table("watchdog", watchdog).unwrap_or_default(),
        admin: file.table("admin", admin).unwrap_or_default(),
    }
}

fn set(s: &mut Section<'_, '_>, default: &SetConfig) -> SetConfig {
    let name = |text: &str| PoolName::new(text).ok().map(|name| name.as_str().to_owned());
    let dir = |text: &str| is_valid_path(text).then(|| text.into());
    // The files are part of the text already.
    s.strings("include", "a file or a pattern such as \"/etc/patou/patou.d/*.toml\"", |text| !text.is_empty());
    SetConfig {
        name: s.text("name", NAME, name).unwrap_or_else(|| default.name.clone()),
        runtime_dir: s
            .text("runtime_dir", "an absolute path below / without `..`", dir)
            .unwrap_or_else(|| default.runtime_dir.clone()),
    }
}

fn listener(s: &mut Section<'_, '_>, pools: &[PoolConfig]) -> ListenerConfig {
    let default = ListenerConfig::default();
    let address = address(s).unwrap_or_else(|| {
        s.report_missing("address", "an address such as \"127.0.0.1:7286\" or \"unix:/path\"");
        default.address
    });
    let pool = s.text("pool", NAME, |text| PoolName::new(text).ok()).unwrap_or_else(|| match pools {
        [only] => only.name.clone(),
        [] => default.pool, // Reported once for all listeners.
        [..] => {
            s.report_missing("pool", "the name of a pool, required with several pools");
            default.pool
        }
    });
    ListenerConfig {
        address,
        mode: s.value("mode", mode).unwrap_or(default.mode),
        owner: s.text("owner", ACCOUNT, account),
        group: s.text("group", ACCOUNT, account),
        delivery: s.value("delivery", delivery).unwrap_or(default.delivery),
        protocol: s.text("protocol", "\"http\" or \"fastcgi\"", ListenerProtocol::parse).unwrap_or_default(),
        allowed_clients: allowed_clients(s),
        pool,
        allowed_hosts: allowed_hosts(s),
        proxies: proxy_trust(s),
        unknown_length: s.text("unknown_length", "\"411\" or \"allow\"", UnknownLength::parse).unwrap_or_default(),
        proxy_protocol: s.boolean("proxy_protocol", default.proxy_protocol),
        access_log: s.boolean("access_log", default.access_log),
    }
}

fn front(s: &mut Section<'_, '_>) -> FrontConfig {
    let default = FrontConfig::default();
    FrontConfig {
        connections: s.integer("connections", 1..=1_000_000, default.connections as u64) as usize,
        // hyper rejects a smaller buffer; clients could fill the memory with larger ones.
        head_bytes: s.integer("head_bytes", 8192..=1 << 20, default.head_bytes as u64) as usize,
        head_timeout: s.duration("head_timeout", default.head_timeout),
        body_timeout: s.duration("body_timeout", default.body_timeout),
        linger_timeout: s.duration_or_zero("linger_timeout", default.linger_timeout),
        max_body: s.bytes("max_body", default.max_body),
        store_after: s.duration_or_zero("store_after", default.store_after),
        slot_scan: s.duration("slot_scan", default.slot_scan),
        idle_timeout: s.duration("idle_timeout", default.idle_timeout),
    }
}

fn watchdog(s: &mut Section<'_, '_>) -> WatchdogConfig {
    let default = WatchdogConfig::default();
    WatchdogConfig {
        probe_interval: s.duration("probe_interval", default.probe_interval),
        worker_timeout: s.duration("worker_timeout", default.worker_timeout),
        dispatcher_timeout: s.duration("dispatcher_timeout", default.dispatcher_timeout),
        start_timeout: s.duration("start_timeout", default.start_timeout),
        abort_grace: s.duration_or_zero("abort_grace", default.abort_grace),
        degraded_after: s.duration_or_zero("degraded_after", default.degraded_after),
        restarts: s.table("restarts", restarts).unwrap_or_default(),
    }
}

fn admin(s: &mut Section<'_, '_>) -> AdminConfig {
    let default = AdminConfig::default();
    let expected = "an IP address and a port, such as \"127.0.0.1:7280\", or \"\" for none";
    let address = s.value("address", |value| match value.as_str() {
        Some("") => Ok(None),
        text => {
            text.and_then(|text| text.parse().ok()).map(|tcp| Some(ListenAddress::Tcp(tcp))).ok_or(expected.to_owned())
        }
    });
    AdminConfig {
        address: address.flatten(),
        allowed_hosts: allowed_hosts(s),
        mode: s.value("mode", mode).unwrap_or(default.mode),
        owner: s.text("owner", ACCOUNT, account),
        group: s.text("group", ACCOUNT, account),
    }
}

fn restarts(s: &mut Section<'_, '_>) -> RestartConfig {
    let default = RestartConfig::default();
    RestartConfig {
        max: s.integer("max", 0..=1_000_000, default.max.into()) as u32,
        within: s.duration("within", default.within),
        // A delay of zero would never grow: each delay is a multiple of the one before.
        delay: s.duration("delay", default.delay),
        delay_max: s.duration("delay_max", default.delay_max),
    }
}

fn allowed_hosts(s: &mut Section<'_, '_>) -> Vec<String> {
    let expected = "a host name without scheme and port, such as \"example.org\" or \"[::1]\", \"*.example.org\" for all \
                    names below it, or \"*\" for any";
    let accept = |text: &str| text == "*" || is_host(text.strip_prefix("*.").unwrap_or(text));
    s.strings("allowed_hosts", expected, accept).unwrap_or_default()
}

/// Octal only: a decimal 660 would silently be a different mode.
fn mode(value: &DeValue<'_>) -> Result<u32, String> {
    let digits = match value {
        DeValue::Integer(number) if number.radix() == 8 => Some(number.as_str()),
        DeValue::String(text) => Some(text.as_ref()).filter(|text| text.bytes().all(|b| b.is_ascii_digit())),
        _ => None,
    };
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| "permissions in octal, such as 0o660 or \"0660\"".to_owned())
}

fn delivery(value: &DeValue<'_>) -> Result<Delivery, String> {
    match value.as_str() {
        Some("redirect") => Ok(Delivery::Redirect),
        Some("handoff") => Ok(Delivery::Handoff),
        _ => Err("\"redirect\" or \"handoff\"".to_owned()),
    }
}

fn is_host(text: &str) -> bool {
    let v6 = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    match v6 {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !text.is_empty() && text.bytes().all(is_allowed),
    }
}
