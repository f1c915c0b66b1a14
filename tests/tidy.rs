//! The rules of the house, held by a test: which module may use which, no import circles, where `unsafe` and the clock
//! may be, one name for one type, short files, and the language of everything that ships or is read.
//!
//! The lists below are the rules; see CONTRIBUTING.md for how to change them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned;
use syn::visit::Visit;

/// What each module may use of the crate, in dependency order: a module uses only what comes before it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("bounds", &[]),
    ("ids", &[]),
    ("stats", &[]),
    ("config", &["ids"]),
    ("exchange", &["ids", "stats"]),
    ("pool", &["bounds", "ids", "stats"]),
    ("liveness", &["ids"]),
    ("clock", &["ids"]),
    ("sync", &[]),
    ("sd_notification", &["sync"]),
    ("sd_watchdog", &["clock", "ids", "sd_notification"]),
    ("signals", &[]),
    ("log", &["sync"]),
    ("sys", &[]),
    ("descriptors", &[]),
    ("inherited", &["sys"]),
    ("procfs", &["ids"]),
    ("requirements", &["procfs", "sys"]),
    ("held_file", &[]),
    ("doorbell", &[]),
    ("process_tree", &["log", "procfs", "sys"]),
    ("net", &["config", "sys"]),
    ("handoff", &["config", "held_file", "ids", "net", "sys"]),
    ("probe", &["config", "ids", "stats"]),
    ("executable", &[]),
    ("shm", &["exchange", "sync"]),
    ("ipc", &["config", "doorbell", "exchange", "held_file", "ids", "procfs", "shm"]),
    ("units", &["config", "ids"]),
    ("published", &["ids", "units"]),
    ("worker_files", &["config", "executable", "units"]),
    ("status", &["config", "exchange", "ids", "ipc", "probe", "procfs", "shm", "stats", "units"]),
    ("backoff", &["clock", "config", "exchange", "ids", "liveness", "log"]),
    ("client", &["ids"]),
    (
        "dispatcher",
        &[
            "backoff",
            "clock",
            "config",
            "descriptors",
            "doorbell",
            "exchange",
            "handoff",
            "held_file",
            "ids",
            "ipc",
            "log",
            "net",
            "pool",
            "probe",
            "procfs",
            "sd_notification",
            "sd_watchdog",
            "shm",
            "signals",
            "sys",
        ],
    ),
    (
        "worker",
        &[
            "backoff",
            "bounds",
            "clock",
            "config",
            "descriptors",
            "doorbell",
            "exchange",
            "executable",
            "handoff",
            "held_file",
            "ids",
            "ipc",
            "log",
            "net",
            "process_tree",
            "procfs",
            "sd_notification",
            "sd_watchdog",
            "shm",
            "signals",
            "sync",
            "sys",
        ],
    ),
    (
        "watchdog",
        &[
            "backoff",
            "clock",
            "config",
            "descriptors",
            "doorbell",
            "exchange",
            "handoff",
            "held_file",
            "ids",
            "inherited",
            "ipc",
            "liveness",
            "log",
            "net",
            "worker_files",
            "probe",
            "process_tree",
            "procfs",
            "published",
            "sd_notification",
            "sd_watchdog",
            "signals",
            "stats",
            "status",
            "sync",
            "sys",
            "units",
        ],
    ),
    (
        "cli",
        &[
            "bounds",
            "client",
            "clock",
            "config",
            "descriptors",
            "dispatcher",
            "doorbell",
            "exchange",
            "executable",
            "held_file",
            "ids",
            "inherited",
            "ipc",
            "log",
            "net",
            "worker_files",
            "probe",
            "process_tree",
            "procfs",
            "published",
            "requirements",
            "sd_notification",
            "shm",
            "signals",
            "status",
            "sync",
            "sys",
            "units",
            "watchdog",
            "worker",
        ],
    ),
];

/// Imports that still run upwards (a file, and the file above it that it imports from). To be emptied, never extended.
const UPWARD: &[(&str, &str)] = &[];

/// The only files with `unsafe`.
const UNSAFE: &[&str] = &["src/shm/segment.rs", "src/sys.rs"];

