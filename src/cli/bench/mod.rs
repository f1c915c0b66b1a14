//! `patou bench`: what patou costs, each time beside a baseline of the same run.
//!
//! Each round measures every row once, so a machine that slows down slows all rows. The output is the median of the
//! rounds and its ratio to the baseline's median: compare ratios of one run, not absolute values of different runs.

pub(super) mod exchange;
mod http_head;
mod load;
pub(super) mod peer;
mod private_ipc;
mod private_set;
mod request;
pub(super) mod server;
mod table;
mod upload;
mod wait;

use std::path::Path;

use clap::Subcommand;

use super::error::CommandError;

#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// One question and its answer, beside bare named pipes (sleeping) and bare words in shared memory (spinning)
    Exchange(exchange::BenchExchangeArgs),
    /// Small requests through a private set, beside a bare HTTP server with one thread
    Request(request::BenchRequestArgs),
    /// One large body through a private set, beside a bare socket
    Upload(upload::BenchUploadArgs),
}

pub(super) fn run(path: Option<&Path>, command: &BenchCommand) -> Result<(), CommandError> {
    match command {
        BenchCommand::Exchange(args) => exchange::run(path, args),
        BenchCommand::Request(args) => request::run(args),
        BenchCommand::Upload(args) => upload::run(args),
    }
}
