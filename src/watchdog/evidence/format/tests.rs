use super::super::findings::QueueReport;
use super::*;
use crate::ids::{Epoch, LeaseId};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

fn stopped_thread(name: &str, system_call: Option<i64>) -> ThreadEvidence {
    ThreadEvidence {
        name: name.into(),
        state: Some('T'),
        wait_channel: Some("do_signal_stop".to_owned()),
        system_call,
        stack: Vec::new(),
        run_times: Some((ms(12), ms(3))),
    }
}

#[test]
fn the_summary_of_a_worker_describes_threads_children_lease_and_machine() {
    let machine = MachineEvidence {
        load: Some("0.31 0.20 0.10".into()),
        pressure: [Some(1.25), None, Some(0.0)],
        memory: Some((3000 << 20, 4000 << 20)),
        watchdog_late: ms(31),
    };
    let child = ChildEvidence { pid: 4713, state: Some('S'), name: "sh".into(), command: None, age: Some(ms(1500)) };
    let evidence = Evidence {
        age: Some(ms(3_723_400)),
        descriptors: Some((297, 300)),
        // epoll_wait has other numbers on other architectures, and none on some.
        threads: vec![stopped_thread("patou", None), stopped_thread("a\nb", Some(i64::from(i32::MAX)))],
        thread_count: 5,
        children: vec![child.clone(), ChildEvidence { command: Some("sh -c \x1b[2J".into()), age: None, ..child }],
        child_count: 2,
        denied: vec!["kernel stacks"],
        held: Some(HeldWork::Lease {
            epoch: Some(Epoch::FIRST),
            claim: Some(Claim::Held(LeaseId::of(Epoch::FIRST, 17), Phase::Claimed)),
            request: Some(RequestNote { claimed_at: at(8600), text: b"GET /a\xff\n".to_vec() }),
        }),
        machine,
        is_cut_short: false,
    };
    assert_eq!(
        summary(4711, &evidence, at(10_000)),
        "process 4711, 1h 2m 3s old, threads:\n  \
           patou: stopped in do_signal_stop; ran for 12ms, waited 3ms for a processor\n  \
           a\\x0ab: stopped in do_signal_stop, system call 2147483647; ran for 12ms, waited 3ms for a processor\n  \
           and 3 more\n\
         processes it started:\n  \
           4713 sleeping, 1s 500ms old: [sh]\n  \
           4713 sleeping: sh -c \\x1b[2J\n\
         descriptors: 297 of 300 open\n\
         held: lease 1.17, no response yet, claimed 1s 400ms ago: GET /a\u{fffd}\\x0a\n\
         machine: load 0.31 0.20 0.10; pressure over 10 s: cpu 1.2 %, io 0.0 %; \
           3000 of 4000 MiB of memory available; the watchdog was up to 31ms late in the last 1m\n\
         not permitted to read: kernel stacks; see EVIDENCE in patou(7)"
    );
}

#[test]
fn the_summary_of_a_dispatcher_describes_clients_and_says_what_is_missing() {
    let queue = QueueReport { clients: 3, oldest: ms(250), at: at(8_000) };
    let stack = ["a", "b"].map(str::to_owned).to_vec();
    let evidence = Evidence {
        threads: vec![ThreadEvidence {
            state: Some('D'),
            stack,
            system_call: Some(0),
            ..stopped_thread("patou", None)
        }],
        thread_count: 1,
        held: Some(HeldWork::Clients { queue: Some(queue), leases: 1 }),
        is_cut_short: true,
        ..Evidence::default()
    };
    let system_call = syscall_numbers::native::sys_call_name(0).unwrap();
    assert_eq!(
        summary(4711, &evidence, at(10_000)),
        format!(
            "process 4711, threads:\n  \
               patou: waiting in the kernel in a < b, system call {system_call}; ran for 12ms, waited 3ms for a \
               processor\n\
             held: 3 clients waiting, the first for 250ms (reported 2s ago); 1 active lease\n\
             machine: the watchdog was not late in the last 1m\n\
             the rest was not read in time"
        )
    );
}

#[test]
fn held_work_is_described_in_every_case() {
    let held = |work: Option<HeldWork>| super::held(work.as_ref(), at(0));
    let lease = |claim| held(Some(HeldWork::Lease { epoch: None, claim, request: None }));
    let clients = |queue, leases| held(Some(HeldWork::Clients { queue, leases }));
    let id = LeaseId::of(Epoch::FIRST, 2);
    assert_eq!(held(None), "unknown");
    assert_eq!(lease(None), "unknown, the claim word of its slot is corrupt");
    assert_eq!(lease(Some(Claim::Free)), "no lease");
    assert_eq!(lease(Some(Claim::Held(id, Phase::Offered))), "lease 1.2, offered");
    assert_eq!(lease(Some(Claim::Held(id, Phase::Responding))), "lease 1.2, response started");
    assert_eq!(clients(None, 0), "an unknown number of waiting clients; 0 active leases");
    let queue = |clients| Some(QueueReport { clients, oldest: ms(5), at: at(0) });
    assert_eq!(clients(queue(0), 2), "no waiting client (reported 0s ago); 2 active leases");
    assert_eq!(clients(queue(1), 2), "1 client waiting for 5ms (reported 0s ago); 2 active leases");
}

#[test]
fn a_request_text_that_was_cut_is_marked() {
    let long = vec![b'x'; RequestNote::TEXT_MAX];
    assert_eq!(request_text(&long[1..]).len(), RequestNote::TEXT_MAX - 1);
    assert_eq!(request_text(&long), "x".repeat(RequestNote::TEXT_MAX) + " [cut]");
}
