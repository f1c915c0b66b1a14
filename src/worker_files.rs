//! Whether the workers of a pool can use the files that the pool names, before a configuration is applied: with the rights
//! of their user, and through the sandbox of their unit. A worker looks again when it starts the program.

use std::env;
use std::ffi::OsStr;
use std::fmt::Write;
use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{AccessFlags, Uid, User, access};

use crate::config::{FastcgiHandler, HandlerConfig, PoolConfig, UnusableFile, placeholder};
use crate::executable;
use crate::units::Sandbox;

/// How many scripts may be interpreters of each other (execve(2)).
const INTERPRETERS_MAX: u32 = 4;

/// What the workers of a pool cannot use, if they run as this user and without a sandbox.
pub(crate) fn unusable_files(pool: &PoolConfig) -> Vec<UnusableFile> {
    PoolAccess { user: None, sandbox: None }.unusable_files(pool, &executable::search_path(&pool.environment))
}

/// How the workers of a pool see the file system.
pub(crate) struct PoolAccess<'v> {
    /// Their user; `None` for that of this process.
    pub user: Option<&'v User>,
    /// The sandbox of their unit.
    pub sandbox: Option<&'v Sandbox>,
}

impl PoolAccess<'_> {
    /// What workers in units cannot use.
    pub(crate) fn unusable_files_of_unit(&self, pool: &PoolConfig) -> Vec<UnusableFile> {
        let path = pool.environment.get("PATH").map_or(executable::DEFAULT_PATH, String::as_str);
        self.unusable_files(pool, path.as_ref())
    }

    /// What the workers cannot use; `path` is the search path. What depends on the number of a worker is not judged.
    fn unusable_files(&self, pool: &PoolConfig, path: &OsStr) -> Vec<UnusableFile> {
        let mut unusable = Vec::new();
        let mut add = |key: &str, found: &str, expected: String| {
            unusable.push(UnusableFile { key: key.to_owned(), found: found.to_owned(), expected });
        };
        let dir = Path::new(&pool.working_dir);
        let has_dir = !pool.working_dir.is_empty() && !placeholder::has_number(&pool.working_dir);
        if has_dir && let Some(why) = self.obstacle(dir, AccessFlags::X_OK) {
            add("working_dir", &pool.working_dir, format!("a directory that the workers can enter: {why}"));
        } else if let Some(name) = pool.handler.command().first()
            && !placeholder::has_number(name)
            && !placeholder::has_number(&pool.working_dir)
            && let Some(expected) = self.unusable_program(name, path, has_dir.then_some(dir), 0)
        {
            add(&format!("handler.{}", pool.handler.name()), name, expected);
        }
        if let HandlerConfig::Scripts(scripts) = &pool.handler
            && !placeholder::has_number(&scripts.dir)
            && let Some(why) = self.obstacle(Path::new(&scripts.dir), AccessFlags::X_OK)
        {
            add("handler.scripts", &scripts.dir, format!("a directory that the workers can enter: {why}"));
        }
        if !pool.spool_dir.is_empty()
            && let Some(why) = self.obstacle(Path::new(&pool.spool_dir), AccessFlags::W_OK | AccessFlags::X_OK)
        {
            add("spool_dir", &pool.spool_dir, format!("a directory that the workers can write to: {why}"));
        }
        if let HandlerConfig::Fastcgi(FastcgiHandler { root, .. }) = &pool.handler
            && !root.is_empty()
            && let Some(why) = self.obstacle(Path::new(root), AccessFlags::X_OK)
        {
            add("handler.root", root, format!("a directory that the workers can enter: {why}"));
        }
        unusable
    }

    /// What should stand in place of a program that the workers cannot execute.
    fn unusable_program(&self, name: &str, path: &OsStr, dir: Option<&Path>, depth: u32) -> Option<String> {
        if name.contains('/') {
            let file = dir.unwrap_or(Path::new("")).join(name);
            // A file in a directory that this process cannot look into may exist.
            if fs::metadata(&file).is_ok_and(|found| !found.is_file()) {
                return Some("the path of an executable file".to_owned());
            }
            let why = self.program_obstacle(&file, path, depth)?;
            return Some(format!("the path of an executable file: {why}"));
        }
        let mut found = env::split_paths(path).map(|dir| dir.join(name)).filter(|file| file.is_file()).peekable();
        if found.peek().is_none() {
            return Some(format!("an executable program in PATH ({})", path.to_string_lossy()));
        }
        let mut obstacles: Vec<Option<String>> = found.map(|file| self.program_obstacle(&file, path, depth)).collect();
        if obstacles.contains(&None) {
            return None;
        }
        Some(format!("an executable program in PATH ({}): {}", path.to_string_lossy(), obstacles.swap_remove(0)?))
    }

    /// Why the workers cannot execute a file, if they cannot: also the interpreter of a script.
    fn program_obstacle(&self, file: &Path, path: &OsStr, depth: u32) -> Option<String> {
        if let Some(why) = self.obstacle(file, AccessFlags::X_OK) {
            return Some(why);
        }
        let (interpreter, argument) = interpreter(file)?;
        if depth >= INTERPRETERS_MAX {
            return Some(format!("{} is a script whose interpreters are scripts themselves", file.display()));
        }
        if let Some(why) = self.obstacle(file, AccessFlags::R_OK) {
            return Some(format!("its interpreter must read it, and {why}"));
        }
        if let Some(why) = self.program_obstacle(Path::new(&interpreter), path, depth + 1) {
            return Some(format!("its interpreter {interpreter} cannot be executed: {why}"));
        }
        // #!/usr/bin/env PROGRAM
        let is_env = Path::new(&interpreter).file_name() == Some("env".as_ref());
        let program = argument.filter(|argument| is_env && !argument.starts_with('-') && !argument.contains('='))?;
        let expected = self.unusable_program(&program, path, None, depth + 1)?;
        Some(format!("its interpreter {program} is not {expected}"))
    }

    /// Why the workers cannot use `file` in this way, if they cannot.
    fn obstacle(&self, file: &Path, mode: AccessFlags) -> Option<String> {
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let real = fs::canonicalize(&absolute);
        if let Some(sandbox) = self.sandbox {
            let paths = std::iter::once(&absolute).chain(&real);
            if let Some(why) = paths.clone().find_map(|path| sandbox.hides(path)) {
                return Some(why);
            }
            if mode.contains(AccessFlags::W_OK)
                && let Some(why) = paths.last().and_then(|path| sandbox.is_read_only(path))
            {
                return Some(why);
            }
        }
        let is_missing = real.as_ref().is_err_and(|error| error.kind() != std::io::ErrorKind::PermissionDenied);
        if is_missing {
            return Some(format!("{} does not exist", absolute.display()));
        }
        // Each process may be in a group of its own, so that the names of a directory say nothing to another user.
        let target = real.unwrap_or(absolute);
        if self.may(&target, mode) {
            return None;
        }
        let account = self.user.map_or_else(|| "this user".to_owned(), |user| format!("user {}", user.name));
        let ancestors: Vec<&Path> = target.ancestors().skip(1).collect();
        if let Some(dir) = ancestors.into_iter().rev().find(|dir| !self.may(dir, AccessFlags::X_OK)) {
            return Some(format!("{account} may not enter the directory {}{}", dir.display(), access_of(dir)));
        }
        let is_no_exec = || statvfs(&target).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_NOEXEC));
        if mode == AccessFlags::X_OK && target.is_file() && is_no_exec() {
            return Some(format!("the file system of {} is mounted with noexec", target.display()));
        }
        let what = match mode {
            AccessFlags::R_OK => "read",
            AccessFlags::X_OK if target.is_dir() => "enter",
            AccessFlags::X_OK => "execute",
            _ => "write to",
        };
        Some(format!("{account} may not {what} {}{}", target.display(), access_of(&target)))
    }

    /// Whether the workers have this access. Only root can find that out for another user.
    fn may(&self, path: &Path, mode: AccessFlags) -> bool {
        let Some(user) = self.user.filter(|user| user.uid != Uid::effective()) else {
            return access(path, mode).is_ok();
        };
        if !Uid::effective().is_root() {
            return true;
        }
        let tests = [(AccessFlags::R_OK, "-r"), (AccessFlags::W_OK, "-w"), (AccessFlags::X_OK, "-x")];
        tests.iter().filter(|(flag, _)| mode.contains(*flag)).all(|(_, option)| may_as(user, path, option))
    }
}

