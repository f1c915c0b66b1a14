//! Single keys: each invalid value with its message.

use std::time::Duration;

use patou::config::HandlerConfig;

use super::{assert_faults, assert_listener_fault, assert_pool_fault, faults, valid};

#[test]
fn syntax_errors_are_rejected() {
    assert_faults(&[
        ("[set]\nname = \"a", 2, "", "\"name = \\\"a\"; expected TOML (invalid basic string, expected `\"`)"),
        ("[set]\n\nname = \"a\"\nname = \"b\"", 4, "", "\"name = \\\"b\\\"\"; expected TOML (duplicate key)"),
        ("[set]\n[front]\n[set]", 3, "", "\"[set]\"; expected TOML (duplicate key)"),
    ]);
    let all =
        faults("[set]\nnam = \"a\"\n[front]\nhead_timeout = 5x\nbody_timeout = 2y\nlinger_timeout = \"ages\"\nfoo = 1");
    let lines: Vec<_> = all.iter().map(|fault| (fault.line, fault.key.as_str())).collect();
    // Unknown keys are reported up to the first syntax error, wrong values also after it.
    assert_eq!(lines, [(2, "set.nam"), (4, ""), (5, ""), (6, "front.linger_timeout")]);
    // An invalid section header: no missing keys are reported.
    let all = faults("[[listener]]\naddress = \"127.0.0.1:80\"\n[[pool\nname = \"a\"\n");
    assert!(all.iter().all(|fault| fault.line == 3 && fault.key.is_empty()), "{all:?}");
}

#[test]
fn unknown_keys_are_rejected_with_a_suggestion() {
    assert_faults(&[
        ("[pol]\n", 1, "pol", "an unknown key; expected `pool`"),
        ("[set]\ncolour = 1", 2, "set.colour", "an unknown key; expected one of include, name, runtime_dir"),
        (
            "[set]\n\"a b\\n\" = 1",
            2,
            "set.\"a b\\u000A\"",
            "an unknown key; expected one of include, name, runtime_dir",
        ),
        (
            "[[pool]]\nname = \"default\"\noffer_timout = \"1s\"",
            3,
            "pool[1].offer_timout",
            "an unknown key; expected `offer_timeout`",
        ),
        ("[watchdog]\nrestarts = { mx = 1 }", 2, "watchdog.restarts.mx", "an unknown key; expected `max`"),
        (
            "[[pool]]\nname = \"default\"\n[pool.limits]\nmemory = \"1G\"",
            4,
            "pool[1].limits.memory",
            "an unknown key; expected one of memory_max, cpu_quota, tasks_max, open_files",
        ),
        (
            "[[pool]]\nname = \"default\"\nhandler = { exe = [\"a\"] }",
            3,
            "pool[1].handler.exe",
            "an unknown key; expected `exec`",
        ),
    ]);
}

#[test]
fn values_of_the_wrong_type_are_rejected() {
    assert_faults(&[
        ("set = 1", 1, "set", "1; expected a table: [set] or set = { .. }"),
        ("[set]\nname = 1", 2, "set.name", "1; expected a name of 1 to 32 characters of a-z, 0-9 and _"),
        ("[pool]\nname = \"a\"", 1, "pool", "a table; expected at least one section [[pool]], in double brackets"),
        (
            "listener = []\n[[pool]]\nname = \"web\"",
            1,
            "listener",
            "an empty list; expected at least one section [[listener]], in double brackets",
        ),
        (
            "pool = [1, { name = \"default\", address = \"127.0.0.1:7286\" }]",
            1,
            "pool[1]",
            "1; expected at least one section [[pool]], in double brackets",
        ),
        (
            "[front]\nconnections = \"many\"",
            2,
            "front.connections",
            "\"many\"; expected a whole number from 1 to 1000000",
        ),
        ("[front]\nconnections = 1.5", 2, "front.connections", "1.5; expected a whole number from 1 to 1000000"),
        (
            "[front]\nslot_scan = 07:32:00",
            2,
            "front.slot_scan",
            "07:32:00; expected a duration such as \"50ms\" or \"5s\"",
        ),
        (
            "[[listener]]\naddress = true\n[[pool]]\nname = \"a\"",
            2,
            "listener[1].address",
            "true; expected an address such as \"127.0.0.1:7286\" or \"unix:/path\"",
        ),
    ]);
    assert_pool_fault(&[
        ("environment = []", "environment", "an empty list; expected a table { NAME = \"value\" }"),
        ("environment = { A = 1 }", "environment.A", "1; expected a string without NUL"),
        ("limits = \"1G\"", "limits", "\"1G\"; expected a table: [limits] or limits = { .. }"),
    ]);
    assert_listener_fault(&[
        ("access_log = \"yes\"", "access_log", "\"yes\"; expected true or false"),
        (
            "allowed_hosts = \"a\"",
            "allowed_hosts",
            "\"a\"; expected a list [..], each item a host name without scheme and port, such as \"example.org\" or \"[::1]\", \"*.example.org\" for all names below it, or \"*\" for any",
        ),
        (
            "allowed_hosts = [\"a\", \"b:80\"]",
            "allowed_hosts[2]",
            "\"b:80\"; expected a host name without scheme and port, such as \"example.org\" or \"[::1]\", \"*.example.org\" for all names below it, or \"*\" for any",
        ),
        (
            "trusted_proxies = [\"10.0.0.1/8\"]",
            "trusted_proxies[1]",
            "\"10.0.0.1/8\"; expected an IP address, a network such as \"10.0.0.0/8\" whose host bits are 0, or \"unix\"",
        ),
        ("protocol = \"fcgi\"", "protocol", "\"fcgi\"; expected \"http\" or \"fastcgi\""),
        (
            "allowed_clients = [\"unix\"]",
            "allowed_clients[1]",
            "\"unix\"; expected an IP address, or a network such as \"10.0.0.0/8\" whose host bits are 0",
        ),
        ("unknown_length = 411", "unknown_length", "411; expected \"411\" or \"allow\""),
        ("unknown_length = \"refuse\"", "unknown_length", "\"refuse\"; expected \"411\" or \"allow\""),
        ("forwarded = \"xff\"", "forwarded", "\"xff\"; expected \"x-forwarded\" or \"rfc7239\""),
        (
            "remote_user_header = \"Host\"",
            "remote_user_header",
            "\"Host\"; expected the name of a header that only the proxy sets, such as \"X-Remote-User\", or \"\" for none",
        ),
    ]);
}

