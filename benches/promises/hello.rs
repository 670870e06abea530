//! The smallest filesystem on fuser: one file with a few constant bytes, read past the page cache as
//! ours are, and a directory with many. What it costs is what FUSE costs.

use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen,
    Request,
};

/// The file's name.
pub(crate) const NAME: &str = "hello";
/// The directory that holds [`DIRECTORIES`] empty ones.
pub(crate) const MANY: &str = "many";
/// How many.
pub(crate) const DIRECTORIES: usize = 1000;
const CONTENT: &[u8] = b"stopped\n";
const FILE: INodeNo = INodeNo(2);
const MANY_INO: INodeNo = INodeNo(3);
/// The number of the first of many.
const FIRST: u64 = 1000;
const TTL: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Hello;

/// Mounts it on `dir`, served as aqfs is: by two threads. Dropping the session unmounts it.
pub(crate) fn mount(dir: &Path) -> BackgroundSession {
    let mut config = fuser::Config::default();
    config.n_threads = Some(2);
    config.clone_fd = true;
    fuser::spawn_mount(Hello, dir, &config).expect("mounting the reference filesystem")
}

fn attr(ino: INodeNo) -> FileAttr {
    let (kind, perm, size) = match ino {
        FILE => (FileType::RegularFile, 0o444, CONTENT.len() as u64),
        _ => (FileType::Directory, 0o700, 0),
    };
    FileAttr {
        ino,
        size,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

impl Filesystem for Hello {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number = name.to_str().and_then(|n| n.parse().ok());
        match (parent, number) {
            (INodeNo::ROOT, _) if name == NAME => reply.entry(&TTL, &attr(FILE), Generation(0)),
            (INodeNo::ROOT, _) if name == MANY => reply.entry(&TTL, &attr(MANY_INO), Generation(0)),
            (MANY_INO, Some(number)) => reply.entry(&TTL, &attr(INodeNo(number)), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        for at in offset..DIRECTORIES as u64 {
            let number = FIRST + at;
            if reply.add(INodeNo(number), at + 1, FileType::Directory, number.to_string()) {
                break;
            }
        }
        reply.ok();
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let start = usize::try_from(offset).map_or(CONTENT.len(), |o| o.min(CONTENT.len()));
        reply.data(&CONTENT[start..]);
    }
}
