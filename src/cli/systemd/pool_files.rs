//! What the units of a pool cannot use of the files that it names, because of their user or their sandbox.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::account::account;
use crate::config::{PoolConfig, UnusableFile};
use crate::units::{self, Sandbox};
use crate::worker_files::PoolAccess;

/// Where operators put drop-ins (systemd.unit(5)).
const UNIT_DIRS: [&str; 2] = ["/etc/systemd/system", "/run/systemd/system"];

/// What the workers of a pool cannot use as units. Without the account there is another error.
pub(in crate::cli) fn unusable_files(pool: &PoolConfig) -> Vec<UnusableFile> {
    let sandbox = Sandbox::new(&drop_ins(pool));
    let Ok(user) = account(&pool.user) else { return Vec::new() };
    // The kernel alone knows what another user, or further groups, may do.
    let user = (!sandbox.changes_user()).then_some(&user);
    PoolAccess { user, sandbox: Some(&sandbox) }.unusable_files_of_unit(pool)
}

/// The operator's drop-ins of a pool, for all its workers, in systemd's order: by name.
fn drop_ins(pool: &PoolConfig) -> Vec<String> {
    let of_template = UNIT_DIRS.map(|dir| PathBuf::from(format!("{dir}/patou-worker@.service.d")));
    let mut files: Vec<PathBuf> = of_template.iter().flat_map(|dir| conf_files(dir)).collect();
    files.extend(conf_files(&units::pool_drop_ins(&pool.name)));
    files.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
}

fn conf_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "conf")).collect()
}