#[test]
fn durations_and_sizes_need_units_and_bounds() {
    let duration = "a duration such as \"50ms\" or \"5s\"";
    let positive = "a duration longer than 0s, such as \"50ms\"";
    assert_pool_fault(&[
        ("offer_timeout = \"5 minuts\"", "offer_timeout", &format!("\"5 minuts\"; expected {duration}")),
        ("offer_timeout = 50", "offer_timeout", &format!("50; expected {duration}")),
        ("offer_timeout = \"0s\"", "offer_timeout", &format!("\"0s\"; expected {positive}")),
        ("claim_timeout = \"0ms\"", "claim_timeout", &format!("\"0ms\"; expected {positive}")),
        ("request_timeout = \"0s\"", "request_timeout", &format!("\"0s\"; expected {positive}")),
        ("max_age = \"2years\"", "max_age", "\"2years\"; expected a duration of at most 1year"),
        (
            "max_memory = \"1GB\"",
            "max_memory",
            "\"1GB\"; expected a size in bytes such as \"512M\" or \"1G\", or \"0\"",
        ),
        ("max_memory = -1", "max_memory", "-1; expected a size in bytes such as \"512M\" or \"1G\", or \"0\""),
    ]);
    for key in ["head_timeout", "body_timeout", "slot_scan"] {
        let message = format!("\"0s\"; expected {positive}");
        assert_faults(&[(&format!("[front]\n{key} = \"0s\""), 2, &format!("front.{key}"), &message)]);
    }
    for key in
        ["probe_interval", "worker_timeout", "dispatcher_timeout", "start_timeout", "restarts.within", "restarts.delay"]
    {
        let message = format!("\"0s\"; expected {positive}");
        assert_faults(&[(&format!("[watchdog]\n{key} = \"0s\""), 2, &format!("watchdog.{key}"), &message)]);
    }
    let config =
        valid("[[pool]]\nname = \"default\"\nmax_memory = \"512M\"\nmax_age = \"1h 30m\"\ndrain_timeout = \"0s\"");
    assert_eq!(config.pools[0].max_memory, 512 << 20);
    assert_eq!(config.pools[0].max_age, Duration::from_secs(5400));
}

