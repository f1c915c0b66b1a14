//! Finds and reads the configuration. The only file of this module that reads files, the environment and the user ID.

use std::ffi::OsString;
use std::fs::{File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;

use super::config_text::ConfigText;
use super::sections::WithoutPools;
use super::{
    AdminConfig, Config, ConfigFaults, FrontConfig, ListenerConfig, PoolConfig, SetConfig, UnusableFile,
    WatchdogConfig, sections,
};

/// A configuration and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Its source.
    pub origin: Origin,
    /// Its text; for the built-in configuration [`Config::DEFAULT_TOML`].
    pub text: ConfigText,
}

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This file.
    File(PathBuf),
    /// No file was named and [`Config::DEFAULT_PATH`] does not exist.
    BuiltIn,
}

impl Loaded {
    /// Checks the files and directories that the pools name with `unusable`, which returns those that the workers of a
    /// pool cannot use on this machine.
    ///
    /// # Errors
    /// All of them together.
    pub fn check(&self, unusable: impl Fn(&PoolConfig) -> Vec<UnusableFile>) -> Result<(), ConfigFaults> {
        let without_pools = match &self.origin {
            Origin::File(_) => WithoutPools::Refused,
            Origin::BuiltIn => WithoutPools::BuiltIn,
        };
        sections::read(&self.text, SetConfig::default(), without_pools, &unusable).map(drop)
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {cause}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The reason.
        #[source]
        cause: io::Error,
    },
    /// The file is not a valid configuration.
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
}

impl Config {
    /// The file that is read unless another one is named.
    pub const DEFAULT_PATH: &str = "/etc/patou/patou.toml";

    /// The largest configuration in bytes: a file, and also the copy of it with every key, which the parts read.
    pub const BYTES_MAX: usize = 4 << 20;

    /// Reads the file at `path`, else the one named by `$PATOU_CONFIG`, else [`Config::DEFAULT_PATH`] if it exists,
    /// else the built-in configuration.
    ///
    /// # Errors
    /// A named file does not exist, or a file is not regular, larger than [`Config::BYTES_MAX`], not readable, not UTF-8
    /// or not valid. The built-in configuration never replaces an invalid file, nor one without pools and listeners.
    pub fn load(path: Option<&Path>) -> Result<Loaded, LoadError> {
        read(choose(path, std::env::var_os("PATOU_CONFIG")))
    }

    /// The file that [`Config::load`] reads, if it exists.
    pub fn file(path: Option<&Path>) -> PathBuf {
        choose(path, std::env::var_os("PATOU_CONFIG")).0
    }

    /// Parses a configuration; `file` is the name in the error messages. A text without pools and listeners is the
    /// built-in set.
    ///
    /// The result depends on the environment and the user ID only if the text does not set `set.runtime_dir`
    /// ([`default_runtime_dir`]).
    ///
    /// # Errors
    /// All errors together. If the text is not TOML, rules between keys are not checked: a key that could not be read
    /// would break them.
    pub fn parse(text: &str, file: &str) -> Result<Config, ConfigFaults> {
        sections::read(&ConfigText::new(text, file), SetConfig::default(), WithoutPools::BuiltIn, &|_| Vec::new())
    }

    /// The runtime directory that `text` sets, as far as it can be recognised in an invalid file; else the default.
    pub fn runtime_dir_in(text: &str) -> PathBuf {
        let value = |line: &str| {
            let value = line.trim().strip_prefix("runtime_dir")?.trim_start().strip_prefix('=')?.trim_start();
            let quote = value.chars().next().filter(|c| "\"'".contains(*c))?;
            Some(PathBuf::from(value[1..].split(quote).next()?))
        };
        text.lines().find_map(value).filter(|dir| dir.is_absolute()).unwrap_or_else(default_runtime_dir)
    }
}

/// The built-in set: a redirect and a handoff listener, one pool of two echo workers. Equal to
/// [`Config::DEFAULT_TOML`].
impl Default for Config {
    fn default() -> Self {
        Self {
            set: SetConfig::default(),
            listeners: ListenerConfig::built_in(),
            pools: vec![PoolConfig::default()],
            front: FrontConfig::default(),
            watchdog: WatchdogConfig::default(),
            admin: AdminConfig::default(),
        }
    }
}

/// Name `patou` and [`default_runtime_dir`].
impl Default for SetConfig {
    fn default() -> Self {
        Self { name: "patou".into(), runtime_dir: default_runtime_dir() }
    }
}

/// The file to read, and whether it was named. An empty variable counts as unset.
fn choose(path: Option<&Path>, variable: Option<OsString>) -> (PathBuf, bool) {
    let variable = variable.filter(|name| !name.is_empty()).map(PathBuf::from);
    match path.map(Path::to_owned).or(variable) {
        Some(file) => (file, true),
        None => (Config::DEFAULT_PATH.into(), false),
    }
}

