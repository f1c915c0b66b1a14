//! A directory of CGI programs: finds the program of a request, and checks the file that it has opened.
//!
//! A binary runs by the descriptor of that file. A `#!` script runs by its path, which its interpreter gets: between the
//! check and the start, a user that may write to its directory can put another file in its place.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlink, readlinkat};
use nix::libc::mode_t;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{AccessFlags, access};

use super::super::cgi::BadPath;
use super::script_path::ScriptPath;
use crate::config::ScriptsConfig;

/// A program of the directory.
#[derive(Debug)]
pub(super) struct Script {
    /// The file that was checked.
    file: OwnedFd,
    has_interpreter: bool,
    /// Its path below the directory as configured: `SCRIPT_FILENAME`, and its first argument.
    pub path: PathBuf,
    /// `SCRIPT_NAME`.
    pub name: OsString,
    /// `PATH_INFO`.
    pub info: OsString,
}

impl Script {
    /// What execve(2) gets, while this value exists.
    pub(super) fn executable(&self) -> PathBuf {
        if self.has_interpreter { self.path.clone() } else { proc_path(&self.file) }
    }
}

/// Why it is unknown whether there is a program.
#[derive(Debug)]
pub(super) enum ScriptError {
    BadPath(BadPath),
    /// The directory cannot be opened, or there is no free descriptor or memory.
    System(io::Error),
}