/// Whether a user passes a test of test(1). Modes alone do not tell: access control lists and capabilities count too.
fn may_as(user: &User, path: &Path, option: &str) -> bool {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid), "--init-groups".to_owned()]);
    command.args(["--inh-caps=-all", "--", "test", option]).arg(path);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    // Without setpriv(1) the start will show it. 1: the test failed.
    !status.is_ok_and(|status| status.code() == Some(1))
}

/// The interpreter of a script and its argument (execve(2)); `None` for another file, and one that cannot be read.
fn interpreter(file: &Path) -> Option<(String, Option<String>)> {
    let mut start = [0; 256];
    let mut length = 0;
    let mut file = File::open(file).ok()?;
    while length < start.len() {
        match file.read(&mut start[length..]) {
            Ok(0) | Err(_) => break,
            Ok(count) => length += count,
        }
    }
    let line = start[..length].strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let mut words = line.split_whitespace();
    Some((words.next()?.to_owned(), words.next().map(str::to_owned)))
}

/// Mode and owner of a file in words, as far as they can be seen.
fn access_of(path: &Path) -> String {
    let Ok(metadata) = fs::metadata(path) else { return String::new() };
    let name = |found: Option<String>, number: u32| found.unwrap_or_else(|| number.to_string());
    let owner = name(User::from_uid(metadata.uid().into()).ok().flatten().map(|user| user.name), metadata.uid());
    let group = nix::unistd::Group::from_gid(metadata.gid().into()).ok().flatten().map(|group| group.name);
    let mut text = String::new();
    let mode = Metadata::permissions(&metadata).mode() & 0o7777;
    let _ = write!(text, " (mode {mode:04o}, owner {owner}:{})", name(group, metadata.gid()));
    text
}

/// The directory of a socket that cannot be bound because it does not exist. What is below `made` is made by the start.
pub(crate) fn missing_directory(socket: &Path, made: &Path) -> Option<PathBuf> {
    let dir = socket.parent().filter(|dir| !dir.as_os_str().is_empty())?;
    (!dir.starts_with(made) && !dir.is_dir()).then(|| dir.to_owned())
}
