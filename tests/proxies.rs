//! The configurations in `examples/proxy`, each with the real proxy in front of a set.

mod support;

use std::cell::RefCell;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::*;
use tungstenite::Message;

/// What stands in the examples for the address of the proxy, of the set on a Unix socket, and of the set on TCP.
const UNIX: &str = "/run/patou/http.sock";
const TCP: &str = "127.0.0.1:7287";

/// A proxy and how to start it.
struct ProxyKind {
    program: &'static str,
    /// Its file in `examples/proxy`.
    example: &'static str,
    /// The example with the address of the proxy, and with TCP in place of the Unix socket.
    adapt: fn(&str, SocketAddr, bool) -> String,
    /// What stands around the example, given the directory of the test and the file.
    surroundings: fn(&Path, &Path) -> String,
    /// Its arguments, given the directory and the file that it reads.
    arguments: fn(&Path, &Path) -> Vec<String>,
    /// Whether it speaks HTTP/1.0, which has no chunks.
    http_1_0: bool,
    requests: usize,
}

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

const NGINX: ProxyKind = ProxyKind {
    program: "nginx",
    example: "nginx/patou.conf",
    adapt: |text, address, tcp| {
        let text = replaced(text, "listen 80;", &format!("listen {address};"));
        if tcp { replaced(&text, &format!("server unix:{UNIX};"), &format!("server {TCP};")) } else { text }
    },
    surroundings: |dir, example| {
        let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {}/{name};\n", dir.display()))
            .concat();
        format!(
            "daemon off;\npid {0}/nginx.pid;\nerror_log stderr info;\nuser root;\nevents {{}}\n\
             http {{\naccess_log off;\n{paths}include {1};\n}}\n",
            dir.display(),
            example.display()
        )
    },
    arguments: |dir, file| owned(&["-p", dir.to_str().unwrap(), "-e", "stderr", "-c", file.to_str().unwrap()]),
    http_1_0: false,
    requests: 5000,
};

/// nginx as operators first write it: HTTP/1.0, a connection for each request.
const NGINX_HTTP_1_0: ProxyKind = ProxyKind {
    adapt: |text, address, tcp| {
        let text = replaced(text, "        proxy_http_version 1.1;\n", "");
        let text = replaced(&text, "        proxy_set_header Connection $connection_upgrade;\n", "");
        let text = replaced(&text, "        proxy_set_header Upgrade $http_upgrade;\n", "");
        (NGINX.adapt)(&text, address, tcp)
    },
    http_1_0: true,
    requests: 2000,
    ..NGINX
};

const HAPROXY: ProxyKind = ProxyKind {
    program: "haproxy",
    example: "haproxy/haproxy.cfg",
    adapt: |text, address, tcp| {
        let text = replaced(text, "bind :80", &format!("bind {address}"));
        if tcp { replaced(&text, &format!("unix@{UNIX}"), TCP) } else { text }
    },
    surroundings: |_, example| fs::read_to_string(example).unwrap(),
    arguments: |_, file| owned(&["-db", "-f", file.to_str().unwrap()]),
    http_1_0: false,
    requests: 5000,
};

const CADDY: ProxyKind = ProxyKind {
    program: "caddy",
    example: "caddy/Caddyfile",
    adapt: |text, address, tcp| {
        let text = replaced(text, "\n:80 {\n", &format!("\nhttp://:{} {{\n\tbind 127.0.0.1\n", address.port()));
        if tcp { replaced(&text, &format!("unix/{UNIX}"), TCP) } else { text }
    },
    surroundings: |dir, example| {
        let text = fs::read_to_string(example).unwrap();
        format!("{{\n\tadmin off\n\tstorage file_system {}/caddy\n}}\n{text}", dir.display())
    },
    arguments: |_, file| owned(&["run", "--adapter", "caddyfile", "--config", file.to_str().unwrap()]),
    http_1_0: false,
    requests: 5000,
};

const APACHE: ProxyKind = ProxyKind {
    program: "apache2",
    example: "apache/patou.conf",
    adapt: |text, address, tcp| {
        let text = replaced(text, "<VirtualHost *:80>", &format!("Listen {address}\n<VirtualHost {address}>"));
        let (unix, other) =
            (format!("    ProxyPass \"/\" \"unix:{UNIX}"), format!("    # ProxyPass \"/\" \"http://{TCP}/\""));
        if tcp {
            let text = replaced(&text, &unix, &format!("    # {}", unix.trim_start()));
            replaced(&text, &other, &other.replacen("# ", "", 1))
        } else {
            text
        }
    },
    surroundings: |dir, example| {
        let modules: String = ["mpm_event", "authz_core", "headers", "proxy", "proxy_http"]
            .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
            .concat();
        format!(
            "ServerRoot {0}\nServerName localhost\nPidFile {0}/apache.pid\nErrorLog /dev/stderr\nMutex file:{0}\n\
             User www-data\nGroup www-data\n{modules}Include {1}\n",
            dir.display(),
            example.display()
        )
    },
    arguments: |_, file| owned(&["-X", "-f", file.to_str().unwrap()]),
    http_1_0: false,
    requests: 2000,
};

