//! The manual pages agree with the program: each command and option, each key with its default, each event and unit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What `patou ARGS --help` prints.
fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_patou")).args(args).arg("--help").output().unwrap();
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The first word of each line below a heading of the help.
fn first_words_below<'h>(help: &'h str, heading: &str) -> Vec<&'h str> {
    let lines = help.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.is_empty());
    lines.filter_map(|line| line.split_whitespace().next()).collect()
}

fn commands(help: &str) -> Vec<&str> {
    first_words_below(help, "Commands:").into_iter().filter(|name| *name != "help").collect()
}

/// The options of a command, short and long names, without the global options.
fn options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().skip_while(|line| *line != "Options:").skip(1);
    let named = lines.filter(|line| line.trim_start().starts_with('-')).flat_map(|line| {
        let names = line.split_whitespace().take_while(|word| word.starts_with('-'));
        names.map(|word| word.trim_end_matches(',').to_owned()).collect::<Vec<_>>()
    });
    named.filter(|name| !["--config", "-h", "--help", "-V", "--version"].contains(&name.as_str())).collect()
}

/// The sections of a page: the lines below each `.Sh` and `.Ss`, by title.
fn sections(page: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut sections: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut title = "";
    for line in page.lines() {
        match line.strip_prefix(".Sh ").or_else(|| line.strip_prefix(".Ss ")) {
            Some(next) => title = next,
            None => sections.entry(title).or_default().push(line),
        }
    }
    sections
}

/// The options that have an entry in these lines: `.It Fl v , Fl Fl verbose`.
fn documented(lines: &[&str]) -> BTreeSet<String> {
    let entries = lines.iter().filter_map(|line| line.strip_prefix(".It "));
    let options = entries.flat_map(|entry| {
        let text = entry.replace("Fl Fl ", "--").replace("Fl ", "-");
        text.split_whitespace().filter(|word| word.starts_with('-')).map(str::to_owned).collect::<Vec<_>>()
    });
    options.collect()
}

#[test]
fn patou_1_documents_exactly_the_commands_and_options() {
    let page = read("packaging/man/patou.1");
    let sections = sections(&page);
    let top_help = help(&[]);
    for name in commands(&top_help) {
        let section = sections.get(name).unwrap_or_else(|| panic!("patou(1) does not document {name}"));
        let command_help = help(&[name]);
        let subcommands = commands(&command_help);
        let mut expected = options(&command_help);
        for subcommand in &subcommands {
            let entry = format!(".It Cm {subcommand}");
            assert!(section.iter().any(|line| line.starts_with(&entry)), "patou(1): {name} {subcommand}");
            expected.extend(options(&help(&[name, subcommand])));
        }
        assert_eq!(documented(section), expected, "patou(1): options of {name}");
        let mut entries = section.iter().filter_map(|line| line.strip_prefix(".It Cm ")?.split_whitespace().next());
        let unknown = entries.find(|entry| !subcommands.contains(entry));
        assert_eq!(unknown, None, "patou(1): a subcommand of {name} that does not exist");
    }
    let existing: BTreeSet<&str> = commands(&top_help).into_iter().chain(["help"]).collect();
    let titles: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix(".Ss ")).collect();
    assert_eq!(titles, existing, "patou(1): commands");
    let global: BTreeSet<String> = ["--config", "-h", "--help", "-V", "--version"].map(str::to_owned).into();
    assert_eq!(documented(&sections["OPTIONS"]), global);
}

/// Each key of the annotated defaults by section, with its value; `None` if it has no fixed default.
fn defaults() -> BTreeMap<(String, String), Option<String>> {
    let text = read("config/patou.toml");
    let mut keys = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line.to_owned();
        } else if let Some((key, value)) = line.trim_start_matches("# ").split_once(" = ") {
            let is_key = key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            // Removes a trailing comment; no value contains ` #`.
            let value = value.split(" #").next().unwrap_or_default().trim().to_owned();
            if is_key && !section.is_empty() {
                let example = line.starts_with('#') && key != "mode";
                // The first of the two built-in listeners has the defaults of the keys.
                keys.entry((section.clone(), key.to_owned())).or_insert((!example).then_some(value));
            }
        }
    }
    keys
}

/// The value in `.It Ic key No = Qq value`.
fn value(mdoc: &str) -> String {
    let text = mdoc.replace("\\(dq", "\"").replace("\\&", "");
    match text.strip_prefix("Qq ") {
        Some(quoted) => format!("\"{}\"", quoted.trim()),
        None => text,
    }
}

