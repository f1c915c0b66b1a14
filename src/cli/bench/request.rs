//! `patou bench request`: small requests through each listener of a private set, beside a bare HTTP server.

use std::time::Duration;

use clap::Args;

use super::load::{self, ClientLoad};
use super::private_set::{PrivateSet, WORKERS};
use super::server::{RunningServer, ServerKind};
use super::table::{RoundsArg, Table};
use crate::cli::error::{CommandError, failed};
use crate::signals::Signal;

#[derive(Debug, Args)]
pub(crate) struct BenchRequestArgs {
    /// Duration of each measurement
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Number of clients that send requests at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    #[command(flatten)]
    rounds: RoundsArg,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.ok_or_else(|| format!("{text} is not a number from 0.1 to 60"))
}

pub(super) fn run(args: &BenchRequestArgs) -> Result<(), CommandError> {
    let signal = Signal::stop().map_err(failed)?;
    let stop = signal.flag();
    let bare = RunningServer::start(ServerKind::Http)?;
    let set = PrivateSet::start("\"echo\"")?;
    let (clients, duration) = (args.clients, Duration::from_secs_f64(args.seconds));
    let mut out = Table::default();
    for (keep_alive, how) in [(false, "a new connection each"), (true, "keep-alive")] {
        // A redirected client connects to its worker for one request: there is no connection to keep.
        let listeners: Vec<_> = set.listeners().iter().filter(|it| !(keep_alive && it.redirects)).collect();
        if listeners.is_empty() {
            continue;
        }
        let labels = listeners.iter().map(|listener| format!("patou, {}, {how}", listener.delivery));
        let mut table = Table::new(&format!("bare hyper, one thread, {how}"), labels);
        let servers: Vec<_> = std::iter::once(bare.address).chain(listeners.iter().map(|it| it.address)).collect();
        let load = ClientLoad { clients, duration, keep_alive };
        table.fill(&args.rounds, |row| load::run(servers[row], &load, &stop))?;
        out.append(table);
    }
    out.print(&format!("requests per second, {clients} clients, {WORKERS} workers; the ratio: higher is better"))?;
    set.stop()
}
