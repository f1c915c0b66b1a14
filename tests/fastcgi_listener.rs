//! Listeners with `protocol = "fastcgi"`: real front servers, and the protocol itself.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::*;

/// What stands in the examples for the address of nginx, and for the listeners.
const LISTEN: &str = "listen 80;";
const UNIX: &str = "/run/patou/fastcgi.sock";
const TCP: &str = "127.0.0.1:9000";

/// A file of `examples/proxy` with replacements of texts that occur in it once.
fn example(file: &str, replacements: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proxy").join(file);
    let mut text = fs::read_to_string(path).unwrap();
    for (from, to) in replacements {
        assert_eq!(text.matches(from).count(), 1, "{from} in {file}");
        text = text.replace(from, to);
    }
    text
}

/// A program that echoes bodies, shows its variables, and fails as its path says.
const SCRIPT: &str = r#"
case $PATH_INFO in
  */env) printf 'Content-Type: text/plain\n\n'; env | sort;;
  */204) printf 'Status: 204 No Content\n\n';;
  */304) printf 'Status: 304 Not Modified\nETag: "a"\n\n';;
  */ten) printf 'Content-Type: text/plain\nContent-Length: 10\nX-Mine: 1\nPatou-Outcome: not-started\n\n0123456789';;
  */hang) : > "$DIR/hang"; sleep 60;;
  */cut) printf 'Content-Type: text/plain\n\nsome'; : > "$DIR/cut"; sleep 60;;
  */fail) exit 3;;
  *) body=$(mktemp); cat > $body; printf 'Content-Type: text/plain\n\n'; cat $body; rm $body;;
esac
"#;

fn listener(address: &str, pool: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"{address}\"\ndelivery = \"handoff\"\nprotocol = \"fastcgi\"\npool = \"{pool}\"\n{more}\n"
    )
}

/// Pool `app` behind a Unix socket and TCP, pool `one` with a single worker and no queue, pool `echo`.
fn start_set() -> TestSet {
    let set = TestSet::start_with(|dir| {
        let handler = format!("{{ exec = {} }}", toml_array(&["sh", "-c", SCRIPT]));
        let environment = format!("environment = {{ DIR = \"{}\" }}", dir.display());
        let pool = |name: &str, workers: u16, handler: &str, more: &str| {
            format!(
                "[[pool]]\nname = \"{name}\"\nworkers = {workers}\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n{more}\n"
            )
        };
        let socket = format!("{}/app.sock", dir.display());
        // The worker processes of the front servers run as another user.
        let group = "group = \"www-data\"                  # nginx and Apache on Debian\n";
        let clients = "127.0.0.1:0\"\nallowed_clients = [\"127.0.0.1\", \"127.0.0.3\"]";
        let listeners = [(UNIX, &socket[..]), (group, "mode = 0o666\n"), (&format!("{TCP}\""), clients)];
        let listeners = example("patou-fastcgi.toml", &listeners).replace("\"default\"", "\"app\"");
        let app = pool("app", 4, &handler, &environment);
        let app = app.strip_prefix("[[pool]]\nname = \"app\"\n").unwrap();
        [
            listeners.replace("handler = \"echo\"\n", app),
            listener("127.0.0.1:0", "one", "access_log = true"),
            listener("127.0.0.1:0", "echo", "allowed_hosts = [\"*.example.com\", \"localhost\"]"),
            pool("one", 1, &handler, &format!("queue = 0\nrequest_timeout = \"10s\"\n{environment}")),
            pool("echo", 4, "\"echo\"", ""),
            "[front]\nhead_timeout = \"1s\"\nmax_body = \"6M\"\n[watchdog]\nprobe_interval = \"50ms\"\n".to_owned(),
        ]
        .concat()
    });
    open_directory(set.test_dir());
    set
}

