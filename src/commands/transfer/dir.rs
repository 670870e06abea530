//! A directory that is open, on the host or in a guest. Whatever is done in it is done to one name, and no
//! link is followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps,
};
use rustix::fs::{
    chmodat, fchmod, flock, fstat, futimens, mkdirat, openat, openat2, readlinkat, statat,
    unlinkat, utimensat,
};

use super::super::Failure;
use super::super::files::plain;

/// Directories within each other, at the most: a guest may offer them without end.
pub(in crate::commands) const DEEPEST: usize = 256;
/// Bits of a mode that are taken along. Of a guest's file, set-user-ID would run as the host's user.
const PERMISSIONS: u32 = 0o777;
const DIRECTORY_PERMISSIONS: u32 = 0o1777;

/// An open directory, with the words that messages have for it.
#[derive(Debug)]
pub(in crate::commands) struct Dir {
    fd: OwnedFd,
    shown: String,
}

/// What is known of a file without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands) struct Meta {
    pub(in crate::commands) kind: FileType,
    /// Permissions alone.
    pub(in crate::commands) mode: u32,
    pub(in crate::commands) size: u64,
    /// Seconds and nanoseconds.
    pub(in crate::commands) mtime: (i64, u32),
    /// It takes less room than its size.
    pub(in crate::commands) is_sparse: bool,
    /// Device and number.
    pub(in crate::commands) id: (u64, u64),
}

impl Meta {
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_lossless,
        reason = "types differ between architectures"
    )]
    fn of(stat: &Stat) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let kept = if kind == FileType::Directory { DIRECTORY_PERMISSIONS } else { PERMISSIONS };
        let size = u64::try_from(stat.st_size).unwrap_or_default();
        Self {
            kind,
            mode: stat.st_mode & kept,
            size,
            mtime: (stat.st_mtime as i64, u32::try_from(stat.st_mtime_nsec).unwrap_or_default()),
            is_sparse: u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512) < size,
            id: (stat.st_dev as u64, stat.st_ino as u64),
        }
    }

    pub(in crate::commands) fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    pub(in crate::commands) fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&fstat(file)?))
    }
}

/// To look at something: nothing is asked of it, such as its names.
const LOOKING: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const AS_DIRECTORY: OFlags = LOOKING.union(OFlags::DIRECTORY);
/// To read a file. What has become something else meanwhile is not waited for.
const READING: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// What a path leads to.
#[derive(Debug)]
pub(in crate::commands) enum Opened {
    File(File, Meta),
    Directory(Dir, Meta),
    /// A FIFO, a socket or a device, which is not opened.
    Other,
}