/// Pure code: files and directories that take `now` as a parameter, read no clock and do no I/O. Their modules
/// forbid `unsafe`.
const PURE: &[&str] = &[
    "src/bounds.rs",
    "src/ids",
    "src/stats.rs",
    "src/config/address.rs",
    "src/config/address_conflicts.rs",
    "src/config/admin.rs",
    "src/config/config_text.rs",
    "src/config/descriptor_needs.rs",
    "src/config/diagnostics.rs",
    "src/config/fastcgi.rs",
    "src/config/fastcgi_rules.rs",
    "src/config/fault.rs",
    "src/config/front.rs",
    "src/config/handler_keys.rs",
    "src/config/listener.rs",
    "src/config/placeholder.rs",
    "src/config/pool.rs",
    "src/config/proxies.rs",
    "src/config/quantity.rs",
    "src/config/read.rs",
    "src/config/session_rules.rs",
    "src/config/validate.rs",
    "src/config/watchdog.rs",
    "src/exchange",
    "src/pool",
    "src/liveness",
    "src/log/escape.rs",
    "src/log/filter.rs",
    "src/net/allowed_hosts.rs",
    "src/net/chunks.rs",
    "src/net/fastcgi",
    "src/net/fastcgi_request.rs",
    "src/net/forwarded.rs",
    "src/net/linger.rs",
    "src/net/patou_headers.rs",
    "src/net/wire.rs",
    "src/net/proxy_header.rs",
    "src/net/request_head.rs",
    "src/net/validate.rs",
    "src/units",
    "src/worker/handler/cgi.rs",
    "src/worker/handler/exec/script_path.rs",
    "src/worker/handler/fastcgi/request_limit.rs",
    "src/worker/handler/framing.rs",
    "src/worker/handler/head.rs",
    "src/worker/handler/http/delivery.rs",
    "src/worker/handler/http/headers.rs",
    "src/worker/handler/log_rate_limit.rs",
    "src/worker/handler/warm/backoff.rs",
    "src/worker/handler/warm/stage.rs",
    "src/worker/lease_url.rs",
    "src/worker/lifecycle_state.rs",
    "src/status/summary.rs",
    "src/worker/reported_status.rs",
    "src/worker/transaction",
    "src/watchdog/evidence/format.rs",
    "src/watchdog/plan",
    "src/watchdog/pool_outcomes.rs",
    "src/watchdog/restart_stats.rs",
    "src/cli/drill/checker",
    "src/cli/drill/fault.rs",
    "src/cli/drill/fault_tracker.rs",
    "src/cli/drill/generator.rs",
    "src/cli/drill/history.rs",
    "src/cli/drill/random.rs",
    "src/cli/recycle/roll.rs",
];

/// What pure code must not name.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "clock::",
    "std::fs",
    "std::net::Tcp",
    "std::process",
    "std::env",
    "tokio",
    "getrandom",
    "nix::",
];

/// Lines of code (without comments, blank lines and tests) that a file may have.
const LINES_MAX: usize = 300;

/// Files that may be longer, with the reason.
const LONG_FILES: &[(&str, usize, &str)] = &[];

/// Type names that stand for more than one type, with the reason.
const SAME_NAME: &[(&str, &str)] = &[];

/// Words that no text of this project uses: see CONTRIBUTING.md, *Language*.
const WORDS: &[&str] = &[
    "amid",
    "anew",
    "anybody",
    "astray",
    "ere",
    "everybody",
    "he",
    "him",
    "his",
    "nobody",
    "somebody",
    "who",
    "whoever",
    "whom",
];

/// Phrases that no text uses.
const PHRASES: &[&str] = &["is to be ", "are to be "];

