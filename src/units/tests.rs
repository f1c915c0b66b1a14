use std::time::Duration;

use super::*;
use crate::config::{Config, HandlerConfig, ListenerConfig, PoolConfig};
use crate::ids::PoolName;

fn base() -> Config {
    Config::parse(
        "[set]\nruntime_dir = \"/run/patou\"\n[[listener]]\naddress = \"unix:/run/patou/lease.sock\"\nmode = 0o666\n\
         group = \"web\"\n[[pool]]\nname = \"a\"\nworkers = 2\naddress = \"unix:/run/patou/a-{n}.sock\"\n",
        "",
    )
    .unwrap()
}

/// The socket of a listener that does not run yet.
fn listener(address: &str) -> String {
    ListenerSockets::default().unit(&address.parse().unwrap())
}

#[test]
fn drop_ins_contain_the_values_of_the_configuration() {
    let mut config = base();
    let pool = &mut config.pools[0];
    pool.user = "conv".into();
    pool.environment.insert("A".into(), "50% \"of\\\" it\nall".into());
    pool.limits.memory_max = Some("50%".into());
    pool.limits.open_files = Some("99".into());
    pool.drain_timeout = Duration::from_millis(1500);
    config.pools.extend(["", "lost", "twin"].map(|user| PoolConfig {
        name: PoolName::new(&format!("of_{user}")).unwrap(),
        user: user.into(),
        queue: 0,
        ..PoolConfig::default()
    }));
    config.admin.address = Some("127.0.0.1:7280".parse().unwrap());
    config.admin.group = Some("prometheus".into());
    let group = |user: &str| match user {
        "conv" | "twin" => Some(1234),
        "patou-worker" => Some(997),
        _ => None,
    };
    let files = render(&config, &ListenerSockets::default(), group);
    let file = |unit: &str| files[&format!("{unit}.d/50-patou.conf")].as_str();
    let assert_line =
        |unit: &str, line: &str| assert!(file(unit).lines().any(|l| l == line), "{line} in\n{}", file(unit));

    let socket = listener("unix:/run/patou/lease.sock");
    for line in ["ListenStream=/run/patou/lease.sock", "SocketMode=0666", "SocketGroup=web", "SocketUser=patou"] {
        assert_line(&socket, line);
    }
    assert_line(&socket, "Description=patou listener unix:/run/patou/lease.sock");
    assert_line("patou-worker@a-2.socket", "ListenStream=/run/patou/a-2.sock");
    assert_line("patou-worker@a-2.socket", "SocketMode=0666");
    assert_line("patou-worker@a-2.socket", "ListenSequentialPacket=/run/patou/a/2.sock");
    assert_line("patou-worker@a-2.socket", "AssertPathIsDirectory=/run/patou/a");
    for line in ["ListenStream=127.0.0.1:7301", "SocketUser=patou", "SocketMode=0600"] {
        assert_line("patou-worker@of_-2.socket", line);
    }
    for line in [
        "User=conv",
        "Environment=\"A=50%% \\\"of\\\\\\\" it\\nall\"",
        "MemoryMax=50%",
        "LimitNOFILE=99",
        "TimeoutStopSec=3500000us",
        "StartLimitBurst=60",
        "StartLimitIntervalSec=10000000us",
    ] {
        assert_line("patou-worker@a-1.service", line);
    }
    for line in ["ListenStream=127.0.0.1:7280", "SocketUser=root", "SocketGroup=prometheus", "SocketMode=0660"] {
        assert_line("patou-admin.socket", line);
    }
    assert_line("patou-dispatcher.service", &format!("Sockets={socket}"));
    assert_line("patou-dispatcher.service", "FileDescriptorStoreMax=384");
    assert!(!file("patou-worker@a-1.service").contains("CPUQuota"));
    assert_line("patou-watchdog.service", "TimeoutStartSec=47500000us");
    for part in ["patou-ipc", "patou-watchdog", "patou-dispatcher", "patou-worker@a-2"] {
        assert_line("patou.service", &format!("Wants={part}.service"));
    }
    let groups: Vec<_> = file("patou-watchdog.service").lines().filter(|l| l.contains("Groups")).collect();
    assert_eq!(groups, ["SupplementaryGroups=997", "SupplementaryGroups=1234"]);
}

