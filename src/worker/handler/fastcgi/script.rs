//! Which script of a directory a request is for.
//!
//! The path is decoded part by part, and each part is looked up in the directory that the parts before it lead to. The
//! first part that is a file is the script if its name has a listed extension, and `PATH_INFO` is what follows; any other
//! file is not served, and nothing that follows it either. A path that leads to no file is that of the front controller.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use http::{HeaderValue, Uri};
use nix::libc;

use super::super::cgi;
use crate::config::FastcgiHandler;

/// The directory of the scripts of a pool.
#[derive(Clone, Debug)]
pub(crate) struct ScriptRoot {
    root: PathBuf,
    /// The script of a directory, and in `root` the front controller.
    index: Option<String>,
    extensions: Vec<String>,
}

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Located {
    Script(FastcgiScript),
    /// A directory with an index, whose path does not end with a slash: the path that does, with the query.
    Directory(HeaderValue),
}

/// A script, with the variables of RFC 3875 (section 4.1) as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FastcgiScript {
    /// `SCRIPT_NAME`: the path of the script in the directory.
    pub name: Vec<u8>,
    pub path_info: Vec<u8>,
    /// `DOCUMENT_ROOT`.
    pub root: PathBuf,
}

/// There is no script for the request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct NoScript(&'static str);

const NOT_FOUND: NoScript = NoScript("no script of this pool has the path of the request");

/// What a part of a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Directory,
    File,
    Nothing,
    /// A link out of the directory, or what is neither a file nor a directory.
    Forbidden,
}

impl ScriptRoot {
    /// The directory in the configuration; `None` for an application without scripts.
    pub(in super::super) fn of(handler: &FastcgiHandler) -> Option<Self> {
        let (root, extensions) = (PathBuf::from(&handler.root), handler.extensions.clone());
        let index = Some(handler.index.clone()).filter(|index| !index.is_empty());
        (!handler.root.is_empty()).then_some(Self { root, index, extensions })
    }

    /// Finds what the request is for.
    ///
    /// # Errors
    /// [`NoScript`].
    pub(super) fn locate(&self, uri: &Uri) -> Result<Located, NoScript> {
        let raw: Vec<&str> = uri.path().split('/').skip(1).collect();
        let parts = decode_parts(&raw)?;
        let named: Vec<&[u8]> = parts.iter().map(Vec::as_slice).filter(|part| !part.is_empty()).collect();
        // Links are resolved before the comparison, also those in the path of the root.
        let root = fs::canonicalize(&self.root).map_err(|_| NOT_FOUND)?;
        let mut name = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            if part.is_empty() {
                continue;
            }
            if part.starts_with(b".") {
                return self.front_controller(&root, &parts); // as if it did not exist
            }
            name.push(b'/');
            name.extend_from_slice(part);
            match find(&root, &name) {
                Found::Directory => {}
                Found::File if self.has_extension(part) => {
                    return Ok(Located::Script(self.script(name, path_info(&parts[at + 1..]))));
                }
                Found::Nothing => return self.front_controller(&root, &parts),
                Found::File | Found::Forbidden => return Err(NOT_FOUND),
            }
        }
        let Some(index) = &self.index else { return Err(NOT_FOUND) };
        name.push(b'/');
        name.extend_from_slice(index.as_bytes());
        if find(&root, &name) != Found::File {
            return self.front_controller(&root, &parts);
        }
        if !named.is_empty() && !uri.path().ends_with('/') {
            return directory(&raw, uri.query()).map(Located::Directory);
        }
        Ok(Located::Script(self.script(name, Vec::new())))
    }

    fn front_controller(&self, root: &Path, parts: &[Vec<u8>]) -> Result<Located, NoScript> {
        let index = self.index.as_ref().ok_or(NOT_FOUND)?;
        let name = format!("/{index}").into_bytes();
        match find(root, &name) {
            Found::File => Ok(Located::Script(self.script(name, path_info(parts)))),
            _ => Err(NOT_FOUND),
        }
    }

    fn script(&self, name: Vec<u8>, path_info: Vec<u8>) -> FastcgiScript {
        FastcgiScript { name, path_info, root: self.root.clone() }
    }

    fn has_extension(&self, name: &[u8]) -> bool {
        self.extensions.iter().any(|end| name.len() > end.len() && name.ends_with(end.as_bytes()))
    }
}