/// Where a banned word has another meaning: a file, and what the line contains.
const OTHER_MEANING: &[(&str, &str)] = &[("tests/tidy.rs", "")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// One source file of the crate.
struct Source {
    /// Its path from the root, `src/pool/mod.rs`.
    name: String,
    /// The path of its module, `["pool"]`.
    module: Vec<String>,
    text: String,
    /// Its items without those under `#[cfg(test)]`.
    items: Vec<syn::Item>,
    /// The lines of the items under `#[cfg(test)]`, counted from 1.
    tests: Vec<(usize, usize)>,
}

impl Source {
    fn read(path: &Path) -> Self {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(path).unwrap();
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let (tests, items): (Vec<_>, Vec<_>) = file.items.into_iter().partition(is_test);
        let tests = tests.iter().map(|item| (item.span().start().line, item.span().end().line)).collect();
        let inner = name.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        let module = inner.split('/').filter(|part| !["lib", "main"].contains(part)).map(str::to_owned).collect();
        Self { name, module, text, items, tests }
    }

    /// The code as it is compiled without tests: no comments, no blank lines.
    fn code(&self) -> Vec<&str> {
        let is_test = |line: usize| self.tests.iter().any(|(first, last)| (*first..=*last).contains(&line));
        let lines = self.text.lines().enumerate().filter(|(index, _)| !is_test(index + 1));
        lines.map(|(_, line)| line.trim()).filter(|line| !line.is_empty() && !line.starts_with("//")).collect()
    }

    /// Whether all of it is tests: a file below `#[cfg(test)] mod`.
    fn is_test(&self) -> bool {
        self.name.ends_with("/tests.rs") || self.name.contains("/tests/") || self.name.ends_with("/test_process.rs")
    }

    /// The module of the crate that it belongs to; `None` for `lib.rs` and `main.rs`.
    fn top(&self) -> Option<&str> {
        self.module.first().map(String::as_str)
    }
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    use syn::Item::*;
    match item {
        Const(i) => &i.attrs,
        Enum(i) => &i.attrs,
        Fn(i) => &i.attrs,
        Impl(i) => &i.attrs,
        Macro(i) => &i.attrs,
        Mod(i) => &i.attrs,
        Static(i) => &i.attrs,
        Struct(i) => &i.attrs,
        Trait(i) => &i.attrs,
        Type(i) => &i.attrs,
        Use(i) => &i.attrs,
        _ => &[],
    }
}

fn is_test(item: &syn::Item) -> bool {
    attributes(item).iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// Every source file below `src`, without those that are tests as a whole.
fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    let mut next = vec![root().join("src")];
    while let Some(path) = next.pop() {
        if path.is_dir() {
            next.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(Source::read(&path));
        }
    }
    found.retain(|source| !source.is_test());
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// What the files of the crate define and re-export, and what each imports from which.
struct Crate {
    sources: Vec<Source>,
    files: BTreeMap<Vec<String>, usize>,
    /// Of each file: the names it defines, and those it re-exports with their paths.
    defines: Vec<BTreeSet<String>>,
    exports: Vec<BTreeMap<String, Vec<String>>>,
    /// Of each file: names brought in by `use`, with their paths.
    imports: Vec<BTreeMap<String, Vec<String>>>,
}

impl Crate {
    fn read() -> Self {
        let sources = sources();
        let files = sources.iter().enumerate().map(|(index, source)| (source.module.clone(), index)).collect();
        let mut defines = Vec::new();
        let (mut exports, mut imports) = (Vec::new(), Vec::new());
        for source in &sources {
            let mut names = BTreeSet::new();
            let (mut public, mut private) = (BTreeMap::new(), BTreeMap::new());
            for item in &source.items {
                match item {
                    syn::Item::Use(item) => {
                        let is_public = !matches!(item.vis, syn::Visibility::Inherited);
                        let mut list = Vec::new();
                        leaves(&item.tree, &mut Vec::new(), &mut list);
                        for (name, path) in list {
                            let to = if is_public { &mut public } else { &mut private };
                            to.insert(name, path);
                        }
                    }
                    item => names.extend(name_of(item)),
                }
            }
            defines.push(names);
            exports.push(public);
            imports.push(private);
        }
        Self { sources, files, defines, exports, imports }
    }

    /// The file that defines what `path`, seen from `file`, names; `None` for other crates and for modules themselves.
    fn resolve(&self, file: usize, path: &[String], depth: usize) -> Option<usize> {
        let mut module = self.sources[file].module.clone();
        let mut rest = path;
        let (first, mut absolute) = (rest.first()?, false);
        match first.as_str() {
            "crate" | "patou" => (module, rest, absolute) = (Vec::new(), &rest[1..], true),
            "self" => (rest, absolute) = (&rest[1..], true),
            _ => {}
        }
        while rest.first().is_some_and(|part| part == "super") {
            module.pop();
            (rest, absolute) = (&rest[1..], true);
        }
        if !absolute {
            let child: Vec<_> = module.iter().chain([first]).cloned().collect();
            if !self.files.contains_key(&child) {
                // A name that a `use` of this file has brought in.
                let imported = self.imports[file].get(first).or_else(|| self.exports[file].get(first))?;
                if depth == 0 {
                    return None;
                }
                let path: Vec<_> = imported.iter().chain(&rest[1..]).cloned().collect();
                return self.resolve(file, &path, depth - 1);
            }
        }
        for (index, part) in rest.iter().enumerate() {
            let child: Vec<_> = module.iter().chain([part]).cloned().collect();
            if self.files.contains_key(&child) {
                module = child;
                continue;
            }
            let at = *self.files.get(&module)?;
            if self.defines[at].contains(part) {
                return Some(at);
            }
            if let Some(path) = self.exports[at].get(part).filter(|_| depth > 0) {
                let path: Vec<_> = path.iter().chain(&rest[index + 1..]).cloned().collect();
                return self.resolve(at, &path, depth - 1);
            }
            return Some(at);
        }
        None
    }

    /// Which files each file imports from, by index.
    fn edges(&self) -> Vec<BTreeMap<usize, String>> {
        let edges_of = |file: usize| {
            let mut paths = Paths(self.imports[file].values().cloned().collect());
            self.sources[file].items.iter().filter(|item| !matches!(item, syn::Item::Use(_))).for_each(|item| {
                paths.visit_item(item);
            });
            let mut edges = BTreeMap::new();
            for path in paths.0 {
                if let Some(to) = self.resolve(file, &path, 8).filter(|to| *to != file) {
                    edges.entry(to).or_insert_with(|| path.join("::"));
                }
            }
            edges
        };
        (0..self.sources.len()).map(edges_of).collect()
    }
}

/// The names that a `use` brings in, each with its path. Globs bring in none.
fn leaves(tree: &syn::UseTree, before: &mut Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    let full = |before: &[String], name: &syn::Ident| {
        let name = name.to_string();
        let own = (name != "self").then_some(name);
        before.iter().cloned().chain(own).collect::<Vec<_>>()
    };
    match tree {
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            leaves(&path.tree, before, found);
            before.pop();
        }
        syn::UseTree::Name(name) => {
            let path = full(before, &name.ident);
            found.push((path.last().cloned().unwrap_or_default(), path));
        }
        syn::UseTree::Rename(rename) => found.push((rename.rename.to_string(), full(before, &rename.ident))),
        syn::UseTree::Group(group) => group.items.iter().for_each(|tree| leaves(tree, before, found)),
        syn::UseTree::Glob(_) => {}
    }
}

fn name_of(item: &syn::Item) -> Option<String> {
    use syn::Item::*;
    Some(match item {
        Const(i) => i.ident.to_string(),
        Enum(i) => i.ident.to_string(),
        Fn(i) => i.sig.ident.to_string(),
        Static(i) => i.ident.to_string(),
        Struct(i) => i.ident.to_string(),
        Trait(i) => i.ident.to_string(),
        Type(i) => i.ident.to_string(),
        Union(i) => i.ident.to_string(),
        _ => return None,
    })
}

/// The paths with more than one part in an item, also inside macros.
struct Paths(Vec<Vec<String>>);

impl<'ast> Visit<'ast> for Paths {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            self.0.push(path.segments.iter().map(|part| part.ident.to_string()).collect());
        }
        syn::visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        syn::visit::visit_macro(self, call);
    }

    fn visit_item_mod(&mut self, _: &'ast syn::ItemMod) {}
}

