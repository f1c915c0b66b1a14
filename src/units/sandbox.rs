//! What the sandbox of a worker's unit hides: its unit file, and the operator's drop-ins, as systemd.exec(5) reads them.

use std::path::{Path, PathBuf};

/// The packaged unit file.
const UNIT: &str = include_str!("../../systemd/patou-worker@.service");

/// The file system as a worker's unit shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sandbox {
    hides_home: bool,
    private_tmp: bool,
    is_read_only: bool,
    /// Visible in spite of the above.
    bound: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    /// A drop-in changes the view in a way that only the kernel can evaluate, such as another root directory.
    is_unknown: bool,
    /// A drop-in changes the user of the workers.
    changes_user: bool,
}

impl Sandbox {
    /// That of the unit with these drop-ins, in the order in which systemd applies them.
    pub(crate) fn new(drop_ins: &[String]) -> Self {
        let mut sandbox = Self::default();
        let mut section = "";
        for line in std::iter::once(UNIT).chain(drop_ins.iter().map(String::as_str)).flat_map(str::lines) {
            let line = line.trim();
            if line.starts_with('[') {
                section = line;
            } else if let (Some((key, value)), "[Service]") = (line.split_once('='), section) {
                sandbox.apply(key.trim(), value.trim());
            }
        }
        // What it has by itself is not the operator's.
        sandbox.changes_user = drop_ins.iter().flat_map(|text| text.lines()).any(|line| {
            let key = line.split_once('=').map_or("", |(key, _)| key.trim());
            ["User", "Group", "SupplementaryGroups", "DynamicUser"].contains(&key)
        });
        sandbox
    }

    fn apply(&mut self, key: &str, value: &str) {
        let is_yes = ["yes", "true", "on", "1"].contains(&value);
        match key {
            "ProtectHome" => self.hides_home = is_yes || value == "tmpfs",
            "PrivateTmp" => self.private_tmp = is_yes || value == "disconnected",
            "ProtectSystem" => self.is_read_only = value == "strict",
            "ReadWritePaths" => extend(&mut self.writable, value, "", |path| path),
            "BindPaths" | "BindReadOnlyPaths" => {
                // SOURCE:DESTINATION:OPTIONS.
                extend(&mut self.bound, value, "", |path| path.split(':').nth(1).unwrap_or(path));
                if key == "BindPaths" {
                    extend(&mut self.writable, value, "", |path| path.split(':').nth(1).unwrap_or(path));
                }
            }
            "StateDirectory" => extend(&mut self.writable, value, "/var/lib/", |path| path),
            "CacheDirectory" => extend(&mut self.writable, value, "/var/cache/", |path| path),
            "LogsDirectory" => extend(&mut self.writable, value, "/var/log/", |path| path),
            "RuntimeDirectory" => extend(&mut self.writable, value, "/run/", |path| path),
            "RootDirectory"
            | "RootImage"
            | "TemporaryFileSystem"
            | "InaccessiblePaths"
            | "NoExecPaths"
            | "ExtensionDirectories"
            | "ExtensionImages"
            | "MountImages" => self.is_unknown |= !value.is_empty(),
            _ => {}
        }
    }

    /// Whether another user than the pool's may run the workers.
    pub(crate) fn changes_user(&self) -> bool {
        self.changes_user
    }

    /// Why the workers do not see this absolute path, if they do not.
    pub(crate) fn hides(&self, path: &Path) -> Option<String> {
        let is_below = |dir: &&Path| path.starts_with(dir);
        if self.is_unknown || self.bound.iter().any(|bound| path.starts_with(bound)) {
            return None;
        }
        let home =
            ["/home", "/root", "/run/user"].map(Path::new).into_iter().find(is_below).filter(|_| self.hides_home);
        let tmp = ["/tmp", "/var/tmp"].map(Path::new).into_iter().find(is_below).filter(|_| self.private_tmp);
        let home = home.map(|dir| format!("ProtectHome=yes of their unit hides {} from them", dir.display()));
        home.or_else(|| Some(format!("PrivateTmp=yes of their unit gives them a {} of their own", tmp?.display())))
    }

