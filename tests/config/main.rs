//! The configuration from outside: what a file says is what comes out, and what is wrong is told, all of it.

mod addresses;
mod between_keys;
mod copy;
mod one_key;

use patou::config::{Config, ConfigFault, ListenerConfig, LoadError, Origin, PoolConfig};

fn faults(text: &str) -> Vec<ConfigFault> {
    Config::parse(text, "patou.toml").expect_err(text).0
}

fn good(text: &str) -> Config {
    Config::parse(text, "patou.toml").unwrap_or_else(|faults| panic!("{text}\n{faults}"))
}

/// Each of these files has one fault: its line, its key, and the rest of the message.
#[track_caller]
fn told(cases: &[(&str, usize, &str, &str)]) {
    for (text, line, key, message) in cases {
        let all = faults(text);
        let lines: Vec<String> = all.iter().map(ConfigFault::to_string).collect();
        let colon = if key.is_empty() { "" } else { ": " };
        assert_eq!(lines, [format!("patou.toml:{line}: {key}{colon}found {message}")], "\n{text}");
        assert_eq!((all[0].line, all[0].key.as_str()), (*line, *key));
    }
}

/// One line in the section of the only pool, and its fault.
#[track_caller]
fn pool_told(cases: &[(&str, &str, &str)]) {
    for (line, key, message) in cases {
        told(&[(&format!("[[pool]]\nname = \"default\"\n{line}"), 3, &format!("pool[1].{key}"), message)]);
    }
}

/// One line in the section of the only listener, and its fault.
#[track_caller]
fn listener_told(cases: &[(&str, &str, &str)]) {
    for (line, key, message) in cases {
        let text = format!("[[pool]]\nname = \"web\"\n[[listener]]\naddress = \"127.0.0.1:80\"\n{line}");
        told(&[(&text, 5, &format!("listener[1].{key}"), message)]);
    }
}

#[test]
fn the_default_file_is_the_default() {
    assert_eq!(good(Config::DEFAULT_TOML), Config::default());
    assert_eq!(good(""), Config::default());
    assert_eq!(good("\u{feff}[set]\r\nname = \"patou\"\r\n"), Config::default());
}

#[test]
fn the_default_file_shows_every_key() {
    for line in Config::default().to_toml().lines() {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        let shows = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
        assert!(Config::DEFAULT_TOML.lines().any(shows), "{key}");
    }
}

#[test]
fn what_may_be_left_out() {
    let web = "[[pool]]\nname = \"web\"\n";
    let listener = "[[listener]]\naddress = \"127.0.0.1:80\"\n";
    let config = good(&format!("{web}{listener}"));
    assert_eq!(config.listeners[0].pool.as_str(), "web");
    assert_eq!(config.pools[0].address, PoolConfig::default().address);
    let config = good("[[pool]]\nname = \"default\"\nworkers = 3");
    assert_eq!(config.listeners, ListenerConfig::built_in());
    assert_eq!(config.workers().map(|id| id.to_string()).collect::<Vec<_>>(), ["default/1", "default/2", "default/3"]);
    assert_eq!(config.pool(&config.pools[0].name), Some(&config.pools[0]));
    told(&[
        (
            web,
            1,
            "listener",
            "nothing; expected at least one [[listener]]; the built-in ones need a pool named \"default\"",
        ),
        (listener, 1, "pool", "nothing; expected at least one [[pool]] for the listeners"),
        ("[[pool]]", 1, "pool[1].name", "nothing; expected a name of 1 to 32 characters of a-z, 0-9 and _"),
        (
            "\n[[pool]]\nname = \"default\"\n[[pool]]\nname = \"b\"\naddress = \"127.0.0.1:1\"",
            2,
            "pool[1].address",
            "nothing; expected where its workers listen, since there are several pools",
        ),
        (
            "[[pool]]\nname = \"default\"\n\n[[listener]]\npool = \"default\"",
            4,
            "listener[1].address",
            "nothing; expected where to listen, such as \"127.0.0.1:7286\" or \"unix:/path\"",
        ),
        (
            "[[pool]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[pool]]\nname = \"b\"\naddress = \"127.0.0.1:9\"\n\
             [[listener]]\naddress = \"127.0.0.1:80\"",
            7,
            "listener[1].pool",
            "nothing; expected the name of the pool that serves it, since there are several",
        ),
    ]);
}

#[test]
fn all_faults_are_told_in_the_order_of_lines() {
    let text = "\
[set]
name = \"Patou\"
[[listener]]
address = \"127.0.0.1\"
pool = \"wbe\"
delivery = \"handover\"
[[pool]]
name = \"web\"
workers = 0
offer_timeout = \"5 minuts\"
[[pool]]
name = \"web\"
address = \"127.0.0.1:7300\"
handler = { exec = [] }
limits = { cpu = \"50%\" }
[front]
head_bytes = 10
[watchdog]
probe_interval = \"5s\"
[other]
";
    let lines: Vec<_> = faults(text).into_iter().map(|fault| (fault.line, fault.key)).collect();
    let expected = [
        (2, "set.name"),
        (4, "listener[1].address"),
        (5, "listener[1].pool"),
        (6, "listener[1].delivery"),
        (7, "pool[1].address"),
        (9, "pool[1].workers"),
        (10, "pool[1].offer_timeout"),
        (12, "pool[2].name"),
        (14, "pool[2].handler.exec"),
        (15, "pool[2].limits.cpu"),
        (17, "front.head_bytes"),
        (19, "watchdog.probe_interval"),
        (19, "watchdog.probe_interval"),
        (20, "other"),
    ];
    assert_eq!(lines, expected.map(|(line, key)| (line, key.to_owned())));
    let display = Config::parse(text, "f.toml").unwrap_err().to_string();
    assert_eq!(display.lines().count(), expected.len());
    assert!(display.lines().all(|line| line.starts_with("f.toml:")), "{display}");
}

#[test]
fn a_file_is_loaded_or_refused() {
    let folder = std::env::temp_dir().join(format!("patou-config-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("patou.toml");
    std::fs::write(&file, Config::DEFAULT_TOML).unwrap();
    let loaded = Config::load(Some(&file)).unwrap();
    assert_eq!((loaded.origin, loaded.config), (Origin::File(file.clone()), Config::default()));
    assert_eq!(loaded.text, Config::DEFAULT_TOML);
    std::fs::write(&file, "[set]\nname = 1").unwrap();
    let refused = Config::load(Some(&file)).unwrap_err();
    assert!(matches!(&refused, LoadError::Faults(faults) if faults.0.len() == 1));
    assert!(refused.to_string().starts_with(&format!("{}:2: set.name: found 1;", file.display())), "{refused}");
    std::fs::remove_dir_all(&folder).unwrap();
    let refused = Config::load(Some(&file)).unwrap_err();
    assert!(matches!(refused, LoadError::Unreadable { file: named, .. } if named == file));
}

#[test]
fn a_fault_is_one_line_whatever_it_shows() {
    let text =
        "[[listener]]\naddress = \"unix:/a\\nb\"\n[[pool]]\nname = \"p\"\naddress = \"unix:/a\\nb\"\nworkers = 1\n";
    let display = Config::parse(text, "f").unwrap_err().to_string();
    assert_eq!(display.lines().count(), 1, "{display}");
}
