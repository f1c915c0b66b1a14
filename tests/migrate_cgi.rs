//! docs/MIGRATE.md, the migrations from servers of CGI and PHP: the old and the new set-up respond alike.

mod support;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::*;

/// nginx with these servers or locations, each at an address of its own.
fn nginx<const N: usize>(dir: &Path, configurations: [&str; N]) -> (OldService, [Place; N]) {
    let ports = configurations.map(|_| free_port());
    let servers = configurations.iter().zip(ports).map(|(text, port)| {
        let listen = format!("listen 127.0.0.1:{port};");
        match text.strip_prefix("server {") {
            Some(_) => replace(text, &[("listen 80;", &listen)]),
            None => format!("server {{ {listen} server_name shop.example;\n{text}}}\n"),
        }
    });
    let servers: String = servers.collect();
    for included in ["fastcgi_params", "fastcgi.conf", "snippets"] {
        symlink(Path::new("/etc/nginx").join(included), dir.join(included)).unwrap();
    }
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let paths: String = paths.map(|name| format!("{name}_temp_path {}/{name};\n", dir.display())).concat();
    let file = dir.join("nginx.conf");
    let head = "daemon off;\nuser root;\nevents {}\n";
    let text = format!(
        "{head}pid {0}/nginx.pid;\nerror_log {0}/nginx.log;\nhttp {{\naccess_log off;\n{paths}{servers}}}\n",
        dir.display()
    );
    fs::write(&file, text).unwrap();
    let places = ports.map(|port| Place::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
    let nginx = OldService::start(Command::new("nginx").args(["-e", "stderr", "-c"]).arg(file), places[0].clone());
    (nginx, places)
}

/// A file of an example with other values in the place of some.
fn replace(text: &str, replaced: &[(&str, &str)]) -> String {
    replaced.iter().fold(text.to_owned(), |text, (old, new)| {
        assert!(text.contains(old), "{old}");
        text.replace(old, new)
    })
}

fn multipart(content: &[u8]) -> (String, Vec<u8>) {
    let head = b"--b\r\nContent-Disposition: form-data; name=\"f\"; filename=\"a.bin\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n";
    ("Content-Type: multipart/form-data; boundary=b\r\n".to_owned(), [head, content, b"\r\n--b--\r\n"].concat())
}

/// The statuses of both for a request about which they differ.
fn statuses(old: &Place, new: &Place, target: &str) -> (u16, u16) {
    let status = |place| Browser::new(place).send("GET", target, "", b"").status;
    (status(old), status(new))
}

const AUTHORIZATION: &str = "Authorization: Basic YWxpY2U6eA==\r\n";

/// What a visitor of `cgi-bin/shop.cgi` does.
fn visit_scripts(old: &Place, new: &Place) {
    let (multipart, upload) = multipart(&vec![b'x'; 900_000]);
    compare_behind_fronts(
        old,
        new,
        &[
            (
                "GET",
                "/cgi-bin/shop.cgi?a=b%20c&d=e",
                "",
                b"",
                200,
                "QUERY_STRING=a=b%20c&d=e\nSCRIPT_NAME=/cgi-bin/shop.cgi",
            ),
            ("GET", "/cgi-bin/shop.cgi", AUTHORIZATION, b"", 200, "visit 2\n"),
            ("GET", "/cgi-bin/shop.cgi/shelf/3?x", "", b"", 200, "PATH_INFO=/shelf/3\n"),
            ("POST", "/cgi-bin/shop.cgi?q=1", FORM, b"name=Ada&n=2", 200, "n: 2\nname: Ada\n"),
            ("POST", "/cgi-bin/shop.cgi/upload", &multipart, &upload, 200, "a.bin 900000\n"),
            ("HEAD", "/cgi-bin/shop.cgi", "", b"", 200, ""),
            ("GET", "/cgi-bin/shop.cgi/moved", "", b"", 303, ""),
            ("GET", "/cgi-bin/shop.cgi/gone", "", b"", 410, "sold out"),
            ("GET", "/cgi-bin/shop.cgi/fails", "", b"", 200, "half\n"),
        ],
    );
}

#[test]
fn scripts_move_from_fcgiwrap() {
    if !is_installed("nginx") || !is_installed("/usr/sbin/fcgiwrap") || !is_installed("perl") {
        return;
    }
    let replaced = [
        ("unix:/run/patou/cgi.sock", "unix:DIR/cgi.sock"),
        ("group = \"www-data\"", ""),
        ("/usr/lib/cgi-bin", "DIR/app/cgi-bin"),
    ];
    let set = new_set("fcgiwrap", &replaced);
    let dir = set.test_dir();
    let app = dir.join("app").display().to_string();
    fs::write(dir.join("app/cgi-bin/text"), "no program").unwrap();
    let socket = dir.join("old.sock");
    let mut fcgiwrap = Command::new("/usr/sbin/fcgiwrap");
    fcgiwrap.arg("-f").arg("-s").arg(format!("unix:{}", socket.display()));
    let _fcgiwrap = OldService::start(&mut fcgiwrap, Place::Unix(socket.clone()));
    let location = example("fcgiwrap/nginx.conf").replace("/usr/lib", &app);
    let to = |socket: PathBuf| replace(&location, &[("/run/fcgiwrap.socket", &socket.display().to_string())]);
    let before = to(socket);
    // With SCRIPT_FILENAME fcgiwrap knows no PATH_INFO.
    let file_name = before.lines().find(|line| line.contains("SCRIPT_FILENAME")).unwrap();
    let without_file_name = replace(&before, &[(file_name, "")]);
    let servers = [&before[..], &without_file_name, &to(dir.join("cgi.sock"))];
    let (_nginx, [old, old_with_path_info, new]) = nginx(dir, servers);
    let (multipart, upload) = multipart(&vec![b'x'; 900_000]);
    let steps: [Step<'_>; 4] = [
        ("GET", "/cgi-bin/shop.cgi?a=b%20c", AUTHORIZATION, b"", 200, "HTTP_AUTHORIZATION=Basic YWxpY2U6eA=="),
        ("POST", "/cgi-bin/shop.cgi?q=1", FORM, b"name=Ada", 200, "visit 2\n"),
        ("POST", "/cgi-bin/shop.cgi", &multipart, &upload, 200, "CONTENT_LENGTH=900"),
        ("HEAD", "/cgi-bin/shop.cgi", "", b"", 200, ""),
    ];
    compare_behind_fronts(&old, &new, &steps);
    visit_scripts(&old_with_path_info, &new);
    assert_eq!(statuses(&old, &new, "/cgi-bin/shop.cgi/shelf"), (403, 200));
    // What differs: a path without a program is 404.
    assert_eq!(statuses(&old, &new, "/cgi-bin/none"), (403, 404));
    assert_eq!(statuses(&old, &new, "/cgi-bin/text"), (403, 404));
    assert_eq!(statuses(&old, &new, "/cgi-bin/"), (403, 404));
    set.stop();
}

/// The program of php-fpm, whose name has its version on Debian.
fn php_fpm() -> Option<PathBuf> {
    let programs = fs::read_dir("/usr/sbin").unwrap().map(|entry| entry.unwrap().path());
    let found = programs.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("php-fpm")).max();
    let is_there = is_installed("nginx") && is_installed("php-cgi");
    found.or_else(|| is_installed("/usr/sbin/php-fpm").then(PathBuf::new)).filter(|_| is_there)
}