/// Lets the worker processes of a front server reach the socket in the directory.
fn open_directory(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A front server; it ends with the test.
struct FrontServer {
    process: Child,
    address: SocketAddr,
}

impl FrontServer {
    /// `configuration` gets the directory and the address to listen on.
    fn start(
        set: &TestSet,
        program: &str,
        arguments: &[&str],
        configuration: impl Fn(&Path, SocketAddr) -> String,
    ) -> Self {
        let dir = set.test_dir().join(program);
        fs::create_dir_all(&dir).unwrap();
        // It does not say which port the kernel chose.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = dir.join("conf");
        fs::write(&file, configuration(&dir, address)).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg(&file).stdin(Stdio::null());
        let mut process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let deadline = Instant::now() + EVENT_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            let has_ended = process.try_wait().unwrap().is_some() || Instant::now() > deadline;
            assert!(!has_ended, "{}", fs::read_to_string(dir.join("log")).unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, address }
    }

    /// nginx with the example, to the socket of pool `app`, and a location for each other way.
    fn nginx(set: &TestSet) -> Self {
        Self::start(set, "nginx", &["-e", "stderr", "-c"], |dir, address| {
            let locations = format!(
                "listen {address};
                 location /closed/ {{ fastcgi_pass {app}; include fastcgi_params; fastcgi_param PHP_VALUE x=1;
                   fastcgi_param PHP_ADMIN_VALUE x=1; fastcgi_param HTTP_PROXY http://evil/;
                   fastcgi_param HTTP_PATOU_OUTCOME not-started; fastcgi_param HTTPS on; }}
                 location /streamed/ {{ fastcgi_pass {app}; include fastcgi_params; fastcgi_request_buffering off;
                   fastcgi_param AUTH_TYPE Basic; }}
                 location /one/ {{ fastcgi_pass {one}; include fastcgi_params; }}
                 location /echo/ {{ fastcgi_pass kept_echo; include fastcgi_params; fastcgi_keep_conn on; }}",
                app = set.address(1),
                one = set.address(2),
            );
            let socket = format!("{}/app.sock", set.test_dir().display());
            let example = example("nginx/patou-fastcgi.conf", &[(LISTEN, &locations), (UNIX, &socket)]);
            let example = example.replace("include fastcgi_params;", "include /etc/nginx/fastcgi_params;");
            let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
            let paths: String = paths.map(|name| format!("{name}_temp_path {}/{name};\n", dir.display())).concat();
            format!(
                "daemon off;\npid {0}/nginx.pid;\nerror_log stderr info;\nuser root;\nevents {{}}\nhttp {{\naccess_log off;\n\
                 {paths}upstream kept_echo {{ server {1}; keepalive 8; }}\n{example}}}\n",
                dir.display(),
                set.address(3),
            )
        })
    }

    fn apache(set: &TestSet) -> Self {
        Self::start(set, "apache2", &["-X", "-f"], |dir, address| {
            let modules: String = ["mpm_event", "authz_core", "proxy", "proxy_fcgi"]
                .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
                .concat();
            format!(
                "ServerRoot {0}\nServerName localhost\nPidFile {0}/apache.pid\nErrorLog /dev/stderr\nMutex file:{0}\n\
                 User www-data\nGroup www-data\n{modules}Listen {address}\n\
                 ProxyPass \"/closed/\" \"fcgi://{1}/\"\nProxyPass \"/one/\" \"fcgi://{2}/\"\n\
                 ProxyPass \"/echo/\" \"fcgi://{3}/\" enablereuse=on\n\
                 ProxyPass \"/\" \"unix:{4}/app.sock|fcgi://localhost/\"\n",
                dir.display(),
                set.address(1),
                set.address(2),
                set.address(3),
                set.test_dir().display(),
            )
        })
    }

    fn send(&self, method: &str, target: &str, more: &str, body: &[u8]) -> Result<HttpResponse, String> {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n",
            body.len()
        );
        send_request(self.address, &[head.as_bytes(), body].concat())
    }

    fn get(&self, target: &str) -> HttpResponse {
        self.send("GET", target, "", b"").unwrap_or_else(|error| panic!("{target}: {error}"))
    }
}

impl Drop for FrontServer {
    fn drop(&mut self) {
        signal_to(self.process.id(), Signal::SIGTERM); // a master process ends its children
        let _ = self.process.wait();
    }
}

fn body_of(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 % 251) as u8).collect()
}

