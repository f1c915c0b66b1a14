//! The evidence as text.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::time::Duration;

use super::findings::{ChildEvidence, Evidence, HeldWork, LATENESS_KEPT, MachineEvidence, ThreadEvidence};
use crate::exchange::RequestNote;
use crate::ids::{Claim, Monotonic, Phase};
use crate::log::escape_control_chars;

/// Marks a text that was cut.
pub(super) const CUT: &str = " [cut]";

/// The lines that follow the verdict.
pub(super) fn summary(pid: u32, evidence: &Evidence, now: Monotonic) -> String {
    let mut lines = vec![match evidence.age {
        Some(age) => format!("process {pid}, {} old, threads:", rounded(age)),
        None => format!("process {pid}, threads:"),
    }];
    let indented = |text: String| text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>();
    lines.extend(indented(threads(evidence)));
    if let Some(children) = children(evidence) {
        lines.push("processes it started:".to_owned());
        lines.extend(indented(children));
    }
    if let Some(descriptors) = descriptors(evidence) {
        lines.push(format!("descriptors: {descriptors}"));
    }
    lines.push(format!("held: {}", held(evidence.held.as_ref(), now)));
    lines.push(format!("machine: {}", machine(&evidence.machine)));
    if !evidence.denied.is_empty() {
        lines.push(format!("not permitted to read: {}; see EVIDENCE in patou(7)", evidence.denied.join(", ")));
    }
    if evidence.is_cut_short {
        lines.push("the rest was not read in time".to_owned());
    }
    lines.join("\n")
}

/// How many descriptors are open of those that the limit allows.
pub(super) fn descriptors(evidence: &Evidence) -> Option<String> {
    evidence.descriptors.map(|(used, limit)| format!("{used} of {limit} open"))
}

/// A line for each thread.
pub(super) fn threads(evidence: &Evidence) -> String {
    let mut lines: Vec<_> = evidence.threads.iter().map(thread).collect();
    count_omitted(&mut lines, evidence.thread_count);
    lines.join("\n")
}

/// A line for each process that the part has started.
pub(super) fn children(evidence: &Evidence) -> Option<String> {
    let mut lines: Vec<_> = evidence.children.iter().map(child).collect();
    count_omitted(&mut lines, evidence.child_count);
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn count_omitted(lines: &mut Vec<String>, count: usize) {
    if let Some(omitted) = count.checked_sub(lines.len()).filter(|omitted| *omitted > 0) {
        lines.push(format!("and {omitted} more"));
    }
}

fn thread(thread: &ThreadEvidence) -> String {
    let mut line = format!("{}: {}", escape_control_chars(&thread.name), state_name(thread.state));
    let stack = (!thread.stack.is_empty()).then(|| thread.stack.join(" < "));
    if let Some(function) = stack.or_else(|| thread.wait_channel.clone()) {
        let _ = write!(line, " in {}", escape_control_chars(&function)); // writing to a String cannot fail
    }
    if let Some(number) = thread.system_call {
        let _ = match syscall_numbers::native::sys_call_name(number) {
            Some(name) => write!(line, ", system call {name}"),
            None => write!(line, ", system call {number}"),
        };
    }
    if let Some((ran, waited)) = thread.run_times {
        let _ = write!(line, "; ran for {}, waited {} for a processor", rounded(ran), rounded(waited));
    }
    line
}

fn child(child: &ChildEvidence) -> String {
    let ChildEvidence { pid, state, name, command, age } = child;
    let age = age.map_or(String::new(), |age| format!(", {} old", rounded(age)));
    let command = command.as_ref().map_or_else(|| format!("[{name}]"), Clone::clone);
    format!("{pid} {}{age}: {}", state_name(*state), escape_control_chars(&command))
}

fn held(held: Option<&HeldWork>, now: Monotonic) -> String {
    match held {
        None => "unknown".to_owned(),
        Some(HeldWork::Lease { claim: None, .. }) => "unknown, the claim word of its slot is corrupt".to_owned(),
        Some(HeldWork::Lease { claim: Some(Claim::Free), .. }) => "no lease".to_owned(),
        Some(HeldWork::Lease { claim: Some(Claim::Held(lease, phase)), request, .. }) => {
            let request = request.as_ref().map_or(String::new(), |RequestNote { claimed_at, text }| {
                format!(", claimed {} ago: {}", rounded(now.since(*claimed_at)), request_text(text))
            });
            format!("lease {lease}, {}{request}", self::phase(*phase))
        }
        Some(HeldWork::Clients { queue, leases }) => {
            let queue = queue.map_or("an unknown number of waiting clients".to_owned(), |queue| {
                let reported = format!("(reported {} ago)", rounded(now.since(queue.at)));
                match queue.clients {
                    0 => format!("no waiting client {reported}"),
                    1 => format!("1 client waiting for {} {reported}", rounded(queue.oldest)),
                    n => format!("{n} clients waiting, the first for {} {reported}", rounded(queue.oldest)),
                }
            });
            format!("{queue}; {leases} active {}", if *leases == 1 { "lease" } else { "leases" })
        }
    }
}

fn machine(machine: &MachineEvidence) -> String {
    let mut facts = Vec::new();
    if let Some(load) = &machine.load {
        facts.push(format!("load {load}"));
    }
    let pressure = ["cpu", "memory", "io"].into_iter().zip(machine.pressure);
    let pressure: Vec<_> = pressure.filter_map(|(of, percent)| Some(format!("{of} {:.1} %", percent?))).collect();
    if !pressure.is_empty() {
        facts.push(format!("pressure over 10 s: {}", pressure.join(", ")));
    }
    if let Some((available, total)) = machine.memory {
        facts.push(format!("{} of {} MiB of memory available", available >> 20, total >> 20));
    }
    facts.push(match machine.watchdog_late {
        Duration::ZERO => format!("the watchdog was not late in the last {}", rounded(LATENESS_KEPT)),
        late => format!("the watchdog was up to {} late in the last {}", rounded(late), rounded(LATENESS_KEPT)),
    });
    facts.join("; ")
}

/// A process state in the form of `/proc/PID/status`.
pub(super) fn state(letter: char) -> String {
    format!("{letter} ({})", state_name(Some(letter)))
}

fn state_name(letter: Option<char>) -> &'static str {
    match letter {
        Some('R') => "running",
        Some('S') => "sleeping",
        Some('D') => "waiting in the kernel",
        Some('T') => "stopped",
        Some('t') => "stopped by a debugger",
        Some('Z' | 'X') => "dead",
        Some('I') => "idle",
        Some('P') => "parked",
        _ => "in an unknown state",
    }
}

/// The progress of a lease.
pub(super) fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Free => "free",
        Phase::Offered => "offered",
        Phase::Claimed => "no response yet",
        Phase::Responding => "response started",
        Phase::Done => "done",
        Phase::Revoked => "revoked",
        Phase::Aborted => "aborted",
        Phase::Upgraded => "session",
    }
}

/// Method and target of a request. They come from the client.
pub(super) fn request_text(bytes: &[u8]) -> String {
    let cut = if bytes.len() >= RequestNote::TEXT_MAX { CUT } else { "" };
    escape_control_chars(&String::from_utf8_lossy(bytes)) + cut
}

/// In milliseconds, from a minute on in seconds.
fn rounded(time: Duration) -> impl std::fmt::Display {
    let exact = time < Duration::from_secs(60);
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(if exact { Duration::from_millis(millis) } else { Duration::from_secs(time.as_secs()) })
}

#[cfg(test)]
mod tests;
