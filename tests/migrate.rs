//! docs/MIGRATE.md: the old and the new set-up of each example run, and respond alike; the text quotes the files that run.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use support::*;

#[test]
fn text_quotes_the_files_that_the_tests_run() {
    let text = fs::read_to_string(root().join("docs/MIGRATE.md")).unwrap();
    let mut quoted = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("`examples/migrate/").and_then(|rest| rest.strip_suffix("`:")) else {
            continue;
        };
        assert_eq!(lines.next(), Some(""), "{name}");
        assert!(lines.next().is_some_and(|fence| fence.starts_with("```")), "{name} is not quoted");
        let block: String = lines.by_ref().take_while(|line| *line != "```").flat_map(|line| [line, "\n"]).collect();
        assert_eq!(block, example(name), "{name}");
        quoted.push(name);
    }
    for migration in fs::read_dir(root().join("examples/migrate")).unwrap() {
        for file in fs::read_dir(migration.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let name = path.strip_prefix(root().join("examples/migrate")).unwrap().to_str().unwrap().to_owned();
            let is_application = path.is_dir() || [".py", ".js", ".php", ".cgi"].iter().any(|end| name.ends_with(end));
            assert!(is_application || quoted.contains(&name.as_str()), "the text does not quote {name}");
        }
    }
}

/// What a visitor of the example shops does. The session is kept over requests, which different workers serve.
fn visit<'s>(upload: &'s [u8]) -> Vec<Step<'s>> {
    let mut steps: Vec<Step<'_>> = vec![
        ("GET", "/healthz", "", b"", 200, "ok"),
        ("GET", "/", "", b"", 200, "visit 1 of a stranger to http://shop.example/"),
        ("GET", "/", "", b"", 200, "visit 2 of a stranger"),
        ("POST", "/login", FORM, b"name=Ada", 302, ""),
    ];
    steps.extend(["3", "4", "5", "6", "7", "8"].map(|visit| ("GET", "/", "", &b""[..], 200, visit)));
    steps.push(("GET", "/", "", b"", 200, "visit 9 of Ada"));
    steps.push(("PUT", "/files/a.bin", "Content-Type: application/octet-stream\r\n", upload, 201, "1048576"));
    steps.push(("HEAD", "/healthz", "", b"", 200, ""));
    steps.push(("GET", "/nothing", "", b"", 404, ""));
    steps
}

/// Recycles the pool while a client sends requests, of which none fails.
fn assert_recycles(set: &TestSet, place: &Place) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            let (mut browser, mut visits) = (Browser::new(place), 0);
            while !stop.load(Ordering::Relaxed) {
                visits += 1;
                let reply = browser.send("GET", "/", "", b"");
                assert!(reply.status == 200 && reply.body.contains(&format!("visit {visits} of")), "{reply:?}");
            }
            visits
        });
        let output = set.patou(&["recycle", "shop"]);
        stop.store(true, Ordering::Relaxed);
        let visits = client.join().unwrap();
        assert!(output.status.success(), "{}\n{}", text(&output.stderr), set.log());
        println!("{}, {visits} requests meanwhile", text(&output.stdout).trim_end());
    });
}

