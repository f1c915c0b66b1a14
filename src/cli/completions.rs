//! `patou completions` (hidden): the completion script of a shell. The build of the package calls it.

use std::io::{self, Write};

use clap::{Args, Command};
use clap_complete::Shell;

use super::error::{CommandError, failed};

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// Prints the completions of `cli`.
pub(super) fn run(args: &CompletionsArgs, cli: &Command) -> Result<(), CommandError> {
    // The generator does not leave out hidden commands.
    let visible = cli.get_subcommands().filter(|command| !command.is_hide_set());
    let mut visible = Command::new("patou").version("").args(cli.get_arguments()).subcommands(visible);
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut visible, "patou", &mut text);
    // Not directly to standard output: the generator panics on a closed pipe.
    io::stdout().write_all(&text).map_err(failed)
}