fn every_kind_of_request_passes(front: &FrontServer, prefixes: &[&str]) {
    for prefix in prefixes {
        for size in [0, 20_000, 5 << 20] {
            let response = front.send("POST", &format!("{prefix}body"), "", &body_of(size)).unwrap();
            let length = response.body.len();
            assert!(response.status == 200 && response.body == body_of(size), "{prefix} {size}: {length}");
        }
        let ten = front.get(&format!("{prefix}ten"));
        assert_eq!((ten.status, ten.text().as_str(), ten.header("x-mine")), (200, "0123456789", Some("1")), "{prefix}");
        assert_eq!(ten.header("patou-outcome"), None, "a handler cannot set it");
        let address = front.address;
        let head = format!("HEAD {prefix}ten HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n\r\n");
        let mut stream = connect(address);
        stream.write_all(head.as_bytes()).unwrap();
        let mut bytes = String::new();
        stream.read_to_string(&mut bytes).unwrap();
        assert!(bytes.starts_with("HTTP/1.1 200") && bytes.ends_with("\r\n\r\n"), "{bytes}");
        // Apache removes the length of a response whose body it has not seen.
        let has_length = bytes.to_ascii_lowercase().contains("content-length: 10\r\n");
        assert!(has_length || bytes.contains("Server: Apache"), "{bytes}");
        assert_eq!((front.get(&format!("{prefix}204")).status, front.get(&format!("{prefix}304")).status), (204, 304));
        let failed = front.get(&format!("{prefix}fail"));
        assert_eq!((failed.status, failed.header("patou-outcome")), (502, Some("started-unknown")), "{failed:?}");
    }
}

#[test]
fn nginx_reaches_a_handler_and_refusals_and_deaths_reach_nginx() {
    if !is_installed("nginx") {
        return;
    }
    let set = start_set();
    let nginx = FrontServer::nginx(&set);
    every_kind_of_request_passes(&nginx, &["/", "/closed/", "/streamed/"]);
    let chunked = "POST /streamed/body HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                   5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    let response = send_request(nginx.address, chunked.as_bytes()).unwrap();
    assert_eq!((response.status, response.text().as_str()), (200, "hello world"), "a body of unknown length");
    names_the_client(&nginx);
    refuses_and_reports_deaths(&set, &nginx);
    loses_no_request(&nginx);
    drop(nginx);
    set.stop();
}

