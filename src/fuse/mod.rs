//! Kernel requests in, replies out: a translation, nothing else.
//!
//! Decisions and names are the tree's (`tree`). Nothing here blocks: an answer that is not there
//! yet goes to [`park`], the one place that waits for the kernel.

mod attr;
mod caller;
pub(crate) mod errno;
pub mod mountpoint;
mod park;
mod poll;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use self::attr::Owner;
use self::park::Park;
use self::poll::Polls;
use crate::tree::handle::{Access, OpenRequest, Patience};
use crate::tree::node::{Kind, NodeId};
use crate::tree::{Answer, Tree, TreeError};

/// How long the kernel may keep a name, and a directory's attributes. What a file contains is
/// asked anew each time.
const NAME_TTL: Duration = Duration::from_secs(1);
/// How long it may keep that a name which can never exist does not.
const NEVER_TTL: Duration = Duration::from_secs(60);
/// A file's attributes are never kept: its content changes by itself.
const NO_TTL: Duration = Duration::ZERO;
/// The largest read or write of one request. Streams gain nothing from more.
const MAX_TRANSFER: u32 = 128 * 1024;
/// Requests are answered from memory or parked, so that two threads are never both busy for long.
const THREADS: usize = 2;

/// The name under which mounts appear in `/proc/mounts`.
pub const FS_NAME: &str = "aqfs";

/// A mounted tree.
#[derive(Debug)]
pub struct Mounted {
    session: Session<Adapter>,
}

impl Mounted {
    /// Mounts a tree.
    ///
    /// # Errors
    /// What mount(2) or fusermount3 answered.
    pub fn mount(tree: Arc<Tree>, at: &Path, runtime: Handle) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(FS_NAME.to_owned()),
            MountOption::Subtype(FS_NAME.to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
            MountOption::NoAtime,
        ];
        config.acl = SessionACL::Owner;
        config.n_threads = Some(THREADS);
        config.clone_fd = true;
        let adapter = Adapter {
            tree,
            owner: Owner::current(),
            park: Park::new(runtime.clone()),
            polls: Polls::new(runtime),
        };
        Ok(Self { session: Session::new(adapter, at, &config)? })
    }

    /// Serves requests until the tree is unmounted.
    ///
    /// # Errors
    /// What reading from the kernel answered.
    pub fn serve(self) -> io::Result<()> {
        self.session.run()
    }
}

#[derive(Debug)]
struct Adapter {
    tree: Arc<Tree>,
    owner: Owner,
    park: Park,
    polls: Polls,
}

impl Adapter {
    fn entry(&self, attr: &crate::tree::node::Attr, reply: ReplyEntry) {
        let ttl = if attr.kind == Kind::Directory { NAME_TTL } else { NO_TTL };
        reply.entry_with_ttls(&ttl, &NAME_TTL, &self.owner.attr(attr), Generation(0));
    }

