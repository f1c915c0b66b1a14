//! Rules between keys: durations that contradict each other, names that must match.

use super::{assert_faults, assert_pool_fault, valid};

#[test]
fn contradicting_durations_are_rejected() {
    assert_pool_fault(&[
        (
            "claim_timeout = \"10ms\"",
            "claim_timeout",
            "\"10ms\"; expected at least \"50ms\", the value of offer_timeout",
        ),
        (
            "offer_timeout = \"2s\"",
            "claim_timeout",
            "\"1s\" (default); expected at least \"2s\", the value of offer_timeout",
        ),
        (
            "queue_timeout = \"0s\"",
            "queue_timeout",
            "\"0s\"; expected a duration longer than 0s, or queue = 0 instead of 128",
        ),
    ]);
    valid("[[pool]]\nname = \"default\"\nqueue = 0\nqueue_timeout = \"0s\"");
    assert_faults(&[
        (
            "[watchdog]\nprobe_interval = \"1s\"",
            2,
            "watchdog.probe_interval",
            "\"1s\"; expected a duration shorter than \"1s\", the value of worker_timeout",
        ),
        (
            "[watchdog]\ndispatcher_timeout = \"250ms\"",
            2,
            "watchdog.probe_interval",
            "\"250ms\" (default); expected a duration shorter than \"250ms\", the value of dispatcher_timeout",
        ),
        (
            "[watchdog]\nrestarts = { delay = \"31s\" }",
            2,
            "watchdog.restarts.delay",
            "\"31s\"; expected at most \"30s\", the value of delay_max",
        ),
        (
            "[front]\nslot_scan = \"31s\"",
            2,
            "front.slot_scan",
            "\"31s\"; expected at most \"30s\", the value of pool[1].request_timeout (default)",
        ),
    ]);
}

