//! Lookup of a handler's program: before a configuration is applied, and again when a worker starts the program.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use nix::unistd::{AccessFlags, access};

use crate::config::PoolConfig;

/// The search path if there is no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The search path of a pool with this environment: its `PATH`, or that of this process.
pub(crate) fn search_path(environment: &BTreeMap<String, String>) -> OsString {
    let own = environment.get("PATH").map(OsString::from);
    own.or_else(|| env::var_os("PATH")).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// Whether this process may execute `name`: a path, or without a slash a program in `path`.
pub(crate) fn is_executable(name: &str, path: &OsStr) -> bool {
    let may_execute = |file: &Path| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    if name.contains('/') {
        may_execute(Path::new(name))
    } else {
        env::split_paths(path).any(|dir| may_execute(&dir.join(name)))
    }
}

/// If the handler of this pool names a program that does not exist: what the configuration should name instead.
pub(crate) fn missing_program(pool: &PoolConfig) -> Option<String> {
    let name = pool.handler.command().first()?;
    let path = search_path(&pool.environment);
    if is_executable(name, &path) {
        return None;
    }
    Some(if name.contains('/') {
        "the path of an executable file".to_owned()
    } else {
        format!("an executable program in PATH ({})", path.to_string_lossy())
    })
}
