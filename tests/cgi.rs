//! CGI as its users know it: what real CGI programs and libraries get, and what becomes of their responses.

mod support;

use std::net::SocketAddr;

use support::*;

/// A pool of one worker behind a handoff listener; `more` are further keys of the pool.
fn pool(name: &str, handler: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\nallowed_hosts = [\"*\"]\npool = \"{name}\"\n\n\
         [[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n{more}\n\n"
    )
}

fn exec(command: &[&str]) -> String {
    format!("{{ exec = {} }}", toml_array(command))
}

/// One request; `more` are further lines of its head.
fn send(address: SocketAddr, method: &str, target: &str, more: &str, body: &[u8]) -> HttpResponse {
    let head = format!("{method} {target} HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n{more}\r\n");
    send_request(address, &[head.as_bytes(), body].concat()).unwrap()
}

#[test]
fn only_a_program_that_checks_credentials_gets_them() {
    let cgi = exec(&["sh", "-c", "printf 'Content-Type: text/plain\\n\\n%s' \"${HTTP_AUTHORIZATION-none}\""]);
    let script = r#"import os
while True:
    head = {}
    for line in iter(lambda: fd.readline(), b"\r\n"):
        name, _, value = line.partition(b": ")
        head[name] = value.strip()
    body = head.get(b"Http-Authorization", b"none")
    os.write(4, b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
"#;
    let script = format!("fd = open(3, 'rb')\n{script}");
    let coprocess = format!("{{ coprocess = {} }}", toml_array(&["python3", "-c", &script]));
    let pass = "authorization = \"pass\"";
    let pools = [("a", &cgi, ""), ("b", &cgi, pass), ("c", &coprocess, ""), ("d", &coprocess, pass)];
    let set = TestSet::start(&pools.map(|(name, handler, more)| pool(name, handler, more)).concat());
    for (at, expected) in ["none", "Basic dTpw", "none", "Basic dTpw"].into_iter().enumerate() {
        let response = send(set.address(at), "GET", "/", "Authorization: Basic dTpw\r\n", b"");
        assert_eq!((response.status, response.text().as_str()), (200, expected), "pool {at}");
    }
    set.stop();
}
