use super::*;
use crate::ids::{LeaseId, Phase};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn thread(name: &str, syscall: Option<i64>) -> Thread {
    let wchan = Some("do_signal_stop".to_owned());
    Thread { name: name.into(), state: Some('T'), wchan, syscall, run: Some((ms(12), ms(3))), ..Thread::default() }
}

fn at(ms: u64) -> Monotonic {
    Monotonic(ms * 1_000_000)
}

#[test]
fn the_story_of_a_worker() {
    let machine = Machine {
        load: Some("0.31 0.20 0.10".into()),
        pressure: [Some(1.25), None, Some(0.0)],
        memory: Some((3000 << 20, 4000 << 20)),
        late: ms(31),
    };
    let child = Child { pid: 4713, state: Some('S'), name: "sh".into(), command: None, age: Some(ms(1500)) };
    let evidence = Evidence {
        age: Some(ms(3_723_400)),
        // epoll_wait has other numbers on other machines, and none on some.
        threads: vec![thread("patou", None), thread("a\nb", Some(i64::from(i32::MAX)))],
        thread_count: 5,
        children: vec![child.clone(), Child { command: Some("sh -c \x1b[2J".into()), age: None, ..child }],
        child_count: 2,
        denied: vec!["kernel stacks"],
        held: Some(Held::Slot {
            epoch: Some(Epoch::FIRST),
            claim: Some(Claim::Held(LeaseId::of(Epoch::FIRST, 17), Phase::Claimed)),
            request: Some(RequestNote { claimed_at: at(8600), text: b"GET /a\xff\n".to_vec() }),
        }),
        machine,
        cut_short: false,
    };
    assert_eq!(
        format::story(4711, &evidence, at(10_000)),
        "process 4711, 1h 2m 3s old, its threads:\n  \
           patou: stopped in do_signal_stop; has run for 12ms, waited 3ms for a processor\n  \
           a\\x0ab: stopped in do_signal_stop, system call 2147483647; has run for 12ms, waited 3ms for a processor\n  \
           and 3 more\n\
         what it has started:\n  \
           4713 sleeping, 1s 500ms old: [sh]\n  \
           4713 sleeping: sh -c \\x1b[2J\n\
         held: lease 1.17, nothing answered yet, claimed 1s 400ms ago: GET /a\u{fffd}\\x0a\n\
         machine: load 0.31 0.20 0.10; pressure over 10 s: cpu 1.2 %, io 0.0 %; \
           3000 of 4000 MiB of memory available; the watchdog was up to 31ms late within 1m\n\
         not permitted to see: kernel stacks; see EVIDENCE in patou(7)"
    );
}

#[test]
fn the_story_of_a_dispatcher_of_which_little_is_known() {
    let queue = Queue { clients: 3, oldest: ms(250), at: at(8_000) };
    let stack = ["a", "b"].map(str::to_owned).to_vec();
    let evidence = Evidence {
        threads: vec![Thread { state: Some('D'), stack, syscall: Some(0), ..thread("patou", None) }],
        thread_count: 1,
        held: Some(Held::Clients { queue: Some(queue), leases: 1 }),
        cut_short: true,
        ..Evidence::default()
    };
    let call = syscall_numbers::native::sys_call_name(0).unwrap();
    assert_eq!(
        format::story(4711, &evidence, at(10_000)),
        format!(
            "process 4711, its threads:\n  \
               patou: waiting in the kernel in a < b, system call {call}; has run for 12ms, waited 3ms for a processor\n\
             held: 3 clients waiting, the first for 250ms, as it said 2s ago; 1 lease out\n\
             machine: the watchdog was not late within 1m\n\
             the rest could not be read in time"
        )
    );
}

#[test]
fn what_is_held_in_every_case() {
    let held = |held: Option<Held>| {
        let story = format::story(1, &Evidence { held, ..Evidence::default() }, at(0));
        story.lines().find_map(|line| line.strip_prefix("held: ").map(str::to_owned)).unwrap()
    };
    let slot = |claim| held(Some(Held::Slot { epoch: None, claim, request: None }));
    let clients = |queue, leases| held(Some(Held::Clients { queue, leases }));
    let lease = LeaseId::of(Epoch::FIRST, 2);
    assert_eq!(held(None), "not known");
    assert_eq!(slot(None), "not known, its slot holds what no worker writes");
    assert_eq!(slot(Some(Claim::Free)), "no lease");
    assert_eq!(slot(Some(Claim::Held(lease, Phase::Offered))), "lease 1.2, offered");
    assert_eq!(slot(Some(Claim::Held(lease, Phase::Responding))), "lease 1.2, answer begun");
    assert_eq!(clients(None, 0), "clients that it has not told of; 0 leases out");
    let queue = |clients| Some(Queue { clients, oldest: ms(5), at: at(0) });
    assert_eq!(clients(queue(0), 2), "no client waiting, as it said 0s ago; 2 leases out");
    assert_eq!(clients(queue(1), 2), "1 client waiting for 5ms, as it said 0s ago; 2 leases out");
}

#[test]
fn a_request_that_was_cut_says_so() {
    let long = vec![b'x'; RequestNote::TEXT_MAX];
    assert_eq!(format::text(&long[1..]).len(), RequestNote::TEXT_MAX - 1);
    assert_eq!(format::text(&long), "x".repeat(RequestNote::TEXT_MAX) + " [cut]");
}

#[test]
fn who_does_not_come_to_an_end_is_not_waited_for() {
    let seen = within(Duration::from_secs(60), |seen| locked(seen).thread_count = 1);
    assert_eq!((seen.thread_count, seen.cut_short), (1, false));
    let (stuck, until) = channel::<()>();
    let (told, tell) = channel();
    let seen = within(ms(20), move |seen| {
        locked(seen).thread_count = 2;
        let _ = told.send(());
        let _ = until.recv();
        locked(seen).thread_count = 3;
    });
    tell.recv().unwrap();
    assert!(seen.cut_short && seen.thread_count < 3, "{seen:?}");
    drop(stuck);
}

#[test]
fn lateness_is_remembered_for_a_while() {
    let mut witness = EvidenceRecorder::default();
    assert_eq!(witness.latest(at(0)), Duration::ZERO);
    for (when, late) in [(0, 30), (1_000, 500), (2_000, 40), (50_000, 100)] {
        witness.was_late(at(when), ms(late));
    }
    assert_eq!(witness.latest(at(60_999)), ms(500));
    assert_eq!(witness.latest(at(61_000)), ms(100), "the longest of those that came after it");
    assert_eq!(witness.latest(at(110_000)), Duration::ZERO);
    assert_eq!(witness.late.len(), 2, "no more is kept than may count one day");
}
