//! What `systemctl start patou` and `systemctl reload patou` publish for a set of units: the configuration, which the
//! parts read, and the drop-ins rendered from it, which the generator copies.
//!
//! Both are replaced together: each publication is a directory, and a symbolic link is moved to it (rename(2)). A crash at
//! any moment leaves the old or the new one. The previous directory remains until the next publication, so that a
//! generator that copies from it can finish.

mod unit_end;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::ids::{PoolName, WorkerId};
use crate::units::{self, DROP_IN, ListenerSockets};
pub(crate) use unit_end::describe_end;

/// The link to the directory in force, and the prefix of the directories.
const CURRENT: &str = "set";
const CONFIG: &str = "patou.toml";
const DROP_INS: &str = "drop-ins";
/// How the last process of each unit ended that did not end as planned: a file per unit.
const ENDS: &str = "ends";

/// The directory in which a set is published.
pub(crate) struct PublishedSet {
    dir: PathBuf,
}

/// A publication: complete, and in force once [`PublishedSet::publish`] has returned.
pub(crate) struct Publication {
    name: OsString,
}

/// What the generator writes at one path.
#[derive(Debug, PartialEq, Eq)]
enum Generated {
    File(Vec<u8>),
    Link(PathBuf),
}

impl PublishedSet {
    /// That of the machine.
    pub(crate) fn of_machine() -> Self {
        Self { dir: units::PUBLISHED.into() }
    }

    /// The published configuration, [`units::APPLIED`].
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join(CONFIG)
    }

    /// The names of the sockets that listeners have now.
    pub(crate) fn listener_sockets(&self) -> ListenerSockets {
        let files = self.drop_ins().unwrap_or_default();
        let texts = files.iter().filter_map(|(path, text)| Some((path.to_str()?, std::str::from_utf8(text).ok()?)));
        ListenerSockets::of_drop_ins(texts)
    }

    /// Writes a publication beside the one in force. `drop_ins` are paths and contents.
    ///
    /// # Errors
    /// Then nothing of it is left.
    pub(crate) fn stage(&self, config: &str, drop_ins: &BTreeMap<String, String>) -> io::Result<Publication> {
        create_dir(&self.dir)?;
        let numbers = self.directories()?.into_iter().filter_map(|name| number(&name));
        let name = OsString::from(format!("{CURRENT}.{}", numbers.max().map_or(0, |last| last + 1)));
        let dir = self.dir.join(&name);
        let write = || {
            create_dir(&dir)?;
            write(&dir.join(CONFIG), config.as_bytes())?;
            create_dir(&dir.join(DROP_INS))?;
            drop_ins.iter().try_for_each(|(path, text)| {
                let file = dir.join(DROP_INS).join(path);
                create_dir(file.parent().unwrap_or(&dir))?;
                write(&file, text.as_bytes())
            })
        };
        match write() {
            Ok(()) => Ok(Publication { name }),
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                Err(error)
            }
        }
    }

    /// The publication in force.
    pub(crate) fn current(&self) -> Option<Publication> {
        let name = fs::read_link(self.dir.join(CURRENT)).ok()?.into_os_string();
        Some(Publication { name })
    }

    /// Puts a publication in force; also one that was in force before the last one.
    pub(crate) fn publish(&self, new: &Publication) -> io::Result<()> {
        let previous = self.current();
        self.link(CURRENT, Path::new(&new.name))?;
        // A version without such directories has published a file.
        let config = Path::new(CURRENT).join(CONFIG);
        if fs::read_link(self.config()).ok().as_ref() != Some(&config) {
            self.link(CONFIG, &config)?;
        }
        let is_old = |name: &OsString| *name != new.name && previous.as_ref().is_none_or(|kept| *name != kept.name);
        for name in self.directories()?.into_iter().filter(is_old) {
            let _ = fs::remove_dir_all(self.dir.join(name)); // the next publication tries again
        }
        Ok(())
    }

    /// Removes everything that is published.
    pub(crate) fn withdraw(&self) -> io::Result<()> {
        // First the file that says that there is a set.
        not_missing(fs::remove_file(self.config()))?;
        not_missing(fs::remove_file(self.dir.join(CURRENT)))?;
        for name in self.directories()?.into_iter().chain([ENDS.into()]) {
            not_missing(fs::remove_dir_all(self.dir.join(name)))?;
        }
        Ok(())
    }

    /// Notes how a process of `unit` has ended; `None`: as planned. Not while nothing is published.
    pub(crate) fn note_end(&self, unit: &str, end: Option<&str>) -> io::Result<()> {
        let dir = self.dir.join(ENDS);
        match end {
            Some(end) if self.config().exists() => {
                create_dir(&dir)?;
                write(&dir.join(unit), end.as_bytes())
            }
            _ => not_missing(fs::remove_file(dir.join(unit))),
        }
    }

    /// How a process of `unit` has ended last, unless that was planned.
    pub(crate) fn last_end(&self, unit: &str) -> Option<String> {
        fs::read_to_string(self.dir.join(ENDS).join(unit)).ok()
    }

    /// What the generator does: copies the published drop-ins to `to`, and links the operator's drop-ins for a pool into
    /// every worker of the pool, because systemd supports drop-ins for one instance and for all instances of a template,
    /// not for some of them. It runs at every daemon-reload, those of other packages included: it reads no configuration
    /// and requests nothing from any service.
    ///
    /// # Errors
    /// The first one; the other drop-ins are written.
    pub(crate) fn generate(&self, to: &Path) -> io::Result<()> {
        let write_one = |(path, content): (PathBuf, Generated)| {
            let path = to.join(path);
            fs::create_dir_all(path.parent().unwrap_or(to))?;
            match content {
                Generated::File(text) => fs::write(&path, text),
                Generated::Link(target) => symlink(target, &path),
            }
        };
        let results: Vec<_> = self.generated()?.into_iter().map(write_one).collect();
        results.into_iter().collect()
    }

    /// Whether the generator has written what is published now, and nothing else, to `dir`.
    pub(crate) fn is_generated_in(&self, dir: &Path) -> bool {
        let Ok(wanted) = self.generated() else { return false };
        let mut found = 0;
        let units = fs::read_dir(dir).into_iter().flatten().flatten();
        for unit in units.filter(|unit| unit.file_name().as_encoded_bytes().starts_with(b"patou-")) {
            found += fs::read_dir(unit.path()).map_or(0, Iterator::count);
        }
        let is_current = |(path, content): (&PathBuf, &Generated)| match content {
            Generated::File(text) => fs::read(dir.join(path)).is_ok_and(|found| found == *text),
            Generated::Link(target) => fs::read_link(dir.join(path)).is_ok_and(|found| found == *target),
        };
        found == wanted.len() && wanted.iter().all(is_current)
    }

    fn generated(&self) -> io::Result<BTreeMap<PathBuf, Generated>> {
        let files = self.drop_ins()?;
        let mut linked: BTreeMap<PoolName, Vec<PathBuf>> = BTreeMap::new();
        let mut all = BTreeMap::new();
        for path in files.keys() {
            let Some((worker, dir)) = worker_of(path) else { continue };
            let links = linked.entry(worker.pool).or_insert_with_key(operator_drop_ins);
            all.extend(
                links
                    .iter()
                    .filter_map(|target| Some((dir.join(target.file_name()?), Generated::Link(target.clone())))),
            );
        }
        all.extend(files.into_iter().map(|(path, text)| (path, Generated::File(text))));
        Ok(all)
    }

    /// Paths and contents; none if nothing is published.
    fn drop_ins(&self) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut files = BTreeMap::new();
        // The link is followed once: all files are of one publication.
        let Some(current) = self.current() else { return Ok(files) };
        let dir = self.dir.join(current.name).join(DROP_INS);
        for unit in fs::read_dir(&dir)? {
            let path = Path::new(&unit?.file_name()).join(DROP_IN);
            match fs::read(dir.join(&path)) {
                Ok(text) => drop(files.insert(path, text)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(files)
    }

    /// The names of all publications, also of those that are not in force.
    fn directories(&self) -> io::Result<Vec<OsString>> {
        match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            entries => {
                let names = entries?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
                Ok(names.into_iter().filter(|name| number(name).is_some()).collect())
            }
        }
    }

    /// Makes `name` a link to `target`, whatever it was.
    fn link(&self, name: &str, target: &Path) -> io::Result<()> {
        let new = self.dir.join(format!("{name}.new"));
        not_missing(fs::remove_file(&new))?;
        symlink(target, &new)?;
        fs::rename(&new, self.dir.join(name))
    }
}

