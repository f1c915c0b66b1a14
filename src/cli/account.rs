//! The Unix account of a pool's workers.

use nix::unistd::{Uid, User};

use super::error::{CommandError, failed};
use crate::units;

/// Looks up the account that a pool names for its workers, by name or number; the default account if the name is empty.
pub(super) fn account(name: &str) -> Result<User, CommandError> {
    let name = if name.is_empty() { units::WORKER_USER } else { name };
    let user = match name.parse() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(name),
    };
    user.map_err(failed)?.ok_or_else(|| failed(format!("there is no user {name}, which a pool names for its workers")))
}
