//! Every kind of request, and the reply to it.
//!
//! Not here: waiting for an answer that is not there yet (`park`), and numbers of errors (`errno`).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::attr::{AttrChange, Owner};
use super::flags::{directory_flags, io_mode, open_flags, ttl};
use super::park::{Park, Wait};
use super::poll::{self, Polls};
use super::reply::{self, Looked, Refuse, made_entry};
use super::{caller, errno};
use crate::tree::handle::{Access, OpenRequest};
use crate::tree::names::Entry;
use crate::tree::node::Attr;
use crate::tree::number::NodeId;
use crate::tree::{Answer, Requester, Tree, TreeError};

/// The largest read or write of one request. Streams gain nothing from more.
const MAX_TRANSFER: u32 = 128 * 1024;

/// What a name that is not UTF-8 is answered: it is none of ours.
const NOT_OURS: Errno = Errno::EINVAL;

pub(super) struct Adapter {
    tree: Arc<Tree>,
    owner: Owner,
    park: Park,
    polls: Polls,
}

impl Adapter {
    pub(super) fn new(tree: Arc<Tree>, runtime: Handle) -> io::Result<Self> {
        let park = Park::new(runtime.clone(), Arc::clone(&tree))?;
        Ok(Self { tree, owner: Owner::current(), park, polls: Polls::new(runtime) })
    }

