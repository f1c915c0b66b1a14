//! `patou systemd restore`: the segment and doorbells of a worker that starts, if their files were removed while the set
//! was running.
//!
//! Only for a worker without a process: the dispatcher and a living worker keep the objects that both have open.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::unistd::User;

use crate::cli::account::account;
use crate::cli::config_source::load;
use crate::cli::error::{CommandError, failed};
use crate::cli::poll::POLL_INTERVAL;
use crate::ids::WorkerId;
use crate::ipc::{self, IpcError, Modes, SetOwner};
use crate::{clock, units};

/// How long another process may hold the lock of the set.
const LOCK_WAIT: Duration = Duration::from_secs(2);

pub(super) fn run(path: Option<&Path>, id: &WorkerId) -> Result<(), CommandError> {
    let config = load(path)?.config;
    // Damage is the dispatcher's to repair.
    if ipc::open_unchecked(&config, id, None).is_ok() {
        return Ok(());
    }
    let pool = config.pool(&id.pool).ok_or_else(|| failed(format!("the configuration has no worker {id}")))?;
    let owner = User::from_name(units::OWNER).map_err(failed)?;
    let owner = owner.ok_or_else(|| failed(format!("there is no user {}", units::OWNER)))?;
    let set = Modes { directory: 0o751, owner: Some(owner.uid), group: Some(owner.gid), ..Modes::default() };
    ipc::prepare(&config, &set).map_err(failed)?;
    let dir = &config.set.runtime_dir;
    let deadline = Instant::now() + LOCK_WAIT;
    let _lock = loop {
        match ipc::lock_set(dir, SetOwner::Systemd) {
            // Several workers may start at once.
            Err(IpcError::AlreadyRunning { .. }) if Instant::now() < deadline => sleep(POLL_INTERVAL),
            locked => break locked.map_err(failed)?,
        }
    };
    // The lock file may be new.
    nix::unistd::chown(&dir.join("set.lock"), Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    let modes = Modes { owner: Some(owner.uid), ..Modes::shared(account(&pool.user)?.gid) };
    let set_epoch = ipc::set_epoch(dir).map_err(failed)?.unwrap_or_else(|| clock::now().0);
    ipc::remove_unrecorded_segments(&config, id).map_err(failed)?;
    ipc::create_worker(&config, id, set_epoch, &modes).map_err(failed)?;
    eprintln!("the segment and doorbells of worker {id} were removed while the set was running: created again");
    Ok(())
}
