//! Faults of several parts at once, and of parts that are held, have no descriptors left, or misuse a socket.

use std::sync::mpsc;
use std::thread::Scope;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::descriptor_limits::{DescriptorLimit, LimitedProcess};
use super::fault::{DrillFault, DrillPart, FaultKind, FaultTarget};
use super::history::AttemptOutcome;
use super::nemesis::Nemesis;
use super::set::DrillSet;
use super::shared_sockets::{self, StalledClient};
use super::suspension::{FrozenGroup, TracedProcess};
use super::traffic::{AttemptTiming, DrillRequest};
use crate::clock;

/// How long a handler delays the response to a client whose socket is misused, in addition to the body that it lacks.
const HANDLER_DELAY: Duration = Duration::from_millis(500);

/// Sends the signal to all parts of the fault, one directly after the other.
pub(super) fn end_several(nemesis: &Nemesis<'_>, fault: &DrillFault, signal: Signal) -> Result<(), String> {
    let open = |part| Ok((part, nemesis.process(part)?));
    let processes = fault.target.parts().into_iter().map(open).collect::<Result<Vec<_>, String>>()?;
    for (part, process) in processes {
        let index = nemesis.injected(&DrillFault { target: FaultTarget::Part(part), ..fault.clone() });
        nemesis.end(process, signal).inspect_err(|_| nemesis.abandon(index))?;
    }
    Ok(())
}

/// Holds all threads of a part, as a debugger or the freezer of its control group does.
pub(super) fn hold<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    part: DrillPart,
    scope: &'s Scope<'s, '_>,
) -> Result<(), String> {
    let pid = nemesis.traffic.watch.process(part).ok_or("it has no process")?.pid;
    let (index, settle, set_kind) = (nemesis.injected(fault), set.settle_time(), set.kind);
    let DrillFault { kind, number, duration, seed, .. } = *fault;
    let (sender, held) = mpsc::channel();
    // Only the thread that attached to a process can release it.
    scope.spawn(move || {
        let release_after = |result: &Result<(), String>| {
            let _ = sender.send(result.clone()); // it is awaited below
            if result.is_ok() {
                nemesis.sleep(duration);
            }
        };
        if kind == FaultKind::Debugger {
            let traced = TracedProcess::attach(pid, seed & 1 == 0);
            release_after(&traced.as_ref().map(drop).map_err(String::clone));
        } else {
            let frozen = FrozenGroup::freeze(pid, set_kind, number);
            release_after(&frozen.as_ref().map(drop).map_err(String::clone));
        }
        nemesis.action_ended(index, settle);
    });
    let held = held.recv().unwrap_or_else(|_| Err("the thread that holds the process has ended".into()));
    held.inspect_err(|_| nemesis.abandon(index))
}

/// Takes from a part, for a while, the descriptors that it could still open.
pub(super) fn limit_descriptors<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    part: DrillPart,
    scope: &'s Scope<'s, '_>,
) -> Result<(), String> {
    let pid = nemesis.traffic.watch.process(part).ok_or("it has no process")?.pid;
    let limit = match (fault.kind, fault.seed & 1) {
        (FaultKind::UseUpDescriptors, _) => DescriptorLimit::Spare,
        (_, 0) => DescriptorLimit::None,
        _ => DescriptorLimit::BelowHighest,
    };
    let listeners: Vec<_> = nemesis.traffic.used_listeners().collect();
    let listener = listeners.get((fault.seed >> 8) as usize % listeners.len().max(1)).copied();
    let (index, settle, time) = (nemesis.injected(fault), set.settle_time(), fault.duration);
    let limited = LimitedProcess::limit(pid, limit).inspect_err(|_| nemesis.abandon(index))?;
    let idle_clients = fault.kind == FaultKind::UseUpDescriptors;
    // Then the dispatcher has to accept the watchdog without a free descriptor.
    let (breaks_probe, probe_socket) = (fault.seed & 1 == 0, set.dir().join("probe.sock"));
    let watchdog = nemesis.traffic.watch.process(DrillPart::Watchdog).map_or(0, |process| process.pid);
    scope.spawn(move || {
        let address = listener.filter(|_| idle_clients).and_then(|listener| nemesis.traffic.address(listener));
        let clients = address.map(|address| limited.use_up(&address));
        if idle_clients && breaks_probe {
            shared_sockets::break_connection(watchdog, &probe_socket);
        }
        nemesis.sleep(time);
        drop((clients, limited));
        nemesis.action_ended(index, settle);
    });
    Ok(())
}

/// Has a worker make the socket of a client that does not read blocking, fill it, and end.
pub(super) fn change_socket_flags<'s>(
    nemesis: &'s Nemesis<'_>,
    set: &DrillSet,
    fault: &DrillFault,
    listener: usize,
    scope: &'s Scope<'s, '_>,
) -> Result<(), String> {
    let traffic = nemesis.traffic;
    let address = traffic.address(listener).ok_or("the address of the listener is unknown")?;
    let request = DrillRequest { id: traffic.next_request_id(), listener, body: Vec::new(), delay: HANDLER_DELAY };
    let timing = AttemptTiming::now();
    let client = StalledClient::start(traffic, &request, &address);
    let client = client.map_err(|error| format!("{}: {error}", address.host()))?;
    let pool = set.listeners()[listener].pool;
    let workers = set.pool_of().into_iter().enumerate().filter(|(_, of)| *of == pool).map(|(worker, _)| worker);
    let processes = workers.filter_map(|worker| Some((worker, traffic.watch.process(DrillPart::Worker(worker))?.pid)));
    let (workers, pids): (Vec<_>, Vec<_>) = processes.unzip();
    let found = client.find_holder(&pids, set.bounds().attempt[pool]);
    let found = found.inspect_err(|_| traffic.record(&request, 1, timing, AttemptOutcome::Disconnected))?;
    match found {
        Some((worker, socket)) => {
            let part = DrillPart::Worker(workers[worker]);
            let process = nemesis.process(part)?;
            let index = nemesis.injected(&DrillFault { target: FaultTarget::Part(part), ..fault.clone() });
            let misused = shared_sockets::make_blocking(&socket).map_err(|error| error.to_string());
            let signal = if fault.seed & 1 == 0 { Signal::SIGKILL } else { Signal::SIGSTOP };
            misused.and_then(|()| nemesis.end(process, signal)).inspect_err(|_| nemesis.abandon(index))?;
        }
        // All workers of the pool are down or busy because of other faults.
        None => {
            let index = nemesis.injected(fault);
            traffic.watch.tracker().withdraw(clock::now(), index, "no worker accepted the client");
        }
    }
    let time = fault.duration;
    scope.spawn(move || {
        nemesis.sleep(time);
        drop(client);
        nemesis.traffic.record(&request, 1, timing, AttemptOutcome::Disconnected);
    });
    Ok(())
}