impl FastcgiScript {
    /// `SCRIPT_FILENAME`: `root`, then `SCRIPT_NAME`.
    pub(super) fn file_name(&self) -> Vec<u8> {
        self.below_root(&self.name)
    }

    /// `PATH_TRANSLATED` (RFC 3875 section 4.1.6); `None` without `PATH_INFO`.
    pub(super) fn path_translated(&self) -> Option<Vec<u8>> {
        (!self.path_info.is_empty()).then(|| self.below_root(&self.path_info))
    }

    fn below_root(&self, path: &[u8]) -> Vec<u8> {
        let root = self.root.as_os_str().as_bytes();
        [root.strip_suffix(b"/").unwrap_or(root), path].concat()
    }
}

/// The parts of a path.
///
/// # Errors
/// When the path is not one of a file beneath the directory: it has `.` or `..`, a slash or a NUL in a part, or an invalid
/// encoding.
fn decode_parts(raw: &[&str]) -> Result<Vec<Vec<u8>>, NoScript> {
    let decode = |part: &&str| {
        let decoded = cgi::decode(part.as_bytes()).ok()?;
        let is_valid = decoded != b"." && decoded != b".." && !decoded.contains(&b'/') && !decoded.contains(&0);
        is_valid.then_some(decoded)
    };
    raw.iter().map(decode).collect::<Option<_>>().ok_or(NoScript(
        "the path of the request has an invalid percent-encoding, or `.`, `..`, `%2f` or `%00` in a part of it",
    ))
}

fn path_info(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.iter().flat_map(|part| [b"/", part.as_slice()].concat()).collect()
}

/// The path of a directory, with a slash at its end. Of several slashes that follow each other it has one: it would name
/// another host otherwise.
fn directory(raw: &[&str], query: Option<&str>) -> Result<HeaderValue, NoScript> {
    let mut location: String = raw.iter().filter(|part| !part.is_empty()).flat_map(|part| ["/", part]).collect();
    location.push('/');
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    HeaderValue::try_from(location).map_err(|_| NOT_FOUND)
}

