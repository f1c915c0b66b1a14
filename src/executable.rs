//! Lookup of a handler's program: before a configuration is applied, and again when a worker starts the program.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use nix::unistd::{AccessFlags, access};

use crate::config::{PoolConfig, placeholder};

/// The search path if there is no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The search path of a pool with this environment: its `PATH`, or that of this process.
pub(crate) fn search_path(environment: &BTreeMap<String, String>) -> OsString {
    let own = environment.get("PATH").map(OsString::from);
    own.or_else(|| env::var_os("PATH")).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// Whether this process may execute `name`: a path, relative to `dir`, or without a slash a program in `path`.
pub(crate) fn is_executable(name: &str, path: &OsStr, dir: Option<&Path>) -> bool {
    let may_execute = |file: &Path| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    if name.contains('/') {
        may_execute(&dir.unwrap_or(Path::new("")).join(name))
    } else {
        env::split_paths(path).any(|dir| may_execute(&dir.join(name)))
    }
}

/// Whether this process may make `dir` its working directory.
pub(crate) fn may_enter(dir: &Path) -> bool {
    dir.is_dir() && access(dir, AccessFlags::X_OK).is_ok()
}

/// If the handler of this pool names a program that does not exist: what the configuration should name instead.
pub(crate) fn missing_program(pool: &PoolConfig) -> Option<String> {
    let name = pool.handler.command().first()?;
    let path = search_path(&pool.environment);
    let dir = (!pool.working_dir.is_empty()).then(|| Path::new(&pool.working_dir));
    // Which program, and which directory, may depend on the number of the worker.
    if placeholder::has_number(name) || placeholder::has_number(&pool.working_dir) || is_executable(name, &path, dir) {
        return None;
    }
    Some(if name.contains('/') {
        "the path of an executable file".to_owned()
    } else {
        format!("an executable program in PATH ({})", path.to_string_lossy())
    })
}