/// What is missing already is removed.
fn not_missing(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The number of a publication.
fn number(name: &OsString) -> Option<u32> {
    name.to_str()?.strip_prefix(CURRENT)?.strip_prefix('.')?.parse().ok()
}

/// The worker of a drop-in, and the directory of its drop-ins.
fn worker_of(path: &Path) -> Option<(WorkerId, &Path)> {
    let dir = path.parent()?;
    Some((units::worker_of_service(dir.to_str()?.strip_suffix(".d")?)?, dir))
}

/// The operator's drop-ins for a pool. systemd reads `.conf` only, and a file of our name would replace ours.
fn operator_drop_ins(pool: &PoolName) -> Vec<PathBuf> {
    let entries = fs::read_dir(units::pool_drop_ins(pool)).into_iter().flatten().flatten();
    let is_drop_in = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "conf")
            && path.file_name().is_some_and(|name| name != DROP_IN)
    };
    entries.map(|entry| entry.path()).filter(is_drop_in).collect()
}

/// A directory that every user may read. One that exists stays.
fn create_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        created => created.and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o755))),
    }
}

fn write(path: &Path, text: &[u8]) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct TempSet(PublishedSet);

    impl TempSet {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("patou-published-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            Self(PublishedSet { dir })
        }

        fn stage(&self, text: &str, units: &[&str]) -> Publication {
            let drop_ins = units.iter().map(|unit| (format!("{unit}.d/{DROP_IN}"), text.to_owned()));
            self.0.stage(text, &drop_ins.collect()).unwrap()
        }

        /// What a daemon-reload makes of it: configuration, and unit and content of each drop-in.
        fn generated(&self) -> (Option<String>, Vec<(String, String)>) {
            let to = self.0.dir.join("generator");
            let _ = fs::remove_dir_all(&to);
            fs::create_dir(&to).unwrap();
            self.0.generate(&to).unwrap();
            assert!(self.0.is_generated_in(&to));
            let mut found = Vec::new();
            for unit in fs::read_dir(&to).unwrap() {
                let unit = unit.unwrap();
                let text = fs::read_to_string(unit.path().join(DROP_IN)).unwrap();
                found.push((unit.file_name().into_string().unwrap(), text));
            }
            found.sort();
            (fs::read_to_string(self.0.config()).ok(), found)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0.dir).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.retain(|name| name != "generator");
            names.sort();
            names
        }
    }

    impl Drop for TempSet {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0.dir);
        }
    }

    fn of(text: &str, units: &[&str]) -> (Option<String>, Vec<(String, String)>) {
        (Some(text.to_owned()), units.iter().map(|unit| (format!("{unit}.d"), text.to_owned())).collect())
    }

    #[test]
    fn a_publication_is_used_whole_or_not_at_all() {
        let set = TempSet::new("whole");
        assert_eq!(set.generated(), (None, vec![]));
        let first = set.stage("1", &["patou-a.service", "patou-b.service"]);
        assert_eq!(set.generated(), (None, vec![]));
        set.0.publish(&first).unwrap();
        assert_eq!(set.generated(), of("1", &["patou-a.service", "patou-b.service"]));
        // One that was not published, because the command died, is no part of the next ones, and disappears.
        let _ = set.stage("crash", &["patou-c.service"]);
        assert_eq!(set.generated(), of("1", &["patou-a.service", "patou-b.service"]));
        let second = set.stage("2", &["patou-b.service"]);
        let before = set.0.current().unwrap();
        set.0.publish(&second).unwrap();
        assert_eq!(set.generated(), of("2", &["patou-b.service"]));
        assert_eq!(set.names(), ["patou.toml", "set", "set.0", "set.2"]);
        // A reload that fails goes back.
        set.0.publish(&before).unwrap();
        assert_eq!(set.generated(), of("1", &["patou-a.service", "patou-b.service"]));
        set.0.withdraw().unwrap();
        assert_eq!((set.generated(), set.names()), ((None, vec![]), vec![]));
        set.0.withdraw().unwrap();
    }

    #[test]
    fn the_file_of_a_version_without_publications_is_replaced() {
        let set = TempSet::new("file");
        fs::write(set.0.config(), "old").unwrap();
        assert_eq!(set.generated(), (Some("old".to_owned()), vec![]));
        let new = set.stage("new", &["patou-a.service"]);
        set.0.publish(&new).unwrap();
        assert_eq!(set.generated(), of("new", &["patou-a.service"]));
    }

    #[test]
    fn what_the_generator_has_written_is_compared_completely() {
        let set = TempSet::new("compared");
        let new = set.stage("1", &["patou-a.service", "patou-worker@p-1.service"]);
        set.0.publish(&new).unwrap();
        set.generated();
        let dir = set.0.dir.join("generator");
        let file = dir.join("patou-a.service.d").join(DROP_IN);
        fs::write(&file, "2").unwrap();
        assert!(!set.0.is_generated_in(&dir));
        fs::write(&file, "1").unwrap();
        fs::create_dir(dir.join("other.service.d")).unwrap();
        assert!(set.0.is_generated_in(&dir));
        fs::write(dir.join("patou-worker@p-1.service.d/more.conf"), "").unwrap();
        assert!(!set.0.is_generated_in(&dir));
        let worker = Path::new("patou-worker@p-1.service.d/50-patou.conf");
        assert_eq!(worker_of(worker).unwrap().0.pool.as_str(), "p");
        assert!(worker_of(Path::new("patou-worker@p-1.socket.d/50-patou.conf")).is_none());
    }

    #[test]
    fn the_last_unplanned_end_of_a_unit_is_known_while_the_set_is_published() {
        let set = TempSet::new("ends");
        let (unit, end) = ("patou-worker@a-1.service", || set.0.last_end("patou-worker@a-1.service"));
        set.0.note_end(unit, Some("killed by SIGKILL")).unwrap();
        assert_eq!((end(), set.names()), (None, vec![]), "nothing is published");
        set.0.publish(&set.stage("1", &[])).unwrap();
        set.0.note_end(unit, None).unwrap();
        set.0.note_end(unit, Some("exit code 1")).unwrap();
        set.0.note_end(unit, Some("killed by SIGKILL")).unwrap();
        assert_eq!(end().as_deref(), Some("killed by SIGKILL"));
        set.0.note_end(unit, None).unwrap();
        assert_eq!(end(), None, "it was stopped as planned");
        set.0.note_end(unit, Some("exit code 1")).unwrap();
        set.0.withdraw().unwrap();
        assert_eq!((end(), set.names()), (None, vec![]));
    }
}