#[test]
fn change_touches_only_the_units_that_it_affects() {
    let change = |edit: fn(&mut Config)| {
        let mut new = base();
        edit(&mut new);
        reload_steps(&base(), &new, &ListenerSockets::default())
    };
    let units = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (one, two) = ("patou-worker@a-1.service", "patou-worker@a-2.service");

    assert_eq!(change(|_| {}), ReloadSteps::default());
    let fewer = change(|c| c.pools[0].workers = 1);
    assert_eq!((fewer.stop, fewer.start, fewer.restart), (units(&[two]), vec![], vec![]));
    let more = change(|c| c.pools[0].workers = 3);
    assert_eq!((more.stop, more.start), (vec![], units(&["patou-worker@a-3.service"])));
    let workers = ["a-1", "a-2"].map(|id| id.parse().unwrap()).to_vec();
    assert_eq!(change(|c| c.pools[0].limits.tasks_max = Some("9".into())).restart_workers, workers);
    let handler = change(|c| c.pools[0].handler = HandlerConfig::Exec(vec!["x".into()]));
    assert_eq!(handler.reload, units(&[DISPATCHER, one, two, WATCHDOG]));
    assert_eq!((handler.stop, handler.start, handler.restart), (vec![], vec![], vec![]));
    let moved = change(|c| c.pools[0].address = "127.0.0.1:7300".parse().unwrap());
    assert_eq!((moved.stop, moved.start), (units(&[one, two]), units(&[one, two])));
    let lease = self::listener("unix:/run/patou/lease.sock");
    let listener = change(|c| c.listeners[0].address = "unix:/run/patou/b.sock".parse().unwrap());
    assert_eq!((listener.stop, listener.restart), (vec![lease.clone()], units(&[DISPATCHER])));
    let added = change(|c| c.listeners.push(ListenerConfig::default()));
    assert_eq!((added.stop, added.restart), (vec![], units(&[DISPATCHER])));
    let user = change(|c| c.pools[0].user = "conv".into());
    assert_eq!((user.restart, user.reload), (units(&[WATCHDOG]), units(&[DISPATCHER])));
    assert_eq!(user.restart_workers, workers);
    let admin = change(|c| c.admin.address = Some("127.0.0.1:7280".parse().unwrap()));
    assert_eq!((admin.stop, admin.rebind, admin.restart), (units(&[ADMIN]), units(&[WATCHDOG]), vec![]));
    let hosts = change(|c| c.admin.allowed_hosts.push("metrics.example".into()));
    assert_eq!((hosts.stop, hosts.restart), (vec![], vec![]));
    assert!(hosts.reload.contains(&WATCHDOG.to_owned()));
    // A longer queue needs a larger descriptor store, which takes effect at a restart.
    assert_eq!(change(|c| c.pools[0].queue = 200).restart, units(&[DISPATCHER]));
}

#[test]
fn check_rejects_another_runtime_dir_and_port_0() {
    assert_eq!(check(&base()), Vec::<String>::new());
    let mut config = base();
    config.set.runtime_dir = "/tmp/x".into();
    config.pools[0].address = "127.0.0.1:0".parse().unwrap();
    assert_eq!(check(&config).len(), 2);
}

#[test]
fn check_rejects_what_a_line_of_a_unit_cannot_hold() {
    for address in ["unix:/run/a ", "unix:/run/a\\"] {
        let mut config = base();
        config.listeners[0].address = address.parse().unwrap();
        assert_eq!(check(&config).len(), 1, "{address}");
    }
    for (name, value) in [("A-B", "x"), ("1A", "x"), ("A B", "x"), ("A", "\u{1}"), ("A", "\r")] {
        let mut config = base();
        config.pools[0].environment.insert(name.into(), value.into());
        assert_eq!(check(&config).len(), 1, "{name}={value:?}");
    }
    let mut config = base();
    config.pools[0].environment.insert("A_1".into(), "two\nlines\tand \u{e9}".into());
    assert_eq!(check(&config), Vec::<String>::new());
}

#[test]
fn check_rejects_permissions_that_keep_the_dispatcher_from_a_worker() {
    let mut config = base();
    config.listeners[0].owner = Some("web".into());
    config.listeners[0].mode = 0o660;
    assert_eq!(check(&config), Vec::<String>::new());
    config.listeners.push(ListenerConfig { pool: PoolName::new("a").unwrap(), ..ListenerConfig::built_in().remove(1) });
    assert_eq!(check(&config).len(), 1, "{:?}", check(&config));
    config.listeners[0].group = None;
    assert_eq!(check(&config), Vec::<String>::new());
    // Clients of a handoff listener never connect to a worker.
    (config.listeners[0].delivery, config.listeners[0].group) = (crate::config::Delivery::Handoff, Some("web".into()));
    assert_eq!(check(&config), Vec::<String>::new());
    let files = render(&config, &ListenerSockets::default(), |_| None);
    assert!(files["patou-worker@a-1.socket.d/50-patou.conf"].contains("SocketUser=patou\nSocketGroup=patou\n"));
}

