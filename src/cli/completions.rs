//! Completion of commands, options, pools and workers: the shell calls the program with `$PATOU_COMPLETE`.

use clap::Command;
use clap_complete::CompleteEnv;
use clap_complete::engine::CompletionCandidate;

use super::config_source::applied_or_file;
use crate::config::Config;

/// Prints the candidates and exits, if a shell has called the program for that.
pub(super) fn complete(command: fn() -> Command) {
    CompleteEnv::with_factory(command).var("PATOU_COMPLETE").bin("patou").complete();
}

/// The pools of the set that is used without `--config`.
pub(super) fn pools() -> Vec<CompletionCandidate> {
    candidates(|config| config.pools.iter().map(|pool| pool.name.to_string()).collect())
}

/// Its workers.
pub(super) fn workers() -> Vec<CompletionCandidate> {
    candidates(|config| config.workers().map(|worker| worker.instance()).collect())
}

fn candidates(of: impl Fn(&Config) -> Vec<String>) -> Vec<CompletionCandidate> {
    applied_or_file().iter().flat_map(of).map(CompletionCandidate::new).collect()
}
