//! Attributes: [`tree::node::Attr`](crate::tree::node::Attr) → fuser's `FileAttr`, and which may be
//! set.

use std::time::SystemTime;

use fuser::{Errno, FileAttr, FileType, INodeNo};

use crate::tree::node::{Attr, Keep, Kind};
use crate::tree::number::NodeId;

/// The owner of everything in the mount: the daemon's user.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    pub(super) fn current() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    /// Says whether these are the owner's numbers, as far as they are given.
    pub(super) fn is(&self, uid: Option<u32>, gid: Option<u32>) -> bool {
        uid.is_none_or(|u| u == self.uid) && gid.is_none_or(|g| g == self.gid)
    }

    pub(super) fn attr(&self, attr: &Attr) -> FileAttr {
        FileAttr {
            ino: INodeNo(attr.id.0),
            size: attr.size,
            blocks: 0,
            atime: attr.mtime,
            mtime: attr.mtime,
            ctime: attr.mtime,
            crtime: attr.mtime,
            kind: file_type(attr.kind),
            perm: attr.mode,
            nlink: attr.links,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    /// Returns the attributes of no file: number 0 means "there is none" to the kernel.
    pub(super) fn nothing(&self) -> FileAttr {
        let mtime = SystemTime::UNIX_EPOCH;
        let id = NodeId(0);
        let (kind, keep) = (Kind::Value, Keep::Never);
        self.attr(&Attr { id, kind, mode: 0, size: 0, links: 0, mtime, keep })
    }
}

/// The attributes that a request wants to set; times are not looked at.
pub(super) struct AttrChange {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
}

impl AttrChange {
    /// Says whether it may be made: what would change nothing, and truncation of what is written as
    /// a whole anyway.
    pub(super) fn check(&self, owner: &Owner, attr: &Attr) -> Result<(), Errno> {
        let same_mode = self.mode.is_none_or(|m| m & 0o7777 == u32::from(attr.mode));
        let same_owner = owner.is(self.uid, self.gid);
        let writable = attr.mode & 0o200 != 0 && attr.kind != Kind::Directory;
        match (same_mode && same_owner, self.size.is_none() || writable) {
            (false, _) => Err(Errno::EPERM),
            (_, false) => Err(Errno::EACCES),
            (true, true) => Ok(()),
        }
    }
}

pub(super) fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::Link => FileType::Symlink,
        Kind::Value | Kind::Setting | Kind::Control | Kind::Stream => FileType::RegularFile,
    }
}