impl Paths {
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.0.push(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.0.push(std::mem::take(&mut path));
                    colons = 0;
                    self.tokens(group.stream());
                }
                _ => {
                    self.0.push(std::mem::take(&mut path));
                    colons = 0;
                }
            }
        }
        self.0.push(path);
        self.0.retain(|path| path.len() > 1);
    }
}

#[test]
fn modules_use_only_what_the_floor_plan_allows() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let order: BTreeMap<&str, usize> = MAY_USE.iter().enumerate().map(|(at, (name, _))| (*name, at)).collect();
    let mut wrong = Vec::new();
    for (name, uses) in MAY_USE {
        wrong
            .extend(uses.iter().filter(|used| order[*used] >= order[name]).map(|used| format!("{name} before {used}")));
    }
    let all = Crate::read();
    let edges = all.edges();
    for (source, edges) in all.sources.iter().zip(&edges) {
        let Some(module) = source.top() else { continue };
        let Some(may) = allowed.get(module) else {
            wrong.push(format!("{}: module {module} is not in the plan", source.name));
            continue;
        };
        for (to, path) in edges {
            let Some(used) = all.sources[*to].top().filter(|used| *used != module) else { continue };
            if !may.contains(&used) {
                wrong.push(format!("{}: {module} uses {used} ({path})", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "against the floor plan:\n{}", wrong.join("\n"));
}

#[test]
fn lib_rs_lists_the_modules_in_dependency_order() {
    let order: Vec<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let all = Crate::read();
    let lib = all.sources.iter().find(|source| source.name == "src/lib.rs").unwrap();
    // A module with a `path` is a part of the tests or benchmarks.
    let has_path = |item: &syn::ItemMod| item.attrs.iter().any(|attribute| attribute.path().is_ident("path"));
    let mods = lib.items.iter().filter_map(|item| match item {
        syn::Item::Mod(item) if item.content.is_none() && !has_path(item) => Some(item.ident.to_string()),
        _ => None,
    });
    assert_eq!(mods.collect::<Vec<_>>(), order);
}

#[test]
fn no_files_import_from_each_other() {
    let all = Crate::read();
    let edges = all.edges();
    let name = |index: usize| all.sources[index].name.as_str();
    let named: BTreeSet<(&str, &str)> = UPWARD.iter().copied().collect();
    assert!(named.len() <= 4, "at most four upward imports may stay");
    let exists =
        |pair: &(&str, &str)| edges.iter().enumerate().any(|(a, to)| to.keys().any(|b| (name(a), name(*b)) == *pair));
    let stale: Vec<_> = named.iter().filter(|pair| !exists(pair)).collect();
    assert!(stale.is_empty(), "not there any more, remove from UPWARD: {stale:?}");
    let (named, name) = (&named, &name);
    let next = |a: usize| edges[a].keys().copied().filter(move |b| !named.contains(&(name(a), name(*b))));
    let reaches = |from: usize, to: usize| {
        let (mut seen, mut todo) = (BTreeSet::new(), vec![from]);
        while let Some(at) = todo.pop() {
            if seen.insert(at) {
                todo.extend(next(at));
            }
        }
        seen.contains(&to)
    };
    // An import is part of a circle if the imported file reaches the importing one.
    let mut circles = Vec::new();
    for (file, imports) in edges.iter().enumerate() {
        for to in next(file).filter(|to| reaches(*to, file)) {
            circles.push(format!("{} -> {}: {}", name(file), name(to), imports[&to]));
        }
    }
    assert!(circles.is_empty(), "import circles, by their imports:\n{}", circles.join("\n"));
}

#[test]
fn a_type_name_stands_for_one_type() {
    let mut named: BTreeMap<String, Vec<String>> = BTreeMap::new();
    struct Types(Vec<String>);
    impl<'ast> Visit<'ast> for Types {
        fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
            self.0.push(item.ident.to_string());
        }
        fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
            self.0.push(item.ident.to_string());
        }
        fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
            self.0.push(item.ident.to_string());
        }
        fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
            self.0.push(item.ident.to_string());
        }
    }
    for source in sources() {
        let mut types = Types(Vec::new());
        source.items.iter().for_each(|item| types.visit_item(item));
        for name in types.0 {
            named.entry(name).or_default().push(source.name.clone());
        }
    }
    let known: BTreeSet<&str> = SAME_NAME.iter().map(|(name, _)| *name).collect();
    let twice = named.iter().filter(|(name, files)| files.len() > 1 && !known.contains(name.as_str()));
    let twice: Vec<_> = twice.map(|(name, files)| format!("{name}: {}", files.join(", "))).collect();
    assert!(twice.is_empty(), "{} names of several types:\n{}", twice.len(), twice.join("\n"));
}

