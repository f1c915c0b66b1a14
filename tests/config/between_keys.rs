//! What several keys say together: durations that contradict each other, names that must meet.

use super::{good, pool_told, told};

#[test]
fn durations_that_contradict() {
    pool_told(&[
        ("claim_timeout = \"10ms\"", "claim_timeout", "\"10ms\"; expected at least offer_timeout, \"50ms\""),
        ("offer_timeout = \"2s\"", "claim_timeout", "\"1s\" (the default); expected at least offer_timeout, \"2s\""),
        (
            "queue_timeout = \"0s\"",
            "queue_timeout",
            "\"0s\"; expected a duration longer than 0s, or queue = 0 instead of 128",
        ),
    ]);
    good("[[pool]]\nname = \"default\"\nqueue = 0\nqueue_timeout = \"0s\"");
    told(&[
        (
            "[watchdog]\nprobe_interval = \"1s\"",
            2,
            "watchdog.probe_interval",
            "\"1s\"; expected a duration shorter than worker_timeout, \"1s\"",
        ),
        (
            "[watchdog]\ndispatcher_timeout = \"250ms\"",
            2,
            "watchdog.probe_interval",
            "\"250ms\" (the default); expected a duration shorter than dispatcher_timeout, \"250ms\"",
        ),
        (
            "[watchdog]\nrestarts = { delay = \"31s\" }",
            2,
            "watchdog.restarts.delay",
            "\"31s\"; expected at most delay_max, \"30s\"",
        ),
        (
            "[front]\nslot_scan = \"31s\"",
            2,
            "front.slot_scan",
            "\"31s\"; expected at most pool[1].request_timeout (built in), \"30s\"",
        ),
    ]);
}

#[test]
fn names_that_must_meet() {
    let two = |second: &str| {
        format!(
            "[[pool]]\nname = \"default\"\naddress = \"127.0.0.1:1\"\n[[pool]]\nname = \"{second}\"\naddress = \"127.0.0.1:9\"\n"
        )
    };
    told(&[
        (&two("default"), 5, "pool[2].name", "\"default\"; expected another name: pool[1].name (line 2) has this one"),
        (
            &format!("{}[[listener]]\naddress = \"127.0.0.1:80\"\npool = \"wbe\"", two("web")),
            9,
            "listener[1].pool",
            "\"wbe\"; expected the name of a pool; the nearest is \"web\"",
        ),
        (
            &format!("{}[[listener]]\naddress = \"127.0.0.1:80\"\npool = \"zzzz\"", two("web")),
            9,
            "listener[1].pool",
            "\"zzzz\"; expected the name of a pool: \"default\", \"web\"",
        ),
    ]);
}