/// `text` with `from` replaced, which occurs once: otherwise the example has changed, and this test would try another one.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} in {text}");
    text.replace(from, to)
}

/// A running proxy.
struct Proxy {
    process: Child,
    address: SocketAddr,
}

impl Proxy {
    fn start(kind: &ProxyKind, set: &TestSet, tcp: bool) -> Self {
        let dir = set.test_dir().join(if tcp { "proxy-tcp" } else { "proxy-unix" });
        fs::create_dir_all(&dir).unwrap();
        // None of the proxies says which port the kernel chose.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proxy").join(kind.example);
        let text = (kind.adapt)(&fs::read_to_string(example).unwrap(), address, tcp);
        let text = text.replace(UNIX, &set.test_dir().join("http.sock").display().to_string());
        let (example, file) = (dir.join("example.conf"), dir.join("proxy.conf"));
        fs::write(&example, text.replace(TCP, &set.address(1).to_string())).unwrap();
        fs::write(&file, (kind.surroundings)(&dir, &example)).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new(kind.program);
        command.args((kind.arguments)(&dir, &file)).env("HOME", &dir).stdin(Stdio::null());
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let process = RefCell::new(process);
        wait_until(&format!("{} accepts", kind.program), || {
            let ended = process.borrow_mut().try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(dir.join("log")).unwrap());
            TcpStream::connect(address).is_ok()
        });
        Self { process: process.into_inner(), address }
    }

    fn send(&self, request: &[u8]) -> HttpResponse {
        send_request(self.address, request).unwrap()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // SIGTERM, so that a master process ends its children.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.process.id() as i32), nix::sys::signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// A set behind a proxy on TCP and on a Unix socket.
fn set_behind_proxy(handler: &str) -> TestSet {
    let set = TestSet::start_with(|dir| {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proxy/patou.toml");
        let text = replaced(&fs::read_to_string(example).unwrap(), TCP, "127.0.0.1:0");
        let text = replaced(&text, UNIX, &dir.join("http.sock").display().to_string());
        let lines = text.lines().filter(|line| !line.starts_with("group =") && !line.starts_with("handler ="));
        // The worker processes of some of the proxies run as another user.
        let text = lines.collect::<Vec<_>>().join("\n").replacen("delivery", "mode = 0o666\ndelivery", 1);
        format!("{text}\naddress = \"127.0.0.1:0\"\nworkers = 4\nhandler = {handler}\n")
    });
    open_directories(set.test_dir());
    set
}

/// Lets other users reach the socket in the directory.
fn open_directories(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}

fn request_with_body(method: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("{method} /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n");
    [head.as_bytes(), body].concat()
}

/// The next response of a kept connection.
fn next_response(stream: &mut TcpStream) -> Result<HttpResponse, String> {
    let mut bytes = Vec::new();
    let (mut response, _) = loop {
        let mut byte = [0];
        if stream.read(&mut byte).map_err(|error| error.to_string())? == 0 {
            return Err(format!("the connection ended after {:?}", text(&bytes)));
        }
        bytes.push(byte[0]);
        if let Some(parsed) = HttpResponse::parse_head(&bytes)? {
            break parsed;
        }
    };
    let length = response.header("content-length").ok_or("no length")?.parse().map_err(|_| "no length")?;
    response.body = vec![0; length];
    stream.read_exact(&mut response.body).map_err(|error| error.to_string())?;
    Ok(response)
}

fn every_kind_of_request_passes(kind: &ProxyKind) {
    if !is_installed(kind.program) {
        return;
    }
    // nginx and Apache send no more of a request once its response has begun: the program reads all of it first.
    let script = "printf 'Content-Type: text/plain\\n\\n'; case $REQUEST_METHOD in GET) echo $REQUEST_URI;; \
                  *) body=$(mktemp); cat >$body; cat $body; rm $body;; esac";
    let set = set_behind_proxy(&format!("{{ exec = {} }}", toml_array(&["sh", "-c", script])));
    for tcp in [false, true] {
        let name = format!("{} {}", kind.program, if tcp { "TCP" } else { "Unix" });
        let proxy = Proxy::start(kind, &set, tcp);
        let response = proxy.send(&request_with_body("GET", "", b""));
        assert_eq!((response.status, response.text().as_str()), (200, "/x\n"), "{name}");
        for size in [20_000, 5 << 20] {
            let body: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            let response = proxy.send(&request_with_body("POST", &format!("Content-Length: {size}\r\n"), &body));
            if kind.http_1_0 && !tcp && size > 1 << 20 {
                // A response without a length cannot be told from one that was cut.
                assert!(response.status == 502 && response.text().contains("proxy_http_version 1.1"), "{response:?}");
                continue;
            }
            assert!(response.status == 200 && response.body == body, "{name}: {} of {size}", response.body.len());
        }
        let chunked =
            request_with_body("POST", "Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
        let response = proxy.send(&chunked);
        assert_eq!((response.status, response.text().as_str()), (200, "hello world"), "{name}: {response:?}");
    }
    set.stop();
}

fn no_request_fails(kind: &ProxyKind) {
    if !is_installed(kind.program) {
        return;
    }
    let set = set_behind_proxy("\"echo\"");
    for tcp in [false, true] {
        let proxy = Proxy::start(kind, &set, tcp);
        many_requests_succeed(if tcp { "TCP" } else { "Unix" }, proxy.address, kind.requests);
    }
    let status = set.status();
    let failed: u64 =
        status["pools"][0]["workers"].as_array().unwrap().iter().map(|it| it["failed"].as_u64().unwrap()).sum();
    assert_eq!((failed, &status["dispatcher"]["restarts"]), (0, &0.into()), "{status}");
    set.stop();
}

/// Eight clients, each on kept connections.
fn many_requests_succeed(name: &str, address: SocketAddr, requests: usize) {
    const CLIENTS: usize = 8;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut stream = connect(address);
                for n in 0..requests / CLIENTS {
                    // Proxies end a connection after some requests, and say so.
                    let head = format!("GET /{client}/{n} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                    stream.write_all(head.as_bytes()).unwrap();
                    let response = next_response(&mut stream).unwrap_or_else(|error| panic!("{name} {n}: {error}"));
                    assert_eq!((response.status, response.text()), (200, format!("GET /{client}/{n}\n")), "{name}");
                    if response.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
                        stream = connect(address);
                    }
                }
            });
        }
    });
}