#[test]
fn unsafe_code_is_in_two_files_and_explains_itself() {
    for source in sources() {
        let uses = source.code().iter().filter(|line| line.contains("unsafe {") || line.contains("unsafe fn")).count();
        if UNSAFE.contains(&source.name.as_str()) {
            let explained = source.text.matches("// SAFETY:").count();
            assert!(explained >= uses, "{}: {uses} unsafe blocks, {explained} explanations", source.name);
        } else {
            assert_eq!(uses, 0, "{} has unsafe code", source.name);
        }
    }
}

#[test]
fn pure_code_reads_no_clock_and_does_no_io() {
    for pure in PURE {
        assert!(root().join(pure).exists(), "{pure} does not exist");
    }
    for source in sources() {
        let is_pure = PURE.iter().any(|pure| source.name.starts_with(pure));
        if is_pure {
            let code = source.code().join("\n");
            for word in IMPURE {
                // `unix::` is not `nix::`.
                let is_whole = |(at, _): (usize, &str)| !code[..at].ends_with(|c: char| c.is_alphanumeric());
                assert!(!code.match_indices(word).any(is_whole), "{} uses {word}", source.name);
            }
            let forbids = source.text.contains("#![forbid(unsafe_code)]");
            let is_root = PURE.iter().any(|pure| {
                let pure = pure.trim_end_matches(".rs");
                [format!("{pure}.rs"), format!("{pure}/mod.rs")].contains(&source.name)
            });
            assert!(!is_root || forbids, "{} lacks #![forbid(unsafe_code)]", source.name);
        }
        let claims = source.text.lines().take_while(|line| line.starts_with("//!")).any(|line| {
            let line = line.to_lowercase();
            line.split(|c: char| !c.is_ascii_alphabetic()).any(|word| word == "pure") || line.contains("no i/o")
        });
        assert!(!claims || is_pure, "{} calls itself pure and is not in the list", source.name);
    }
}