/// What is at `path` in `root`, which has no links in it. What is found is opened first and looked at then, so that it is
/// one and the same file.
fn find(root: &Path, path: &[u8]) -> Found {
    let relative = Path::new(OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path)));
    let file = match File::options().read(true).custom_flags(libc::O_PATH).open(root.join(relative)) {
        Ok(file) => file,
        Err(error) if is_missing(&error) => return Found::Nothing,
        Err(_) => return Found::Forbidden,
    };
    let real = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let is_beneath = real.is_ok_and(|real| real.starts_with(root));
    match file.metadata() {
        Ok(found) if is_beneath && found.is_dir() => Found::Directory,
        Ok(found) if is_beneath && found.is_file() => Found::File,
        _ => Found::Forbidden,
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("patou-scripts-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            for sub in ["root/dir/deep", "root/empty", "root/.hidden", "outside"] {
                fs::create_dir_all(dir.join(sub)).unwrap();
            }
            for file in [
                "root/index.php",
                "root/a b.php",
                "root/upload.jpg",
                "root/dir/index.php",
                "root/.hidden/x.php",
                "root/dir/.secret.php",
                "root/.php",
                "outside/x.php",
            ] {
                fs::write(dir.join(file), "").unwrap();
            }
            symlink("../outside", dir.join("root/out")).unwrap();
            symlink("../outside/x.php", dir.join("root/out.php")).unwrap();
            symlink("a b.php", dir.join("root/in.php")).unwrap();
            symlink("root", dir.join("current")).unwrap();
            Self(dir)
        }

        fn root(&self, index: &str) -> ScriptRoot {
            self.at("root", index)
        }

        fn at(&self, root: &str, index: &str) -> ScriptRoot {
            let handler = FastcgiHandler {
                fastcgi: Vec::new(),
                root: self.0.join(root).to_str().unwrap().to_owned(),
                index: index.to_owned(),
                extensions: vec![".php".to_owned()],
            };
            ScriptRoot::of(&handler).unwrap()
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn locate(root: &ScriptRoot, path: &str) -> Option<(String, String)> {
        match root.locate(&path.parse().unwrap()).ok()? {
            Located::Script(script) => {
                Some((String::from_utf8(script.name).unwrap(), String::from_utf8(script.path_info).unwrap()))
            }
            Located::Directory(location) => Some(("301".to_owned(), location.to_str().unwrap().to_owned())),
        }
    }

    fn found(name: &str, path_info: &str) -> Option<(String, String)> {
        Some((name.to_owned(), path_info.to_owned()))
    }

    #[test]
    fn script_is_the_first_file_of_the_path() {
        let tree = Tree::new("first");
        for root in [tree.root(""), tree.root("index.php"), tree.at("current", "")] {
            assert_eq!(locate(&root, "/a%20b.php?x=1"), found("/a b.php", ""));
            assert_eq!(locate(&root, "/a%20b.php/c%C3%A9//d/"), found("/a b.php", "/cé//d/"));
            assert_eq!(locate(&root, "//dir//index.php"), found("/dir/index.php", ""));
            assert_eq!(locate(&root, "/in.php"), found("/in.php", ""));
        }
        let Ok(Located::Script(script)) = tree.root("").locate(&"/in.php/x".parse().unwrap()) else { panic!() };
        let root = tree.0.join("root");
        let root = root.as_os_str().as_bytes();
        assert_eq!(script.file_name(), [root, b"/in.php"].concat());
        assert_eq!(script.path_translated(), Some([root, b"/x"].concat()));
    }

    #[test]
    fn what_is_no_script_is_not_found() {
        let tree = Tree::new("none");
        let root = tree.root("");
        for path in ["/", "/none", "/dir/", "/dir", "/.php", "/.hidden/x.php", "/dir/.secret.php", "*"] {
            assert_eq!(locate(&root, path), None, "{path}");
        }
        for root in [root, tree.root("index.php")] {
            for path in [
                "/upload.jpg",
                "/upload.jpg/x.php",
                "/upload.jpg/",
                "/out/x.php",
                "/out.php",
                "/dir/../index.php",
                "/dir/%2e%2e/index.php",
                "/dir%2findex.php",
                "/a%20b.php%00.jpg",
                "/a%20b.php/..",
                "/a%20b.php/%2F",
                "/%",
                "/./index.php",
                "/../outside/x.php",
            ] {
                assert_eq!(locate(&root, path), None, "{path}");
            }
        }
    }

    #[test]
    fn index_is_that_of_a_directory_and_the_front_controller() {
        let tree = Tree::new("index");
        let root = tree.root("index.php");
        assert_eq!(locate(&root, "/"), found("/index.php", ""));
        assert_eq!(locate(&root, "/dir/"), found("/dir/index.php", ""));
        assert_eq!(locate(&root, "/dir?a=b"), found("301", "/dir/?a=b"));
        assert_eq!(locate(&root, "//dir"), found("301", "/dir/"));
        for path in ["/blog/2026", "/none.php", "/dir/none", "/empty/", "/.well-known/caldav", "/.hidden/x.php"] {
            assert_eq!(locate(&root, path), found("/index.php", path), "{path}");
        }
        assert_eq!(locate(&tree.root("none.php"), "/x"), None);
    }
}