impl Dir {
    /// Opens what a user has named on the host, links and all.
    pub(in crate::commands) fn open(path: &Path, shown: String) -> io::Result<Self> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Self { fd: rustix::fs::open(path, AS_DIRECTORY, Mode::empty())?, shown })
    }

    /// Opens a directory by a path for which this one is the root. Links are followed and do not lead
    /// out of it.
    pub(in crate::commands) fn open_below(&self, path: &Path, shown: String) -> io::Result<Self> {
        let fd = self.open_path(path, AS_DIRECTORY)?;
        let fd = match fstat(&fd) {
            // The kernel remembers the name of what is gone: opening in earnest asks for it anew.
            Err(rustix::io::Errno::STALE) => self.open_path(path, READING | OFlags::DIRECTORY)?,
            Ok(_) | Err(_) => fd,
        };
        Ok(Self { fd, shown })
    }

    /// Opens a file or a directory, as [`open_below`](Self::open_below) does.
    pub(in crate::commands) fn opened_below(
        &self,
        path: &Path,
        shown: String,
    ) -> io::Result<Opened> {
        opened(|flags| self.open_path(path, flags), shown)
    }

    fn open_path(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(openat2(&self.fd, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?)
    }

    /// Locks it against other processes of this host that do, until the result is dropped.
    pub(in crate::commands) fn lock(&self) -> io::Result<OwnedFd> {
        let fd = self.reopened()?;
        flock(&fd, FlockOperation::NonBlockingLockExclusive)?;
        Ok(fd)
    }

    pub(in crate::commands) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, shown: self.shown.clone() })
    }

    pub(in crate::commands) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// What messages call a name in it.
    pub(in crate::commands) fn shown(&self, name: &OsStr) -> String {
        let name = printable(name.as_bytes());
        match self.shown.as_str() {
            "" => name,
            dir if dir.ends_with(['/', ':']) => format!("{dir}{name}"),
            dir => format!("{dir}/{name}"),
        }
    }

    pub(in crate::commands) fn shown_itself(&self) -> &str {
        if self.shown.is_empty() { "." } else { &self.shown }
    }

    pub(in crate::commands) fn meta(&self) -> io::Result<Meta> {
        Ok(Meta::of(&fstat(&self.fd)?))
    }

    /// Looks at a name; `None` if there is nothing.
    pub(in crate::commands) fn look(&self, name: &OsStr) -> io::Result<Option<Meta>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Meta::of(&stat))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists the names in it, sorted.
    pub(in crate::commands) fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::new(self.reopened()?)? {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Opens it again, to be read.
    fn reopened(&self) -> io::Result<OwnedFd> {
        Ok(openat(&self.fd, ".", READING | OFlags::DIRECTORY, Mode::empty())?)
    }

    pub(in crate::commands) fn dir(&self, name: &OsStr) -> io::Result<Self> {
        match openat(&self.fd, name, AS_DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Self { fd, shown: self.shown(name) }),
            Err(rustix::io::Errno::NOTDIR) if self.is_link(name) => {
                Err(io::Error::from_raw_os_error(libc::ELOOP))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn is_link(&self, name: &OsStr) -> bool {
        let meta = self.look(name).ok().flatten();
        meta.is_some_and(|meta| meta.kind == FileType::Symlink)
    }

    /// Opens a directory, and makes it where it is not; says whether it has.
    pub(in crate::commands) fn make_dir(&self, name: &OsStr) -> io::Result<(Self, bool)> {
        let made = match mkdirat(&self.fd, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => true,
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        Ok((self.dir(name)?, made))
    }

    /// Opens a regular file to be read.
    pub(in crate::commands) fn file(&self, name: &OsStr) -> io::Result<(File, Meta)> {
        regular(openat(&self.fd, name, READING | OFlags::NOFOLLOW, Mode::empty())?)
    }

    pub(in crate::commands) fn target(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        Ok(readlinkat(&self.fd, name, Vec::new())?.into_bytes())
    }

    pub(in crate::commands) fn remove(&self, name: &OsStr, meta: &Meta) -> io::Result<()> {
        let flags = if meta.is_dir() { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(unlinkat(&self.fd, name, flags)?)
    }

    /// Gives the directory itself permissions and a time, in the order in which they may be given.
    pub(in crate::commands) fn finish(&self, meta: &Meta) -> io::Result<()> {
        self.set_mode(meta.mode)?;
        Ok(utimensat(&self.fd, ".", &times(meta.mtime), AtFlags::empty())?)
    }

    /// Gives the directory itself permissions.
    pub(in crate::commands) fn set_mode(&self, mode: u32) -> io::Result<()> {
        Ok(chmodat(&self.fd, ".", Mode::from_raw_mode(mode), AtFlags::empty())?)
    }
}

/// Opens what a user has named on the host, links and all.
pub(super) fn opened_on_host(path: &Path, shown: String) -> io::Result<Opened> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    opened(|flags| Ok(rustix::fs::open(path, flags, Mode::empty())?), shown)
}

fn opened(open: impl Fn(OFlags) -> io::Result<OwnedFd>, shown: String) -> io::Result<Opened> {
    let fd = open(LOOKING)?;
    let meta = Meta::of(&fstat(&fd)?);
    if meta.is_dir() {
        return Ok(Opened::Directory(Dir { fd, shown }, meta));
    }
    if meta.kind != FileType::RegularFile {
        return Ok(Opened::Other);
    }
    regular(open(READING)?).map(|(file, meta)| Opened::File(file, meta))
}

fn regular(fd: OwnedFd) -> io::Result<(File, Meta)> {
    let meta = Meta::of(&fstat(&fd)?);
    if meta.kind != FileType::RegularFile {
        return Err(io::Error::other("it is no file any more"));
    }
    Ok((fd.into(), meta))
}

pub(super) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    Ok(fchmod(fd, Mode::from_raw_mode(mode))?)
}

pub(super) fn set_time(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> io::Result<()> {
    Ok(futimens(fd, &times(mtime))?)
}

/// Both times: that of the last access is of no use in a copy.
pub(super) fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// A name as it may be printed: a guest's may try to steer the terminal.
pub(in crate::commands) fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let shown = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(shown).collect()
}

/// Says what failed, with the words of the system or, where they say little, with ours.
pub(in crate::commands) fn refused(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let what = what.into();
    move |error| {
        let errno = error.raw_os_error().unwrap_or_default();
        Failure::Refused { what, sentence: sentence(&error), errno }
    }
}

fn sentence(error: &io::Error) -> String {
    let ours = match error.raw_os_error() {
        Some(libc::EHOSTDOWN) => "its VM is off; `aq start` starts it",
        Some(libc::ETIMEDOUT) => "the guest has not answered in time",
        Some(libc::ENOTCONN | libc::ECONNABORTED) => {
            "the daemon is gone; `aq mount` starts another"
        }
        Some(libc::ELOOP) => "it is a symbolic link, which is not followed here",
        _ => return plain(error),
    };
    ours.to_owned()
}