/// A set of the example, php-fpm with the example's pool, and nginx with its server for either.
fn start_php(migration: &str) -> Option<(TestSet, [OldService; 2], [Place; 2])> {
    let program = php_fpm()?;
    let replaced = [
        ("unix:/run/patou/shop.sock", "unix:DIR/shop.sock"),
        ("group = \"www-data\"", ""),
        ("/srv/shop", "DIR/app"),
        ("/var/lib/shop/sessions", "DIR/sessions"),
    ];
    let set = new_set(migration, &replaced);
    let dir = set.test_dir();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(dir.join("sessions")).unwrap();
    let socket = dir.join("old.sock").display().to_string();
    let pool = replace(
        &example(&format!("{migration}/pool.conf")),
        &[
            ("/run/php/shop.sock", &socket),
            ("/var/lib/shop/sessions", &dir.join("sessions").display().to_string()),
            ("user = shop\ngroup = shop\n", "user = root\ngroup = root\n"),
        ],
    );
    let file = dir.join("fpm.conf");
    fs::write(&file, format!("[global]\nerror_log = {}/fpm.log\n{pool}", dir.display())).unwrap();
    let mut fpm = Command::new(program);
    fpm.args(["-R", "-F", "-y"]).arg(file);
    let fpm = OldService::start(&mut fpm, Place::Unix(PathBuf::from(&socket)));
    let server =
        replace(&example(&format!("{migration}/nginx.conf")), &[("/srv/shop", &format!("{}/app", dir.display()))]);
    let new = dir.join("shop.sock").display().to_string();
    let to = |socket: &str| replace(&server, &[("/run/php/shop.sock", socket)]);
    let (nginx, places) = nginx(dir, [&to(&socket), &to(&new)]);
    Some((set, [nginx, fpm], places))
}

