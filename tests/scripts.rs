//! The handler `scripts`: a directory of CGI programs, as Debian installs them.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use support::*;

/// A pool of one worker behind a handoff listener.
fn pool(name: &str, dir: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\ndelivery = \"handoff\"\nallowed_hosts = [\"*\"]\npool = \"{name}\"\n\n\
         [[pool]]\nname = \"{name}\"\nworkers = 1\naddress = \"127.0.0.1:0\"\n\
         handler = {{ scripts = {dir:?}, prefix = \"/cgi-bin\" }}\n{more}\n\n"
    )
}

fn send(address: SocketAddr, method: &str, target: &str, body: &[u8]) -> HttpResponse {
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: www.example.com\r\nConnection: close\r\n{length}\r\n");
    send_request(address, &[head.as_bytes(), body].concat()).unwrap()
}

fn write_script(path: &Path, mode: u32, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Prints what a program learns of its place.
const SHOW: &str = "printf 'Content-Type: text/plain\\n\\n'; echo \"0=$0\"; echo \"cwd=$(pwd)\"; \
    env | grep -E '^(SCRIPT_|PATH_|DOCUMENT_|REQUEST_URI|QUERY_)' | sort; cat";

#[test]
fn path_names_the_program_and_anything_else_is_404() {
    let set = TestSet::start_with(|dir| {
        let cgi = dir.join("cgi");
        fs::create_dir_all(cgi.join("sub")).unwrap();
        fs::create_dir(dir.join("outside")).unwrap();
        for (path, mode) in [
            ("cgi/show", 0o755),
            ("cgi/sub/show me", 0o755),
            ("cgi/.hidden", 0o755),
            ("cgi/text", 0o644),
            ("cgi/setuid", 0o4755),
            ("outside/secret", 0o755),
        ] {
            write_script(&dir.join(path), mode, SHOW);
        }
        write_script(&cgi.join("again"), 0o755, "printf 'Location: /cgi-bin/show/on?from=again\\n\\n'");
        write_script(&cgi.join("lost"), 0o755, "printf 'Location: /cgi-bin/none\\n\\n'");
        write_script(&cgi.join("broken"), 0o755, "echo 'the cause' >&2; exit 1");
        // A binary, and a link that belongs to the owner of the directory.
        fs::copy("/bin/sh", cgi.join("shell")).unwrap();
        symlink(dir.join("outside/secret"), cgi.join("linked")).unwrap();
        [
            pool("plain", cgi.to_str().unwrap(), ""),
            pool("other", cgi.to_str().unwrap(), "environment = { DOCUMENT_ROOT = \"/srv\", ENV = \"/dev/null\" }"),
        ]
        .concat()
    });
    let cgi = set.test_dir().join("cgi").display().to_string();
    let address = set.address(0);
    let shown = |address, target: &str, body: &[u8]| {
        let response = send(address, "POST", target, body);
        assert_eq!(response.status, 200, "{target}: {response:?}");
        response.text().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        shown(address, "/cgi-bin/show", b"body"),
        [
            &format!("0={cgi}/show"),
            &format!("cwd={cgi}"),
            &format!("DOCUMENT_ROOT={cgi}"),
            "PATH_INFO=",
            "QUERY_STRING=",
            "REQUEST_URI=/cgi-bin/show",
            &format!("SCRIPT_FILENAME={cgi}/show"),
            "SCRIPT_NAME=/cgi-bin/show",
            "body",
        ]
    );
    assert_eq!(
        shown(set.address(1), "/cgi-bin/sub/show%20me/a%20b/.git?q", b""),
        [
            &format!("0={cgi}/sub/show me"),
            &format!("cwd={cgi}/sub"),
            "DOCUMENT_ROOT=/srv",
            "PATH_INFO=/a b/.git",
            "PATH_TRANSLATED=/srv/a b/.git",
            "QUERY_STRING=q",
            "REQUEST_URI=/cgi-bin/sub/show%20me/a%20b/.git?q",
            &format!("SCRIPT_FILENAME={cgi}/sub/show me"),
            "SCRIPT_NAME=/cgi-bin/sub/show me",
        ]
    );
    assert_eq!(shown(address, "/cgi-bin/linked", b"")[0], format!("0={cgi}/linked"));
    assert!(shown(address, "/cgi-bin/again", b"").contains(&"PATH_INFO=/on".to_owned()));

    for target in [
        "/",
        "/show",
        "/cgi-bin",
        "/cgi-bin/",
        "/cgi-bin/none",
        "/cgi-bin/sub",
        "/cgi-bin/sub/",
        "/cgi-bin/text",
        "/cgi-bin/.hidden",
        "/cgi-bin/setuid",
        "/cgi-bin/sub/../show",
        "/cgi-bin/../outside/secret",
        "/cgi-bin/%2e%2e/outside/secret",
        "/cgi-bin/..%2foutside/secret",
        "/cgi-bin/show%00",
        "/cgi-bin/show/%00",
        "/cgi-bin/show/a%2Fb",
        "/cgi-bin//show",
        "/cgi-bin/lost",
    ] {
        let response = send(address, "GET", target, b"");
        assert_eq!(response.status, 404, "{target}: {response:?}");
        assert!(!response.text().contains(&cgi), "{}", response.text());
    }
    // The program that redirects has run: only the request for no program may be sent again.
    for (target, outcome) in [("/cgi-bin/none", "not-started"), ("/cgi-bin/lost", "started-unknown")] {
        assert_eq!(send(address, "GET", target, b"").header("patou-outcome"), Some(outcome), "{target}");
    }
    // A large body for no program is not read to its end, nor stored.
    assert_eq!(send(address, "POST", "/cgi-bin/none", &[0; 100_000]).status, 404);
    assert_eq!(send(address, "GET", "/cgi-bin/%zz", b"").status, 400);
    let broken = send(address, "GET", "/cgi-bin/broken", b"");
    assert!(broken.status == 502 && broken.text().contains("`/cgi-bin/broken` failed"), "{broken:?}");
    // The binary runs: a shell without a script reads its standard input.
    let script = "printf 'Content-Type: text/plain\\n\\n%s' \"$0 $(readlink /proc/$$/exe)\"";
    let shell = send(address, "POST", "/cgi-bin/shell", script.as_bytes());
    assert_eq!((shell.status, shell.text()), (200, format!("{cgi}/shell {cgi}/shell")));
    // A path without a program is no failure of the worker; a malformed one and the broken program are.
    set.wait_for("two failures are counted", |s| s["pools"][0]["workers"][0]["failed"] == 2);

    // A link of another user.
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::lchown(set.test_dir().join("cgi/linked"), Some(12345), None).unwrap();
        assert_eq!(send(address, "GET", "/cgi-bin/linked", b"").status, 404);
    }
    set.stop();
}

