//! Connections that waited in the descriptor store until a worker claimed them, and whose dispatcher then died: the next
//! one adopts them.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::*;

const STORED: &str = "is in the descriptor store";

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// A set with one worker, whose requests each last until [`AdoptionTest::finish`], behind a TCP and a Unix listener.
struct AdoptionTest {
    set: TestSet,
    dir: PathBuf,
    is_unix: bool,
    /// The sockets that dispatcher and watchdog both hold while no connection is stored.
    shared: usize,
}

impl AdoptionTest {
    /// `pool`: further keys of the pool.
    fn start(is_unix: bool, pool: &str) -> Self {
        let mut set = TestSet::prepare("");
        let dir = set.test_dir().to_owned();
        let listener = |address: String| {
            format!("[[listener]]\naddress = \"{address}\"\ndelivery = \"handoff\"\npool = \"default\"\n")
        };
        let script = format!(
            "echo $PATH_INFO >> {0}/started; [ -e {0}$PATH_INFO.cut ] && {head}we'; \
             while ! [ -e {0}$PATH_INFO.go ]; do sleep 0.01; done; {head}well'",
            dir.display(),
            head = "printf 'Content-Type: text/plain\\r\\nContent-Length: 4\\r\\n\\r\\n",
        );
        set.configure(&format!(
            "{}{}[[pool]]\nname = \"default\"\nworkers = 1\naddress = \"127.0.0.1:0\"\nhandler = {{ exec = {} }}\n{pool}\n\
             [watchdog]\nworker_timeout = \"60s\"\ndispatcher_timeout = \"60s\"\n",
            listener("127.0.0.1:0".into()),
            listener(format!("unix:{}/s.sock", dir.display())),
            toml_array(&["sh", "-c", &script]),
        ));
        set.run();
        set.wait_until_up();
        let mut test = Self { set, dir, is_unix, shared: 0 };
        test.shared = test.shared_sockets();
        test
    }

    fn shared_sockets(&self) -> usize {
        let of = |pid: u32| -> BTreeSet<_> {
            let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            let links = fds.filter_map(|fd| fs::read_link(fd.path()).ok()?.into_os_string().into_string().ok());
            links.filter(|link| link.starts_with("socket:")).collect()
        };
        of(self.set.pid()).intersection(&of(self.set.dispatcher_pid())).count()
    }

    /// A client that has sent this request.
    fn client(&self, target: &str, more: &str) -> Box<dyn Stream> {
        let mut stream: Box<dyn Stream> = if self.is_unix {
            let stream = UnixStream::connect(self.dir.join("s.sock")).unwrap();
            stream.set_read_timeout(Some(EVENT_TIMEOUT)).unwrap();
            Box::new(stream)
        } else {
            Box::new(connect(self.set.address(0)))
        };
        self.send(&mut stream, target, more);
        stream
    }

    fn send(&self, stream: &mut impl Write, target: &str, more: &str) {
        stream.write_all(request_head("GET", target, self.set.address(0), more).as_bytes()).unwrap();
    }

    fn wait_for_start(&self, target: &str) {
        let started = || fs::read_to_string(self.dir.join("started")).unwrap_or_default();
        wait_until(&format!("{target} starts"), || started().lines().any(|line| line == target));
    }

    fn finish(&self, target: &str) {
        fs::write(format!("{}{target}.go", self.dir.display()), "").unwrap();
    }

    /// A client whose request `/waited` has waited in the descriptor store, and then was claimed.
    fn waited_client(&self, more: &str) -> Box<dyn Stream> {
        let mut first = self.client("/first", "Connection: close\r\n");
        self.wait_for_start("/first");
        let waited = self.client("/waited", more);
        self.set.wait_for_log(&[STORED]);
        self.finish("/first");
        assert_eq!(read_response(&mut first).unwrap().status, 200);
        self.wait_for_start("/waited");
        waited
    }

    /// Replaces the dispatcher before the response to `/waited`, or, if `is_finished_meanwhile`, after a response that it
    /// does not see.
    fn finish_over_a_restart(&self, is_finished_meanwhile: bool, read_response: impl FnOnce()) {
        let dispatcher = self.set.dispatcher_pid();
        if is_finished_meanwhile {
            signal_to(dispatcher, Signal::SIGSTOP);
        } else {
            self.replace_dispatcher();
        }
        self.finish("/waited");
        read_response();
        if is_finished_meanwhile {
            signal_to(dispatcher, Signal::SIGKILL);
            self.wait_for_dispatcher_after(dispatcher);
        }
    }

    fn replace_dispatcher(&self) {
        let old = self.set.dispatcher_pid();
        signal_to(old, Signal::SIGKILL);
        self.wait_for_dispatcher_after(old);
    }

    fn wait_for_dispatcher_after(&self, old: u32) {
        self.set.wait_for("the next dispatcher is up", |status| {
            let dispatcher = &status["dispatcher"];
            dispatcher["pid"].as_u64().is_some_and(|pid| pid != u64::from(old)) && dispatcher["state"] == "up"
        });
    }

    /// The request started once, and nothing of it is left in the store.
    fn stop(self) {
        self.set.wait_for_worker("default/1", "idle");
        wait_until("the store is empty", || self.shared_sockets() == self.shared);
        let started = fs::read_to_string(self.dir.join("started")).unwrap();
        assert_eq!(started.lines().filter(|line| *line == "/waited").count(), 1, "{started}");
        self.set.stop();
    }
}