#[test]
fn front_controller_moves_from_php_fpm() {
    let Some((set, _services, [old, new])) = start_php("php-fpm") else { return };
    let (multipart, upload) = multipart(&vec![b'x'; 900_000]);
    let mut steps: Vec<Step<'_>> = vec![
        ("GET", "/", "", b"", 200, "visit 1 of a stranger to http://shop.example/"),
        ("GET", "/", "", b"", 200, "visit 2 of a stranger"),
        ("POST", "/login", FORM, b"name=Ada", 303, ""),
    ];
    steps.extend(["3", "4", "5", "6", "7"].map(|visit| ("GET", "/", "", &b""[..], 200, visit)));
    steps.push(("GET", "/", "", b"", 200, "visit 8 of Ada"));
    steps.push(("GET", "/search/books?q=a%20b&n=1", AUTHORIZATION, b"", 200, "{\"q\":\"a b\",\"n\":\"1\"}"));
    steps.push(("POST", "/upload", &multipart, &upload, 200, "a.bin "));
    steps.push(("HEAD", "/", "", b"", 200, ""));
    steps.push(("GET", "/nothing", "", b"", 404, "no page"));
    steps.push(("GET", "/fault", "", b"", 500, ""));
    compare_behind_fronts(&old, &new, &steps);
    // What differs: the path is PATH_INFO, which PHP_SELF has at its end.
    let own = |place| Browser::new(place).send("GET", "/self", "", b"").body;
    assert_eq!((own(&old), own(&new)), ("/index.php\n".to_owned(), "/index.php/self\n".to_owned()));
    set.stop();
}

#[test]
fn tree_of_scripts_moves_from_php_fpm() {
    let Some((set, _services, [old, new])) = start_php("php-tree") else { return };
    let app = set.test_dir().join("app");
    fs::write(app.join("style.css"), "body {}\n").unwrap();
    fs::create_dir(app.join("blog")).unwrap();
    fs::copy(app.join("index.php"), app.join("blog/index.php")).unwrap();
    let (multipart, upload) = multipart(&vec![b'x'; 900_000]);
    let steps: [Step<'_>; 12] = [
        ("GET", "/", "", b"", 200, "visit 1 at /index.php"),
        ("GET", "/blog/", "", b"", 200, "visit 2 at /blog/index.php"),
        ("GET", "/index.php", "", b"", 200, "visit 3 at"),
        ("GET", "/style.css", "", b"", 200, "body {}"),
        ("GET", "/form.php?a=b%20c", "", b"", 200, "{\"a\":\"b c\"}"),
        ("GET", "/form.php/shelf/3?x=1", "", b"", 200, "\"/shelf/3\""),
        ("POST", "/form.php?q=1", FORM, b"name=Ada", 200, "{\"name\":\"Ada\"}"),
        ("POST", "/form.php", &multipart, &upload, 200, "900000"),
        ("POST", "/order.php", FORM, b"n=1", 303, ""),
        ("GET", "/order.php", "", b"", 410, "sold out"),
        ("HEAD", "/index.php", "", b"", 200, ""),
        ("GET", "/none.php", "", b"", 404, ""),
    ];
    compare_behind_fronts(&old, &new, &steps);
    set.stop();
}

#[test]
fn scripts_move_from_apache() {
    if !is_installed("apache2") || !is_installed("perl") {
        return;
    }
    let replaced = [
        ("unix:/run/patou/cgi.sock", "unix:DIR/cgi.sock"),
        ("group = \"www-data\"", "mode = 0o666"),
        ("/usr/lib/cgi-bin", "DIR/app/cgi-bin"),
    ];
    let set = new_set("fcgiwrap", &replaced);
    let dir = set.test_dir().display().to_string();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let modules: String = ["mpm_event", "authz_core", "alias", "cgid", "proxy", "proxy_fcgi"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let before = replace(&example("apache/serve-cgi-bin.conf"), &[("/usr/lib/cgi-bin", &format!("{dir}/app/cgi-bin"))]);
    let after = replace(&example("apache/patou.conf"), &[("/run/patou/cgi.sock", &format!("{dir}/cgi.sock"))]);
    let ports = [free_port(), free_port()];
    let hosts: String = [before, after]
        .iter()
        .zip(ports)
        .map(|(text, port)| format!("Listen 127.0.0.1:{port}\n<VirtualHost 127.0.0.1:{port}>\n{text}</VirtualHost>\n"))
        .collect();
    let file = set.test_dir().join("apache.conf");
    let text = format!(
        "ServerRoot {dir}\nServerName localhost\nPidFile {dir}/apache.pid\nErrorLog {dir}/apache.log\nMutex file:{dir}\n\
         User www-data\nGroup www-data\n{modules}ScriptSock {dir}/cgid.sock\n{hosts}"
    );
    fs::write(&file, text).unwrap();
    let [old, new] = ports.map(|port| Place::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
    let _apache = OldService::start(Command::new("apache2").arg("-DFOREGROUND").arg("-f").arg(file), old.clone());
    visit_scripts(&old, &new);
    assert_eq!(statuses(&old, &new, "/cgi-bin/none"), (404, 404));
    set.stop();
}
