//! What of a request's head is believed from which peer, as handlers see it.

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;

use support::*;

/// A handoff listener whose handler responds with what it knows about the client; `listener` are further keys.
fn set(address: &str, listener: &str) -> String {
    let script = "printf 'Content-Type: text/plain\\n\\n'; \
                  env | grep -E '^(REMOTE_|HTTPS=|SERVER_(NAME|PORT)|HTTP_)' | sort";
    let handler = toml_array(&["sh", "-c", script]);
    format!(
        "[[listener]]\naddress = \"{address}\"\ndelivery = \"handoff\"\n{listener}\n\
         [[pool]]\nname = \"default\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {{ exec = {handler} }}\n"
    )
}

fn get_request(headers: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: inside\r\nConnection: close\r\n{headers}\r\n").into_bytes()
}

const FORGED: &str = "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\n\
                      X-Forwarded-Host: www.example.com\r\nForwarded: for=6.6.6.6\r\nX-Remote-User: alice\r\n\
                      X_Remote_User: root\r\n";

/// The lines of the response without the port of the connection.
fn seen(response: &HttpResponse) -> Vec<String> {
    assert_eq!(response.status, 200, "{response:?}");
    response.text().lines().filter(|line| !line.starts_with("REMOTE_PORT=")).map(str::to_owned).collect()
}

const BELIEVED: [&str; 9] = [
    "HTTPS=on",
    "HTTP_HOST=www.example.com",
    "HTTP_X_FORWARDED_FOR=192.0.2.7",
    "HTTP_X_FORWARDED_HOST=www.example.com",
    "HTTP_X_FORWARDED_PROTO=https",
    "HTTP_X_REMOTE_USER=alice",
    "REMOTE_ADDR=192.0.2.7",
    "REMOTE_USER=alice",
    "SERVER_NAME=www.example.com",
];

#[test]
fn only_a_trusted_peer_names_the_client_the_scheme_the_host_and_the_user() {
    let keys = "trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\nremote_user_header = \"X-Remote-User\"\n\
                allowed_hosts = [\"*.example.com\", \"inside\"]\naccess_log = true";
    let set = TestSet::start(&set("127.0.0.1:0", keys));
    let address = set.address(0);
    let from = |peer: [u8; 4], headers: &str| {
        let mut stream = connect_from(peer, address);
        stream.write_all(&get_request(headers)).unwrap();
        read_response(&mut stream).unwrap()
    };
    let mut believed = BELIEVED.to_vec();
    believed.push("SERVER_PORT=443");
    let response = from([127, 0, 0, 1], FORGED);
    assert_eq!(seen(&response), believed);
    assert!(!response.text().contains("REMOTE_PORT"), "the proxy's port is not the client's");
    set.wait_for_log(&["client=192.0.2.7 "]);
    // Through a second trusted proxy.
    let chain = FORGED.replacen("192.0.2.7", "192.0.2.7, 10.1.1.1", 1);
    believed[2] = "HTTP_X_FORWARDED_FOR=192.0.2.7, 10.1.1.1";
    assert_eq!(seen(&from([127, 0, 0, 1], &chain)), believed);

    let port = format!("SERVER_PORT={}", address.port());
    let direct = ["HTTP_HOST=inside", "REMOTE_ADDR=127.0.0.2", "SERVER_NAME=inside", &port];
    assert_eq!(seen(&from([127, 0, 0, 2], FORGED)), direct);

    // The effective host is checked.
    let host = |name: &str| from([127, 0, 0, 1], &format!("X-Forwarded-Host: {name}\r\n")).status;
    assert_eq!((host("a.b.example.com:8443"), host("evil.example"), host("example.com")), (200, 421, 421));
    assert_eq!(host("not a host"), 400);
    set.stop();
}

