//! Opening files beneath a directory, and nowhere else. No symbolic link is followed.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use super::status::Status;

/// Opens what it is without opening it: no device wakes up, no FIFO waits.
const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The longest name of a file.
const LONGEST_NAME: usize = 255;
/// How often a path is tried again that was changed while it was resolved.
const ATTEMPTS: usize = 8;

/// Opens a path beneath a directory; the empty path is the directory.
pub(super) fn open(dir: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    if path.as_os_str().is_empty() {
        return openat(dir, ".", LOOK, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..ATTEMPTS {
        match openat2(dir, path, LOOK, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            // Kernels before 5.6, sandboxes that do not know it, and paths that are too long at once.
            Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG) => return walk(dir, path),
            done => return done,
        }
    }
    walk(dir, path)
}

/// Does the same a name at a time.
fn walk(dir: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let mut at = openat(dir, ".", LOOK, Mode::empty())?;
    for component in path.components() {
        let Component::Normal(name) = component else { return Err(Errno::INVAL) };
        at = openat(&at, name, LOOK, Mode::empty())?;
    }
    Ok(at)
}

/// Opens a directory of the host by its absolute path, in which no symbolic link may be.
pub(super) fn open_root(path: &Path) -> Result<OwnedFd, Errno> {
    let slash = openat(CWD, "/", LOOK | OFlags::DIRECTORY, Mode::empty())?;
    open(slash.as_fd(), path.strip_prefix("/").map_err(|_| Errno::INVAL)?)
}

/// Opens a name in a directory.
pub(super) fn child(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, LOOK, Mode::empty())
}

/// Opens for reading or writing what [`open`] has found. The caller knows that it is a regular file or a
/// directory.
pub(super) fn reopen(found: impl AsFd, flags: OFlags) -> Result<File, Errno> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(CWD, link(found), flags, Mode::empty()).map(File::from)
}

/// Returns the path of an open file, for calls that take paths alone.
pub(super) fn link(file: impl AsFd) -> String {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())
}

/// Checks a name that the guest sends.
pub(super) fn checked(name: &[u8]) -> Result<&OsStr, Status> {
    use std::os::unix::ffi::OsStrExt;
    match name {
        b"" | b"." | b".." => Err(Status::Invalid),
        _ if name.len() > LONGEST_NAME => Err(Status::NameTooLong),
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Err(Status::Invalid),
        _ => Ok(OsStr::from_bytes(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("/etc", root.join("etc")).unwrap();
        symlink("a", root.join("in")).unwrap();
        let fd = File::open(&root).unwrap();
        for path in ["a/../..", "../secret", "up/secret", "etc/passwd", "/etc/passwd", "in/b"] {
            assert!(open(fd.as_fd(), Path::new(path)).is_err(), "{path}");
            assert!(walk(fd.as_fd(), Path::new(path)).is_err(), "{path}");
        }
        for path in ["a/b", "a", "up", "in", ""] {
            assert!(open(fd.as_fd(), Path::new(path)).is_ok(), "{path}");
            assert!(walk(fd.as_fd(), Path::new(path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_walked() {
        let dir = tempfile::tempdir().unwrap();
        let (mut at, mut path) =
            (openat(CWD, dir.path(), LOOK, Mode::empty()).unwrap(), "x".repeat(200));
        let name = path.clone();
        for _ in 0..25 {
            rustix::fs::mkdirat(&at, &name, Mode::RWXU).unwrap();
            at = child(&at, OsStr::new(&name)).unwrap();
            path = format!("{path}/{name}");
        }
        let root = openat(CWD, dir.path(), LOOK, Mode::empty()).unwrap();
        assert!(path.len() > 4096);
        assert_eq!(open(root.as_fd(), Path::new(&path)).unwrap_err(), Errno::NOENT);
        assert!(open(root.as_fd(), Path::new(&path[..path.len() - 201])).is_ok());
    }

    #[test]
    fn names_are_names() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(checked(bad).is_err());
        }
        assert!(checked(b"...").is_ok() && checked(&[0xff]).is_ok());
    }
}