#[test]
fn values_out_of_range_are_rejected() {
    assert_pool_fault(&[
        ("workers = 0", "workers", "0; expected a whole number from 1 to 10000"),
        ("workers = 10_001", "workers", "10001; expected a whole number from 1 to 10000"),
        ("queue = -1", "queue", "-1; expected a whole number from 0 to 1000000"),
        ("max_requests = -1", "max_requests", "-1; expected a whole number, 0 or more"),
        ("user = \"a b\"", "user", "\"a b\"; expected the name or ID of a user or group"),
        (
            "environment = { \"A=B\" = \"c\" }",
            "environment.\"A=B\"",
            "\"c\"; expected a name that is not empty and contains neither = nor NUL",
        ),
        (
            "environment = { \"\" = \"c\" }",
            "environment.\"\"",
            "\"c\"; expected a name that is not empty and contains neither = nor NUL",
        ),
        ("environment = { A = \"\\u0000\" }", "environment.A", "\"\\u0000\"; expected a string without NUL"),
        (
            "limits = { memory_max = \"1GB\" }",
            "limits.memory_max",
            "\"1GB\"; expected a size such as \"512M\", a percentage or \"infinity\"",
        ),
        ("limits = { cpu_quota = \"half\" }", "limits.cpu_quota", "\"half\"; expected a percentage such as \"50%\""),
        ("limits = { tasks_max = 0 }", "limits.tasks_max", "0; expected a number, a percentage or \"infinity\""),
        (
            "limits = { open_files = \"9:1\" }",
            "limits.open_files",
            "\"9:1\"; expected a number, \"SOFT:HARD\" or \"infinity\"",
        ),
    ]);
    let name = "a name of 1 to 32 characters of a-z, 0-9 and _";
    let file = "a file or a pattern such as \"/etc/patou/patou.d/*.toml\"";
    let dir = "an absolute path below / without `..`";
    assert_faults(&[
        ("[front]\nhead_bytes = 8191", 2, "front.head_bytes", "8191; expected a whole number from 8192 to 1048576"),
        ("[set]\nname = \"../x\"", 2, "set.name", &format!("\"../x\"; expected {name}")),
        ("[set]\nruntime_dir = \"run\"", 2, "set.runtime_dir", &format!("\"run\"; expected {dir}")),
        ("[set]\nruntime_dir = \"/run/../x\"", 2, "set.runtime_dir", &format!("\"/run/../x\"; expected {dir}")),
        ("[set]\ninclude = \"x\"", 2, "set.include", &format!("\"x\"; expected a list [..], each item {file}")),
        ("[set]\ninclude = [\"\"]", 2, "set.include[1]", &format!("\"\"; expected {file}")),
        (
            "[[pool]]\nname = \"a/b\"\n[[listener]]\naddress = \"127.0.0.1:1\"\npool = \"ab\"",
            2,
            "pool[1].name",
            &format!("\"a/b\"; expected {name}"),
        ),
    ]);
    let mode = "permissions in octal, such as 0o660 or \"0660\"";
    for (value, found) in [("660", "660"), ("0o1777", "0o1777"), ("\"rw\"", "\"rw\"")] {
        assert_listener_fault(&[(&format!("mode = {value}"), "mode", &format!("{found}; expected {mode}"))]);
    }
    assert_listener_fault(&[("owner = \"\"", "owner", "\"\"; expected the name or ID of a user or group")]);
}

#[test]
fn handler_is_echo_or_one_command() {
    let command = "a program and its arguments: [\"prog\", \"arg\"]";
    assert_pool_fault(&[
        (
            "handler = \"cgi\"",
            "handler",
            "\"cgi\"; expected \"echo\" or { exec = [\"prog\", \"arg\"] }, with coprocess, http, fastcgi, program or inetd in the place of exec, or { scripts = \"/usr/lib/cgi-bin\" }",
        ),
        (
            "handler = \"exec\"",
            "handler",
            "\"exec\"; expected a table with its command: { exec = [\"prog\", \"arg\"] }",
        ),
        (
            "handler = {}",
            "handler",
            "an empty table; expected one of exec, scripts, coprocess, http, fastcgi, program and inetd",
        ),
        (
            "handler = { exec = [\"a\"], program = [\"b\"] }",
            "handler",
            "exec and program; expected one of exec, scripts, coprocess, http, fastcgi, program and inetd",
        ),
        ("handler = { exec = [] }", "handler.exec", &format!("an empty list; expected {command}")),
        ("handler = { exec = [\"\"] }", "handler.exec", &format!("a list; expected {command}")),
        ("handler = { program = [\"a\", 1] }", "handler.program", &format!("a list; expected {command}")),
        ("handler = { coprocess = \"a\" }", "handler.coprocess", &format!("\"a\"; expected {command}")),
        ("handler = { scripts = \"cgi\" }", "handler.scripts", "\"cgi\"; expected the absolute path of a directory"),
        (
            "handler = { scripts = \"/cgi\", prefix = \"/cgi/\" }",
            "handler.prefix",
            "\"/cgi/\"; expected a path such as \"/cgi-bin\", without a slash at its end",
        ),
        (
            "handler = { exec = [\"a\"], prefix = \"/cgi\" }",
            "handler.prefix",
            "an unknown key; expected one of exec, scripts, coprocess, http, program, inetd, fastcgi",
        ),
        (
            "handler = \"scripts\"",
            "handler",
            "\"scripts\"; expected a table with its directory: { scripts = \"/usr/lib/cgi-bin\" }",
        ),
        ("handler = { inetd = [] }", "handler.inetd", &format!("an empty list; expected {command}")),
        (
            "handler = \"inetd\"",
            "handler",
            "\"inetd\"; expected a table with its command: { inetd = [\"prog\", \"arg\"] }",
        ),
    ]);
    let config = valid("[[pool]]\nname = \"default\"\n[pool.handler]\nexec = [\"a\", \"\"]");
    assert_eq!(config.pools[0].handler, HandlerConfig::Exec(vec!["a".into(), "".into()]));
}

#[test]
fn delivery_is_redirect_or_handoff() {
    assert_listener_fault(&[
        ("delivery = \"x\"", "delivery", "\"x\"; expected \"redirect\" or \"handoff\""),
        ("proxy_protocol = 1", "proxy_protocol", "1; expected true or false"),
    ]);
}
