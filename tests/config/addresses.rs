//! Addresses: every listener and every worker needs one of its own that can be.

use super::{good, listener_told, told};

/// Listeners and pools in that order, each line given being its address (and more), three lines each.
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
fn addresses_that_collide() {
    let own = |found: &str, shared: &str, whose: &str, line: usize| {
        format!("\"{found}\"; expected an address of its own: \"{shared}\" belongs to {whose}.address (line {line})")
    };
    let case = |listeners: &[&str], pools: &[&str], line: usize, key: &str, message: &str| {
        told(&[(&addresses(listeners, pools), line, key, message)]);
    };
    let [a, b] = ["\"127.0.0.1:80\"", "\"127.0.0.1:90\""];
    case(&[a, a], &[b], 6, "listener[2].address", &own("127.0.0.1:80", "127.0.0.1:80", "listener[1]", 3));
    case(&[a, "\"0.0.0.0:80\""], &[b], 6, "listener[2].address", &own("0.0.0.0:80", "127.0.0.1:80", "listener[1]", 3));
    case(&[a, "\"[::]:80\""], &[b], 6, "listener[2].address", &own("[::]:80", "127.0.0.1:80", "listener[1]", 3));
    case(&[a], &["\"127.0.0.1:79\""], 6, "pool[1].address", &own("127.0.0.1:79", "127.0.0.1:80", "listener[1]", 3));
    case(&[a], &[b, "\"127.0.0.1:91\""], 9, "pool[2].address", &own("127.0.0.1:91", "127.0.0.1:91", "pool[1]", 6));
    let unix = "\"unix:/run//a{n}\"";
    let message = own("unix:/run/a2", "unix:/run/a2", "pool[1]", 6);
    case(&["\"unix:/run/l\""], &[unix, "\"unix:/run/a2\"\nworkers = 1"], 9, "pool[2].address", &message);
    case(
        &["\"unix:/run/a1\""],
        &[unix],
        6,
        "pool[1].address",
        &own("unix:/run//a{n}", "unix:/run//a1", "listener[1]", 3),
    );
    told(&[(
        "[[pool]]\nname = \"default\"\naddress = \"127.0.0.1:7285\"",
        3,
        "pool[1].address",
        "\"127.0.0.1:7285\"; expected an address of its own: \"127.0.0.1:7286\" belongs to listener[1].address (built in)",
    )]);
    told(&[(
        "[admin]\naddress = \"127.0.0.1:7286\"",
        2,
        "admin.address",
        "\"127.0.0.1:7286\"; expected an address of its own: \"127.0.0.1:7286\" belongs to listener[1].address (built in)",
    )]);
    for fine in ["127.0.0.2:80", "[::1]:80", "127.0.0.1:0", "127.0.0.1:81"] {
        good(&addresses(&[a, &format!("\"{fine}\"")], &[b]));
    }
    good(&addresses(&["\"127.0.0.1:0\"", "\"127.0.0.1:0\""], &["\"127.0.0.1:0\"\nworkers = 10000"]));
}

#[test]
fn the_admin_address_is_tcp_or_none() {
    let tcp = "an IP address and a port, such as \"127.0.0.1:7280\", or \"\" for none";
    for wrong in ["unix:/run/x.sock", "localhost:80", ":80"] {
        let message = format!("\"{wrong}\"; expected {tcp}");
        told(&[(&format!("[admin]\naddress = \"{wrong}\""), 2, "admin.address", &message)]);
    }
    assert_eq!(good("[admin]\naddress = \"\"").admin.address, None);
    let admin = good("[admin]\naddress = \"0.0.0.0:9\"\ngroup = \"prometheus\"\nmode = 0o640").admin;
    assert_eq!((admin.mode, admin.group.as_deref()), (0o640, Some("prometheus")));
    assert!(admin.exposed().unwrap().contains("0.0.0.0:9"));
    assert_eq!(good("[admin]\naddress = \"[::1]:9\"").admin.exposed(), None);
}

#[test]
fn addresses_that_cannot_be() {
    let long = format!("unix:/{}", "x".repeat(107));
    let a = "\"127.0.0.1:80\"";
    let tcp = "an IP address and a port, such as \"127.0.0.1:7286\" or \"[::1]:80\", or \"unix:/path\"";
    let unix = "unix: and the absolute path of a socket, without `..`, such as \"unix:/run/web.sock\"";
    let cases = [
        (vec!["\"localhost:80\""], vec![a], 3, "listener[1].address", format!("\"localhost:80\"; expected {tcp}")),
        (vec!["\"unix:run/x\""], vec![a], 3, "listener[1].address", format!("\"unix:run/x\"; expected {unix}")),
        (vec!["\"unix:/run/{n}\""], vec![a], 3, "listener[1].address", "\"unix:/run/{n}\"; expected a path without {n}: a listener has no number".into()),
        (vec![a], vec!["\"127.0.0.1:65535\""], 6, "pool[1].address", "\"127.0.0.1:65535\"; expected a port of at most 65534, since 2 workers need one each".into()),
        (vec!["\"unix:/l\""], vec!["\"unix:/w\""], 6, "pool[1].address", "\"unix:/w\"; expected a path with {n}, since 2 workers need one each".into()),
        (vec![a], vec!["\"unix:/w{n}\""], 2, "listener[1].pool", "\"p0\"; expected a pool on TCP, since a redirect cannot lead to the Unix sockets of pool[1].address (line 6); or let this listener be one".into()),
    ];
    for (listeners, pools, line, key, message) in &cases {
        told(&[(&addresses(listeners, pools), *line, key, message)]);
    }
    let message = format!("\"{long}\"; expected a path of at most 107 bytes instead of 108");
    told(&[(&addresses(&[&format!("\"{long}\"")], &[a]), 3, "listener[1].address", &message)]);
    good(&addresses(&["\"unix:/l\""], &["\"unix:/w\"\nworkers = 1"]));
    good(&addresses(&["\"unix:/l\"\nmode = \"0600\"\nowner = \"root\"\ngroup = \"0\""], &[a]));
    listener_told(&[
        ("mode = 0o600", "mode", "0o600; expected no mode on a TCP address, only on \"unix:/path\""),
        ("owner = \"root\"", "owner", "\"root\"; expected no owner on a TCP address, only on \"unix:/path\""),
        ("group = \"root\"", "group", "\"root\"; expected no group on a TCP address, only on \"unix:/path\""),
    ]);
}

#[test]
fn the_folder_of_the_set() {
    let dir = format!("/{}", "x".repeat(97));
    let message = format!("\"{dir}\"; expected a path 6 bytes shorter: its sockets may have 107 in all");
    told(&[(&format!("[set]\nruntime_dir = \"{dir}\""), 2, "set.runtime_dir", &message)]);
    for path in ["probe.sock", "default/1.sock"] {
        let text = format!(
            "[set]\nruntime_dir = \"/r\"\n[[pool]]\nname = \"default\"\n[[listener]]\naddress = \"unix:/r/{path}\""
        );
        let message = format!("\"unix:/r/{path}\"; expected a path outside \"/r\", where the set keeps its own files");
        told(&[(&text, 6, "listener[1].address", &message)]);
    }
    good("[set]\nruntime_dir = \"/r\"\n[[pool]]\nname = \"default\"\n[[listener]]\naddress = \"unix:/r/http.sock\"");
}