/// An application of gunicorn, as a unit and as a pool.
fn migrate_from_gunicorn(migration: &str, more: &[Step<'_>]) {
    let sockets = [("unix:/run/patou/shop.sock", "unix:DIR/shop.sock"), ("group = \"www-data\"", "")];
    let set = new_set(migration, &[&sockets[..], &[("/srv/shop", "DIR/app")]].concat());
    let directory = set.test_dir().join("app");
    let new = Place::Unix(set.test_dir().join("shop.sock"));
    let path = set.test_dir().join("old.sock");
    let unit = example(&format!("{migration}/shop.service"));
    let socket = path.display().to_string();
    let old = OldService::of_unit(&unit, &directory, Place::Unix(path), &[("/run/shop/http.sock", &socket)]);
    let upload = vec![b'x'; 1 << 20];
    compare(&old.place, &new, &visit(&upload));
    compare(&old.place, &new, more);
    assert_recycles(&set, &new);
    set.stop();
}

#[test]
fn flask_application_moves_from_gunicorn() {
    if is_installed("gunicorn") {
        let more: [Step<'_>; 2] =
            [("GET", "/fault", "", b"", 500, "Internal Server Error"), ("DELETE", "/login", "", b"", 405, "")];
        migrate_from_gunicorn("flask", &more);
    }
}

#[test]
fn django_project_moves_from_gunicorn() {
    if is_installed("gunicorn") && is_installed("django-admin") {
        let more: [Step<'_>; 3] = [
            ("GET", "/fault", "", b"", 500, "Server Error"),
            ("GET", "/login", "", b"", 405, ""),
            // Without the cookie that the form needs.
            ("POST", "/login", FORM, b"name=Ada", 403, "CSRF"),
        ];
        migrate_from_gunicorn("django", &more);
    }
}

#[test]
fn node_service_moves_from_its_unit() {
    if !is_installed("node") {
        return;
    }
    let set = new_set("node", &[("127.0.0.1:3000", "127.0.0.1:0"), ("/srv/shop", "DIR/app")]);
    let directory = set.test_dir().join("app");
    let new = Place::Tcp(set.address(0));
    let port = free_port();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let unit = example("node/shop.service");
    let old = OldService::of_unit(&unit, &directory, Place::Tcp(address), &[("PORT=3000", &format!("PORT={port}"))]);
    let upload = vec![b'x'; 1 << 20];
    compare(&old.place, &new, &visit(&upload));
    assert_recycles(&set, &new);
    set.stop();
}

/// What `systemd-analyze verify` says about the worker unit with this drop-in for one pool.
fn verify_drop_in(dir: &Path, drop_in: &str) -> String {
    let drop_ins = dir.join("patou-worker@shop-1.service.d");
    fs::create_dir_all(&drop_ins).unwrap();
    fs::copy(root().join("systemd/patou-worker@.service"), dir.join("patou-worker@.service")).unwrap();
    fs::write(drop_ins.join("node.conf"), drop_in).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.args(["verify", "--man=no"]).arg(dir.join("patou-worker@shop-1.service"));
    let output = command.env("SYSTEMD_UNIT_PATH", format!("{}:", dir.display())).output().unwrap();
    let complaints = text(&output.stdout) + &text(&output.stderr);
    complaints.lines().filter(|line| line.contains("node.conf")).collect()
}

#[test]
fn drop_ins_for_runtimes_are_understood_by_systemd() {
    if !is_installed("systemd-analyze") {
        return;
    }
    let set = TestSet::prepare("");
    let drop_in = example("node/node.conf");
    assert_eq!(verify_drop_in(set.test_dir(), &drop_in), "");
    for file in fs::read_dir(root().join("examples/systemd")).unwrap() {
        let shipped = fs::read_to_string(file.unwrap().path()).unwrap();
        assert_eq!(verify_drop_in(set.test_dir(), &shipped), "");
        // What it offers as a comment, too.
        assert_eq!(verify_drop_in(set.test_dir(), &shipped.replace("\n#Restrict", "\nRestrict")), "");
    }
    let broken = drop_in.replace("MemoryDenyWriteExecute", "MemoryDenyExecute");
    assert!(verify_drop_in(set.test_dir(), &broken).contains("MemoryDenyExecute"), "systemd-analyze ignores drop-ins");
}

/// The response of an inetd service as it is, but for the time.
fn raw(place: &Place, request: &str) -> String {
    let response = text(&place.try_send(request.as_bytes()).unwrap());
    response.lines().filter(|line| !line.starts_with("Date: ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn inetd_service_moves_with_its_program() {
    let inetd = Path::new("/usr/sbin/inetd");
    if !Path::new("/usr/sbin/micro-httpd").exists() || !inetd.exists() {
        is_installed("/usr/sbin/micro-httpd");
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("SKIPPED: not root, which inetd has to be");
    }
    let files = |dir: &Path| {
        fs::create_dir(dir.join("html")).unwrap();
        fs::write(dir.join("html/index.html"), "<p>the first page</p>\n").unwrap();
        fs::write(dir.join("html/big.txt"), "line\n".repeat(200_000)).unwrap();
    };
    let set = new_set("inetd", &[("127.0.0.1:8080", "127.0.0.1:0"), ("/var/www/html", "DIR/html")]);
    files(set.test_dir());
    let html = set.test_dir().join("html").display().to_string();
    let new = Place::Tcp(set.address(0));
    let port = free_port();
    let line = example("inetd/inetd.conf").replace("127.0.0.1:8080", &format!("127.0.0.1:{port}"));
    let file = set.test_dir().join("inetd.conf");
    fs::write(&file, line.replace("/var/www/html", &html)).unwrap();
    let place = Place::Tcp(SocketAddr::from(([127, 0, 0, 1], port)));
    let old = OldService::start(Command::new(inetd).arg("-i").arg(&file), place);
    for (request, part) in [
        ("GET /index.html HTTP/1.0\r\n\r\n", "<p>the first page</p>"),
        ("GET / HTTP/1.1\r\nHost: files\r\nUser-Agent: test\r\n\r\n", "200 Ok"),
        ("GET /big.txt HTTP/1.0\r\n\r\n", "Content-Length: 1000000"),
        ("GET /none HTTP/1.0\r\n\r\n", "404"),
        ("POST / HTTP/1.0\r\nContent-Length: 0\r\n\r\n", "501"),
        ("garbage\r\n\r\n", "400"),
    ] {
        let expected = raw(&old.place, request);
        assert!(expected.contains(part), "{request}: {expected}");
        assert_eq!(raw(&new, request), expected, "{request}");
    }
    set.stop();
}
