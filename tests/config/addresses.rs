//! Addresses: each must be valid, and no two listeners or workers may use the same one.

use super::{assert_faults, assert_listener_fault, valid};

/// A configuration of listeners, then pools, three lines each; every item is an address, perhaps followed by more keys.
fn addresses(listeners: &[&str], pools: &[&str]) -> String {
    let mut text = String::new();
    for listener in listeners {
        text += &format!("[[listener]]\npool = \"p0\"\naddress = {listener}\n");
    }
    for (i, pool) in pools.iter().enumerate() {
        text += &format!("[[pool]]\nname = \"p{i}\"\naddress = {pool}\n");
    }
    text
}

#[test]
fn conflicting_addresses_are_rejected() {
    let conflict = |found: &str, shared: &str, user: &str, line: usize| {
        format!("\"{found}\"; expected a different address: \"{shared}\" is used by {user}.address (line {line})")
    };
    let case = |listeners: &[&str], pools: &[&str], line: usize, key: &str, message: &str| {
        assert_faults(&[(&addresses(listeners, pools), line, key, message)]);
    };
    let [a, b] = ["\"127.0.0.1:80\"", "\"127.0.0.1:90\""];
    case(&[a, a], &[b], 6, "listener[2].address", &conflict("127.0.0.1:80", "127.0.0.1:80", "listener[1]", 3));
    case(
        &[a, "\"0.0.0.0:80\""],
        &[b],
        6,
        "listener[2].address",
        &conflict("0.0.0.0:80", "127.0.0.1:80", "listener[1]", 3),
    );
    case(&[a, "\"[::]:80\""], &[b], 6, "listener[2].address", &conflict("[::]:80", "127.0.0.1:80", "listener[1]", 3));
    case(
        &[a],
        &["\"127.0.0.1:79\""],
        6,
        "pool[1].address",
        &conflict("127.0.0.1:79", "127.0.0.1:80", "listener[1]", 3),
    );
    case(&[a], &[b, "\"127.0.0.1:91\""], 9, "pool[2].address", &conflict("127.0.0.1:91", "127.0.0.1:91", "pool[1]", 6));
    let unix = "\"unix:/run//a{n}\"";
    let message = conflict("unix:/run/a2", "unix:/run/a2", "pool[1]", 6);
    case(&["\"unix:/run/l\""], &[unix, "\"unix:/run/a2\"\nworkers = 1"], 9, "pool[2].address", &message);
    case(
        &["\"unix:/run/a1\""],
        &[unix],
        6,
        "pool[1].address",
        &conflict("unix:/run//a{n}", "unix:/run//a1", "listener[1]", 3),
    );
    assert_faults(&[(
        "[[pool]]\nname = \"default\"\naddress = \"127.0.0.1:7285\"",
        3,
        "pool[1].address",
        "\"127.0.0.1:7285\"; expected a different address: \"127.0.0.1:7286\" is used by listener[1].address (default)",
    )]);
    assert_faults(&[(
        "[admin]\naddress = \"127.0.0.1:7286\"",
        2,
        "admin.address",
        "\"127.0.0.1:7286\"; expected a different address: \"127.0.0.1:7286\" is used by listener[1].address (default)",
    )]);
    for free in ["127.0.0.2:80", "[::1]:80", "127.0.0.1:0", "127.0.0.1:81"] {
        valid(&addresses(&[a, &format!("\"{free}\"")], &[b]));
    }
    valid(&addresses(&["\"127.0.0.1:0\"", "\"127.0.0.1:0\""], &["\"127.0.0.1:0\"\nworkers = 10000"]));
}

#[test]
fn admin_address_is_tcp_or_empty() {
    let tcp = "an IP address and a port, such as \"127.0.0.1:7280\", or \"\" for none";
    for wrong in ["unix:/run/x.sock", "localhost:80", ":80"] {
        let message = format!("\"{wrong}\"; expected {tcp}");
        assert_faults(&[(&format!("[admin]\naddress = \"{wrong}\""), 2, "admin.address", &message)]);
    }
    assert_eq!(valid("[admin]\naddress = \"\"").admin.address, None);
    let admin = valid("[admin]\naddress = \"0.0.0.0:9\"\ngroup = \"prometheus\"\nmode = 0o640").admin;
    assert_eq!((admin.mode, admin.group.as_deref()), (0o640, Some("prometheus")));
    assert!(admin.exposure_warning().unwrap().contains("0.0.0.0:9"));
    assert_eq!(valid("[admin]\naddress = \"[::1]:9\"").admin.exposure_warning(), None);
}