fn the_client_arrives_and_a_forged_one_does_not(kind: &ProxyKind) {
    if !is_installed(kind.program) {
        return;
    }
    let script = "printf 'Content-Type: text/plain\\n\\n'; env | sort";
    let set = set_behind_proxy(&format!("{{ exec = {} }}", toml_array(&["sh", "-c", script])));
    for tcp in [false, true] {
        let name = format!("{} {}", kind.program, if tcp { "TCP" } else { "Unix" });
        let proxy = Proxy::start(kind, &set, tcp);
        let mut stream = connect_from([127, 0, 0, 2], proxy.address);
        let forged = "GET /x?y HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\nX-Forwarded-For: 6.6.6.6\r\n\
                      X_Forwarded_For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
                      X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-Port: 66\r\n\r\n";
        stream.write_all(forged.as_bytes()).unwrap();
        let response = read_response(&mut stream).unwrap();
        assert_eq!(response.status, 200, "{name}: {response:?}");
        let seen = response.text();
        for line in ["REMOTE_ADDR=127.0.0.2", "SERVER_NAME=www.example.com", "HTTP_HOST=www.example.com"] {
            assert!(seen.lines().any(|seen| seen == line), "{name}: no {line} in {seen}");
        }
        assert!(!seen.contains("6.6.6.6") && !seen.contains("evil.example"), "{name}: {seen}");
        assert!(
            !seen.contains("HTTPS=") && !seen.contains("REMOTE_PORT=") && !seen.contains("=66\n"),
            "{name}: {seen}"
        );
        // The connection to the set is the proxy's, and so is this header.
        assert_eq!(response.header("keep-alive").filter(|value| value.contains("75")), None, "{name}: {response:?}");
    }
    set.stop();
}

fn a_websocket_passes(kind: &ProxyKind) {
    // HTTP/1.0 knows no other protocol.
    if kind.http_1_0 || !is_installed(kind.program) {
        return;
    }
    let set = set_behind_proxy(&format!(
        "{{ program = [{:?}] }}\nupgrade = [\"websocket\"]\ndrain_timeout = \"1s\"",
        build_example("axum_worker")
    ));
    for tcp in [false, true] {
        let name = format!("{} {}", kind.program, if tcp { "TCP" } else { "Unix" });
        let proxy = Proxy::start(kind, &set, tcp);
        let opened = tungstenite::client("ws://localhost/websocket", connect(proxy.address));
        let (mut client, _) = opened.unwrap_or_else(|error| panic!("{name}: {error}"));
        for message in [Message::text("text"), Message::binary(vec![7; 1 << 20])] {
            client.send(message.clone()).unwrap();
            assert_eq!(client.read().unwrap(), message, "{name}");
        }
        client.close(None).unwrap();
        assert!(matches!(client.read(), Ok(Message::Close(_))), "{name}");
        drop(client);
        // The connection of the proxy still serves requests.
        let hello = proxy.send(b"GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        assert_eq!(hello.status, 200, "{name}: {hello:?}");
    }
    set.stop();
}

macro_rules! proxies {
    ($($proxy:ident: $kind:expr),*) => {$(
        mod $proxy {
            #[test]
            fn passes_every_kind_of_request() {
                super::every_kind_of_request_passes(&$kind);
            }

            #[test]
            fn passes_a_websocket() {
                super::a_websocket_passes(&$kind);
            }

            #[test]
            fn loses_no_request_of_thousands_on_kept_connections() {
                super::no_request_fails(&$kind);
            }

            #[test]
            fn names_the_client_that_a_forged_header_does_not_change() {
                super::the_client_arrives_and_a_forged_one_does_not(&$kind);
            }
        }
    )*};
}
proxies!(nginx: super::NGINX, nginx_http_1_0: super::NGINX_HTTP_1_0, haproxy: super::HAPROXY, caddy: super::CADDY, apache: super::APACHE);
