//! `patou completions`: what a shell needs to complete the others. The package is built with it.

use std::io;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Failure, failed};

#[derive(Debug, Args)]
pub struct Completions {
    /// Whose completions
    shell: Shell,
}

pub fn run(completions: &Completions) -> Result<(), Failure> {
    // The generator would also offer the hidden commands.
    let all = Cli::command();
    let shown = all.get_subcommands().filter(|command| !command.is_hide_set());
    let mut shown = clap::Command::new("patou").version("").args(all.get_arguments()).subcommands(shown);
    let mut text = Vec::new();
    clap_complete::generate(completions.shell, &mut shown, "patou", &mut text);
    // Not straight to standard output: the generator would panic when nobody reads it.
    io::Write::write_all(&mut io::stdout(), &text).map_err(failed)
}