fn read((file, is_named): (PathBuf, bool)) -> Result<Loaded, LoadError> {
    // Without a test for existence first: the file could be removed between test and read.
    match read_text(&file) {
        Ok(text) => {
            let text = with_included(ConfigText::new(text, &file.display().to_string()), &file)?;
            let config = sections::read(&text, SetConfig::default(), WithoutPools::Refused, &|_| Vec::new())?;
            Ok(Loaded { config, origin: Origin::File(file), text })
        }
        Err(cause) if !is_named && cause.kind() == io::ErrorKind::NotFound => {
            let text = ConfigText::new(Config::DEFAULT_TOML, "the built-in configuration");
            Ok(Loaded { config: Config::default(), origin: Origin::BuiltIn, text })
        }
        Err(cause) => Err(LoadError::Unreadable { file, cause }),
    }
}

/// Appends the files that the configuration in `file` includes, each pattern in the order of the names.
fn with_included(mut text: ConfigText, file: &Path) -> Result<ConfigText, LoadError> {
    let directory = file.parent().unwrap_or(Path::new(""));
    let options = glob::MatchOptions {
        require_literal_separator: true,
        require_literal_leading_dot: true,
        ..glob::MatchOptions::new()
    };
    let mut faults = Vec::new();
    for pattern in text.patterns() {
        // As in a shell: a name without wildcards is that of a file, whether it exists or not.
        let is_name = !pattern.contains(['*', '?', '[']);
        let unreadable = |cause| LoadError::Unreadable { file: directory.join(&pattern), cause };
        let invalid = |error| unreadable(io::Error::new(io::ErrorKind::InvalidInput, error));
        let path = Path::new(&glob::Pattern::escape(&directory.to_string_lossy())).join(&pattern);
        let mut files = Vec::new();
        for file in glob::glob_with(&path.to_string_lossy(), options).map_err(invalid)? {
            files.push(file.map_err(|error| LoadError::Unreadable { file: error.path().into(), cause: error.into() })?);
        }
        if is_name && files.is_empty() {
            files.push(directory.join(&pattern));
        }
        for file in files {
            let name = file.display().to_string();
            if text.files().any(|read| read == name) {
                continue;
            }
            let included = read_text(&file).map_err(|cause| LoadError::Unreadable { file: file.clone(), cause })?;
            if text.as_str().len() + included.len() > Config::BYTES_MAX {
                return Err(LoadError::Unreadable { file, cause: too_large() });
            }
            match sections::check_included(&ConfigText::new(&*included, &name)) {
                Ok(()) => text.include(&included, &name),
                Err(ConfigFaults(more)) => faults.extend(more),
            }
        }
    }
    if faults.is_empty() { Ok(text) } else { Err(ConfigFaults(faults).into()) }
}

/// Reads a configuration file. Only a regular file: a FIFO, a terminal or a device might deliver nothing, or without end.
///
/// # Errors
/// When the file is of another kind, larger than [`Config::BYTES_MAX`], not UTF-8 or not readable.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    // A FIFO without a writer, and some devices, would block the open.
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits()).open(path)?;
    let status = file.metadata()?;
    if !status.is_file() {
        let kind = file_kind(status.file_type());
        let error = format!("it is {kind}: a configuration must be a regular file, because patou reads it again");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
    }
    let mut text = String::new();
    let most = Config::BYTES_MAX as u64;
    if status.len() > most || file.take(most + 1).read_to_string(&mut text)? > Config::BYTES_MAX {
        return Err(too_large());
    }
    Ok(text)
}

fn too_large() -> io::Error {
    let error = format!("it has more than {} MiB, the largest size of a configuration", Config::BYTES_MAX >> 20);
    io::Error::new(io::ErrorKind::FileTooLarge, error)
}

fn file_kind(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a FIFO or pipe",
        kind if kind.is_char_device() || kind.is_block_device() => "a device",
        _ => "a socket",
    }
}

/// The default of `set.runtime_dir`: `/run/patou` for root, else `$XDG_RUNTIME_DIR/patou`, else `/tmp/patou-<uid>`.
/// Every user can create files in `/tmp`, so the caller that creates the last one must check its owner.
pub fn default_runtime_dir() -> PathBuf {
    let xdg = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    runtime_dir_of(nix::unistd::getuid().as_raw(), xdg.as_deref())
}

