//! How a guest's files are opened, and their attributes, between fuser's words and those of `files`.
//!
//! Not here: attributes of the tree (`fuse::attr`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileType, INodeNo, OpenAccMode, OpenFlags, TimeOrNow};

use super::MAX_TRANSFER;
use crate::files::{self, FileId, PERMISSIONS};
use crate::vm::backend::{FileAttr, OpenFile};

pub(super) fn how_opened(flags: OpenFlags) -> OpenFile {
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    OpenFile {
        read,
        write,
        append: flags.0 & libc::O_APPEND != 0,
        truncate: flags.0 & libc::O_TRUNC != 0,
        ..OpenFile::default()
    }
}

pub(super) fn seconds(time: TimeOrNow) -> u32 {
    match time {
        TimeOrNow::SpecificTime(time) => files::seconds(time),
        TimeOrNow::Now => files::seconds(SystemTime::now()),
    }
}

pub(super) fn kind(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => FileType::RegularFile,
    }
}

pub(super) fn stat(id: FileId, attr: &FileAttr) -> fuser::FileAttr {
    let time = |seconds: u32| UNIX_EPOCH + Duration::from_secs(seconds.into());
    let mtime = time(attr.mtime);
    fuser::FileAttr {
        ino: INodeNo(id.0),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time(attr.atime),
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: kind(attr.mode),
        perm: u16::try_from(attr.mode & PERMISSIONS).unwrap_or_default(),
        // It is not known. With 1, `find` does not count directories.
        nlink: 1,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: MAX_TRANSFER,
        flags: 0,
    }
}
