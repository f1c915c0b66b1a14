//! `patou bench`: what patou costs, each time beside a baseline that is measured in the same run.
//!
//! Each round measures everything once and in turn, so that a machine that becomes slower does so for all. What is
//! printed is the median of the rounds and its ratio to the baseline's: ratios of one run hold, absolute figures do not.

pub mod bare;
mod load;
mod set;
mod upload;

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};

use self::bare::{Kind, Running};
use self::load::Load;
use self::set::Set;
use super::pingpong::{Mode, apart, measure};
use super::{Failure, duration, failed, written};
use crate::signals::{Signal, SignalFlag};

#[derive(Debug, Subcommand)]
pub enum Bench {
    /// One question and its answer, beside bare named pipes (asleep) and beside two bare words (spinning)
    Exchange(Exchange),
    /// Small requests through a set of its own, beside a bare HTTP server with one thread
    Request(Request),
    /// A large body into a set of its own, beside a bare socket
    Upload(Upload),
}

#[derive(Debug, Args)]
pub struct Exchange {
    /// How many exchanges in each round
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Pause after each exchange, so that the other end is at rest when the next one comes
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pause: Duration,
    #[command(flatten)]
    rounds: Rounds,
}

#[derive(Debug, Args)]
pub struct Request {
    /// How long each measurement takes
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// How many clients ask at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    clients: u16,
    #[command(flatten)]
    rounds: Rounds,
}

#[derive(Debug, Args)]
pub struct Upload {
    /// How large the body is, in MiB
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    mib: u64,
    #[command(flatten)]
    rounds: Rounds,
}

#[derive(Debug, Args)]
struct Rounds {
    /// How many times everything is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=60.0).contains(seconds));
    seconds.ok_or_else(|| format!("{text} is not a number from 0.1 to 60"))
}

pub fn run(path: Option<&Path>, bench: &Bench) -> Result<(), Failure> {
    match bench {
        Bench::Exchange(exchange) => self::exchange(path, exchange),
        Bench::Request(request) => self::request(request),
        Bench::Upload(upload) => self::upload(upload),
    }
}

fn exchange(path: Option<&Path>, exchange: &Exchange) -> Result<(), Failure> {
    apart(path, |apart| {
        let median_of = |mode| {
            let times = measure(apart, mode, exchange.count, exchange.pause)?;
            Ok(median(times.into_iter().map(|nanos| f64::from(nanos) / 1000.0).collect()))
        };
        let mut out = Table::default();
        let asleep = [Mode::Bare, Mode::Asleep, Mode::Watching, Mode::Blind];
        for modes in [&asleep[..], &[Mode::Words, Mode::Spinning]] {
            let mut table = Table::new(modes[0].name(), modes[1..].iter().map(|mode| mode.name().to_owned()));
            table.fill(&exchange.rounds, |row| median_of(modes[row]))?;
            out.0.extend(table.0);
        }
        let count = exchange.count;
        out.print(&format!("us for a round trip, median of {count} in each round; the ratio: lower is better"))
    })
}

fn request(request: &Request) -> Result<(), Failure> {
    let signal = Signal::stop().map_err(failed)?;
    let stop = signal.came();
    let bare = Running::start(Kind::Http)?;
    let set = Set::start("\"echo\"")?;
    let load = |keep| Load { clients: request.clients, time: Duration::from_secs_f64(request.seconds), keep };
    let mut out = Table::default();
    for (keep, what) in [(false, "a new connection each"), (true, "keep-alive")] {
        // A redirected client has a connection to its worker for one request: there is nothing to keep.
        let doors: Vec<_> = set.doors().iter().filter(|door| !(keep && door.redirects)).collect();
        let names = doors.iter().map(|door| format!("patou, {}, {what}", door.name));
        let mut table = Table::new(&format!("bare hyper, one thread, {what}"), names);
        if doors.is_empty() {
            continue;
        }
        let places: Vec<_> = std::iter::once(bare.address).chain(doors.iter().map(|door| door.address)).collect();
        table.fill(&request.rounds, |row| load::run(places[row], &load(keep), &stop))?;
        out.0.extend(table.0);
    }
    let (clients, workers) = (request.clients, set::WORKERS);
    out.print(&format!("requests per second, {clients} clients, {workers} workers; the ratio: higher is better"))?;
    set.stop()
}

