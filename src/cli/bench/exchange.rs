//! `patou bench exchange` and `patou pingpong`: round trips between two processes over a private segment and doorbells.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use nix::sched::sched_setaffinity;
use nix::unistd::Pid;

use super::private_ipc::PrivateIpc;
use super::table::{RoundsArg, Table, median};
use super::wait::{BARE_WORDS, BarePipe, WaitMode, pin_to_core, sleep_until_rung, spin_until};
use crate::cli::duration_arg::duration;
use crate::cli::error::{CommandError, failed, ignore_broken_pipe};
use crate::exchange::{DispatcherSide, QuestionKind, SlotMemory};
use crate::ids::Epoch;
use crate::ipc::WorkerIpc;
use crate::signals::Signal;
use crate::{procfs, sys};

#[derive(Debug, Args)]
pub(crate) struct BenchExchangeArgs {
    /// Number of exchanges in each round
    #[arg(long, value_name = "N", default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: u64,
    /// Pause after each exchange, so that the other end is asleep when the next one comes
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pause: Duration,
    #[command(flatten)]
    rounds: RoundsArg,
}

/// One run of the same measurement, printed as percentiles.
#[derive(Debug, Args)]
pub(crate) struct PingpongArgs {
    /// Number of exchanges
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    count: u64,
    /// Also measure the other way of waiting (spinning) and the bare named pipes without a slot
    #[arg(long)]
    compare: bool,
    /// Pause after each exchange, so that the other end is asleep when the next one comes
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "0s")]
    pause: Duration,
}

/// `patou bench exchange`: medians over several rounds, beside their baselines.
pub(crate) fn run(path: Option<&Path>, args: &BenchExchangeArgs) -> Result<(), CommandError> {
    PrivateIpc::with(path, |private| {
        let median_of = |mode| {
            let times = measure(private, mode, args.count, args.pause)?;
            Ok(median(times.into_iter().map(|nanos| f64::from(nanos) / 1000.0).collect()))
        };
        let mut out = Table::default();
        for modes in [[WaitMode::BarePipes, WaitMode::Sleep], [WaitMode::BareWords, WaitMode::Spin]] {
            let mut table = Table::new(modes[0].label(), modes[1..].iter().map(|mode| mode.label().to_owned()));
            table.fill(&args.rounds, |row| median_of(modes[row]))?;
            out.append(table);
        }
        let count = args.count;
        out.print(&format!("us for a round trip, median of {count} in each round; the ratio: lower is better"))
    })
}

/// `patou pingpong`: the percentiles of one run.
pub(crate) fn run_pingpong(path: Option<&Path>, args: &PingpongArgs) -> Result<(), CommandError> {
    let all = [WaitMode::Sleep, WaitMode::BarePipes, WaitMode::Spin];
    let modes = if args.compare { &all[..] } else { &all[..1] };
    PrivateIpc::with(path, |private| {
        let mut out = io::stdout().lock();
        for mode in modes {
            let times = measure(private, *mode, args.count, args.pause)?;
            ignore_broken_pipe(print_percentiles(&mut out, mode.label(), times))?;
        }
        Ok(())
    })
}

fn print_percentiles(out: &mut impl Write, label: &str, mut times: Vec<u32>) -> io::Result<()> {
    times.sort_unstable();
    let at = |share: f64| f64::from(times[((times.len() - 1) as f64 * share) as usize]) / 1000.0;
    let (count, p50, p90, p99, p999) = (times.len(), at(0.5), at(0.9), at(0.99), at(0.999));
    let max = at(1.0);
    writeln!(
        out,
        "{label:<32} {count:>9} round trips  p50 {p50:.2} us  p90 {p90:.2}  p99 {p99:.2}  p99.9 {p999:.2}  max {max:.1}"
    )
}

/// Starts a peer, makes `count` round trips and returns their times in nanoseconds.
fn measure(private: &PrivateIpc, mode: WaitMode, count: u64, pause: Duration) -> Result<Vec<u32>, CommandError> {
    let ipc = private.create()?;
    // Values of an earlier measurement would be taken for answers.
    ipc.segment.store(BARE_WORDS.0, 0, Ordering::Relaxed);
    ipc.segment.store(BARE_WORDS.1, 0, Ordering::Relaxed);
    let mode_name = mode.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let mut command = Command::new("/proc/self/exe");
    sys::die_with_parent(&mut command);
    let mut child = command
        .args(["bench-peer", "--count", &count.to_string(), "--mode", &mode_name, "--config"])
        .arg(&private.config_file)
        .spawn()
        .map_err(failed)?;
    let affinity = pin_to_core(mode, 0);
    let times = round_trips(&ipc, mode, count, pause, &private.stop);
    if let Some(before) = affinity {
        let _ = sched_setaffinity(Pid::from_raw(0), &before);
    }
    let ended = wait_for_exit(&mut child, times.is_ok());
    let times = times?;
    ended?;
    Ok(times)
}

/// Waits for the peer, which exits by itself after the last exchange. After a failure it is killed.
fn wait_for_exit(child: &mut Child, completed: bool) -> Result<(), CommandError> {
    if !completed {
        let _ = child.kill();
    }
    let status = child.wait().map_err(failed)?;
    if completed && !status.success() {
        return Err(failed(format!("the answering end did not stop cleanly: {status}")));
    }
    Ok(())
}

fn round_trips(
    ipc: &WorkerIpc,
    mode: WaitMode,
    count: u64,
    pause: Duration,
    stop: &Signal,
) -> Result<Vec<u32>, CommandError> {
    let mut dispatcher = DispatcherSide::attach(ipc.segment.clone(), Epoch::FIRST, procfs::this_process(), None);
    // The peer rings once when it is ready.
    sleep_until_rung(&ipc.to_dispatcher, Some(stop))?;
    let mut times = Vec::with_capacity(count as usize);
    let pipe = BarePipe::new(&ipc.to_dispatcher)?;
    for number in 1..=count {
        let start = Instant::now();
        match mode {
            WaitMode::BarePipes => {
                ipc.to_worker.ring();
                pipe.read(Some(stop))?;
            }
            WaitMode::Sleep => {
                dispatcher.write_question(QuestionKind::Ping, None);
                ipc.to_worker.ring();
                while dispatcher.answer().is_none() {
                    sleep_until_rung(&ipc.to_dispatcher, Some(stop))?;
                }
            }
            WaitMode::Spin => {
                dispatcher.write_question(QuestionKind::Ping, None);
                spin_until(|| dispatcher.answer().is_some(), Some(stop))?;
            }
            WaitMode::BareWords => {
                ipc.segment.store(BARE_WORDS.0, number, Ordering::Release);
                spin_until(|| ipc.segment.load(BARE_WORDS.1, Ordering::Acquire) == number, Some(stop))?;
            }
        }
        times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    Ok(times)
}
