//! `patou bench-peer` (hidden): the answering end of a measured exchange, a process like a worker.

use std::path::Path;
use std::sync::atomic::Ordering;

use clap::Args;

use super::private_ipc;
use super::wait::{BARE_WORDS, BarePipe, WaitMode, pin_to_core, sleep_until_rung, spin_until};
use crate::cli::config_source::load;
use crate::cli::error::{CommandError, failed};
use crate::clock;
use crate::exchange::{Reply, SlotMemory, WorkerSide};
use crate::ids::Lifecycle;

#[derive(Debug, Args)]
pub(crate) struct BenchPeerArgs {
    #[arg(long)]
    count: u64,
    #[arg(long)]
    mode: WaitMode,
}

/// Answers exactly `count` questions and returns.
pub(crate) fn run(path: Option<&Path>, args: &BenchPeerArgs) -> Result<(), CommandError> {
    let ipc = private_ipc::open(&load(path)?.config)?;
    let worker = WorkerSide::attach(ipc.segment.clone(), std::process::id(), 0, None, clock::now());
    let _ = pin_to_core(args.mode, 1);
    let mut answered = worker.answered();
    let pipe = BarePipe::new(&ipc.to_worker)?;
    // The measuring end waits for this first ring.
    ipc.to_dispatcher.ring();
    for number in 1..=args.count {
        let question = match args.mode {
            WaitMode::BarePipes => {
                pipe.read(None)?;
                ipc.to_dispatcher.ring();
                continue;
            }
            WaitMode::BareWords => {
                spin_until(|| ipc.segment.load(BARE_WORDS.0, Ordering::Acquire) == number, None)?;
                ipc.segment.store(BARE_WORDS.1, number, Ordering::Release);
                continue;
            }
            WaitMode::Sleep => loop {
                if let Some(question) = worker.question(answered) {
                    break question;
                }
                sleep_until_rung(&ipc.to_worker, None)?;
            },
            WaitMode::Spin => {
                let mut question = None;
                spin_until(
                    || {
                        question = worker.question(answered);
                        question.is_some()
                    },
                    None,
                )?;
                question.ok_or_else(|| failed("no question"))?
            }
        };
        debug_assert_eq!(worker.decide(&question, Lifecycle::Ready), Reply::Pong);
        worker.reply(&question, Reply::Pong);
        answered = question.sequence;
        if !args.mode.spins() {
            ipc.to_dispatcher.ring();
        }
    }
    Ok(())
}