#[test]
fn pool_names_are_unique_and_listeners_name_a_pool() {
    let two = |second: &str| {
        format!(
            "[[pool]]\nname = \"default\"\naddress = \"127.0.0.1:1\"\n[[pool]]\nname = \"{second}\"\naddress = \"127.0.0.1:9\"\n"
        )
    };
    assert_faults(&[
        (
            &two("default"),
            5,
            "pool[2].name",
            "\"default\"; expected a unique name: pool[1].name (line 2) has the same one",
        ),
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

#[test]
fn inetd_pool_behind_a_unix_listener_is_valid_with_a_warning() {
    let text = |address: &str, handler: &str| {
        format!(
            "[[listener]]\naddress = \"{address}\"\ndelivery = \"handoff\"\n[[pool]]\nname = \"default\"\nhandler = {handler}\n"
        )
    };
    let warnings = valid(&text("unix:/run/x.sock", "{ inetd = [\"cat\"] }")).warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].starts_with("listener unix:/run/x.sock: a Unix socket cannot be reset"), "{warnings:?}");
    assert!(valid(&text("127.0.0.1:1", "{ inetd = [\"cat\"] }")).warnings().is_empty());
    assert!(valid(&text("unix:/run/x.sock", "{ exec = [\"cat\"] }")).warnings().is_empty());
}

#[test]
fn bodies_of_unknown_length_are_allowed_with_redirect_only() {
    let with = |delivery: &str| {
        let listener = format!("address = \"unix:/x\"\ndelivery = \"{delivery}\"\nunknown_length = \"allow\"\n");
        format!("[[listener]]\n{listener}[[pool]]\nname = \"default\"\n")
    };
    valid(&with("redirect"));
    assert_faults(&[(
        &with("handoff"),
        4,
        "listener[1].unknown_length",
        "\"allow\"; expected \"411\", or no such key, with delivery = \"handoff\": its requests are not redirected",
    )]);
}

#[test]
fn fastcgi_needs_a_worker_that_reads_the_request_and_clients_that_are_believed() {
    let with = |address: &str, listener: &str, pool: &str| {
        let head = format!("[[listener]]\naddress = \"{address}\"\nprotocol = \"fastcgi\"\n{listener}\n");
        format!("{head}[[pool]]\nname = \"default\"\n{pool}")
    };
    let handoff = "delivery = \"handoff\"";
    for (address, more) in [
        ("unix:/x", ""),
        ("127.0.0.1:9000", ""),
        ("[::1]:9000", "\nallowed_clients = [\"::1\"]"),
        ("0.0.0.0:9000", "\nallowed_clients = [\"192.0.2.1\", \"10.0.0.0/8\"]\ntrusted_proxies = [\"10.0.0.0/8\"]"),
    ] {
        valid(&with(address, &format!("{handoff}{more}"), ""));
    }
    let http =
        with("127.0.0.1:1", &format!("{handoff}\nallowed_clients = [\"127.0.0.1\"]"), "").replace("fastcgi", "http");
    assert_faults(&[
        (
            &with("127.0.0.1:1", "", ""),
            3,
            "listener[1].protocol",
            "\"fastcgi\"; expected \"http\" with delivery = \"redirect\": a FastCGI client cannot follow a redirect; use \"handoff\"",
        ),
        (
            &with("127.0.0.1:1", handoff, "handler = { inetd = [\"/bin/cat\"] }"),
            3,
            "listener[1].protocol",
            "\"fastcgi\"; expected \"http\": pool[1].handler (line 7) is inetd, whose program gets the connection and no request",
        ),
        (
            &with("127.0.0.1:1", &format!("{handoff}\nproxy_protocol = true"), ""),
            5,
            "listener[1].proxy_protocol",
            "true; expected false with protocol = \"fastcgi\": the parameters of each request name the client",
        ),
        (
            &with("unix:/x", &format!("{handoff}\nallowed_clients = [\"127.0.0.1\"]"), ""),
            5,
            "listener[1].allowed_clients",
            "a list; expected an empty list for a Unix socket: mode, owner and group say which users may connect",
        ),
        (
            &with("0.0.0.0:9000", handoff, ""),
            2,
            "listener[1].allowed_clients",
            "an empty list (default); expected the addresses of the front servers at an address that other machines can reach: whatever they say of a client is believed; \"0.0.0.0/0\" and \"::/0\" are all",
        ),
        (
            &http,
            5,
            "listener[1].allowed_clients",
            "a list; expected an empty list with protocol = \"http\": a firewall, or the address, limits HTTP clients",
        ),
    ]);
}

#[test]
fn trusted_proxies_need_a_worker_that_reads_their_connection() {
    let with = |listener: &str, pool: &str| {
        format!(
            "[[listener]]\naddress = \"unix:/x\"\ndelivery = \"handoff\"\n{listener}\n[[pool]]\nname = \"default\"\n{pool}"
        )
    };
    valid(&with("trusted_proxies = [\"unix\", \"::1\"]\nremote_user_header = \"X-User\"\nforwarded = \"rfc7239\"", ""));
    let redirect = with("trusted_proxies = [\"unix\"]", "").replace("handoff", "redirect");
    let inetd = with("trusted_proxies = [\"unix\"]", "handler = { inetd = [\"/bin/cat\"] }");
    let user = with("remote_user_header = \"X-User\"", "");
    let most: Vec<String> = (0..257).map(|n| format!("\"10.0.{}.{}\"", n / 256, n % 256)).collect();
    let many = with(&format!("trusted_proxies = [{}]", most.join(", ")), "");
    assert_faults(&[
        (
            &redirect,
            4,
            "listener[1].trusted_proxies",
            "a list; expected an empty list with delivery = \"redirect\": the request reaches its worker without the proxy",
        ),
        (
            &inetd,
            4,
            "listener[1].trusted_proxies",
            "a list; expected an empty list: pool[1].handler (line 7) is inetd, whose connections are not read",
        ),
        (
            &user,
            4,
            "listener[1].remote_user_header",
            "\"x-user\"; expected \"\" without trusted_proxies, from which alone the header is accepted",
        ),
        (&many, 4, "listener[1].trusted_proxies", "257 of them; expected at most 256 addresses and networks"),
    ]);
}

#[test]
fn scripts_of_a_fastcgi_application_have_a_directory_and_an_extension() {
    let with = |keys: &str| format!("[[pool]]\nname = \"default\"\nhandler = {{ fastcgi = [\"php-cgi\"]{keys} }}\n");
    let text = |keys: &str| with(&format!(", root = \"/srv\", {keys}"));
    let root = "the absolute path of the directory of the scripts";
    let missing = format!("nothing; expected {root}, to which index and extensions belong");
    let extension = "an extension with its dot, such as \".php\"";
    let index = "the name of a script, such as \"index.php\"";
    for (text, key, message) in [
        (with(", index = \"index.php\""), "root", missing.as_str()),
        (with(", extensions = [\".php\"]"), "root", &missing),
        (with(", root = \"www\""), "root", &format!("\"www\"; expected {root}")),
        (with(", root = \"\""), "root", &format!("\"\"; expected {root}")),
        (text("extensions = [\"php\"]"), "extensions[1]", &format!("\"php\"; expected {extension}")),
        (text("extensions = []"), "extensions", &format!("an empty list; expected at least {extension}")),
        (text("index = \"a/b.php\""), "index", &format!("\"a/b.php\"; expected {index}")),
        (text("index = \".php\""), "index", &format!("\".php\"; expected {index}")),
        (text("index = \"index.html\""), "index", "\"index.html\"; expected a name with one of the extensions: .php"),
    ] {
        assert_faults(&[(&text, 3, &format!("pool[1].handler.{key}"), message)]);
    }
    let exec = "[[pool]]\nname = \"default\"\nhandler = { exec = [\"a\"], root = \"/srv\" }\n";
    let keys = "one of exec, scripts, coprocess, http, program, inetd, fastcgi";
    assert_faults(&[(exec, 3, "pool[1].handler.root", &format!("an unknown key; expected {keys}"))]);
    valid(&with(""));
    valid(&text("index = \"index.html\", extensions = [\".php\", \".html\"]"));
}

#[test]
fn keys_of_programs_are_refused_for_other_handlers() {
    let with = |handler: &str, key: &str| format!("[[pool]]\nname = \"default\"\nhandler = {handler}\n{key}\n");
    let [exec, http] = ["{ exec = [\"a\"] }", "{ http = [\"a\", \"{socket}\"] }"];
    let expected = |found: &str, name: &str, wanted: &str| {
        format!("{found}; expected no such key: pool[1].handler (line 3) is {name}, and only {wanted} has it")
    };
    for (handler, name, key, found, wanted) in [
        ("\"echo\"", "echo", "request_body", "\"spool\"", "exec, scripts, coprocess, http or fastcgi"),
        ("\"echo\"", "echo", "exit_status", "\"ignore\"", "exec, scripts or fastcgi"),
        (http, "http", "authorization", "\"pass\"", "exec, scripts, coprocess or fastcgi"),
    ] {
        let text = with(handler, &format!("{key} = {found}"));
        assert_faults(&[(&text, 4, &format!("pool[1].{key}"), &expected(found, name, wanted))]);
        valid(&with(exec, &format!("{key} = {found}")));
    }
    let [bad, message] = ["\"maybe\"", "\"maybe\"; expected \"pass\" or \"drop\""];
    assert_faults(&[(&with(exec, &format!("authorization = {bad}")), 4, "pool[1].authorization", message)]);
}
