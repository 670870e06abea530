//! The directory that is mounted on: what is there already, whether the host can mount, unmounting.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::FS_NAME;
use crate::programs;

/// Why a directory cannot be mounted on, or unmounted.
#[expect(missing_docs, reason = "each error's sentence says it")]
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{0} does not exist; `mkdir -p {0}` first")]
    Absent(PathBuf),
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("{0} is not empty, and a mount would hide what is in it; take an empty directory")]
    NotEmpty(PathBuf),
    #[error("{0} is mounted already; `aq umount {0}` unmounts it")]
    Mounted(PathBuf),
    #[error("{0} is not a mount of aq")]
    NotOurs(PathBuf),
    #[error("{dir} is in use by {users}; end that, then try again")]
    Busy {
        dir: PathBuf,
        /// `bash (pid 812)`, or that it cannot be seen.
        users: String,
    },
    #[error(
        "/dev/fuse is missing: `sudo modprobe fuse` loads it (in a container: --device /dev/fuse)"
    )]
    NoDevice,
    #[error(
        "/dev/fuse cannot be opened ({0}): `sudo chmod 666 /dev/fuse` is what udev does elsewhere"
    )]
    DeviceDenied(io::Error),
    #[error("fusermount3 is not installed; `apt install fuse3` or your system's package of it")]
    NoFusermount,
    /// fusermount3 mounts without that file, and does not unmount.
    #[error(
        "{what} {dir}: fusermount3 reads /etc/mtab, and {mtab}; `sudo ln -sf /proc/self/mounts \
         /etc/mtab` makes it, then `aq umount {dir}` unmounts"
    )]
    NoMtab {
        what: &'static str,
        dir: PathBuf,
        /// `it is missing`.
        mtab: &'static str,
    },
    #[error("{what} {dir}: {error}")]
    Io { what: &'static str, dir: PathBuf, error: String },
}

/// Makes sure that the tree can be mounted on `dir`, clearing away what a dead daemon left there,
/// and returns its absolute path.
///
/// # Errors
/// What is missing, with its remedy.
pub fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    check_host()?;
    let absolute = std::path::absolute(dir).map_err(|e| io_error("cannot find", dir, &e))?;
    // Attributes may come from the kernel's cache: only the daemon itself can list a directory.
    let probed = fs::metadata(&absolute).and_then(|meta| fs::read_dir(&absolute).map(|_| meta));
    match probed {
        Err(error) if is_left_behind(&error) => detach(&absolute)?,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(MountError::NotADirectory(absolute));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Absent(absolute));
        }
        Err(error) => return Err(io_error("cannot use", &absolute, &error)),
        Ok(meta) if !meta.is_dir() => return Err(MountError::NotADirectory(absolute)),
        Ok(_) => {}
    }
    let dir = fs::canonicalize(&absolute).map_err(|e| io_error("cannot use", &absolute, &e))?;
    if is_ours(&dir) {
        return Err(MountError::Mounted(dir));
    }
    let mut entries = fs::read_dir(&dir).map_err(|e| io_error("cannot read", &dir, &e))?;
    if entries.next().is_some() {
        return Err(MountError::NotEmpty(dir));
    }
    Ok(dir)
}

/// Says whether a directory is a mount whose daemon is gone.
pub fn is_dead(dir: &Path) -> bool {
    fs::read_dir(dir).is_err_and(|error| is_left_behind(&error))
}

/// Says whether a mount's daemon is gone, or is just going.
fn is_left_behind(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Says whether this host can mount at all.
///
/// # Errors
/// What is missing, with its remedy.
pub fn check_host() -> Result<(), MountError> {
    match fs::File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(MountError::DeviceDenied(error));
        }
        Err(_) => return Err(MountError::NoDevice),
    }
    if !rustix::process::geteuid().is_root() && programs::find("fusermount3").is_none() {
        return Err(MountError::NoFusermount);
    }
    Ok(())
}

/// Unmounts our tree.
///
/// # Errors
/// [`MountError::NotOurs`], [`MountError::Busy`].
pub fn unmount(dir: &Path) -> Result<(), MountError> {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    if !is_ours(&dir) {
        return Err(MountError::NotOurs(dir));
    }
    match umount(&dir, Leave::WhenFree) {
        Ok(()) => Ok(()),
        Err(text) if text.contains("busy") => {
            let users = users_of(&dir);
            Err(MountError::Busy { dir, users })
        }
        Err(error) => Err(refused("cannot unmount", dir, error)),
    }
}

/// Says why fusermount3 or umount(2) refused, with what can be done about it.
fn refused(what: &'static str, dir: PathBuf, error: String) -> MountError {
    if !error.contains("/etc/mtab") {
        return MountError::Io { what, dir, error };
    }
    let mtab = if error.contains("not found in") { "it is out of date" } else { "it is missing" };
    MountError::NoMtab { what, dir, mtab }
}

/// Says why an ordinary user can mount here and not unmount.
pub fn unmount_obstacle() -> Option<&'static str> {
    let is_root = rustix::process::geteuid().is_root();
    (!is_root && fs::File::open("/etc/mtab").is_err()).then_some(
        "fusermount3 cannot unmount here, as /etc/mtab is missing; `sudo ln -s /proc/self/mounts \
         /etc/mtab` makes it",
    )
}