/// The rule of [`default_runtime_dir`]. A relative `$XDG_RUNTIME_DIR` counts as unset, as the XDG Base Directory
/// Specification requires. A path with `..` or one that is not UTF-8 is ignored too: a configuration file cannot
/// contain it.
fn runtime_dir_of(uid: u32, xdg: Option<&Path>) -> PathBuf {
    let usable = |dir: &&Path| {
        let has_parent = dir.components().any(|part| matches!(part, Component::ParentDir));
        dir.is_absolute() && dir.to_str().is_some() && !has_parent
    };
    match xdg.filter(usable) {
        _ if uid == 0 => "/run/patou".into(),
        Some(dir) => dir.join("patou"),
        None => format!("/tmp/patou-{uid}").into(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn argument_precedes_variable_precedes_default_path() {
        let variable = || Some(OsString::from("/v.toml"));
        assert_eq!(choose(Some(Path::new("a.toml")), variable()), ("a.toml".into(), true));
        assert_eq!(choose(None, variable()), ("/v.toml".into(), true));
        assert_eq!(choose(None, Some(OsString::new())), (Config::DEFAULT_PATH.into(), false));
        assert_eq!(choose(None, None), (Config::DEFAULT_PATH.into(), false));
    }

    #[test]
    fn only_the_default_path_may_be_absent() {
        let absent = PathBuf::from("/nonexistent/patou.toml");
        let built_in = read((absent.clone(), false)).unwrap();
        assert_eq!((built_in.origin, built_in.config), (Origin::BuiltIn, Config::default()));
        assert_eq!(Config::parse(built_in.text.as_str(), "").unwrap(), Config::default());
        let error = read((absent, true)).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the configuration /nonexistent/patou.toml: No such file"), "{error}");
    }

    #[test]
    fn included_files_are_part_of_the_configuration() {
        let dir = std::env::temp_dir().join(format!("patou-include-{}", std::process::id()));
        fs::create_dir_all(dir.join("d")).unwrap();
        let main = dir.join("patou.toml");
        let load = |include: &str, files: &[(&str, &str)]| {
            let text = format!("[set]\nruntime_dir = \"/r\"\ninclude = [{include}]\n");
            fs::write(&main, text).unwrap();
            fs::remove_dir_all(dir.join("d")).unwrap();
            fs::create_dir(dir.join("d")).unwrap();
            files.iter().for_each(|(name, text)| fs::write(dir.join("d").join(name), text).unwrap());
            read((main.clone(), true))
        };
        let pool = |name: &str, port: u16| {
            format!(
                "[[pool]]\nname = \"{name}\"\naddress = \"127.0.0.1:{port}\"\n\
                 [[listener]]\naddress = \"127.0.0.1:{}\"\npool = \"{name}\"",
                port + 50
            )
        };
        let (a, b) = (pool("a", 9100), pool("b", 9200));
        let files = [("2.toml", &*b), ("1.toml", &*a), (".0.toml", "["), ("3.toml~", "[")];
        let loaded = load("\"d/*.toml\"", &files).unwrap();
        let names: Vec<_> = loaded.config.pools.iter().map(|pool| pool.name.as_str()).collect();
        assert_eq!((names, loaded.config.listeners.len()), (vec!["a", "b"], 2));
        assert_eq!(Config::parse(&loaded.config.to_toml(), "copy").unwrap(), loaded.config);
        // A file that two patterns match is read once.
        assert_eq!(load("\"d/2.toml\", \"d/*.toml\"", &files).unwrap().config.pools.len(), 2);

        let error = |include: &str, files: &[(&str, &str)]| load(include, files).unwrap_err().to_string();
        let absent = error("\"d/none.toml\"", &files);
        assert!(absent.contains("d/none.toml: No such file"), "{absent}");
        let twice = error("\"d/*.toml\"", &[("1.toml", &a), ("2.toml", &a)]);
        assert!(twice.contains("d/2.toml:2: pool[2].name: ") && twice.contains("d/1.toml:2"), "{twice}");
        let key = error("\"d/*.toml\"", &[("1.toml", &a), ("2.toml", "\n\n[[pool]]\nquue = 1")]);
        assert!(key.contains("d/2.toml:4: pool[2].quue: "), "{key}");
        let both = error("\"d/*.toml\"", &[("1.toml", "x = 1\n[front]"), ("2.toml", "[[pool]]\nname = \n[[listener")]);
        assert!(both.contains("d/1.toml:1: found x; expected [[pool]] or [[listener]]"), "{both}");
        assert!(both.contains("d/1.toml:2: found front") && both.contains("d/2.toml:2: found \"name =\""), "{both}");
        let none = error("\"d/*.toml\"", &[]);
        assert!(none.contains("expected at least one [[pool]]"), "{none}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn default_runtime_dir_follows_the_user() {
        let of = |uid, xdg: Option<&str>| runtime_dir_of(uid, xdg.map(Path::new)).to_str().unwrap().to_owned();
        assert_eq!(of(0, Some("/run/user/0")), "/run/patou");
        assert_eq!(of(1000, Some("/run/user/1000")), "/run/user/1000/patou");
        for unusable in [None, Some(""), Some("run"), Some("/run/../etc")] {
            assert_eq!(of(1000, unusable), "/tmp/patou-1000");
        }
    }

    #[test]
    fn runtime_dir_is_recognised_in_an_invalid_file() {
        let of = |text: &str| Config::runtime_dir_in(text).to_str().unwrap().to_owned();
        assert_eq!(of("[set\nruntime_dir = \"/run/x\" # here\n[[pool"), "/run/x");
        assert_eq!(of("runtime_dir='/run/y'"), "/run/y");
        for none in ["", "runtime_dir = 7", "runtime_dir = \"x\"", "# runtime_dir = \"/run/x\""] {
            assert_eq!(of(none), default_runtime_dir().to_str().unwrap());
        }
    }
}