fn upload(upload: &Upload) -> Result<(), Failure> {
    let signal = Signal::stop().map_err(failed)?;
    let stop = signal.came();
    let (sink, bare) = (Running::start(Kind::Sink)?, Running::start(Kind::Http)?);
    // One that is no more than a worker of somebody's own: what an echo costs is not what is asked.
    let program = std::env::current_exe().map_err(failed)?.display().to_string();
    let set = Set::start(&format!("{{ program = [{program:?}, \"bare\", \"--kind\", \"worker\"] }}"))?;
    let names = set.doors().iter().map(|door| format!("patou, {}, a worker that discards", door.name));
    let mut table = Table::new("a bare socket", std::iter::once("bare hyper, one thread".into()).chain(names));
    let places: Vec<_> =
        [sink.address, bare.address].into_iter().chain(set.doors().iter().map(|door| door.address)).collect();
    table.fill(&upload.rounds, |row| {
        check(&stop)?;
        let took =
            upload::send(places[row], upload.mib).map_err(|error| failed(format!("the upload failed: {error}")))?;
        Ok(upload.mib as f64 / took.as_secs_f64())
    })?;
    table.print(&format!("MiB per second, a body of {} MiB; the ratio: higher is better", upload.mib))?;
    set.stop()
}

fn check(stop: &SignalFlag) -> Result<(), Failure> {
    if stop.is_set() { Err(failed("interrupted")) } else { Ok(()) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What was measured: in each group a baseline and what is compared with it.
#[derive(Default)]
struct Table(Vec<Vec<Row>>);

struct Row {
    what: String,
    values: Vec<f64>,
}

impl Table {
    fn new(baseline: &str, others: impl IntoIterator<Item = String>) -> Self {
        let rows = std::iter::once(baseline.to_owned()).chain(others);
        Self(vec![rows.map(|what| Row { what, values: Vec::new() }).collect()])
    }

    /// Measures every row in every round; the first round warms up and does not count.
    fn fill(&mut self, rounds: &Rounds, mut measure: impl FnMut(usize) -> Result<f64, Failure>) -> Result<(), Failure> {
        for round in 0..=rounds.rounds {
            for (index, row) in self.0.iter_mut().flatten().enumerate() {
                let value = measure(index)?;
                if round > 0 {
                    row.values.push(value);
                }
            }
        }
        Ok(())
    }

    fn print(&self, title: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        written(self.write(&mut out, title))
    }

    fn write(&self, out: &mut impl Write, title: &str) -> io::Result<()> {
        writeln!(out, "{title}\n{:<50} {:>10}   {:>10} - {:<10} {:>6}", "", "median", "lowest", "highest", "ratio")?;
        for group in &self.0 {
            let baseline = group.first().map_or(f64::NAN, |row| median(row.values.clone()));
            for row in group {
                let middle = median(row.values.clone());
                let lowest = row.values.iter().copied().fold(f64::INFINITY, f64::min);
                let highest = row.values.iter().copied().fold(0.0, f64::max);
                let (what, ratio) = (&row.what, middle / baseline);
                writeln!(out, "{what:<50} {middle:>10.2}   {lowest:>10.2} - {highest:<10.2} {ratio:>6.2}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_stands_beside_the_baseline_of_its_group() {
        let mut table = Table::new("bare", ["set".to_owned()]);
        let mut values = [9.0, 9.0, 4.0, 3.0, 2.0, 1.0, 5.0, 4.0].into_iter();
        assert!(table.fill(&Rounds { rounds: 3 }, |_| Ok(values.next().unwrap())).is_ok());
        let mut text = Vec::new();
        table.write(&mut text, "per second").unwrap();
        let text = String::from_utf8(text).unwrap();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<_> = text.lines().skip(2).map(words).collect();
        assert_eq!(lines[0], ["bare", "4.00", "2.00", "-", "5.00", "1.00"]);
        assert_eq!(lines[1], ["set", "3.00", "1.00", "-", "4.00", "0.75"]);
    }
}
