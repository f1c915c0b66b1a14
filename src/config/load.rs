//! Finding the configuration: the only place of this module that touches files and the environment's choice of one.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::{Config, ConfigFaults, PoolConfig, sections};

/// A configuration and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What was read.
    pub config: Config,
    /// Where it was read.
    pub origin: Origin,
    /// The text itself; for the built-in configuration [`Config::DEFAULT_TOML`].
    pub text: String,
}

/// Where a configuration came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This file.
    File(PathBuf),
    /// No file was named and there is none in its usual place.
    BuiltIn,
}

impl Loaded {
    /// Reports the handler of each pool for which `wanted` says what it would have to be: what a file asks of the
    /// machine is for the caller to judge.
    ///
    /// # Errors
    /// All of them at once.
    pub fn check(&self, wanted: impl Fn(&PoolConfig) -> Option<String>) -> Result<(), ConfigFaults> {
        let file = match &self.origin {
            Origin::File(path) => path.display().to_string(),
            Origin::BuiltIn => "the built-in configuration".to_owned(),
        };
        sections::read(&self.text, &file, &wanted).map(drop)
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
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The file was read and is wrong.
    #[error(transparent)]
    Faults(#[from] ConfigFaults),
}

impl Config {
    /// Where the configuration is unless it is named.
    pub const USUAL: &str = "/etc/patou/patou.toml";

    /// Reads the file at `path`, else the one named by `$PATOU_CONFIG`, else `/etc/patou/patou.toml` if it
    /// exists, else the built-in configuration.
    ///
    /// # Errors
    /// A file that is named must exist; one that exists must be readable, UTF-8 and right. A wrong file is never
    /// replaced by the built-in configuration.
    pub fn load(path: Option<&Path>) -> Result<Loaded, LoadError> {
        read(choose(path, std::env::var_os("PATOU_CONFIG")))
    }
}

/// The file to read and whether somebody named it. An empty variable names nothing.
fn choose(path: Option<&Path>, variable: Option<OsString>) -> (PathBuf, bool) {
    let variable = variable.filter(|name| !name.is_empty()).map(PathBuf::from);
    match path.map(Path::to_owned).or(variable) {
        Some(file) => (file, true),
        None => (Config::USUAL.into(), false),
    }
}

fn read((file, named): (PathBuf, bool)) -> Result<Loaded, LoadError> {
    // Reading at once and not asking first whether it exists: between the two it could go.
    match std::fs::read_to_string(&file) {
        Ok(text) => {
            let config = Config::parse(&text, &file.display().to_string())?;
            Ok(Loaded { config, origin: Origin::File(file), text })
        }
        Err(cause) if !named && cause.kind() == io::ErrorKind::NotFound => {
            Ok(Loaded { config: Config::default(), origin: Origin::BuiltIn, text: Config::DEFAULT_TOML.to_owned() })
        }
        Err(cause) => Err(LoadError::Unreadable { file, cause }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_chosen() {
        let variable = || Some(OsString::from("/v.toml"));
        assert_eq!(choose(Some(Path::new("a.toml")), variable()), ("a.toml".into(), true));
        assert_eq!(choose(None, variable()), ("/v.toml".into(), true));
        assert_eq!(choose(None, Some(OsString::new())), (Config::USUAL.into(), false));
        assert_eq!(choose(None, None), (Config::USUAL.into(), false));
    }

    #[test]
    fn only_an_unnamed_file_may_be_absent() {
        let absent = PathBuf::from("/nonexistent/patou.toml");
        let built_in = read((absent.clone(), false)).unwrap();
        assert_eq!((built_in.origin, built_in.config), (Origin::BuiltIn, Config::default()));
        assert_eq!(Config::parse(&built_in.text, "").unwrap(), Config::default());
        let refused = read((absent, true)).unwrap_err().to_string();
        assert!(
            refused.starts_with("cannot read the configuration /nonexistent/patou.toml: No such file"),
            "{refused}"
        );
    }
}
