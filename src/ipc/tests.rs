use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::worker_ipc::WorkerPaths;
use super::*;
use crate::config::Config;
use crate::exchange::WorkerSide;
use crate::ids::{Epoch, Monotonic, WorkerId};
use crate::shm::{Segment, SegmentIdentity, SegmentRole};

/// A set in a temporary directory, removed at the end.
struct TestSet {
    config: Config,
    top: PathBuf,
}

impl TestSet {
    fn new(name: &str) -> Self {
        let top = std::env::temp_dir().join(format!("patou-ipc-{}-{name}", std::process::id()));
        let mut config = Config::default();
        config.set.runtime_dir = top.join("run");
        Self { config, top }
    }

    fn dir(&self) -> &Path {
        &self.config.set.runtime_dir
    }

    fn create(&self) {
        prepare(&self.config, &Modes::default()).unwrap();
        for id in self.config.workers() {
            create_worker(&self.config, &id, 1, &Modes::default()).unwrap();
        }
    }
}

impl Drop for TestSet {
    fn drop(&mut self) {
        let _ = remove(self.dir());
        let _ = fs::remove_dir_all(&self.top);
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn object(segment: &Segment) -> PathBuf {
    Path::new("/dev/shm").join(&segment.name()[1..])
}

#[test]
fn objects_are_private_and_can_be_opened_listed_and_removed() {
    let set = TestSet::new("life");
    set.create();
    let id: WorkerId = "default-1".parse().unwrap();
    let paths = WorkerPaths::new(set.dir(), &id);
    assert_eq!((mode(set.dir()), mode(&paths.pool)), (0o700, 0o700));
    assert_eq!((mode(&paths.to_worker), mode(&paths.to_dispatcher)), (0o600, 0o600));
    let ipc = open(&set.config, &id).unwrap();
    assert_eq!(mode(&object(&ipc.segment)), 0o600);
    assert_eq!(list(set.dir()).unwrap().len(), 2);
    remove(set.dir()).unwrap();
    assert!(!object(&ipc.segment).exists() && list(set.dir()).unwrap().is_empty());
    assert!(matches!(open(&set.config, &id), Err(IpcError::NoWorker { .. })));
}

#[test]
fn creating_a_worker_again_replaces_its_segment() {
    let set = TestSet::new("again");
    set.create();
    let id: WorkerId = "default-1".parse().unwrap();
    let first = open(&set.config, &id).unwrap();
    create_worker(&set.config, &id, 2, &Modes::default()).unwrap();
    assert!(!object(&first.segment).exists(), "a process with the old segment is no member of the set");
    let second = open(&set.config, &id).unwrap();
    assert_eq!((first.segment.set_epoch(), second.segment.set_epoch()), (1, 2));
}

#[test]
fn one_set_per_directory() {
    let set = TestSet::new("lock");
    set.create();
    let lock = lock_set(set.dir(), SetOwner::Process).unwrap();
    assert_eq!(SetLock::holder(set.dir()), Some(std::process::id()));
    let error = lock_set(set.dir(), SetOwner::Process).unwrap_err();
    assert!(matches!(error, IpcError::AlreadyRunning { pid, .. } if pid == std::process::id()), "{error}");
    drop(lock);
    assert_eq!(SetLock::holder(set.dir()), None);
    let lock = lock_set(set.dir(), SetOwner::Process).unwrap();
    remove(set.dir()).unwrap();
    lock.remove(set.dir());
    assert!(!set.dir().exists());
}

#[test]
fn leftovers_are_found_by_their_locks() {
    let set = TestSet::new("left");
    set.create();
    assert!(leftovers(&set.config).unwrap().is_empty());
    let ipc = open(&set.config, &"default-2".parse().unwrap()).unwrap();
    assert!(ipc.segment.lock_role(SegmentRole::Worker).unwrap());
    WorkerSide::attach(ipc.segment.clone(), 4711, 99, None, Monotonic(0));
    let found = leftovers(&set.config).unwrap();
    let worker = Leftover { pid: 4711, started: 99, what: "worker default/2".into(), busy: false };
    assert_eq!(found, [worker]);
    drop(ipc);
}

#[test]
fn links_and_writable_directories_are_rejected() {
    let set = TestSet::new("links");
    fs::create_dir_all(&set.top).unwrap();
    symlink("/tmp", set.dir()).unwrap();
    let why = || prepare(&set.config, &Modes::default()).unwrap_err().to_string();
    assert!(why().contains("links are not followed"), "{}", why());
    fs::remove_file(set.dir()).unwrap();
    fs::create_dir(set.dir()).unwrap();
    fs::set_permissions(set.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(why().contains("every user may write"), "{}", why());
    fs::set_permissions(set.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    set.create();

    let id: WorkerId = "default-1".parse().unwrap();
    let paths = WorkerPaths::new(set.dir(), &id);
    let moved = set.top.join("moved");
    fs::rename(&paths.to_worker, &moved).unwrap();
    symlink(&moved, &paths.to_worker).unwrap();
    assert!(open(&set.config, &id).is_err());
    fs::remove_file(&paths.to_worker).unwrap();
    fs::rename(&moved, &paths.to_worker).unwrap();
    fs::rename(&paths.segment, &moved).unwrap();
    symlink(&moved, &paths.segment).unwrap();
    assert!(open(&set.config, &id).is_err());
    fs::rename(&moved, &paths.segment).unwrap();
}

#[test]
fn a_name_in_a_file_is_not_enough_to_unlink_a_segment() {
    let set = TestSet::new("foreign");
    set.create();
    let name = format!("/not-patou.{}", std::process::id());
    let foreign = Segment::create(&name, 0o600, None, SegmentIdentity { set_epoch: 0, digest: 0 }, &[]).unwrap();
    let id: WorkerId = "default-1".parse().unwrap();
    let path = WorkerPaths::new(set.dir(), &id).segment;
    Segment::unlink(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::write(path, &name).unwrap();
    worker_ipc::remove_worker(set.dir(), &id).unwrap();
    assert!(Segment::open(foreign.name(), None, None).is_ok());
    Segment::unlink(&name).unwrap();
}

#[test]
fn each_incarnation_has_socket_names_of_its_own_that_are_removed_with_the_worker() {
    let set = TestSet::new("app-sockets");
    set.create();
    let id: WorkerId = "default-1".parse().unwrap();
    let paths = WorkerPaths::new(set.dir(), &id);
    let mut names = BTreeSet::new();
    for epoch in 1..=100 {
        let sockets = worker_ipc::app_sockets(set.dir(), &id, Epoch::new(epoch).unwrap());
        for number in 1..=30 {
            let path = worker_ipc::app_socket(&sockets, number);
            assert_eq!(path.as_os_str().len(), paths.handoff.as_os_str().len(), "{path:?}");
            assert_eq!(path.parent(), paths.handoff.parent());
            assert!(names.insert(path.clone()), "{path:?}");
        }
    }
    let other = paths.pool.join("11.a011");
    for path in names.iter().step_by(7).chain([&other]) {
        fs::write(path, "").unwrap();
    }
    worker_ipc::remove_worker(set.dir(), &id).unwrap();
    let left: Vec<_> = fs::read_dir(&paths.pool).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.contains(&other) && !left.iter().any(|path| names.contains(path)), "{left:?}");
}
