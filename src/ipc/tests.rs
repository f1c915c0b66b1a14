use super::*;
use crate::exchange::WorkerSide;
use crate::ids::Monotonic;

/// A set in a directory of its own, cleared away at the end.
struct Set {
    config: Config,
    _top: PathBuf,
}

impl Set {
    fn new(name: &str) -> Self {
        let top = std::env::temp_dir().join(format!("patou-ipc-{}-{name}", std::process::id()));
        let mut config = Config::default();
        config.set.runtime_dir = top.join("run");
        Self { config, _top: top }
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

impl Drop for Set {
    fn drop(&mut self) {
        let _ = remove(self.dir());
        let _ = fs::remove_dir_all(&self._top);
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn what_is_made_is_private_can_be_opened_listed_and_removed() {
    let set = Set::new("life");
    set.create();
    let id: WorkerId = "default-1".parse().unwrap();
    let paths = Paths::new(set.dir(), &id);
    assert_eq!((mode(set.dir()), mode(&paths.pool)), (0o700, 0o700));
    assert_eq!((mode(&paths.to_worker), mode(&paths.to_dispatcher)), (0o600, 0o600));
    let parts = open(&set.config, &id).unwrap();
    let object = Path::new("/dev/shm").join(&parts.segment.name()[1..]);
    assert_eq!(mode(&object), 0o600);
    assert_eq!(list(set.dir()).unwrap().len(), 2);

    // Made again, it is another segment: nobody who has the old one open can be mistaken for a member.
    create_worker(&set.config, &id, 2, &Modes::default()).unwrap();
    assert!(!object.exists());
    let again = open(&set.config, &id).unwrap();
    assert_eq!((parts.segment.set_epoch(), again.segment.set_epoch()), (1, 2));

    let object = Path::new("/dev/shm").join(&again.segment.name()[1..]);
    remove(set.dir()).unwrap();
    assert!(!object.exists() && list(set.dir()).unwrap().is_empty());
    assert!(matches!(open(&set.config, &id), Err(IpcError::NoWorker { .. })));
}

#[test]
fn one_set_per_directory() {
    let set = Set::new("lock");
    set.create();
    let lock = lock_set(set.dir(), SetOwner::Process).unwrap();
    assert_eq!(SetLock::holder(set.dir()), Some(std::process::id()));
    let error = lock_set(set.dir(), SetOwner::Process).unwrap_err();
    assert!(matches!(error, IpcError::Live { pid, .. } if pid == std::process::id()), "{error}");
    drop(lock);
    assert_eq!(SetLock::holder(set.dir()), None);
    let lock = lock_set(set.dir(), SetOwner::Process).unwrap();
    remove(set.dir()).unwrap();
    lock.remove(set.dir());
    assert!(!set.dir().exists());
}

#[test]
fn leftovers_are_found_by_their_locks() {
    let set = Set::new("left");
    set.create();
    assert!(leftovers(set.dir()).unwrap().is_empty());
    let parts = open(&set.config, &"default-2".parse().unwrap()).unwrap();
    assert!(parts.segment.lock_role(SegmentRole::Worker).unwrap());
    WorkerSide::attach(parts.segment.clone(), 4711, 99, None, Monotonic(0));
    let found = leftovers(set.dir()).unwrap();
    let worker = Leftover { pid: 4711, started: 99, what: "worker default/2".into(), busy: false };
    assert_eq!(found, [worker]);
    drop(parts);
}

#[test]
fn links_and_open_directories_are_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let set = Set::new("links");
    fs::create_dir_all(&set._top).unwrap();
    symlink("/tmp", set.dir()).unwrap();
    let why = || prepare(&set.config, &Modes::default()).unwrap_err().to_string();
    assert!(why().contains("links are not followed"), "{}", why());
    fs::remove_file(set.dir()).unwrap();
    fs::create_dir(set.dir()).unwrap();
    fs::set_permissions(set.dir(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(why().contains("everybody may write"), "{}", why());
    fs::set_permissions(set.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    set.create();

    let id: WorkerId = "default-1".parse().unwrap();
    let paths = Paths::new(set.dir(), &id);
    let kept = set._top.join("kept");
    fs::rename(&paths.to_worker, &kept).unwrap();
    symlink(&kept, &paths.to_worker).unwrap();
    assert!(open(&set.config, &id).is_err());
    fs::remove_file(&paths.to_worker).unwrap();
    fs::rename(&kept, &paths.to_worker).unwrap();
    fs::rename(&paths.segment, &kept).unwrap();
    symlink(&kept, &paths.segment).unwrap();
    assert!(open(&set.config, &id).is_err());
    fs::rename(&kept, &paths.segment).unwrap();
}

#[test]
fn a_name_in_a_file_is_not_enough_to_unlink() {
    let set = Set::new("foreign");
    set.create();
    let name = format!("/not-patou.{}", std::process::id());
    let foreign = Segment::create(&name, 0o600, None, SegmentIdentity { set_epoch: 0, digest: 0 }).unwrap();
    let id: WorkerId = "default-1".parse().unwrap();
    let path = Paths::new(set.dir(), &id).segment;
    Segment::unlink(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::write(path, &name).unwrap();
    remove_worker(set.dir(), &id).unwrap();
    assert!(Segment::open(foreign.name(), None, None).is_ok());
    Segment::unlink(&name).unwrap();
}
