//! The manual pages say what the program says: each command and option, each key with its default.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What `patou WORDS --help` prints.
fn help(words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_patou")).args(words).arg("--help").output().unwrap();
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The first word of each line below a heading of the help.
fn below<'h>(help: &'h str, heading: &str) -> Vec<&'h str> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    lines.filter_map(|line| line.split_whitespace().next()).collect()
}

fn commands(help: &str) -> Vec<&str> {
    below(help, "Commands:").into_iter().filter(|name| *name != "help").collect()
}

/// The options of a command, `-v` and `--verbose` both, without those of all commands.
fn options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().skip_while(|line| *line != "Options:").skip(1);
    let named = lines.filter(|line| line.trim_start().starts_with('-')).flat_map(|line| {
        let names = line.split_whitespace().take_while(|word| word.starts_with('-'));
        names.map(|word| word.trim_end_matches(',').to_owned()).collect::<Vec<_>>()
    });
    named.filter(|name| !["--config", "-h", "--help", "-V", "--version"].contains(&name.as_str())).collect()
}

/// A page's parts: the text below each `.Sh` and `.Ss`, by its title.
fn parts(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut parts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut title = "";
    for line in page.lines() {
        match line.strip_prefix(".Sh ").or_else(|| line.strip_prefix(".Ss ")) {
            Some(next) => title = next,
            None => parts.entry(title).or_default().push(line),
        }
    }
    parts
}

/// The options that have an entry in these lines: `.It Fl v , Fl Fl verbose`.
fn documented(lines: &[&str]) -> BTreeSet<String> {
    let entries = lines.iter().filter_map(|line| line.strip_prefix(".It "));
    let words = entries.flat_map(|entry| {
        let text = entry.replace("Fl Fl ", "--").replace("Fl ", "-");
        text.split_whitespace().filter(|word| word.starts_with('-')).map(str::to_owned).collect::<Vec<_>>()
    });
    words.collect()
}

#[test]
fn patou_1_has_every_command_and_option_and_no_other() {
    let page = read("packaging/man/patou.1");
    let parts = parts(&page);
    let all = help(&[]);
    for name in commands(&all) {
        let part = parts.get(name).unwrap_or_else(|| panic!("patou(1) has no {name}"));
        let help_of = help(&[name]);
        let mut wanted = options(&help_of);
        for inner in commands(&help_of) {
            assert!(part.iter().any(|line| line.starts_with(&format!(".It Cm {inner}"))), "patou(1): {name} {inner}");
            wanted.extend(options(&help(&[name, inner])));
        }
        assert_eq!(documented(part), wanted, "patou(1): options of {name}");
        let inner = part.iter().filter_map(|line| line.strip_prefix(".It Cm ")?.split_whitespace().next());
        let known = commands(&help_of);
        inner.for_each(|inner| assert!(known.contains(&inner), "patou(1): {name} {inner} does not exist"));
    }
    let known: BTreeSet<&str> = commands(&all).into_iter().chain(["help"]).collect();
    let titles: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix(".Ss ")).collect();
    assert_eq!(titles, known, "patou(1): commands");
    let global: BTreeSet<String> = ["--config", "-h", "--help", "-V", "--version"].map(str::to_owned).into();
    assert_eq!(documented(&parts["OPTIONS"]), global);
}

/// Each key of the annotated defaults by section, with its value; `None` where there is none or it depends.
fn defaults() -> BTreeMap<(String, String), Option<String>> {
    let text = read("config/patou.toml");
    let mut keys = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.to_owned();
        } else if let Some((key, value)) = line.trim_start_matches("# ").split_once(" = ") {
            let plain = key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            // A comment after the value, where the value is no string with a `#`.
            let value = value.split(" #").next().unwrap_or_default().trim().to_owned();
            if plain && !section.is_empty() {
                let example = line.starts_with('#') && key != "mode";
                // Of the two built-in listeners the first one says what a key is by default.
                keys.entry((section.clone(), key.to_owned())).or_insert((!example).then_some(value));
            }
        }
    }
    keys
}

/// The value in `.It Ic key No = Qq value`.
fn value(words: &str) -> String {
    let text = words.replace("\\(dq", "\"").replace("\\&", "");
    match text.strip_prefix("Qq ") {
        Some(quoted) => format!("\"{}\"", quoted.trim()),
        None => text,
    }
}

#[test]
fn patou_toml_5_has_every_key_with_its_default() {
    let page = read("packaging/man/patou.toml.5");
    let defaults = defaults();
    assert!(defaults.len() > 40, "{defaults:?}");
    let parts = parts(&page);
    // Keys of tables within a key, `restarts` and `limits`, have entries of their own and no value there.
    let inner = ["max", "within", "delay", "delay_max", "memory_max", "cpu_quota", "tasks_max", "open_files"];
    let mut described = BTreeMap::new();
    for (section, lines) in parts.iter().filter(|(title, _)| title.starts_with('[')) {
        for entry in lines.iter().filter_map(|line| line.strip_prefix(".It Ic ")) {
            let (key, default) = match entry.split_once(" No = ") {
                Some((key, default)) => (key, Some(value(default))),
                None => (entry, None),
            };
            if !inner.contains(&key) {
                described.insert(((*section).to_owned(), key.to_owned()), default);
            }
        }
    }
    for (key, default) in &defaults {
        assert_eq!(described.get(key), Some(default), "patou.toml(5): {key:?}");
    }
    assert_eq!(described.keys().collect::<Vec<_>>(), defaults.keys().collect::<Vec<_>>(), "patou.toml(5): keys");
    let text = read("config/patou.toml");
    for key in inner {
        assert!(text.contains(&format!("{key} = ")) && page.contains(&format!("\n.It Ic {key}\n")), "{key}");
    }
}

#[test]
fn patou_7_has_every_event_and_unit() {
    let page = read("packaging/man/patou.7");
    let words: BTreeSet<&str> = page.split([' ', ',', '\n']).collect();
    let source = read("src/log/events.rs");
    // `SetUp = 0x..., "set-up";`
    let events = source.lines().filter_map(|line| line.split_once(" = 0x")?.1.split('"').nth(1));
    assert!(events.clone().count() > 40);
    events.for_each(|event| assert!(words.contains(event), "patou(7): event {event}"));
    for unit in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")).unwrap() {
        let name = unit.unwrap().file_name().into_string().unwrap();
        let stem = name.split('@').next().unwrap_or_default();
        assert!(name.ends_with(".catalog") || page.contains(&format!("\n.It Pa {stem}")), "patou(7): unit {name}");
    }
}

#[test]
fn what_the_package_ships_is_right() {
    for file in ["packaging/patou.toml", "packaging/examples/work.toml"] {
        let output = Command::new(env!("CARGO_BIN_EXE_patou")).args(["check", "--config", file]).output().unwrap();
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // As installed, nothing listens on the network.
    let installed = read("packaging/patou.toml");
    let addresses = installed.lines().filter(|line| line.starts_with("address"));
    assert!(addresses.clone().count() >= 2 && addresses.clone().all(|line| line.contains("\"unix:")), "{installed}");
    let changelog = read("packaging/changelog");
    assert!(changelog.starts_with(&format!("patou ({}-", env!("CARGO_PKG_VERSION"))), "packaging/changelog");
}

#[test]
fn shells_get_completions_for_what_is_shown_and_not_for_what_is_hidden() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_patou")).args(["completions", shell]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("pingpong") && text.contains("compare"), "{shell}");
        assert!(!text.contains("launch") && !text.contains("completions"), "{shell}");
    }
}
