//! Round trips: a configuration written as TOML parses to an equal one. And random texts, which must not cause a panic.

use std::collections::BTreeMap;
use std::time::Duration;

use patou::config::{
    AdminConfig, AuthorizationMode, BackgroundMode, Config, Delivery, ExitStatusMode, FastcgiHandler, ForwardedHeaders,
    HandlerConfig, LimitsConfig, ListenerProtocol, PoolConfig, ProxyTrust, Replacing, RequestBodyMode, ScriptsConfig,
    TrustedProxies, UnknownLength, UpgradeProtocol,
};
use proptest::prelude::*;

use super::valid;

fn text() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| text.replace('\0', "0"))
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9_]{1,32}"
}

fn duration(least: u64) -> impl Strategy<Value = Duration> {
    (least..=31_557_600_000_000_000).prop_map(Duration::from_nanos)
}

prop_compose! {
    fn command()(program in "[^\0]+", args in proptest::collection::vec(text(), 0..3)) -> Vec<String> {
        std::iter::once(program).chain(args).collect()
    }
}

fn handler() -> impl Strategy<Value = HandlerConfig> {
    prop_oneof![
        Just(HandlerConfig::Echo),
        command().prop_map(HandlerConfig::Exec),
        (text(), "(/[a-z~.+@-]{3})?")
            .prop_map(|(dir, prefix)| { HandlerConfig::Scripts(ScriptsConfig { dir: format!("/{dir}"), prefix }) }),
        command().prop_map(HandlerConfig::Coprocess),
        command().prop_map(HandlerConfig::Program),
        (command(), "/[^\0]*", any::<bool>()).prop_map(|(fastcgi, root, has_scripts)| {
            let fastcgi = FastcgiHandler { fastcgi, root, index: "i.x".into(), extensions: vec![".x".into()] };
            let plain =
                |fastcgi| FastcgiHandler { fastcgi, root: String::new(), index: String::new(), extensions: vec![] };
            HandlerConfig::Fastcgi(if has_scripts { fastcgi } else { plain(fastcgi.fastcgi) })
        }),
        command().prop_map(|command| HandlerConfig::Http([command, vec!["{socket}".to_owned()]].concat())),
    ]
}

prop_compose! {
    /// Pool `i`, with addresses that no other pool has.
    fn pool(i: u16)(
        pool in (name(), 1..100_u16, handler(), any::<bool>()),
        times in (duration(1), duration(1), duration(100_000_000), duration(1), duration(0), duration(0)),
        numbers in (0..1_000_000_usize, any::<u64>(), any::<u64>()),
        environment in proptest::collection::btree_map("[^=\0]{1,8}", text(), 0..3),
        limits in (any::<bool>(), any::<bool>()),
    ) -> PoolConfig {
        let (name, workers, handler, unix) = pool;
        let address = if unix { format!("unix:/run/w{i}/{{n}} \"\u{e9}\\") } else { format!("127.0.0.1:{}", 1000 * (i + 1)) };
        let is_http = matches!(handler, HandlerConfig::Http(_));
        let is_exec = matches!(handler, HandlerConfig::Exec(_));
        let is_coprocess = matches!(handler, HandlerConfig::Coprocess(_));
        PoolConfig {
            name: format!("{i}{}", &name[1..]).try_into().unwrap(),
            workers,
            handler,
            address: address.parse().unwrap(),
            offer_timeout: times.0.min(times.1),
            claim_timeout: times.0.max(times.1),
            request_timeout: times.2,
            queue: numbers.0,
            queue_timeout: times.3,
            drain_timeout: times.4,
            max_requests: numbers.1,
            max_age: times.5,
            max_memory: numbers.2,
            ready_path: if is_http { "/healthz?\"".into() } else { String::new() },
            ready_frame: is_coprocess && limits.0,
            ping: if is_http || is_coprocess { times.5 } else { Duration::ZERO },
            replace: if limits.1 { Replacing::After } else { Replacing::Before },
            request_body: if is_http { RequestBodyMode::Spool } else { RequestBodyMode::Stream },
            spool_max: if is_coprocess { numbers.1 } else { 64 << 20 },
            spool_dir: if is_http { "/spool \"\u{e9}".into() } else { String::new() },
            authorization: if is_coprocess { AuthorizationMode::Pass } else { AuthorizationMode::Drop },
            exit_status: if is_exec { ExitStatusMode::Ignore } else { ExitStatusMode::Strict },
            background: if is_exec && limits.0 { BackgroundMode::Keep } else { BackgroundMode::Kill },
            upgrade: if is_http && limits.1 && workers > 1 { vec![UpgradeProtocol::Websocket] } else { Vec::new() },
            session_timeout: times.2,
            max_sessions: if limits.0 { workers - 1 } else { 0 },
            working_dir: if limits.0 { "/srv/\u{e9}".into() } else { String::new() },
            environment,
            user: if limits.0 { "www-data".into() } else { String::new() },
            limits: LimitsConfig {
                memory_max: limits.0.then(|| "512M".into()),
                tasks_max: limits.1.then(|| "64".into()),
                ..LimitsConfig::default()
            },
        }
    }
}