    fn found(&self, found: Result<crate::tree::node::Attr, TreeError>, reply: ReplyEntry) {
        match found {
            Ok(attr) => self.entry(&attr, reply),
            Err(TreeError::NotFound) => self.negative(NAME_TTL, reply),
            Err(TreeError::NeverFound) => self.negative(NEVER_TTL, reply),
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    /// Tells the kernel that there is no such name, and that it need not ask again for a while.
    fn negative(&self, ttl: Duration, reply: ReplyEntry) {
        reply.entry(&ttl, &self.owner.nothing(), Generation(0));
    }

    fn attr_of(&self, ino: INodeNo, reply: ReplyAttr) {
        match self.tree.attr(NodeId(ino.0)) {
            Ok(attr) => {
                let ttl = if attr.kind == Kind::Directory { NAME_TTL } else { NO_TTL };
                reply.attr(&ttl, &self.owner.attr(&attr));
            }
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    /// Says whether an attribute may be set: what would change nothing, and truncation of what is
    /// written as a whole anyway.
    fn settable(&self, ino: INodeNo, change: &Change) -> Result<(), Errno> {
        let attr = self.tree.attr(NodeId(ino.0)).map_err(|e| errno::of(&e))?;
        let same_mode = change.mode.is_none_or(|m| m & 0o7777 == u32::from(attr.mode));
        let same_owner = self.owner.is(change.uid, change.gid);
        let writable = attr.mode & 0o200 != 0 && attr.kind != Kind::Directory;
        match (same_mode && same_owner, change.size.is_none() || writable) {
            (false, _) => Err(Errno::EPERM),
            (_, false) => Err(Errno::EACCES),
            _ => Ok(()),
        }
    }
}

/// The attributes that a request wants to set and that we look at.
struct Change {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
}

fn text(name: &OsStr) -> Result<&str, Errno> {
    // Names that are not UTF-8 are none of ours.
    name.to_str().ok_or(Errno::EINVAL)
}

fn patience(flags: OpenFlags) -> Patience {
    if flags.0 & libc::O_NONBLOCK != 0 { Patience::Now } else { Patience::Park }
}

fn open_flags(kind: Kind) -> FopenFlags {
    match kind {
        Kind::Value => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        Kind::Setting | Kind::Directory => FopenFlags::FOPEN_DIRECT_IO,
        // Without STREAM a parked read holds the lock of the file position, and a write to the
        // same descriptor waits for it beyond any signal.
        Kind::Control | Kind::Stream => {
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_STREAM | FopenFlags::FOPEN_NONSEEKABLE
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // With it `>` comes as a flag of open(2), and not as a truncation without an open file.
        // A kernel without it is served by `setattr`.
        let _lacking = config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC);
        let _largest = config.set_max_write(MAX_TRANSFER);
        let _largest = config.set_max_readahead(MAX_TRANSFER);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = name.to_str().ok_or(TreeError::NeverFound);
        self.found(found.and_then(|name| self.tree.lookup(NodeId(parent.0), name)), reply);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.attr_of(ino, reply);
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.settable(ino, &Change { mode, uid, gid, size }) {
            Ok(()) => self.attr_of(ino, reply),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(errno::of(&TreeError::NoCreation));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let name = match text(name) {
            Ok(name) => name,
            Err(errno) => return reply.error(errno),
        };
        let owner = self.owner;
        let made = self.tree.make_directory(NodeId(parent.0), name);
        self.park.answer(req, made, move |made| match made {
            Ok(attr) => reply.entry(&NAME_TTL, &owner.attr(&attr), Generation(0)),
            Err(errno) => reply.error(errno),
        });
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let part = name.to_str().ok_or(TreeError::NeverFound);
        empty(part.and_then(|name| self.tree.remove_part(NodeId(parent.0), name)), reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match text(name) {
            Ok(name) => {
                let removed = self.tree.remove_directory(NodeId(parent.0), name);
                self.park.answer(req, removed, |done| done_or_error(done, reply));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (Ok(from), Ok(to)) = (text(name), text(newname)) else {
            return reply.error(Errno::EINVAL);
        };
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let done = self.tree.rename((NodeId(parent.0), from), (NodeId(newparent.0), to));
        self.park.answer(req, done, |done| done_or_error(done, reply));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let request = OpenRequest {
            access: match flags.acc_mode() {
                OpenAccMode::O_RDONLY => Access::Read,
                OpenAccMode::O_WRONLY => Access::Write,
                OpenAccMode::O_RDWR => Access::ReadWrite,
            },
            append: flags.0 & libc::O_APPEND != 0,
            crawler: flags.0 & libc::O_NOFOLLOW != 0,
            caller: &|| caller::of(req),
        };
        let opened = self.tree.open(NodeId(ino.0), &request);
        self.park.answer(req, opened, |opened| match opened {
            Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(opened.kind)),
            Err(errno) => reply.error(errno),
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = match self.tree.handle(fh.0) {
            Ok(open) => open.read(offset, size as usize, patience(flags)),
            Err(error) => Answer::Now(Err(error)),
        };
        self.park.answer(req, bytes, |bytes| match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = match self.tree.handle(fh.0) {
            Ok(open) => open.write(data, patience(flags)),
            Err(error) => Answer::Now(Err(error)),
        };
        self.park.answer(req, written, |written| match written {
            Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        if let Ok(open) = self.tree.handle(fh.0) {
            open.flush();
        }
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        // What a write has answered is stored already.
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.polls.forget(fh.0);
        self.tree.release(fh.0);
        reply.ok();
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        match self.tree.handle(fh.0) {
            Ok(open) => {
                let (readiness, listener) = open.poll();
                if flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY) {
                    self.polls.watch(fh.0, listener, notifier);
                }
                reply.poll(poll::events(readiness));
            }
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.tree.open_directory(NodeId(ino.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listing = match self.tree.listing(fh.0) {
            Ok(listing) => listing,
            Err(error) => return reply.error(errno::of(&error)),
        };
        let dots = [(ino, FileType::Directory, "."), (INodeNo::ROOT, FileType::Directory, "..")];
        let names = listing.iter().map(|e| (INodeNo(e.id.0), attr::file_type(e.kind), &*e.name));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, (ino, kind, name)) in dots.into_iter().chain(names).enumerate().skip(from) {
            if reply.add(ino, at as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.tree.release_directory(fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // All zero, as /proc has it: `df` leaves it out, and nobody warns of a full disk.
        reply.statfs(0, 0, 0, 0, 0, 512, 64, 0);
    }

    fn getxattr(&self, _req: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // The kernel remembers it and asks no more: otherwise every write asks for capabilities.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Every second program asks whether a file is a terminal.
        reply.error(Errno::ENOTTY);
    }

    fn listxattr(&self, _req: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }
}

fn empty(done: Result<(), TreeError>, reply: ReplyEmpty) {
    done_or_error(done.map_err(|e| errno::of(&e)), reply);
}

fn done_or_error(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