#[track_caller]
fn assert_outcome(test: &AdoptionTest, stream: &mut impl Read, status: u16) {
    let response = read_response(stream).unwrap_or_else(|error| panic!("{error}\n{}", test.set.log()));
    assert_eq!((response.status, response.header("patou-outcome")), (status, Some("started-unknown")), "{response:?}");
}

/// One response with a body of 4 bytes, and nothing of what follows.
#[track_caller]
fn assert_served(stream: &mut impl Read) {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\nwell") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error} after {}", text(&bytes)));
        bytes.push(byte[0]);
    }
    assert!(bytes.starts_with(b"HTTP/1.1 200 "), "{}", text(&bytes));
}

#[test]
fn client_of_a_worker_that_dies_after_its_dispatcher_gets_502() {
    for is_unix in [false, true] {
        for restarts in [1, 2] {
            let test = AdoptionTest::start(is_unix, LONG_TIMEOUTS);
            let mut client = test.waited_client("");
            let worker = test.set.worker_pid("default/1");
            (0..restarts).for_each(|_| test.replace_dispatcher());
            signal_to(worker, Signal::SIGKILL);
            assert_outcome(&test, &mut client, 502);
            test.stop();
        }
    }
}

#[test]
fn client_of_a_worker_that_dies_with_its_dispatcher_gets_502() {
    for is_unix in [false, true] {
        let test = AdoptionTest::start(is_unix, LONG_TIMEOUTS);
        let mut client = test.waited_client("");
        let (worker, dispatcher) = (test.set.worker_pid("default/1"), test.set.dispatcher_pid());
        signal_to(dispatcher, Signal::SIGKILL);
        signal_to(worker, Signal::SIGKILL);
        assert_outcome(&test, &mut client, 502);
        test.wait_for_dispatcher_after(dispatcher);
        test.stop();
    }
}

#[test]
fn claim_that_the_dispatcher_has_not_seen_is_adopted() {
    let test = AdoptionTest::start(false, LONG_TIMEOUTS);
    let (worker, dispatcher) = (test.set.worker_pid("default/1"), test.set.dispatcher_pid());
    signal_to(worker, Signal::SIGSTOP);
    let mut client = test.client("/waited", "");
    test.set.wait_for_log(&[STORED]); // offered, and not claimed
    signal_to(dispatcher, Signal::SIGSTOP);
    signal_to(worker, Signal::SIGCONT);
    test.wait_for_start("/waited");
    signal_to(dispatcher, Signal::SIGKILL);
    test.wait_for_dispatcher_after(dispatcher);
    signal_to(worker, Signal::SIGKILL);
    assert_outcome(&test, &mut client, 502);
    test.stop();
}

#[test]
fn adopted_request_gets_504_at_its_deadline() {
    let test = AdoptionTest::start(false, "request_timeout = \"5s\"\n");
    let mut client = test.waited_client("");
    let worker = test.set.worker_pid("default/1");
    signal_to(worker, Signal::SIGSTOP);
    test.replace_dispatcher();
    assert_outcome(&test, &mut client, 504);
    signal_to(worker, Signal::SIGCONT);
    test.stop();
}

#[test]
fn adopted_connection_is_served_further() {
    for is_unix in [false, true] {
        for is_finished_meanwhile in [false, true] {
            let test = AdoptionTest::start(is_unix, LONG_TIMEOUTS);
            let mut client = test.waited_client("");
            test.finish_over_a_restart(is_finished_meanwhile, || assert_served(&mut client));
            test.finish("/next");
            test.send(&mut client, "/next", "");
            assert_served(&mut client);
            // Not stored any more while it is served: only a connection that waits is.
            test.send(&mut client, "/last", "Connection: close\r\n");
            test.wait_for_start("/last");
            test.finish("/last");
            assert_eq!(read_response(&mut client).unwrap().status, 200);
            test.stop();
        }
    }
}

#[test]
fn adopted_connection_ends_with_its_last_response() {
    for is_unix in [false, true] {
        for is_finished_meanwhile in [false, true] {
            let test = AdoptionTest::start(is_unix, LONG_TIMEOUTS);
            let mut client = test.waited_client("Connection: close\r\n");
            test.finish_over_a_restart(is_finished_meanwhile, || {
                assert_eq!(read_response(&mut client).unwrap().status, 200);
            });
            test.stop();
        }
    }
}

#[test]
fn adopted_response_that_is_cut_is_reset() {
    let test = AdoptionTest::start(false, LONG_TIMEOUTS);
    fs::write(test.dir.join("waited.cut"), "").unwrap();
    let mut client = test.waited_client("");
    let worker = test.set.worker_pid("default/1");
    test.replace_dispatcher();
    let mut byte = [0];
    client.read_exact(&mut byte).unwrap();
    signal_to(worker, Signal::SIGKILL);
    let error = client.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    test.stop();
}

#[test]
fn request_that_did_not_wait_is_not_stored() {
    let test = AdoptionTest::start(false, LONG_TIMEOUTS);
    let mut client = test.client("/waited", "Connection: close\r\n");
    test.wait_for_start("/waited");
    std::thread::sleep(Duration::from_millis(200)); // ten times store_after
    test.finish("/waited");
    assert_eq!(read_response(&mut client).unwrap().status, 200);
    test.set.wait_for_log(&["lease is released"]); // the dispatcher logs it last
    assert!(!test.set.log().contains(STORED), "{}", test.set.log());
    test.stop();
}
