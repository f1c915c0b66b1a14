//! CGI as its users know it: what real CGI programs and libraries get, and what becomes of their responses.

mod support;

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

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

/// The directory of a test set with files: a bare repository, a page of PHP, and CGI programs of several libraries.
fn prepare(dir: &Path) {
    let git = "git init -q --bare repo.git && git -C repo.git config http.receivepack true && git init -q work && cd work && \
               git config user.name n && git config user.email e && seq 1 20000 >file && git add file && \
               git commit -qm one && git push -q ../repo.git HEAD:refs/heads/main && \
               git -C ../repo.git symbolic-ref HEAD refs/heads/main";
    let status = Command::new("sh").args(["-c", git]).current_dir(dir).status();
    assert!(status.unwrap().success());
    for (name, text) in [
        (
            "page.php",
            "<?php if ($_SERVER['PATH_INFO'] == '/missing') { http_response_code(404); echo 'no page'; exit(1); }\n\
             if ($_SERVER['PATH_INFO'] == '/fatal') { missing_function(); }\n\
             echo $_SERVER['REQUEST_METHOD'], ' ', $_POST['name'] ?? '', ' ', strlen(file_get_contents('php://input'));",
        ),
        (
            "form.pl",
            "use CGI; my $q = CGI->new; print $q->header('text/plain'), $q->request_method, ' ', \
             scalar $q->param('name') // '', ' ', length(scalar $q->param('POSTDATA') // '');",
        ),
        ("form.rb", "require 'cgi'; q = CGI.new; q.out('text/plain') { [q.request_method, q['name'], 0].join(' ') }"),
        (
            "app.py",
            "from wsgiref.handlers import CGIHandler\n\
             def app(environ, start):\n\
             \x20   if environ['PATH_INFO'] == '/private':\n\
             \x20       start('401 Unauthorized', [('WWW-Authenticate', 'Basic'), ('Content-Length', '0')]); return []\n\
             \x20   body = environ['wsgi.input'].read(int(environ.get('CONTENT_LENGTH') or 0))\n\
             \x20   start('200 OK', [('Content-Type', 'text/plain')])\n\
             \x20   return [('%s %d' % (environ['REQUEST_METHOD'], len(body))).encode()]\n\
             CGIHandler().run(app)\n",
        ),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
}

/// Whether Perl has the library CGI.pm, which is no part of it any more.
fn has_cgi_pm() -> bool {
    let found = Command::new("perl").args(["-MCGI", "-e", "1"]).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success()) || is_installed("perl with CGI.pm")
}

const FORM: &str = "Content-Type: application/x-www-form-urlencoded\r\n";

fn post(address: SocketAddr, target: &str, more: &str, body: &[u8]) -> HttpResponse {
    send(address, "POST", target, &format!("{more}Content-Length: {}\r\n", body.len()), body)
}

