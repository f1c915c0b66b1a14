//! Where a handler's program is: asked before a configuration is applied, and again when a worker starts it.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use nix::unistd::{AccessFlags, access};

use crate::config::PoolConfig;

/// Where programs are looked for when there is no `PATH`.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where programs with this environment of their own are looked for.
pub fn search_path(own: &BTreeMap<String, String>) -> OsString {
    own.get("PATH").map(OsString::from).or_else(|| env::var_os("PATH")).unwrap_or_else(|| PATH.into())
}

/// Whether this process may execute `name`, as it stands or, without a slash, in `path`.
pub fn is_there(name: &str, path: &OsStr) -> bool {
    let runs = |file: &Path| file.is_file() && access(file, AccessFlags::X_OK).is_ok();
    match name.contains('/') {
        true => runs(Path::new(name)),
        false => env::split_paths(path).any(|dir| runs(&dir.join(name))),
    }
}

/// What the handler of this pool would have to name, if it names a program that is not there.
pub fn missing_program(pool: &PoolConfig) -> Option<String> {
    let name = pool.handler.command().first()?;
    let path = search_path(&pool.environment);
    if is_there(name, &path) {
        return None;
    }
    Some(match name.contains('/') {
        true => "the path of a file that can be executed".to_owned(),
        false => format!("a program that can be executed, in PATH ({})", path.to_string_lossy()),
    })
}