prop_compose! {
    fn config()(
        set in name(),
        pools in (pool(0), pool(1)),
        sockets in (0..=0o777_u32, any::<bool>(), any::<bool>(), 0..2_usize),
        sizes in (1..1_000_000_usize, 8192..1_000_000_usize, any::<u64>(), any::<u32>()),
        times in (duration(1), duration(0), 1..=100_000_000_u64, duration(0)),
    ) -> Config {
        let mut config = Config::default();
        config.set.name = set;
        config.set.runtime_dir = "/run/a \"\u{e9}".into();
        config.pools = vec![pools.0, pools.1];
        config.listeners.truncate(1);
        config.listeners[0].address = "unix:/run/\u{1f415}.sock".parse().unwrap();
        config.listeners[0].mode = sockets.0;
        config.listeners[0].owner = sockets.1.then(|| "root".into());
        config.listeners[0].access_log = sockets.2;
        if sockets.2 && !sockets.1 {
            config.listeners[0].unknown_length = UnknownLength::Allow;
        }
        config.listeners[0].allowed_hosts = vec!["*.example.org".into(), "[::1]".into(), "*".into()];
        if sockets.1 {
            config.listeners[0].delivery = Delivery::Handoff;
            config.listeners[0].protocol = if sockets.2 { ListenerProtocol::Fastcgi } else { ListenerProtocol::Http };
            config.listeners[0].proxies = ProxyTrust {
                trusted: TrustedProxies {
                    unix: sockets.2,
                    networks: vec!["10.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()],
                },
                forwarded: if sockets.2 { ForwardedHeaders::Rfc7239 } else { ForwardedHeaders::XForwarded },
                user_header: sockets.2.then(|| "x-remote-user".parse().unwrap()),
            };
        }
        config.listeners[0].pool = config.pools[sockets.3].name.clone();
        config.front.connections = sizes.0;
        config.front.head_bytes = sizes.1;
        config.front.max_body = sizes.2;
        config.front.head_timeout = times.0;
        config.front.linger_timeout = times.1;
        config.front.slot_scan = Duration::from_nanos(times.2);
        config.watchdog.abort_grace = times.3;
        config.watchdog.degraded_after = times.0;
        config.watchdog.restarts.max = sizes.3 % 1_000_000;
        config.admin = AdminConfig {
            address: sockets.1.then(|| "[::1]:7280".parse().unwrap()),
            allowed_hosts: vec!["example.org".into()],
            mode: sockets.0,
            owner: sockets.2.then(|| "0".into()),
            group: sockets.1.then(|| "web".into()),
        };
        config
    }
}

proptest! {
    #[test]
    fn written_config_parses_to_the_same_config(config in config()) {
        let text = config.to_toml();
        match Config::parse(&text, "copy") {
            Ok(copy) => prop_assert_eq!(copy, config),
            Err(faults) => prop_assert!(false, "{}\n{}", faults, text),
        }
    }

    #[test]
    fn no_text_causes_a_panic(text in any::<String>()) {
        let _ = Config::parse(&text, "f");
    }

    /// A changed configuration reaches more of the reader than random text.
    #[test]
    fn every_fault_of_a_changed_default_has_a_line(at in 0..Config::DEFAULT_TOML.len(), removed in 0..40_usize, inserted in "[\\[\\]{}\"'=.#,\n a-z0-9é-]{0,6}") {
        let mut text = Config::DEFAULT_TOML.to_owned();
        text.replace_range(at..(at + removed).min(text.len()), &inserted);
        if let Err(faults) = Config::parse(&text, "f") {
            let lines = text.matches('\n').count() + 1;
            prop_assert!(!faults.0.is_empty());
            prop_assert!(faults.0.iter().all(|fault| (1..=lines).contains(&fault.line)), "{}", faults);
            // One line per fault; beyond 20 faults one line counts the others.
            prop_assert_eq!(faults.to_string().matches('\n').count() + 1, faults.0.len().min(21));
        }
    }
}

#[test]
fn default_config_survives_a_round_trip() {
    let config = Config::default();
    assert_eq!(valid(&config.to_toml()), config);
    let mut other = config.clone();
    other.pools[0].environment = BTreeMap::from([("A \n\"".into(), "\u{1b}[0m".into())]);
    assert_eq!(valid(&other.to_toml()), other);
}

#[test]
fn a_part_of_another_version_ignores_the_keys_of_a_copy_that_it_does_not_know() {
    let copy = Config::default().to_copy();
    let newer = copy.replacen("[front]", "[future]\nkey = 1\n\n[front]\nfuture_key = \"x\"", 1);
    let newer = newer.replacen("[[pool]]", "[[pool]]\nfuture_key = { a = [1] }", 1);
    assert_ne!(newer, copy);
    assert_eq!(Config::parse(&newer, "copy").unwrap(), Config::default());
    // An operator's file is refused whole, and so is a copy with a value that this version does not know.
    let (_, file) = newer.split_once('\n').unwrap();
    assert_eq!(Config::parse(file, "file").unwrap_err().0.len(), 3);
    assert!(Config::parse(&copy.replacen("\"redirect\"", "\"future\"", 1), "copy").is_err());
}