fn names_the_client(front: &FrontServer) {
    let forged = "X-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Proto: gopher\r\nProxy: http://evil/\r\n\
                  Patou-Lease: 1\r\nX-Cookie: a=b\r\nAuthorization: Basic YWxpY2U6eA==\r\n";
    let mut stream = connect_from([127, 0, 0, 2], front.address);
    let head = format!("GET /closed/env?q=%20 HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n{forged}\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let response = read_response(&mut stream).unwrap();
    let seen = response.text();
    for line in [
        "REMOTE_ADDR=127.0.0.2",
        "HTTP_HOST=www.example.com",
        "SERVER_NAME=www.example.com",
        "REQUEST_URI=/closed/env?q=%20",
        "QUERY_STRING=q=%20",
        "SERVER_PROTOCOL=HTTP/1.1",
        "HTTP_X_COOKIE=a=b",
        "HTTPS=on",
        &format!("SERVER_PORT={}", front.address.port()),
        &format!("REMOTE_PORT={}", stream.local_addr().unwrap().port()),
    ] {
        assert!(seen.lines().any(|seen| seen == line), "no {line} in {seen}");
    }
    for dropped in [
        "REMOTE_USER",
        "PHP_",
        "HTTP_PROXY",
        "6.6.6.6",
        "gopher",
        "evil",
        "HTTP_PATOU",
        "SCRIPT_FILENAME",
        "DOCUMENT_ROOT",
    ] {
        assert!(!seen.contains(dropped), "{dropped} in {seen}");
    }
    // nginx says of this one that it has authenticated the user.
    let seen = front.send("GET", "/streamed/env", "Authorization: Basic YWxpY2U6eA==\r\n", b"").unwrap().text();
    assert!(seen.lines().any(|seen| seen == "REMOTE_USER=alice"), "{seen}");
}

/// Over pool `one`.
fn refuses_and_reports_deaths(set: &TestSet, front: &FrontServer) {
    let busy = |path: &str| {
        let _ = fs::remove_file(set.test_dir().join(path));
        let address = front.address;
        let head = format!("GET /one/{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut stream = connect(address);
        stream.write_all(head.as_bytes()).unwrap();
        wait_until("the program runs", || set.test_dir().join(path).exists());
        stream
    };
    // All workers are busy.
    let mut stream = busy("hang");
    let refused = front.get("/one/env");
    let outcome = (refused.status, refused.header("patou-outcome"), refused.header("retry-after"));
    assert_eq!(outcome, (503, Some("not-started"), Some("1")), "{refused:?}");
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert!(refused.text().contains("its worker is busy"), "{refused:?}");
    // The worker dies at work.
    signal_to(set.worker_pid("one/1"), Signal::SIGKILL);
    let lost = read_response(&mut stream).unwrap();
    assert_eq!((lost.status, lost.header("patou-outcome")), (502, Some("started-unknown")), "{lost:?}");
    assert!(lost.text().contains("worker one/1 died before it responded"), "{lost:?}");
    set.wait_for_worker("one/1", "idle");
    // The worker dies within its response.
    let mut stream = busy("cut");
    signal_to(set.worker_pid("one/1"), Signal::SIGKILL);
    let cut = read_response(&mut stream);
    assert!(cut.is_err(), "a response that is cut looks complete: {cut:?}");
    set.wait_for_worker("one/1", "idle");
    // The client leaves.
    drop(busy("hang"));
    set.wait_for_log(&["worker one/1", "its request is cancelled"]);
    set.wait_for_worker("one/1", "idle");
    assert_eq!(front.get("/one/env").status, 200);
    set.wait_for_log(&["GET /one/env", "status=200"]);
}

/// Eight clients, on kept connections on both sides.
fn loses_no_request(front: &FrontServer) {
    std::thread::scope(|scope| {
        for client in 0..8 {
            scope.spawn(move || {
                let mut stream = connect(front.address);
                for n in 0..250 {
                    let target = format!("/echo/{client}/{n}");
                    let head = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
                    stream.write_all(head.as_bytes()).unwrap();
                    let expected = format!("GET {target}\n");
                    let mut received = Vec::new();
                    while !received.ends_with(expected.as_bytes()) {
                        let mut bytes = [0; 1024];
                        let length = stream.read(&mut bytes).unwrap();
                        assert_ne!(length, 0, "{n}: {}", text(&received));
                        received.extend_from_slice(&bytes[..length]);
                    }
                    assert!(received.starts_with(b"HTTP/1.1 200"), "{n}: {}", text(&received));
                }
            });
        }
    });
}

#[test]
fn apache_reaches_a_handler_and_refusals_and_deaths_reach_apache() {
    if !is_installed("apache2") {
        return;
    }
    let set = start_set();
    let apache = FrontServer::apache(&set);
    every_kind_of_request_passes(&apache, &["/", "/closed/"]);
    let seen = apache.get("/closed/env?q").text();
    let uri = "REQUEST_URI=/closed/env?q";
    for line in ["REMOTE_ADDR=127.0.0.1", "HTTP_HOST=www.example.com", uri] {
        assert!(seen.lines().any(|seen| seen == line), "no {line} in {seen}");
    }
    let mut stream = connect(apache.address);
    stream.write_all(b"GET /one/hang HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    wait_until("the program runs", || set.test_dir().join("hang").exists());
    let refused = apache.get("/one/env");
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    signal_to(set.worker_pid("one/1"), Signal::SIGKILL);
    let lost = read_response(&mut stream).unwrap();
    assert_eq!((lost.status, lost.header("patou-outcome")), (502, Some("started-unknown")), "{lost:?}");
    drop(apache);
    set.stop();
}

/// A FastCGI client that writes the records itself.
struct FastcgiClient(TcpStream);

/// What a client received for one request.
#[derive(Debug, PartialEq, Eq)]
struct FastcgiResponse {
    stdout: String,
    /// The protocol status; `None` if the connection ended before.
    end: Option<u8>,
}

fn record(kind: u8, id: u16, content: &[u8]) -> Vec<u8> {
    let ([id_high, id_low], [high, low]) = (id.to_be_bytes(), (content.len() as u16).to_be_bytes());
    // With padding, as nginx sends it.
    let padding = (8 - content.len() % 8) % 8;
    [&[1, kind, id_high, id_low, high, low, padding as u8, 0], content, &[0; 8][..padding]].concat()
}

fn begin(id: u16, flags: u8) -> Vec<u8> {
    record(1, id, &[0, 1, flags, 0, 0, 0, 0, 0])
}

fn params(id: u16, pairs: &[(&str, &str)]) -> Vec<u8> {
    let length = |length: usize| (length as u32 | 0x8000_0000).to_be_bytes();
    let pair = |(name, value): &(&str, &str)| {
        [&length(name.len())[..], &length(value.len()), name.as_bytes(), value.as_bytes()].concat()
    };
    [record(4, id, &pairs.iter().flat_map(pair).collect::<Vec<_>>()), record(4, id, b"")].concat()
}

fn get(id: u16, flags: u8, target: &str) -> Vec<u8> {
    let pairs = [("REQUEST_METHOD", "GET"), ("REQUEST_URI", target), ("HTTP_HOST", "localhost")];
    [begin(id, flags), params(id, &pairs), record(5, id, b"")].concat()
}

const KEEP: u8 = 1;

impl FastcgiClient {
    fn connect(address: SocketAddr) -> Self {
        Self(connect(address))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// The next record: its type, request and content; `None` at the end of the connection.
    fn record(&mut self) -> Option<(u8, u16, Vec<u8>)> {
        let mut header = [0; 8];
        self.0.read_exact(&mut header).ok()?;
        let [1, kind, id_high, id_low, high, low, padding, _] = header else { panic!("{header:?}") };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let mut content = vec![0; length + usize::from(padding)];
        self.0.read_exact(&mut content).ok()?;
        content.truncate(length);
        Some((kind, u16::from_be_bytes([id_high, id_low]), content))
    }

    /// The response to request `id`.
    fn response(&mut self, id: u16) -> FastcgiResponse {
        let mut stdout = Vec::new();
        let mut is_ended = false;
        while let Some((kind, found, content)) = self.record() {
            assert_eq!(found, id, "a record of type {kind}");
            match kind {
                6 if content.is_empty() => is_ended = true,
                6 => stdout.extend(content),
                3 => {
                    assert!(is_ended || content[4] != 0, "STDOUT has no end");
                    return FastcgiResponse { stdout: text(&stdout), end: Some(content[4]) };
                }
                other => panic!("a record of type {other}"),
            }
        }
        FastcgiResponse { stdout: text(&stdout), end: None }
    }

    fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        let _ = self.0.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
}

fn is_ok(response: &FastcgiResponse, body: &str) -> bool {
    response.end == Some(0)
        && response.stdout.starts_with("Status: 200 OK\r\n")
        && response.stdout.ends_with(&format!("\r\n\r\n{body}"))
}

#[test]
fn the_protocol_is_spoken_as_specified() {
    let set = start_set();
    let echo = set.address(3);
    // Kept connections serve one request after the other, each with the id that the client chooses.
    let mut client = FastcgiClient::connect(echo);
    for id in [7, 1, u16::MAX] {
        // What comes too late for a request belongs to none.
        client.send(&[record(2, id, b""), get(id, KEEP, "/x?y")].concat());
        let response = client.response(id);
        assert!(is_ok(&response, "GET /x?y\n"), "{response:?}");
    }
    client.send(&get(2, 0, "/last"));
    assert!(is_ok(&client.response(2), "GET /last\n"));
    client.assert_closed();

    // Management records, before a request and without one; a request after it on the same connection.
    let mut client = FastcgiClient::connect(echo);
    let values =
        [record(9, 0, b"\x0f\0FCGI_MPXS_CONNS\x0e\0FCGI_MAX_CONNS\x07\0UNKNOWN"), record(77, 0, b"abc")].concat();
    client.send(&values);
    let (kind, id, content) = client.record().unwrap();
    assert_eq!((kind, id), (10, 0));
    assert!(content.starts_with(b"\x0f\x01FCGI_MPXS_CONNS0\x0e\x05FCGI_MAX_CONNS20000"), "{content:?}");
    assert_eq!(client.record(), Some((11, 0, vec![77, 0, 0, 0, 0, 0, 0, 0])));
    client.send(&[values, get(3, 0, "/after")].concat());
    assert_eq!((client.record().unwrap().0, client.record().unwrap().0), (10, 11));
    assert!(is_ok(&client.response(3), "GET /after\n"));

    // A second request at the same time is rejected, and its records are ignored.
    let mut client = FastcgiClient::connect(echo);
    let length = ("CONTENT_LENGTH", "4");
    let post = [("REQUEST_METHOD", "POST"), ("REQUEST_URI", "/"), ("HTTP_HOST", "localhost"), length];
    client.send(&[begin(1, KEEP), params(1, &post), get(2, KEEP, "/second"), record(5, 1, b"bo")].concat());
    client.send(&[record(5, 1, b"dy"), record(5, 1, b"")].concat());
    assert_eq!(client.response(2), FastcgiResponse { stdout: String::new(), end: Some(1) });
    assert!(is_ok(&client.response(1), "body"));
    // The end of a body comes after its last byte; the connection is kept all the same.
    client.send(&[begin(1, KEEP), params(1, &post), record(5, 1, b"late")].concat());
    std::thread::sleep(Duration::from_millis(50));
    client.send(&record(5, 1, b""));
    assert!(is_ok(&client.response(1), "late"));
    client.send(&get(2, 0, "/third"));
    assert!(is_ok(&client.response(2), "GET /third\n"));

    // Another role; a body with another length than announced; parameters without end, and too late.
    let mut client = FastcgiClient::connect(echo);
    client.send(&[record(1, 1, &[0, 2, 0, 0, 0, 0, 0, 0]), params(1, &post)].concat());
    assert_eq!(client.response(1), FastcgiResponse { stdout: String::new(), end: Some(3) });
    for (body, status) in [("bod", "400 Bad Request"), ("body+", "400 Bad Request")] {
        let mut client = FastcgiClient::connect(set.address(1));
        client.send(&[begin(1, 0), params(1, &post), record(5, 1, body.as_bytes()), record(5, 1, b"")].concat());
        let response = client.response(1);
        assert!(response.end == Some(0) && response.stdout.contains(&format!("Status: {status}\r\n")), "{response:?}");
    }
    let mut client = FastcgiClient::connect(echo);
    let long = "a".repeat(17_000);
    client.send(&[begin(1, KEEP), params(1, &[("HTTP_COOKIE", &long)])].concat());
    let response = client.response(1);
    assert!(response.end == Some(0) && response.stdout.starts_with("Status: 431 "), "{response:?}");
    let mut client = FastcgiClient::connect(echo);
    client.send(&begin(9, KEEP));
    let response = client.response(9);
    assert!(response.end == Some(0) && response.stdout.starts_with("Status: 408 "), "{response:?}");
    assert!(response.stdout.contains("patou-outcome: not-started\r\n"), "{response:?}");
    let mut client = FastcgiClient::connect(echo);
    client.send(
        &[begin(1, 0), params(1, &[("REQUEST_METHOD", "GET"), ("REQUEST_URI", "/"), ("HTTP_HOST", "evil")])].concat(),
    );
    client.send(&record(5, 1, b""));
    assert!(client.response(1).stdout.starts_with("Status: 421 "), "allowed_hosts");
    let big =
        [("REQUEST_METHOD", "POST"), ("REQUEST_URI", "/"), ("HTTP_HOST", "localhost"), ("CONTENT_LENGTH", "9000000")];
    let mut client = FastcgiClient::connect(echo);
    client.send(&[begin(1, 0), params(1, &big)].concat());
    assert!(client.response(1).stdout.starts_with("Status: 413 "), "max_body");

    // Other protocols and other clients.
    let mut client = FastcgiClient::connect(echo);
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.assert_closed();
    set.wait_for_log(&["does not speak FastCGI"]);
    for (from, is_allowed) in [([127, 0, 0, 2], false), ([127, 0, 0, 3], true)] {
        let address = set.address(1);
        // It panics if the reset arrives within connect(2).
        let connected = std::thread::spawn(move || connect_from(from, address)).join();
        let response = connected.ok().and_then(|stream| {
            let mut client = FastcgiClient(stream);
            client.0.write_all(&get(1, 0, "/ten")).ok()?;
            client.response(1).end
        });
        assert_eq!(response.is_some(), is_allowed, "{from:?}");
    }
    set.stop();
}

#[test]
fn an_aborted_request_ends_and_a_death_has_the_id_of_its_request() {
    let set = start_set();
    let running = |name: &str| {
        wait_until("the program runs", || set.test_dir().join(name).exists());
        fs::remove_file(set.test_dir().join(name)).unwrap();
    };
    let mut client = FastcgiClient::connect(set.address(2));
    client.send(&get(5, KEEP, "/hang"));
    running("hang");
    client.send(&record(2, 5, b""));
    assert_eq!(client.response(5), FastcgiResponse { stdout: String::new(), end: None }, "an end without a response");
    set.wait_for_log(&["worker one/1", "its request is cancelled"]);
    set.wait_for_worker("one/1", "idle");
    // The client ends its direction: it is gone.
    let mut client = FastcgiClient::connect(set.address(2));
    client.send(&get(5, KEEP, "/hang"));
    running("hang");
    client.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.response(5).end, None);
    set.wait_for_worker("one/1", "idle");

    let mut client = FastcgiClient::connect(set.address(2));
    client.send(&get(513, KEEP, "/hang"));
    running("hang");
    let mut refused = FastcgiClient::connect(set.address(2));
    refused.send(&get(77, KEEP, "/env"));
    let response = refused.response(77);
    assert!(response.end == Some(0) && response.stdout.starts_with("Status: 503 "), "{response:?}");
    assert!(response.stdout.contains("retry-after: 1\r\n"), "{response:?}");
    signal_to(set.worker_pid("one/1"), Signal::SIGKILL);
    let response = client.response(513);
    assert!(response.end == Some(0) && response.stdout.starts_with("Status: 502 "), "{response:?}");
    assert!(response.stdout.contains("patou-outcome: started-unknown\r\n"), "{response:?}");
    client.assert_closed();
    set.wait_for_worker("one/1", "idle");

    let mut client = FastcgiClient::connect(set.address(2));
    client.send(&get(1, KEEP, "/cut"));
    running("cut");
    signal_to(set.worker_pid("one/1"), Signal::SIGKILL);
    let response = client.response(1);
    assert!(response.stdout.ends_with("\r\n\r\nsome") && response.end.is_none(), "{response:?}");
    set.stop();
}

/// An HTTP server that says what it was told about the client.
const SERVER: &str = r#"
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        names = ['X-Forwarded-For', 'X-Forwarded-Proto', 'X-Forwarded-Port', 'Host']
        text = ' '.join([self.path] + [self.headers[name] for name in names]).encode() + b' ' + body
        self.send_response(200)
        self.send_header('Content-Length', str(len(text)))
        self.end_headers()
        self.wfile.write(text)
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"#;

fn post(id: u16, flags: u8, target: &str, more: &[(&str, &str)], body: &str) -> Vec<u8> {
    let length = body.len().to_string();
    let pairs = [("REQUEST_METHOD", "POST"), ("REQUEST_URI", target), ("CONTENT_LENGTH", &length)];
    let pairs = [&pairs[..], more].concat();
    [begin(id, flags), params(id, &pairs), record(5, id, body.as_bytes()), record(5, id, b"")].concat()
}

#[test]
fn every_handler_is_reached_and_every_deadline_has_the_id_of_its_request() {
    if !is_installed("python3") {
        return;
    }
    let axum = build_example("axum_worker");
    let coprocess = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/coprocess.py");
    let set = TestSet::start_with(|dir| {
        let pool = |name: &str, kind: &str, command: &[&str], more: &str| {
            listener("127.0.0.1:0", name, "")
                + &format!(
                    "[[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n\
                     handler = {{ {kind} = {} }}\n{more}\n",
                    toml_array(command)
                )
        };
        let environment = format!("environment = {{ DIR = \"{}\" }}", dir.display());
        [
            pool("http", "http", &["python3", "-c", SERVER, "{port}"], ""),
            pool("coprocess", "coprocess", &["python3", coprocess.to_str().unwrap()], ""),
            pool("program", "program", &[&axum], "request_timeout = \"300ms\""),
            pool("exec", "exec", &["sh", "-c", SCRIPT], &environment),
            listener(&format!("unix:{}/exec.sock", dir.display()), "exec", ""),
            "[watchdog]\nworker_timeout = \"60s\"\ndispatcher_timeout = \"60s\"\n".to_owned(),
        ]
        .concat()
    });
    let client_of = |index: usize| FastcgiClient::connect(set.address(index));
    let front = [
        ("HTTP_HOST", "www.example.com"),
        ("REMOTE_ADDR", "192.0.2.7"),
        ("HTTPS", "on"),
        ("SERVER_PORT", "443"),
        ("HTTP_X_FORWARDED_FOR", "6.6.6.6"),
    ];
    let mut client = client_of(0);
    for id in 1..4 {
        client.send(&post(id, KEEP, "/x?y", &front, "body"));
        let response = client.response(id);
        assert!(is_ok(&response, "/x?y 192.0.2.7 https 443 www.example.com body"), "{response:?}");
    }
    let mut client = client_of(1);
    for id in 1..4 {
        client.send(&post(id, KEEP, "/x", &front, "body"));
        let response = client.response(id);
        assert!(is_ok(&response, &format!("POST /x: request {id}, 4 bytes\n")), "{response:?}");
    }
    let mut client = client_of(2);
    client.send(&post(1, KEEP, "/echo", &front, &"piece".repeat(10_000)));
    assert!(is_ok(&client.response(1), &"piece".repeat(10_000)));
    // The deadline of a handler that waits, and of one that blocks its thread.
    client.send(&get(2, KEEP, "/slow?ms=60000"));
    for (id, target) in [(2, ""), (300, "/block?ms=60000")] {
        if !target.is_empty() {
            client.send(&get(id, KEEP, target));
        }
        let response = client.response(id);
        assert!(response.end == Some(0) && response.stdout.starts_with("Status: 504 "), "{response:?}");
        assert!(response.stdout.contains("patou-outcome: started-unknown\r\n"), "{response:?}");
    }
    // A cut on a Unix socket, which has no reset.
    let mut stream = UnixStream::connect(set.test_dir().join("exec.sock")).unwrap();
    stream.write_all(&get(1, KEEP, "/cut")).unwrap();
    wait_until("the program runs", || set.test_dir().join("cut").exists());
    signal_to(set.worker_pid("exec/1"), Signal::SIGKILL);
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    assert!(bytes.ends_with(b"some"), "the response is cut before FCGI_END_REQUEST: {}", text(&bytes));
    set.wait_for_worker("exec/1", "idle");
    // A request that has waited, and whose dispatcher and worker then die.
    let mut first = client_of(3);
    first.send(&get(1, KEEP, "/hang"));
    wait_until("the program runs", || set.test_dir().join("hang").exists());
    fs::remove_file(set.test_dir().join("hang")).unwrap();
    let mut waiting = client_of(3);
    waiting.send(&get(700, KEEP, "/hang"));
    set.wait_for_log(&["is in the descriptor store"]);
    first.send(&record(2, 1, b""));
    wait_until("the program runs", || set.test_dir().join("hang").exists());
    let dispatcher = set.dispatcher_pid();
    signal_to(dispatcher, Signal::SIGKILL);
    set.wait_for("the next dispatcher is up", |status| {
        let found = &status["dispatcher"];
        found["pid"].as_u64().is_some_and(|pid| pid != u64::from(dispatcher)) && found["state"] == "up"
    });
    signal_to(set.worker_pid("exec/1"), Signal::SIGKILL);
    let response = waiting.response(700);
    assert!(response.end == Some(0) && response.stdout.starts_with("Status: 502 "), "{response:?}");
    set.wait_for_worker("exec/1", "idle");
    set.stop();
}