    /// Why the workers cannot write below this absolute path, if they cannot.
    pub(crate) fn is_read_only(&self, path: &Path) -> Option<String> {
        let is_writable = self.writable.iter().any(|dir| path.starts_with(dir))
            || self.private_tmp && ["/tmp", "/var/tmp"].iter().any(|dir| path.starts_with(dir))
            || path.starts_with("/dev");
        let is_known = self.is_read_only && !self.is_unknown;
        (is_known && !is_writable).then(|| {
            format!(
                "ProtectSystem=strict of their unit makes it read-only; a drop-in needs ReadWritePaths={}",
                path.display()
            )
        })
    }
}

/// Adds the paths of a list to one below `prefix`; an empty list resets it (systemd.syntax(7)).
fn extend<'v>(list: &mut Vec<PathBuf>, value: &'v str, prefix: &str, path_of: impl Fn(&'v str) -> &'v str) {
    if value.is_empty() {
        list.clear();
    }
    let paths = value.split_whitespace().map(|item| path_of(item.trim_start_matches(['-', '+'])));
    list.extend(paths.map(|path| PathBuf::from(format!("{prefix}{path}"))));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden(drop_ins: &[&str], path: &str) -> Option<String> {
        let drop_ins: Vec<String> = drop_ins.iter().map(|text| format!("[Service]\n{text}\n")).collect();
        Sandbox::new(&drop_ins).hides(Path::new(path))
    }

    #[test]
    fn packaged_unit_hides_homes_and_temporary_files_unless_a_drop_in_shows_them() {
        let names = |drop_ins: &[&str], path, setting: &str| hidden(drop_ins, path).unwrap().starts_with(setting);
        for path in ["/home/a/app", "/root/app", "/run/user/1000/app"] {
            assert!(names(&[], path, "ProtectHome=yes of their unit hides /"), "{path}");
        }
        assert!(names(&[], "/tmp/app", "PrivateTmp=yes") && names(&[], "/var/tmp/x/app", "PrivateTmp=yes"));
        assert_eq!(hidden(&[], "/usr/bin/env"), None);
        assert_eq!(hidden(&[], "/homes/app"), None);
        assert_eq!(hidden(&["ProtectHome=read-only"], "/home/a/app"), None);
        assert_eq!(hidden(&["PrivateTmp=no"], "/tmp/app"), None);
        assert!(names(&["ProtectHome=no", "ProtectHome=tmpfs"], "/home/a/app", "ProtectHome=yes"));
        assert_eq!(hidden(&["BindReadOnlyPaths=-/srv/app:/home/a"], "/home/a/app"), None);
        assert!(names(&["BindPaths=/home/b", "BindPaths="], "/home/b/app", "ProtectHome=yes"));
        assert_eq!(hidden(&["RootDirectory=/srv/root"], "/home/a/app"), None, "only the kernel knows");
    }

    #[test]
    fn only_named_paths_are_writable() {
        let read_only = |drop_ins: &[&str], path: &str| {
            let drop_ins: Vec<String> = drop_ins.iter().map(|text| format!("[Service]\n{text}\n")).collect();
            Sandbox::new(&drop_ins).is_read_only(Path::new(path))
        };
        let refused = read_only(&[], "/srv/spool").unwrap();
        assert!(
            refused.contains("ProtectSystem=strict") && refused.ends_with("ReadWritePaths=/srv/spool"),
            "{refused}"
        );
        for path in ["/tmp", "/var/tmp/x", "/run/patou/x", "/dev/shm"] {
            assert_eq!(read_only(&[], path), None, "{path}");
        }
        assert_eq!(read_only(&["ReadWritePaths=/srv/spool"], "/srv/spool/a"), None);
        assert_eq!(read_only(&["StateDirectory=app"], "/var/lib/app"), None);
        assert_eq!(read_only(&["ProtectSystem=full"], "/srv/spool"), None);
    }

    #[test]
    fn user_of_a_drop_in_replaces_that_of_the_pool() {
        assert!(!Sandbox::new(&[]).changes_user());
        assert!(Sandbox::new(&["[Service]\nSupplementaryGroups=www-data\n".to_owned()]).changes_user());
    }
}