#[test]
fn patou_toml_5_documents_exactly_the_keys_with_their_defaults() {
    let page = read("packaging/man/patou.toml.5");
    let defaults = defaults();
    assert!(defaults.len() > 40, "{defaults:?}");
    let sections = sections(&page);
    // The keys of the inline tables `restarts` and `limits` have entries without a default.
    let table_keys = ["max", "within", "delay", "delay_max", "memory_max", "cpu_quota", "tasks_max", "open_files"];
    let mut described = BTreeMap::new();
    for (section, lines) in sections.iter().filter(|(title, _)| title.starts_with('[')) {
        for entry in lines.iter().filter_map(|line| line.strip_prefix(".It Ic ")) {
            let (key, default) = match entry.split_once(" No = ") {
                Some((key, default)) => (key, Some(value(default))),
                None => (entry, None),
            };
            if !table_keys.contains(&key) {
                described.insert(((*section).to_owned(), key.to_owned()), default);
            }
        }
    }
    for (key, default) in &defaults {
        assert_eq!(described.get(key), Some(default), "patou.toml(5): {key:?}");
    }
    assert_eq!(described.keys().collect::<Vec<_>>(), defaults.keys().collect::<Vec<_>>(), "patou.toml(5): keys");
    let text = read("config/patou.toml");
    for key in table_keys {
        assert!(text.contains(&format!("{key} = ")) && page.contains(&format!("\n.It Ic {key}\n")), "{key}");
    }
}

#[test]
fn patou_7_documents_every_event_and_unit() {
    let page = read("packaging/man/patou.7");
    let page_words: BTreeSet<&str> = page.split([' ', ',', '\n']).collect();
    let source = read("src/log/events.rs");
    // `SetUp = 0x..., "set-up";`
    let events = source.lines().filter_map(|line| line.split_once(" = 0x")?.1.split('"').nth(1));
    assert!(events.clone().count() > 40);
    events.for_each(|event| assert!(page_words.contains(event), "patou(7): event {event}"));
    for unit in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")).unwrap() {
        let name = unit.unwrap().file_name().into_string().unwrap();
        let stem = name.split('@').next().unwrap_or_default();
        assert!(name.ends_with(".catalog") || page.contains(&format!("\n.It Pa {stem}")), "patou(7): unit {name}");
    }
}

#[test]
fn packaged_files_are_valid_and_match_this_version() {
    for file in ["packaging/patou.toml", "packaging/examples/work.toml"] {
        // The package creates its account; this machine may not have it.
        let text =
            read(file).replace("owner = \"patou\"", "owner = \"0\"").replace("group = \"patou\"", "group = \"0\"");
        let text = text.replace("/usr/share/doc/patou/examples", concat!(env!("CARGO_MANIFEST_DIR"), "/examples"));
        let copy = std::env::temp_dir().join(format!("patou-packaged-{}.toml", std::process::id()));
        fs::write(&copy, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_patou")).args(["check", "--config"]).arg(&copy).output().unwrap();
        fs::remove_file(copy).unwrap();
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // The packaged configuration does not listen on the network.
    let installed = read("packaging/patou.toml");
    let addresses = installed.lines().filter(|line| line.starts_with("address"));
    assert!(addresses.clone().count() >= 2 && addresses.clone().all(|line| line.contains("\"unix:")), "{installed}");
    let changelog = read("packaging/changelog");
    assert!(changelog.starts_with(&format!("patou ({}-", env!("CARGO_PKG_VERSION"))), "packaging/changelog");
}

/// What the program offers for the last of these words.
fn completions(words: &[&str], config: &str) -> Vec<String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patou"));
    command.env("PATOU_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    command.env("_CLAP_COMPLETE_COMP_TYPE", "9").env("_CLAP_IFS", "\n").env("PATOU_CONFIG", config);
    let output = command.args(["--", "patou"]).args(words).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn completions_know_the_visible_commands_and_the_pools_and_workers_of_the_set() {
    let file = std::env::temp_dir().join(format!("patou-completions-{}.toml", std::process::id()));
    let pools = "[[pool]]\nname = \"web\"\naddress = \"127.0.0.1:7400\"\n[[pool]]\nname = \"pdf\"\nworkers = 1\n\
                 address = \"127.0.0.1:7410\"\n";
    let listener = "[[listener]]\naddress = \"127.0.0.1:7286\"\npool = \"web\"\n";
    fs::write(&file, format!("[set]\nruntime_dir = \"/nonexistent/run\"\n{pools}{listener}")).unwrap();
    let of = |words: &[&str]| completions(words, file.to_str().unwrap());
    let commands = of(&[""]);
    assert!(["pingpong", "status", "recycle"].iter().all(|name| commands.contains(&name.to_string())), "{commands:?}");
    assert!(!commands.contains(&"launch".to_owned()), "{commands:?}");
    assert_eq!(of(&["recycle", ""])[..2], ["web", "pdf"]);
    assert_eq!(of(&["drain", "web-"]), ["web-1", "web-2"]);
    assert_eq!(of(&["resume", "p"]), ["pdf-1"]);
    assert!(completions(&["drain", "w"], "/nonexistent").is_empty());
    for (shell, name) in [("bash", "patou.bash"), ("zsh", "_patou"), ("fish", "patou.fish")] {
        let script = fs::read_to_string(format!("packaging/completions/{name}")).unwrap();
        assert!(script.contains(&format!("PATOU_COMPLETE={shell} patou")), "{script}");
        let output = Command::new(env!("CARGO_BIN_EXE_patou")).env("PATOU_COMPLETE", shell).output().unwrap();
        let registration = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && registration.contains("PATOU_COMPLETE"), "{registration}");
        assert!(shell != "zsh" || registration.contains("function _clap_dynamic_completer_patou"), "{registration}");
    }
    fs::remove_file(&file).unwrap();
}