    /// Replies with what `done` makes of an answer, or with why there is none.
    fn answer<T: Send + 'static, R: Refuse>(
        &self,
        req: &Request,
        about: (INodeNo, Wait),
        answer: Answer<T>,
        reply: R,
        done: impl FnOnce(T, R) + Send + 'static,
    ) {
        self.park.answer(req, about, answer, move |result| match result {
            Ok(value) => done(value, reply),
            Err(errno) => reply.refuse(errno),
        });
    }

    fn remove(
        &self,
        req: &Request,
        (parent, name): (INodeNo, &str),
        remove: fn(&Tree, NodeId, &str, &Requester<'_>) -> Answer<()>,
        reply: ReplyEmpty,
    ) {
        let by = Requester { caller: &|| caller::of(req), now: SystemTime::now() };
        let done = self.tree.request_removal(remove, NodeId(parent.0), name, &by);
        self.answer(req, (parent, Wait::Directory), done, reply, |(), reply| reply.ok());
    }

    /// Replies with the attributes of a node, or with why `check` refuses them.
    fn reply_attr(
        &self,
        req: &Request,
        ino: INodeNo,
        check: impl FnOnce(&Owner, &Attr) -> Result<(), Errno> + Send + 'static,
        reply: ReplyAttr,
    ) {
        let (owner, attr) = (self.owner, self.tree.request_attr(NodeId(ino.0)));
        self.park.answer(req, (ino, Wait::Caller), attr, move |attr| {
            match attr.and_then(|attr| check(&owner, &attr).map(|()| attr)) {
                Ok(attr) => reply.attr(&ttl(attr.keep), &owner.attr(&attr)),
                Err(errno) => reply.error(errno),
            }
        });
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // With it `>` comes as a flag of open(2), and not as a truncation without an open file.
        // A kernel without it is served by `setattr`.
        let _lacking = config.add_capabilities(InitFlags::FUSE_ATOMIC_O_TRUNC);
        // A listing brings the attributes along when they are wanted: `ls -l` asks once.
        let plus = InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO;
        let _lacking = config.add_capabilities(plus);
        let _largest = config.set_max_write(MAX_TRANSFER);
        let _largest = config.set_max_readahead(MAX_TRANSFER);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = match name.to_str() {
            Some(name) => self.tree.request_lookup(NodeId(parent.0), name),
            None => Answer::Now(Err(TreeError::NeverFound)),
        };
        let (owner, about) = (self.owner, (parent, Wait::Directory));
        self.answer(req, about, found.map(Looked::of), reply, move |looked, reply| {
            looked.reply(&owner, reply);
        });
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attr(req, ino, |_, _| Ok(()), reply);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree.target(NodeId(ino.0), &|| caller::of(req)) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
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
        let change = AttrChange { mode, uid, gid, size };
        self.reply_attr(req, ino, move |owner, attr| change.check(owner, attr), reply);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let refused: Answer<()> = Answer::Now(Err(TreeError::NoCreation));
        self.park.answer(req, (parent, Wait::Directory), refused, |refused| {
            reply.error(refused.err().unwrap_or(Errno::EACCES));
        });
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
        let Some(name) = name.to_str() else { return reply.error(NOT_OURS) };
        let (owner, made) = (self.owner, self.tree.make_directory(NodeId(parent.0), name));
        self.answer(req, (parent, Wait::Directory), made, reply, move |attr, reply| {
            made_entry(&owner, &attr, reply);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some(name) = name.to_str() else { return reply.error(Errno::ENOENT) };
        self.remove(req, (parent, name), Tree::unlink, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (Some(name), Some(target)) = (name.to_str(), target.to_str()) else {
            return reply.error(NOT_OURS);
        };
        let (owner, made) = (self.owner, self.tree.make_link(NodeId(parent.0), name, target));
        self.answer(req, (parent, Wait::Directory), made, reply, move |attr, reply| {
            made_entry(&owner, &attr, reply);
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let Some(name) = name.to_str() else { return reply.error(NOT_OURS) };
        self.remove(req, (parent, name), Tree::remove_directory, reply);
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
        let (Some(from), Some(to)) = (name.to_str(), newname.to_str()) else {
            return reply.error(NOT_OURS);
        };
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let done = self.tree.request_rename((NodeId(parent.0), from), (NodeId(newparent.0), to));
        self.answer(req, (parent, Wait::Directory), done, reply, |(), reply| reply.ok());
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
        let opened = self.tree.request_open(NodeId(ino.0), &request);
        self.answer(req, (ino, Wait::Caller), opened, reply, |opened, reply| {
            reply.opened(FileHandle(opened.handle), open_flags(opened.kind));
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let bytes = Answer::about(self.tree.handle(fh.0), |open| {
            open.request_read(offset, size as usize, io_mode(flags))
        });
        self.answer(req, (ino, Wait::Caller), bytes, reply, |bytes, reply| reply.data(&bytes));
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let open = self.tree.handle(fh.0);
        let written = Answer::about(open, |open| open.write(data, io_mode(flags)));
        self.answer(req, (ino, Wait::Caller), written, reply, |count, reply| {
            reply.written(u32::try_from(count).unwrap_or(u32::MAX));
        });
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        let closed = match self.tree.handle(fh.0) {
            Err(TreeError::BadHandle) => Answer::Now(Ok(())),
            open => Answer::about(open, |open| open.flush()),
        };
        self.answer(req, (ino, Wait::Caller), closed, reply, |(), reply| reply.ok());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
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
                let polled = open.poll();
                let events = poll::events(&polled);
                if flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY) {
                    self.polls.watch(fh.0, polled.listener, notifier);
                }
                reply.poll(events);
            }
            Err(error) => reply.error(errno::of(&error)),
        }
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let opened = self.tree.request_open_directory(NodeId(ino.0));
        self.answer(req, (ino, Wait::Caller), opened, reply, |opened, reply| {
            reply.opened(FileHandle(opened.handle), directory_flags(opened.keep));
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Ok(listing) = self.tree.listing_at(fh.0, NodeId(ino.0), offset) else {
            return reply.error(Errno::EBADF);
        };
        reply::add_names(&mut reply, ino, &listing, offset);
        reply.ok();
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let Ok(listing) = self.tree.listing_at(fh.0, NodeId(ino.0), offset) else {
            return reply.error(Errno::EBADF);
        };
        let attr = |entry: &Entry| self.tree.listed(entry, listing.keep).ok();
        reply::add_names_with_attr(&mut reply, (ino, &self.owner), &listing, offset, attr);
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
        // All zero, as /proc has it: `df` leaves it out, and desktops do not warn of a full disk.
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
