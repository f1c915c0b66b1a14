//! What was seen, in words. Pure.

use std::fmt::Write;
use std::time::Duration;

use super::{CUT, Child, Evidence, Held, MEMORY, Machine, Thread};
use crate::exchange::RequestNote;
use crate::ids::{Claim, Monotonic, Phase};
use crate::log::escape_control_chars;

/// What follows the verdict, a line for each matter.
pub fn story(pid: u32, evidence: &Evidence, now: Monotonic) -> String {
    let mut lines = vec![match evidence.age {
        Some(age) => format!("process {pid}, {} old, its threads:", spoken(age)),
        None => format!("process {pid}, its threads:"),
    }];
    let indented = |text: String| text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>();
    lines.extend(indented(threads(evidence)));
    if let Some(children) = children(evidence) {
        lines.push("what it has started:".to_owned());
        lines.extend(indented(children));
    }
    lines.push(format!("held: {}", held(evidence.held.as_ref(), now)));
    lines.push(format!("machine: {}", machine(&evidence.machine)));
    if !evidence.denied.is_empty() {
        lines.push(format!("not permitted to see: {}; see EVIDENCE in patou(7)", evidence.denied.join(", ")));
    }
    if evidence.cut_short {
        lines.push("the rest could not be read in time".to_owned());
    }
    lines.join("\n")
}

/// A line for each thread.
pub fn threads(evidence: &Evidence) -> String {
    let mut lines: Vec<_> = evidence.threads.iter().map(thread).collect();
    more(&mut lines, evidence.thread_count);
    lines.join("\n")
}

/// A line for each process that it has started.
pub fn children(evidence: &Evidence) -> Option<String> {
    let mut lines: Vec<_> = evidence.children.iter().map(child).collect();
    more(&mut lines, evidence.child_count);
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn more(lines: &mut Vec<String>, count: usize) {
    if let Some(left) = count.checked_sub(lines.len()).filter(|left| *left > 0) {
        lines.push(format!("and {left} more"));
    }
}

fn thread(thread: &Thread) -> String {
    let mut line = format!("{}: {}", escape_control_chars(&thread.name), condition(thread.state));
    let place = if thread.stack.is_empty() { thread.wchan.clone() } else { Some(thread.stack.join(" < ")) };
    if let Some(place) = place {
        let _ = write!(line, " in {}", escape_control_chars(&place)); // a String takes everything
    }
    if let Some(number) = thread.syscall {
        let _ = match syscall_numbers::native::sys_call_name(number) {
            Some(name) => write!(line, ", system call {name}"),
            None => write!(line, ", system call {number}"),
        };
    }
    if let Some((run, waited)) = thread.run {
        let _ = write!(line, "; has run for {}, waited {} for a processor", spoken(run), spoken(waited));
    }
    line
}

fn child(child: &Child) -> String {
    let Child { pid, state, name, command, age } = child;
    let age = age.map_or(String::new(), |age| format!(", {} old", spoken(age)));
    let command = command.as_ref().map_or_else(|| format!("[{name}]"), Clone::clone);
    format!("{pid} {}{age}: {}", condition(*state), escape_control_chars(&command))
}

fn held(held: Option<&Held>, now: Monotonic) -> String {
    match held {
        None => "not known".to_owned(),
        Some(Held::Slot { claim: None, .. }) => "not known, its slot holds what no worker writes".to_owned(),
        Some(Held::Slot { claim: Some(Claim::Free), .. }) => "no lease".to_owned(),
        Some(Held::Slot { claim: Some(Claim::Held(lease, phase)), request, .. }) => {
            let request = match request {
                Some(RequestNote { claimed_at, text }) => {
                    format!(", claimed {} ago: {}", spoken(now.since(*claimed_at)), self::text(text))
                }
                None => String::new(),
            };
            format!("lease {lease}, {}{request}", self::phase(*phase))
        }
        Some(Held::Clients { queue, leases }) => {
            let queue = queue.map_or("clients that it has not told of".to_owned(), |queue| {
                let said = spoken(now.since(queue.at));
                match queue.clients {
                    0 => format!("no client waiting, as it said {said} ago"),
                    1 => format!("1 client waiting for {}, as it said {said} ago", spoken(queue.oldest)),
                    n => format!("{n} clients waiting, the first for {}, as it said {said} ago", spoken(queue.oldest)),
                }
            });
            format!("{queue}; {leases} {} out", if *leases == 1 { "lease" } else { "leases" })
        }
    }
}

fn machine(machine: &Machine) -> String {
    let mut words = Vec::new();
    if let Some(load) = &machine.load {
        words.push(format!("load {load}"));
    }
    let pressure = ["cpu", "memory", "io"].into_iter().zip(machine.pressure);
    let pressure: Vec<_> = pressure.filter_map(|(of, percent)| Some(format!("{of} {:.1} %", percent?))).collect();
    if !pressure.is_empty() {
        words.push(format!("pressure over 10 s: {}", pressure.join(", ")));
    }
    if let Some((available, total)) = machine.memory {
        words.push(format!("{} of {} MiB of memory available", available >> 20, total >> 20));
    }
    words.push(match machine.late {
        Duration::ZERO => format!("the watchdog was not late within {}", spoken(MEMORY)),
        late => format!("the watchdog was up to {} late within {}", spoken(late), spoken(MEMORY)),
    });
    words.join("; ")
}

/// As `/proc/PID/status` writes it.
pub fn state(letter: char) -> String {
    format!("{letter} ({})", condition(Some(letter)))
}

fn condition(letter: Option<char>) -> &'static str {
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

/// How far a lease has come.
pub fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Free => "free",
        Phase::Offered => "offered",
        Phase::Claimed => "nothing answered yet",
        Phase::Responding => "answer begun",
        Phase::Done => "done",
        Phase::Revoked => "revoked",
        Phase::Aborted => "aborted",
    }
}

/// A client's words.
pub fn text(bytes: &[u8]) -> String {
    let cut = if bytes.len() >= RequestNote::TEXT_MAX { CUT } else { "" };
    escape_control_chars(&String::from_utf8_lossy(bytes)) + cut
}

/// To the millisecond, and what is long to the second.
fn spoken(time: Duration) -> impl std::fmt::Display {
    let exact = time < Duration::from_secs(60);
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(if exact { Duration::from_millis(millis) } else { Duration::from_secs(time.as_secs()) })
}