fn post_chunked(address: SocketAddr, target: &str, more: &str, body: &[u8]) -> HttpResponse {
    let mut chunks = Vec::new();
    for piece in body.chunks(5) {
        chunks.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    chunks.extend(b"0\r\n\r\n");
    send(address, "POST", target, &format!("{more}Transfer-Encoding: chunked\r\n"), &chunks)
}

#[test]
fn programs_and_libraries_of_debian_serve_through_exec() {
    if !["git", "php-cgi", "perl", "ruby", "python3"].into_iter().all(is_installed) || !has_cgi_pm() {
        return;
    }
    let set = TestSet::start_with(|dir| {
        prepare(dir);
        let path = |name: &str| dir.join(name).display().to_string();
        let git = format!("environment = {{ GIT_PROJECT_ROOT = {:?}, GIT_HTTP_EXPORT_ALL = \"1\" }}", path(""));
        let page = path("page.php");
        let php = format!(
            "environment = {{ REDIRECT_STATUS = \"200\", SCRIPT_FILENAME = {page:?} }}\nexit_status = \"ignore\""
        );
        let perl = &["perl", &path("form.pl")];
        [
            pool("git", &exec(&["/usr/lib/git-core/git-http-backend"]), &git),
            pool("php", &exec(&["php-cgi"]), &php),
            pool("perl", &exec(perl), ""),
            pool("ruby", &exec(&["ruby", &path("form.rb")]), ""),
            pool("wsgi", &exec(&["python3", &path("app.py")]), ""),
        ]
        .concat()
    });
    let [git, php, perl, ruby, wsgi] = [0, 1, 2, 3, 4].map(|at| set.address(at));

    // Clone, push, and what is not there: git-http-backend sends 404 without a Content-Type.
    let url = format!("http://{git}/repo.git");
    let script = format!(
        "git clone -q {url} clone && cd clone && git config user.name n && git config user.email e && \
         head -c 3000000 /dev/urandom >big && git add big && git commit -qm two && git push -q origin HEAD:main && \
         [ $(git -C ../repo.git rev-list --count main) = 2 ]"
    );
    let output = Command::new("sh").args(["-c", &script]).current_dir(set.test_dir()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let missing = send(git, "GET", "/none.git/info/refs?service=git-upload-pack", "", b"");
    assert_eq!((missing.status, missing.body.len(), missing.header("patou-outcome")), (404, 0, None));

    // PHP: the body of a page that exits with 1 arrives.
    let page = send(php, "GET", "/missing", "", b"");
    assert_eq!((page.status, page.text().as_str()), (404, "no page"));
    assert_eq!(send(php, "GET", "/fatal", "", b"").status, 500);

    // A body of known and of unknown length, an empty one, and none.
    for (name, address, read) in [("php", php, 9), ("perl", perl, 0), ("ruby", ruby, 0)] {
        for response in [post(address, "/", FORM, b"name=b%41"), post_chunked(address, "/", FORM, b"name=b%41")] {
            assert_eq!((response.status, response.text()), (200, format!("POST bA {read}")), "{name}: {response:?}");
        }
        for response in [post(address, "/", FORM, b""), send(address, "POST", "/", FORM, b"")] {
            assert_eq!((response.status, response.text().as_str()), (200, "POST  0"), "{name}: {response:?}");
        }
    }
    assert_eq!(post_chunked(wsgi, "/", "", &[7; 1000]).text(), "POST 1000");
    assert_eq!(post(wsgi, "/", "", &[7; 70_000]).text(), "POST 70000");
    assert_eq!(send(wsgi, "PUT", "/", "", b"").text(), "PUT 0");
    let private = send(wsgi, "GET", "/private", "", b"");
    assert_eq!((private.status, private.header("www-authenticate")), (401, Some("Basic")));
    set.stop();
}

/// A filter writes while it reads. Its client sends all of its body before it reads anything.
#[test]
fn spooled_filter_does_not_wait_for_a_client_that_only_sends() {
    let script = "printf 'Content-Type: text/plain\\n\\n'; exec gzip -c -1";
    let set = TestSet::start(&pool("gzip", &exec(&["sh", "-c", script]), "request_body = \"spool\""));
    let mut body = vec![0; 24 << 20];
    getrandom::fill(&mut body).unwrap();
    let mut stream = connect(set.address(0));
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    let response = read_response(&mut stream).unwrap();
    let mut gunzip = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = gunzip.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&response.body));
    let output = gunzip.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success() && output.stdout == body);
    set.stop();
}

#[test]
fn log_of_a_failure_quotes_the_program_and_the_response_does_not() {
    let script = "trap 'echo cleaned up >&2; exit 1' TERM; echo 'secret: cannot open page.db' >&2
        case $PATH_INFO in /hang) sleep 1000;; *) exit 3;; esac";
    let set = TestSet::start(&pool("sh", &exec(&["sh", "-c", script]), "request_timeout = \"500ms\""));
    let response = send(set.address(0), "GET", "/", "", b"");
    assert_eq!((response.status, response.text().contains("exited with status 3")), (502, true));
    assert!(!response.text().contains("secret"), "{}", response.text());
    set.wait_for_log(&["request failed", "status 3", "its last line on standard error: secret: cannot open page.db"]);
    // SIGTERM first, before the response.
    assert_eq!(send(set.address(0), "GET", "/hang", "", b"").status, 504);
    set.wait_for_log(&["cleaned up"]);
    set.stop();
}
