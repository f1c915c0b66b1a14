//! `patou systemd generate`: the drop-ins of the units, in a directory of systemd's (systemd.generator(7)).

use std::path::Path;

use super::publish::path_error;
use crate::cli::error::CommandError;
use crate::published::PublishedSet;

pub(super) fn run(dir: &Path) -> Result<(), CommandError> {
    PublishedSet::of_machine().generate(dir).map_err(|error| path_error(dir, error))
}