/// Detaches a mount at once, also one that is in use.
///
/// # Errors
/// What umount answered.
pub fn detach(dir: &Path) -> Result<(), MountError> {
    let failed = |error| refused("cannot take away the dead mount", dir.to_owned(), error);
    umount(dir, Leave::Now).map_err(failed)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leave {
    WhenFree,
    Now,
}

fn umount(dir: &Path, leave: Leave) -> Result<(), String> {
    if rustix::process::geteuid().is_root() {
        let flags = match leave {
            Leave::WhenFree => rustix::mount::UnmountFlags::empty(),
            Leave::Now => rustix::mount::UnmountFlags::DETACH,
        };
        return rustix::mount::unmount(dir, flags).map_err(|e| e.to_string().to_lowercase());
    }
    let option = if leave == Leave::Now { "-uz" } else { "-u" };
    let done = Command::new("fusermount3").arg(option).arg("--").arg(dir).output();
    let done = done.map_err(|e| format!("fusermount3: {e}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&done.stderr).trim().to_lowercase())
}

/// Says whether the topmost mount on `dir` is of ours.
pub fn is_ours(dir: &Path) -> bool {
    let topmost = mounts().rev().find(|mount| mount.at == dir);
    topmost.is_some_and(|mount| mount.is_ours)
}

/// Lists the mounts of ours, the trees and the guests' files.
pub fn list() -> Vec<PathBuf> {
    mounts().filter(|mount| mount.is_ours).map(|mount| mount.at).collect()
}

struct MountedAt {
    at: PathBuf,
    is_ours: bool,
}

fn mounts() -> impl DoubleEndedIterator<Item = MountedAt> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mounts: Vec<_> = table.split(|b| *b == b'\n').filter_map(mounted_at).collect();
    mounts.into_iter()
}

/// Reads a line of `mountinfo`. The type of a mount of ours is `fuse` or `fuse.aqfs`, as root's own
/// mount(2) or fusermount3 has it; the source is always our name.
fn mounted_at(line: &[u8]) -> Option<MountedAt> {
    let mut fields = line.split(|b| *b == b' ');
    let at = unescaped(fields.nth(4)?);
    let mut kind = fields.skip_while(|f| *f != b"-").skip(1);
    let (kind, source) = (kind.next()?, kind.next()?);
    Some(MountedAt { at, is_ours: kind.starts_with(b"fuse") && source == FS_NAME.as_bytes() })
}

/// Reads a path as the kernel writes it in `mountinfo`: `\040` is a space.
fn unescaped(mut field: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    while let Some((&byte, rest)) = field.split_first() {
        let escaped = rest.split_at_checked(3).filter(|_| byte == b'\\');
        let code = |digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok();
        let read = escaped.and_then(|(digits, rest)| Some((code(digits)?, rest)));
        let (byte, rest) = read.unwrap_or((byte, rest));
        path.push(byte);
        field = rest;
    }
    OsString::from_vec(path).into()
}

/// Names the processes that use a mount, as far as they can be seen.
fn users_of(dir: &Path) -> String {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let users: Vec<String> = processes
        .filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| uses(*pid, dir))
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{} (pid {pid})", name.trim())
        })
        .collect();
    if users.is_empty() { "a process that cannot be seen".to_owned() } else { users.join(", ") }
}

fn uses(pid: u32, dir: &Path) -> bool {
    let below = |link: PathBuf| fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    below(format!("/proc/{pid}/cwd").into()) || descriptors.map(|d| d.path()).any(below)
}

fn io_error(what: &'static str, dir: &Path, error: &io::Error) -> MountError {
    MountError::Io { what, dir: dir.to_owned(), error: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = |at: &str, source: &str| {
            let line = format!("36 35 98:0 / {at} rw,noatime shared:1 - fuse.aqfs {source} rw");
            mounted_at(line.as_bytes()).map(|mount| (mount.at, mount.is_ours))
        };
        assert_eq!(line("/a\\040b\\134c", FS_NAME), Some(("/a b\\c".into(), true)));
        assert_eq!(line("/m", "other"), Some(("/m".into(), false)));
        assert_eq!(line("/m\\04", "other"), Some(("/m\\04".into(), false)));
        assert!(mounted_at(b"").is_none() && mounted_at(b"36 35 98:0 / /m").is_none());
    }

    #[test]
    fn what_fusermount3_cannot_read_is_named_with_the_remedy() {
        let said =
            |error: &str| refused("cannot unmount", "/m".into(), error.to_owned()).to_string();
        let missing = said("fusermount3: failed to open /etc/mtab: no such file or directory");
        assert!(missing.contains("it is missing") && missing.contains("ln -sf"), "{missing}");
        let stale = said("fusermount3: entry for /m not found in /etc/mtab");
        assert!(stale.contains("it is out of date"), "{stale}");
        assert_eq!(said("umount: invalid argument"), "cannot unmount /m: umount: invalid argument");
    }

    #[test]
    fn other_mounts_are_not_ours() {
        assert!(!is_ours(Path::new("/proc")));
        assert!(!is_ours(Path::new("/")));
    }
}