#[test]
fn unix_peers_and_the_forwarded_header_are_believed_where_the_listener_says_so() {
    let set = TestSet::start_with(|dir| {
        let keys = "trusted_proxies = [\"unix\"]\nforwarded = \"rfc7239\"\nallowed_hosts = [\"*\"]";
        set(&format!("unix:{}/web.sock", dir.display()), keys)
    });
    let mut stream = UnixStream::connect(set.test_dir().join("web.sock")).unwrap();
    let forwarded = "Forwarded: for=6.6.6.6, for=\"192.0.2.7:4711\";proto=https;host=\"a.example:8443\"\r\n\
                     X-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n";
    stream.write_all(&get_request(forwarded)).unwrap();
    let response = read_response(&mut stream).unwrap();
    let expected = [
        "HTTPS=on",
        "HTTP_FORWARDED=for=\"192.0.2.7:4711\";proto=https;host=\"a.example:8443\"",
        "HTTP_HOST=a.example:8443",
        "REMOTE_ADDR=192.0.2.7",
        "SERVER_NAME=a.example",
        "SERVER_PORT=8443",
    ];
    assert_eq!(seen(&response), expected);
    assert!(response.text().contains("REMOTE_PORT=4711\n"));
    let mut stream = UnixStream::connect(set.test_dir().join("web.sock")).unwrap();
    stream.write_all(&get_request("Forwarded: for=6.6.6.6;x=\"\r\n")).unwrap();
    assert_eq!(read_response(&mut stream).unwrap().status, 400);
    set.stop();
}

#[test]
fn the_address_in_a_proxy_header_decides_whether_the_headers_count() {
    let keys = "proxy_protocol = true\ntrusted_proxies = [\"198.51.100.0/24\"]\nallowed_hosts = [\"*\"]\n\
                remote_user_header = \"X-Remote-User\"";
    let set = TestSet::start(&set("127.0.0.1:0", keys));
    let through = |peer: &str| {
        let mut bytes = format!("PROXY TCP4 {peer} 198.51.100.1 4711 443\r\n").into_bytes();
        bytes.extend(get_request(FORGED));
        seen(&send_request(set.address(0), &bytes).unwrap())
    };
    assert_eq!(through("198.51.100.9")[..9], BELIEVED);
    let of_proxy = through("192.0.2.9");
    for line in ["REMOTE_ADDR=192.0.2.9", "SERVER_PORT=443"] {
        assert!(of_proxy.contains(&line.to_owned()), "{line} in {of_proxy:?}");
    }
    // Version 2, from a proxy that has ended TLS; a trusted proxy behind it knows better.
    let through_tls = |peer: [u8; 4]| {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14".to_vec();
        bytes.extend(peer);
        bytes.extend([198, 51, 100, 1, 18, 103, 1, 187, 0x20, 0, 5, 1, 0, 0, 0, 0]);
        bytes.extend(get_request("X-Forwarded-Proto: http\r\n"));
        seen(&send_request(set.address(0), &bytes).unwrap()).contains(&"HTTPS=on".to_owned())
    };
    assert_eq!((through_tls([192, 0, 2, 9]), through_tls([198, 51, 100, 9])), (true, false));
    assert!(!through("192.0.2.9").iter().any(|line| line.contains("FORWARDED") || line.contains("USER")));
    set.stop();
}

#[test]
fn a_worker_believes_no_header_of_a_client_that_was_redirected_to_it() {
    let set = TestSet::start(&set("127.0.0.1:0", "").replace("delivery = \"handoff\"", "allowed_hosts = [\"*\"]"));
    let mut stream = send_to_worker(set.address(0), "GET", "/", "1.1", FORGED, b"");
    let seen = seen(&read_response(&mut stream).unwrap());
    assert!(seen.contains(&"REMOTE_ADDR=127.0.0.1".to_owned()), "{seen:?}");
    assert!(!seen.iter().any(|line| line.contains("FORWARDED") || line.contains("HTTPS")), "{seen:?}");
    set.stop();
}

#[test]
fn a_reload_changes_what_is_believed() {
    let mut set = TestSet::prepare("");
    let toml = |keys: &str| self::set("127.0.0.1:0", &format!("allowed_hosts = [\"*\"]\n{keys}"));
    set.configure(&toml(""));
    set.run();
    set.wait_until_up();
    let address = set.address(0);
    let client = || seen(&send_request(address, &get_request("X-Forwarded-For: 192.0.2.7\r\n")).unwrap());
    assert!(client().contains(&"REMOTE_ADDR=127.0.0.1".to_owned()));
    set.configure(&toml("trusted_proxies = [\"127.0.0.0/8\"]"));
    set.signal(nix::sys::signal::Signal::SIGHUP);
    wait_until("the proxy is believed", || client().contains(&"REMOTE_ADDR=192.0.2.7".to_owned()));
    set.stop();
}