impl From<Errno> for ScriptError {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// The program for an undecoded path of a URL: the longest prefix that is a file below the directory. `None` if there is
/// none, or it may not run.
pub(super) fn find(scripts: &ScriptsConfig, path: &str) -> Result<Option<Script>, ScriptError> {
    let Some(path) = ScriptPath::parse(path, &scripts.prefix).map_err(ScriptError::BadPath)? else { return Ok(None) };
    let dir = Path::new(&scripts.dir);
    // A link that leads out and is trusted starts another walk, below the directory that it leads to.
    let (mut base, mut walked) = (open(dir, PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty())?, PathBuf::new());
    let owner = fstat(&base)?.st_uid;
    for (count, prefix) in path.prefixes() {
        let below = prefix.strip_prefix(&walked).unwrap_or(&prefix);
        let mut leads_out = false;
        let opened = open_beneath(&base, below, OFlag::empty()).or_else(|error| {
            leads_out = error == Errno::EXDEV;
            if leads_out { follow_trusted(&base, below, owner) } else { Err(error) }
        });
        let file = match opened {
            Ok(file) => file,
            Err(error @ (Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)) => return Err(error.into()),
            Err(_) => return Ok(None),
        };
        let stat = fstat(&file)?;
        match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR if leads_out => (base, walked) = (file, prefix),
            SFlag::S_IFDIR => {}
            SFlag::S_IFREG if may_run(&file, &stat) => {
                let (name, info) = path.split(&scripts.prefix, count);
                let has_interpreter = starts_with_interpreter(&file);
                return Ok(Some(Script { file, has_interpreter, path: dir.join(prefix), name, info }));
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

const PATH_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Opens a path below `base`; EXDEV if a link leads out (openat2(2)).
fn open_beneath(base: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match openat2(base, path, OpenHow::new().flags(PATH_ONLY | flags).resolve(resolve)) {
        // In a unit: systemd cannot look into its argument, and rejects it with RestrictSUIDSGID=.
        Err(Errno::ENOSYS) => open_and_compare(base, path, flags),
        opened => opened,
    }
}

/// The same where there is no openat2(2): opens the path, and looks then at where the open file is.
fn open_and_compare(base: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let file = openat(base, path, PATH_ONLY | flags, Mode::empty())?;
    let place = |file: &OwnedFd| readlink(&proc_path(file)).map(PathBuf::from);
    if place(&file)?.starts_with(place(base)?) { Ok(file) } else { Err(Errno::EXDEV) }
}

/// What a link leads to. All segments before it are below `base`. Its owner has decided where it leads, and must be root
/// or the owner of the directory.
fn follow_trusted(base: &OwnedFd, path: &Path, owner: u32) -> nix::Result<OwnedFd> {
    let link = open_beneath(base, path, OFlag::O_NOFOLLOW)?;
    let stat = fstat(&link)?;
    let is_link = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits();
    if !is_link || ![0, owner].contains(&stat.st_uid) {
        return Err(Errno::ELOOP);
    }
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let above = above.map(|above| open_beneath(base, above, OFlag::O_DIRECTORY)).transpose()?;
    // The text of the link that was checked.
    let target = readlinkat(&link, "")?;
    openat(above.as_ref().unwrap_or(base), target.as_os_str(), PATH_ONLY, Mode::empty())
}

/// Whether the worker may execute it, with no other rights than its own.
fn may_run(file: &OwnedFd, stat: &FileStat) -> bool {
    const SET_ID: mode_t = Mode::S_ISUID.union(Mode::S_ISGID).bits();
    stat.st_mode & SET_ID == 0 && access(&proc_path(file), AccessFlags::X_OK).is_ok()
}

/// One that cannot be read is none: its interpreter could not read it either.
fn starts_with_interpreter(file: &OwnedFd) -> bool {
    let mut start = [0; 2];
    File::open(proc_path(file)).and_then(|mut file| file.read_exact(&mut start)).is_ok() && start == *b"#!"
}

/// A path that leads to an open file in this process, and in a child until it executes a program.
fn proc_path(file: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};

    /// A directory that is removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("patou-scripts-{}-{name}", std::process::id()));
            for sub in ["cgi/sub", "outside"] {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
            Self(dir)
        }

        fn file(&self, path: &str, mode: u32) {
            fs::write(self.0.join(path), "#!/bin/sh\n").unwrap();
            fs::set_permissions(self.0.join(path), fs::Permissions::from_mode(mode)).unwrap();
        }

        fn link(&self, target: &str, path: &str) {
            symlink(target.replace("TOP", self.0.to_str().unwrap()), self.0.join(path)).unwrap();
        }

        /// Path below the directory, and PATH_INFO, of the program for a URL.
        fn find(&self, path: &str) -> Option<(String, String)> {
            let scripts = ScriptsConfig { dir: self.0.join("cgi").display().to_string(), prefix: "/cgi-bin".into() };
            let script = find(&scripts, path).unwrap()?;
            let below = script.path.strip_prefix(&scripts.dir).unwrap().display().to_string();
            assert_eq!(script.name, format!("/cgi-bin/{below}").as_str());
            Some((below, script.info.into_string().unwrap()))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn links_lead_out_of_a_directory_with_and_without_openat2() {
        let scratch = Scratch::new("compare");
        scratch.file("cgi/sub/a", 0o755);
        scratch.file("outside/b", 0o755);
        scratch.link("sub/a", "cgi/inside");
        scratch.link("../outside/b", "cgi/out");
        scratch.link("TOP/outside", "cgi/away");
        scratch.link("TOP/cgi/sub/none", "cgi/broken");
        let base = open(&scratch.0.join("cgi"), PATH_ONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        for path in ["sub", "sub/a", "inside", "sub/a/x", "none", "out", "away", "away/b"] {
            let compared = open_and_compare(&base, path.as_ref(), OFlag::empty()).map(drop);
            assert_eq!(compared, open_beneath(&base, path.as_ref(), OFlag::empty()).map(drop), "{path}");
        }
        let link = open_and_compare(&base, "out".as_ref(), OFlag::O_NOFOLLOW);
        assert!(link.is_ok(), "the link itself is below: {link:?}");
        assert!(open_and_compare(&base, "broken".as_ref(), OFlag::empty()).is_err());
    }

    #[test]
    fn longest_prefix_that_is_a_program_runs_and_nothing_else() {
        let scratch = Scratch::new("prefix");
        for (path, mode) in [
            ("cgi/a", 0o755),
            ("cgi/sub/b", 0o755),
            ("cgi/sub/.hidden", 0o755),
            ("cgi/data", 0o644),
            ("cgi/setuid", 0o4755),
            ("cgi/setgid", 0o2755),
            ("outside/c", 0o755),
        ] {
            scratch.file(path, mode);
        }
        nix::unistd::mkfifo(&scratch.0.join("cgi/fifo"), Mode::from_bits_truncate(0o755)).unwrap();
        let found = |below: &str, info: &str| Some((below.to_owned(), info.to_owned()));
        for (path, expected) in [
            ("/cgi-bin/a", found("a", "")),
            ("/cgi-bin/a/", found("a", "/")),
            ("/cgi-bin/a/x%20y/.git//z", found("a", "/x y/.git//z")),
            ("/cgi-bin/sub/b/c", found("sub/b", "/c")),
            ("/cgi-bin/%61", found("a", "")),
            ("/cgi-bin", None),
            ("/cgi-bin/", None),
            ("/cgi-bin/sub", None),
            ("/cgi-bin/sub/", None),
            ("/cgi-bin/none", None),
            ("/cgi-bin/none/a", None),
            ("/cgi-bin/data", None),
            ("/cgi-bin/data/a", None),
            ("/cgi-bin/fifo", None),
            ("/cgi-bin/setuid", None),
            ("/cgi-bin/setgid/x", None),
            ("/cgi-bin/sub/.hidden", None),
            ("/cgi-bin/sub/../a", None),
            ("/cgi-bin/a/../../outside/c", None),
            ("/cgi-bin/..%2foutside/c", None),
            ("/cgi-bin/a%00", None),
            ("/cgi-bin//a", None),
            ("/a", None),
        ] {
            assert_eq!(scratch.find(path), expected, "{path}");
        }
        // Where root is refused as well, the file itself has no right.
        let long = "x".repeat(5000);
        assert_eq!(scratch.find(&format!("/cgi-bin/{long}")), None);
    }

    #[test]
    fn links_lead_out_only_if_their_owner_is_trusted() {
        let scratch = Scratch::new("links");
        scratch.file("cgi/a", 0o755);
        scratch.file("outside/c", 0o755);
        scratch.file("outside/data", 0o644);
        for (target, path) in [
            ("a", "cgi/inside"),
            ("../cgi/a", "cgi/back"),
            ("../outside/c", "cgi/relative"),
            ("TOP/outside/c", "cgi/absolute"),
            ("../../outside/c", "cgi/sub/deep"),
            ("../outside", "cgi/dir"),
            ("absolute", "cgi/chain"),
            ("../outside/data", "cgi/plain"),
            ("nowhere", "cgi/dangling"),
            ("loop", "cgi/loop"),
            ("/proc/self/exe", "cgi/magic"),
        ] {
            scratch.link(target, path);
        }
        let runs = |path: &str| scratch.find(&format!("/cgi-bin/{path}")).is_some();
        let out = ["relative", "absolute", "sub/deep", "dir/c", "dir/c/info", "back"];
        for path in out.iter().chain(&["inside"]) {
            assert!(runs(path), "{path}");
        }
        for path in ["plain", "dangling", "loop", "dir", "dir/data", "dir/..", "dir/none"] {
            assert!(!runs(path), "{path}");
        }
        if !nix::unistd::geteuid().is_root() {
            return; // an ordinary user cannot give links away
        }
        // The same links of another user.
        for path in ["relative", "absolute", "sub/deep", "dir", "back", "inside"] {
            lchown(scratch.0.join("cgi").join(path), Some(12345), None).unwrap();
        }
        for path in out {
            assert!(!runs(path), "{path}");
        }
        assert!(runs("inside"));
        // The owner of the directory is trusted.
        chown(scratch.0.join("cgi"), Some(12345), None).unwrap();
        assert!(out.iter().all(|path| runs(path)));
        // A trusted link to an untrusted one that stays below.
        assert!(!runs("../outside/c"));
    }
}