#[test]
fn invalid_addresses_are_rejected() {
    let long = format!("unix:/{}", "x".repeat(107));
    let a = "\"127.0.0.1:80\"";
    let tcp = "an IP address and a port, such as \"127.0.0.1:7286\" or \"[::1]:80\", or \"unix:/path\"";
    let unix = "unix: and the absolute path of a socket without `..`, such as \"unix:/run/web.sock\"";
    let cases = [
        (vec!["\"localhost:80\""], vec![a], 3, "listener[1].address", format!("\"localhost:80\"; expected {tcp}")),
        (vec!["\"unix:run/x\""], vec![a], 3, "listener[1].address", format!("\"unix:run/x\"; expected {unix}")),
        (vec!["\"unix:/run/{n}\""], vec![a], 3, "listener[1].address", "\"unix:/run/{n}\"; expected a path without {n}, which stands for a worker's number".into()),
        (vec![a], vec!["\"127.0.0.1:65535\""], 6, "pool[1].address", "\"127.0.0.1:65535\"; expected a port of at most 65534: each of the 2 workers needs its own port".into()),
        (vec!["\"unix:/l\""], vec!["\"unix:/w\""], 6, "pool[1].address", "\"unix:/w\"; expected a path with {n}: each of the 2 workers needs its own path".into()),
        (vec![a], vec!["\"unix:/w{n}\""], 2, "listener[1].pool", "\"p0\"; expected a pool on TCP: a redirect cannot lead to the Unix sockets of pool[1].address (line 6); or a Unix socket as this listener's address".into()),
    ];
    for (listeners, pools, line, key, message) in &cases {
        assert_faults(&[(&addresses(listeners, pools), *line, key, message)]);
    }
    let message = format!("\"{long}\"; expected a path of at most 107 bytes instead of 108");
    assert_faults(&[(&addresses(&[&format!("\"{long}\"")], &[a]), 3, "listener[1].address", &message)]);
    valid(&addresses(&["\"unix:/l\""], &["\"unix:/w\"\nworkers = 1"]));
    valid(&addresses(&["\"unix:/l\"\nmode = \"0600\"\nowner = \"root\"\ngroup = \"0\""], &[a]));
    assert_listener_fault(&[
        ("mode = 0o600", "mode", "0o600; expected no mode with a TCP address, only with \"unix:/path\""),
        ("owner = \"root\"", "owner", "\"root\"; expected no owner with a TCP address, only with \"unix:/path\""),
        ("group = \"root\"", "group", "\"root\"; expected no group with a TCP address, only with \"unix:/path\""),
    ]);
}

#[test]
fn runtime_dir_must_fit_into_socket_paths_and_is_reserved() {
    let dir = format!("/{}", "x".repeat(97));
    let message = format!("\"{dir}\"; expected a path 6 bytes shorter: a socket path has at most 107 bytes");
    assert_faults(&[(&format!("[set]\nruntime_dir = \"{dir}\""), 2, "set.runtime_dir", &message)]);
    for path in ["probe.sock", "default/1.sock"] {
        let text = format!(
            "[set]\nruntime_dir = \"/r\"\n[[pool]]\nname = \"default\"\n[[listener]]\naddress = \"unix:/r/{path}\""
        );
        let message =
            format!("\"unix:/r/{path}\"; expected a path outside \"/r\", where the set creates its own files");
        assert_faults(&[(&text, 6, "listener[1].address", &message)]);
    }
    valid("[set]\nruntime_dir = \"/r\"\n[[pool]]\nname = \"default\"\n[[listener]]\naddress = \"unix:/r/http.sock\"");
}
