//! The configuration file: valid files give the expected configuration, invalid files give every error with its line.

mod addresses;
mod between_keys;
mod copy;
mod limits;
mod one_key;

use patou::config::{Config, ConfigFault, ListenerConfig, LoadError, Origin, PoolConfig};

fn faults(text: &str) -> Vec<ConfigFault> {
    Config::parse(text, "patou.toml").expect_err(text).0
}

fn valid(text: &str) -> Config {
    Config::parse(text, "patou.toml").unwrap_or_else(|faults| panic!("{text}\n{faults}"))
}

/// Each of these files has exactly one fault, with this line, key and rest of the message.
#[track_caller]
fn assert_faults(cases: &[(&str, usize, &str, &str)]) {
    for (text, line, key, message) in cases {
        let all = faults(text);
        let lines: Vec<String> = all.iter().map(ConfigFault::to_string).collect();
        let colon = if key.is_empty() { "" } else { ": " };
        assert_eq!(lines, [format!("patou.toml:{line}: {key}{colon}found {message}")], "\n{text}");
        assert_eq!((all[0].line, all[0].key.as_str()), (*line, *key));
    }
}

/// As [`assert_faults`], for one line in the section of the only pool.
#[track_caller]
fn assert_pool_fault(cases: &[(&str, &str, &str)]) {
    for (line, key, message) in cases {
        assert_faults(&[(&format!("[[pool]]\nname = \"default\"\n{line}"), 3, &format!("pool[1].{key}"), message)]);
    }
}

/// As [`assert_faults`], for one line in the section of the only listener.
#[track_caller]
fn assert_listener_fault(cases: &[(&str, &str, &str)]) {
    for (line, key, message) in cases {
        let text = format!("[[pool]]\nname = \"web\"\n[[listener]]\naddress = \"127.0.0.1:80\"\n{line}");
        assert_faults(&[(&text, 5, &format!("listener[1].{key}"), message)]);
    }
}

#[test]
fn default_file_equals_the_built_in_config() {
    assert_eq!(valid(Config::DEFAULT_TOML), Config::default());
    assert_eq!(valid(""), Config::default());
    assert_eq!(valid("\u{feff}[set]\r\nname = \"patou\"\r\n"), Config::default());
}

#[test]
fn default_file_shows_every_key() {
    let mut in_nested_table = false;
    for line in Config::default().to_toml().lines() {
        let header = line.strip_prefix('[').map(|header| header.trim_matches(['[', ']']));
        // `[pool.limits]` is written as `limits = {..}` in the default file.
        let nested = header.and_then(|header| header.rsplit_once('.'));
        in_nested_table = if header.is_some() { nested.is_some() } else { in_nested_table };
        let (key, is_inline) = match (nested, line.split_once(" = ")) {
            (Some((_, key)), _) => (key, false),
            (None, Some((key, _))) => (key, in_nested_table),
            (None, None) => continue,
        };
        let shows = |line: &str| {
            let line = line.trim_start_matches("# ");
            if is_inline { line.contains(&format!(" {key} = ")) } else { line.starts_with(&format!("{key} = ")) }
        };
        assert!(Config::DEFAULT_TOML.lines().any(shows), "{key}");
    }
}

#[test]
fn sections_and_keys_with_a_default_may_be_omitted() {
    let web = "[[pool]]\nname = \"web\"\n";
    let listener = "[[listener]]\naddress = \"127.0.0.1:80\"\n";
    let config = valid(&format!("{web}{listener}"));
    assert_eq!(config.listeners[0].pool.as_str(), "web");
    assert_eq!(config.pools[0].address, PoolConfig::default().address);
    let config = valid("[[pool]]\nname = \"default\"\nworkers = 3");
    assert_eq!(config.listeners, ListenerConfig::built_in());
    assert_eq!(config.workers().map(|id| id.to_string()).collect::<Vec<_>>(), ["default/1", "default/2", "default/3"]);
    assert_eq!(config.pool(&config.pools[0].name), Some(&config.pools[0]));
    assert_faults(&[
        (
            web,
            1,
            "listener",
            "nothing; expected at least one [[listener]]; the built-in listeners need a pool named \"default\"",
        ),
        (listener, 1, "pool", "nothing; expected at least one [[pool]] for the listeners"),
        ("[[pool]]", 1, "pool[1].name", "nothing; expected a name of 1 to 32 characters of a-z, 0-9 and _"),
        (
            "\n[[pool]]\nname = \"default\"\n[[pool]]\nname = \"b\"\naddress = \"127.0.0.1:1\"",
            2,
            "pool[1].address",
            "nothing; expected the address of its workers, required with several pools",
        ),
        (
            "[[pool]]\nname = \"default\"\n\n[[listener]]\npool = \"default\"",
            4,
            "listener[1].address",
            "nothing; expected an address such as \"127.0.0.1:7286\" or \"unix:/path\"",
        ),
        (
            "[[pool]]\nname = \"a\"\naddress = \"127.0.0.1:1\"\n[[pool]]\nname = \"b\"\naddress = \"127.0.0.1:9\"\n\
             [[listener]]\naddress = \"127.0.0.1:80\"",
            7,
            "listener[1].pool",
            "nothing; expected the name of a pool, required with several pools",
        ),
    ]);
}

#[test]
fn all_faults_are_reported_in_the_order_of_lines() {
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
fn file_is_loaded_or_rejected() {
    let dir = std::env::temp_dir().join(format!("patou-config-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("patou.toml");
    std::fs::write(&file, Config::DEFAULT_TOML).unwrap();
    let loaded = Config::load(Some(&file)).unwrap();
    assert_eq!((loaded.origin, loaded.config), (Origin::File(file.clone()), Config::default()));
    assert_eq!(loaded.text.as_str(), Config::DEFAULT_TOML);
    std::fs::write(&file, "[set]\nname = 1\n[[pool]]\nname = \"default\"\n").unwrap();
    let error = Config::load(Some(&file)).unwrap_err();
    assert!(matches!(&error, LoadError::Faults(faults) if faults.0.len() == 1));
    assert!(error.to_string().starts_with(&format!("{}:2: set.name: found 1;", file.display())), "{error}");
    std::fs::remove_dir_all(&dir).unwrap();
    let error = Config::load(Some(&file)).unwrap_err();
    assert!(matches!(error, LoadError::Unreadable { file: named, .. } if named == file));
}

#[test]
fn fault_with_a_line_break_in_the_value_is_one_line() {
    let text = "[[listener]]\naddress = \"unix:/a\\nb\"\n[[pool]]\nname = \"p\"\nworkers = 1\n";
    let display = Config::parse(text, "f").unwrap_err().to_string();
    assert_eq!(display.lines().count(), 1, "{display}");
}