#[test]
fn files_are_named_for_their_subject_and_short() {
    let mut long = Vec::new();
    for source in sources() {
        let stem = Path::new(&source.name).file_stem().unwrap().to_str().unwrap().to_owned();
        let vague = ["utils", "util", "types", "traits", "common", "helpers", "misc", "words", "shared"];
        assert!(!vague.contains(&stem.as_str()), "{}", source.name);
        assert!(source.text.starts_with("//!"), "{} does not open with its idea", source.name);
        let bound = LONG_FILES.iter().find(|(name, ..)| *name == source.name).map_or(LINES_MAX, |(_, bound, _)| *bound);
        let lines = source.code().len();
        if lines > bound {
            long.push(format!("{}: {lines} lines of code, at most {bound}", source.name));
        }
    }
    for (name, bound, why) in LONG_FILES {
        assert!(*bound > LINES_MAX && !why.is_empty() && root().join(name).exists(), "{name}");
    }
    assert!(long.is_empty(), "split by subject:\n{}", long.join("\n"));
}

/// Every text that ships or is read: what git tracks, without lock files, licences and the inputs of the fuzzer.
fn texts() -> Vec<(String, String)> {
    let tracked = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    let names: Vec<String> = match tracked {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout)
            .unwrap()
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect(),
        _ => {
            // An unpacked archive: what this package consists of.
            let mut names = Vec::new();
            let tops = ["src", "tests", "docs", "packaging", "systemd", "config", "examples", "benches", ".ci"];
            let files = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "Cargo.toml"];
            let mut next: Vec<_> = tops.iter().chain(&files).map(|name| root().join(name)).collect();
            while let Some(path) = next.pop() {
                if path.is_dir() {
                    next.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                } else if path.exists() {
                    names.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
                }
            }
            names
        }
    };
    let skipped = |name: &str| {
        name.ends_with(".lock")
            || name.starts_with("LICENSE")
            || name == "packaging/copyright"
            || name.starts_with("tests/fuzz/corpus/")
            || name.starts_with("tests/proptest-regressions/")
    };
    let read = |name: String| Some((name.clone(), fs::read_to_string(root().join(&name)).ok()?));
    names.into_iter().filter(|name| !skipped(name)).filter_map(read).collect()
}

#[test]
fn texts_are_in_plain_technical_english() {
    let mut wrong = Vec::new();
    for (name, text) in texts() {
        for (line, number) in text.lines().zip(1..) {
            let other = |(file, part): &(&str, &str)| *file == name && line.contains(part);
            if OTHER_MEANING.iter().any(other) {
                continue;
            }
            let lower = line.to_lowercase();
            let words: Vec<&str> = lower.split(|c: char| !c.is_ascii_alphabetic()).collect();
            let banned = WORDS.iter().find(|word| words.contains(word));
            let phrase = PHRASES.iter().find(|phrase| lower.contains(**phrase));
            if let Some(found) = banned.or(phrase) {
                wrong.push(format!("{name}:{number}: {found:?}: {}", line.trim()));
            }
        }
    }
    let shown = wrong.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} lines to write differently, see CONTRIBUTING.md:\n{shown}", wrong.len());
}