#[test]
fn listeners_that_stay_keep_their_sockets_when_another_one_goes_or_moves_in_the_file() {
    let with = |addresses: &[&str]| {
        let listener =
            |address: &&str| ListenerConfig { address: address.parse().unwrap(), ..base().listeners.remove(0) };
        Config { listeners: addresses.iter().map(listener).collect(), ..base() }
    };
    let (a, b, c) = ("127.0.0.2:80", "127.0.0.1:80", "[::1]:80");
    let steps = |old: &[&str], new: &[&str]| reload_steps(&with(old), &with(new), &ListenerSockets::default());
    let removed = steps(&[a, b, c], &[b, c]);
    assert_eq!((removed.stop, removed.start, removed.restart), (vec![listener(a)], vec![], vec![]));
    assert!(removed.release && removed.bind.is_empty());
    let sorted = steps(&[a, b, c], &[c, a, b]);
    assert_eq!((sorted.stop, sorted.restart), (vec![], vec![]));
    assert!(sorted.reload.contains(&DISPATCHER.to_owned()));
    let moved = steps(&[a, b], &["127.0.0.2:81", b]);
    assert_eq!((moved.stop, moved.restart), (vec![listener(a)], vec![DISPATCHER.to_owned()]));
    assert_eq!((moved.release, moved.bind), (true, vec!["127.0.0.2:81".parse().unwrap()]));
}

#[test]
fn address_is_free_before_the_next_socket_binds_it() {
    // A listener and the first worker of a pool exchange their addresses; the admin socket gets that of another listener.
    let with = |listeners: [&str; 2], pool: &str, admin: &str| {
        let mut config = base();
        let listener =
            |address: &&str| ListenerConfig { address: address.parse().unwrap(), ..config.listeners[0].clone() };
        config.listeners = listeners.iter().map(listener).collect();
        config.pools[0].address = pool.parse().unwrap();
        config.admin.address = Some(admin.parse().unwrap());
        config
    };
    let old = with(["127.0.0.1:80", "127.0.0.1:81"], "127.0.0.1:90", "127.0.0.1:70");
    let new = with(["127.0.0.1:90", "127.0.0.1:70"], "127.0.0.1:80", "127.0.0.1:82");
    let steps = reload_steps(&old, &new, &ListenerSockets::default());
    let workers = ["patou-worker@a-1.service", "patou-worker@a-2.service"].map(str::to_owned);
    let sockets = ["127.0.0.1:80", "127.0.0.1:81"].map(listener);
    for unit in workers.iter().chain(&sockets).chain([&ADMIN.to_owned()]) {
        assert!(steps.stop.contains(unit), "{unit}");
    }
    let tcp = |addresses: &[&str]| addresses.iter().map(|address| address.parse().unwrap()).collect::<Vec<_>>();
    assert_eq!((steps.release, steps.admin), (true, tcp(&["127.0.0.1:82"])));
    assert_eq!((steps.rebind, steps.start), (vec![WATCHDOG.to_owned()], workers.to_vec()));
    assert_eq!(steps.bind, tcp(&["127.0.0.1:80", "127.0.0.1:81", "127.0.0.1:90", "127.0.0.1:70"]));
    assert_eq!(steps.restart, [DISPATCHER]);
}

#[test]
fn published_socket_keeps_its_name_as_long_as_its_address_is_published() {
    let indexed = |index: usize| format!("patou-listener@{index}.socket");
    let path = |index: usize| format!("{}.d/50-patou.conf", indexed(index));
    let text = "# Generated.\n[Socket]\nListenStream=/run/a%%b\nSocketUser=patou\n";
    let (first, second) = (path(0), path(1));
    let worker = ("patou-worker@a-1.socket.d/50-patou.conf", "[Socket]\nListenStream=127.0.0.1:7300\n");
    let drop_ins = [(first.as_str(), text), (second.as_str(), "[Socket]\nListenStream=[::1]:80\n"), worker];
    let sockets = ListenerSockets::of_drop_ins(drop_ins);
    assert_eq!(sockets.unit(&"unix:/run/a%b".parse().unwrap()), indexed(0));
    assert_eq!(sockets.unit(&"[::1]:80".parse().unwrap()), indexed(1));
    for address in ["127.0.0.1:80", "127.0.0.1:7300"] {
        assert_eq!(sockets.unit(&address.parse().unwrap()), listener(address));
    }
    // What is rendered with these names is read back with them.
    let mut config = base();
    config.listeners[0].address = "[::1]:80".parse().unwrap();
    let files = render(&config, &sockets, |_| None);
    let again = ListenerSockets::of_drop_ins(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
    assert_eq!(again.unit(&config.listeners[0].address), indexed(1));
    assert_eq!(again.unit(&"unix:/run/a%b".parse().unwrap()), listener("unix:/run/a%b"));
}