/// Repositories and configurations for the programs, and a directory with links and a script of fossil.
fn prepare(dir: &Path) {
    let script = "mkdir cgi repos && git init -q --bare repos/one.git && git init -q work && cd work && \
        git config user.name n && git config user.email e && echo x >file && git add file && git commit -qm 'the subject' && \
        git push -q ../repos/one.git HEAD:refs/heads/main && git -C ../repos/one.git symbolic-ref HEAD refs/heads/main && \
        cd .. && ln -s /usr/lib/git-core/git-http-backend cgi/ && \
        HOME=$PWD fossil new --admin-user admin one.fossil >/dev/null && \
        printf '#!/usr/bin/fossil\\nrepository: %s/one.fossil\\n' \"$PWD\" >cgi/fossil && chmod 755 cgi/fossil && \
        echo \"\\$projectroot = '$PWD/repos';\" >gitweb.conf && \
        printf 'scan-path=%s/repos\\nvirtual-root=/cgi-bin/cgit.cgi\\n' \"$PWD\" >cgitrc && \
        printf 'CONFIG\\nENV\\nMS_MAP_PATTERN \"^%s/\"\\nEND\\nEND\\n' \"$PWD\" >maps.conf && \
        printf 'MAP\\nSIZE 60 40\\nEXTENT 0 0 60 40\\nIMAGETYPE PNG\\nEND\\n' >blank.map";
    let output = Command::new("sh").args(["-ec", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn programs_of_debian_work_as_installed() {
    let programs =
        ["git", "fossil", "/usr/lib/cgi-bin/gitweb.cgi", "/usr/lib/cgit/cgit.cgi", "/usr/lib/cgi-bin/mapserv"];
    if !programs.into_iter().all(is_installed) {
        return;
    }
    let set = TestSet::start_with(|dir| {
        prepare(dir);
        let path = |name: &str| dir.join(name).display().to_string();
        let [repos, gitweb, cgitrc, maps] = ["repos", "gitweb.conf", "cgitrc", "maps.conf"].map(path);
        let keys = format!(
            "environment = {{ GIT_PROJECT_ROOT = {repos:?}, GIT_HTTP_EXPORT_ALL = \"1\", GITWEB_CONFIG = {gitweb:?}, \
             CGIT_CONFIG = {cgitrc:?}, MAPSERVER_CONFIG_FILE = {maps:?} }}"
        );
        let dirs = [("debian", "/usr/lib/cgi-bin"), ("cgit", "/usr/lib/cgit"), ("own", &path("cgi"))];
        dirs.map(|(name, dir)| pool(name, dir, &keys)).concat()
    });
    let [debian, cgit, own] = [0, 1, 2].map(|at| set.address(at));
    let assert_page = |address, target: &str, expected: &str| {
        let page = send(address, "GET", target, b"");
        assert!(page.status == 200 && page.text().contains(expected), "{target}: {page:?}\n{}", set.log());
    };
    // gitweb.cgi is a link out of the directory, and a script of Perl.
    assert_page(debian, "/cgi-bin/gitweb.cgi", "one.git");
    assert_page(debian, "/cgi-bin/gitweb.cgi?p=one.git;a=log", "the subject");
    assert_page(debian, "/cgi-bin/gitweb.cgi/one.git/blob/HEAD:/file", "x");
    assert_eq!(send(debian, "GET", "/cgi-bin/gitweb.cgi?p=none.git", b"").status, 404);
    // A binary outside of the directory.
    let map = set.test_dir().join("blank.map").display().to_string();
    let image = send(debian, "GET", &format!("/cgi-bin/mapserv?map={map}&mode=map"), b"");
    assert_eq!((image.status, image.header("content-type")), (200, Some("image/png")), "{}", set.log());
    assert!(image.body.starts_with(b"\x89PNG"));
    assert_page(cgit, "/cgi-bin/cgit.cgi/", "one.git");
    assert_page(cgit, "/cgi-bin/cgit.cgi/one.git/log/", "the subject");
    assert_page(own, "/cgi-bin/fossil/timeline", "initial empty check-in");
    let clone =
        format!("git clone -q http://{own}/cgi-bin/git-http-backend/one.git clone && [ $(cat clone/file) = x ]");
    let output = Command::new("sh").args(["-c", &clone]).current_dir(set.test_dir()).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(send(own, "GET", "/cgi-bin/git-http-backend/none.git/HEAD", b"").status, 404);
    set.stop();
}

#[test]
fn check_refuses_a_directory_that_the_workers_cannot_enter() {
    let set = TestSet::prepare(&pool("plain", "/nonexistent/cgi", ""));
    let output = set.command(&["check"]).output().unwrap();
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{message}");
    for part in ["handler.scripts", "\"/nonexistent/cgi\"", "a directory that the workers can enter", "does not exist"]
    {
        assert!(message.contains(part), "{part} in {message}");
    }
}
