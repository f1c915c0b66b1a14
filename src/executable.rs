//! Lookup of a handler's program when a worker starts it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use nix::unistd::{AccessFlags, access};

/// The search path if there is no `PATH`: that of systemd.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
