//! Configurations of pools, among them a pool with requests that wait at a gate.

use std::fs;
use std::thread::JoinHandle;

use super::{HttpResponse, TestSet, get, wait_until};

/// One echo pool of two workers behind one redirect listener.
pub(crate) const ECHO: &str = r#"
[[listener]]
address = "127.0.0.1:0"
pool = "default"

[[pool]]
name = "default"
workers = 2
address = "127.0.0.1:0"
"#;

/// Keys of a pool: timeouts that do not expire by accident on a busy machine. A stop waits for unused leases.
pub(crate) const LONG_TIMEOUTS: &str = "offer_timeout = \"5s\"\nclaim_timeout = \"5s\"\nrequest_timeout = \"60s\"\n";

/// One redirect listener before a pool `default` with this handler; `more` are further keys of the pool.
pub(crate) fn one_pool(workers: u16, handler: &str, more: &str) -> String {
    format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\n[[pool]]\nname = \"default\"\n\
         workers = {workers}\naddress = \"127.0.0.1:0\"\nhandler = {handler}\n{more}\n"
    )
}

/// A TOML array of these strings.
pub(crate) fn toml_array(strings: &[&str]) -> String {
    serde_json::to_string(strings).unwrap()
}

/// One pool behind one redirect listener. Its requests last until [`open_gate`], except those for `/fast`. `pool` is
/// added to the pool, `more` to the file.
pub(crate) fn gated_pool(set: &TestSet, workers: u16, pool: &str, more: &str) -> String {
    let dir = set.test_dir().display();
    let script = r#"case "$PATH_INFO" in /fast) ;; *) : >"$TOP/started${PATH_INFO#/}"; while ! [ -e "$TOP/gate" ]; do sleep 0.02; done;; esac; printf 'Content-Type: text/plain\r\n\r\ndone %s\n' "$WORD""#;
    format!(
        "{more}\n[[listener]]\naddress = \"127.0.0.1:0\"\npool = \"default\"\n\n[[pool]]\nname = \"default\"\n\
         workers = {workers}\naddress = \"127.0.0.1:0\"\nenvironment = {{ TOP = \"{dir}\", WORD = \"well\" }}\n\
         handler = {{ exec = [\"/bin/sh\", \"-c\", '''{script}'''] }}\n{pool}\n"
    )
}

/// A handler for a pool: each request appends its path to a file, see [`started_paths`], and lasts until
/// [`open_gate`].
pub(crate) fn recording_handler(set: &TestSet) -> String {
    let dir = set.test_dir().display();
    let script = format!(
        "echo $PATH_INFO >> {dir}/started; while [ ! -e {dir}/gate ]; do sleep 0.02; done; \
         printf 'Content-Type: text/plain\\n\\ndone %s' $PATH_INFO"
    );
    format!("handler = {{ exec = [\"sh\", \"-c\", {script:?}] }}")
}

/// The paths of the requests that a [`recording_handler`] has started, in order.
pub(crate) fn started_paths(set: &TestSet) -> Vec<String> {
    let text = fs::read_to_string(set.test_dir().join("started")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Lets the gated requests finish.
pub(crate) fn open_gate(set: &TestSet) {
    fs::write(set.test_dir().join("gate"), "").unwrap();
}

/// Starts a gated request and waits until its handler runs.
pub(crate) fn start_gated_request(set: &TestSet, name: &str) -> JoinHandle<Result<HttpResponse, String>> {
    let (address, target) = (set.address(0), format!("/.{name}"));
    let client = std::thread::spawn(move || get(address, &target));
    let started = set.test_dir().join(format!("started.{name}"));
    wait_until(&format!("request {name} starts"), || started.exists());
    client
}
