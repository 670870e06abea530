//! The second mount: the guests' files. Requests of the kernel in, requests to `files` out.
//!
//! Every request may wait for a guest, so every one is parked. Only a signal that kills ends a wait at
//! once: programs do not expect EINTR of ordinary files.
//!
//! Not here: what a request does (`files`).

mod attr;
mod listing;

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use futures::FutureExt;
use tokio::runtime::Handle;

use self::attr::{how_opened, seconds, stat};
use super::errno;
use super::park::Park;
use super::reply::Refuse;
use super::{FS_NAME, THREADS};
use crate::files::{
    AttrChange, FileId, FileSystemError, GuestFileSystem, PERMISSIONS, ROOT, Result, TTL,
};
use crate::proc;
use crate::tree::Tree;
use crate::vm::backend::{Existing, FileAttr, FileError, OpenFile};

/// The largest read or write of one request.
const MAX_TRANSFER: u32 = 256 * 1024;
/// Reads that the kernel has under way by itself.
const MAX_BACKGROUND: u16 = 64;

struct FilesAdapter {
    files: Arc<GuestFileSystem>,
    park: Park,
}

/// Mounts the guests' files and serves them until they are unmounted.
///
/// # Errors
/// What mount(2) or fusermount3 answered.
pub(crate) fn mount(
    files: &Arc<GuestFileSystem>,
    tree: Arc<Tree>,
    at: &Path,
    runtime: Handle,
) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(FS_NAME.to_owned()),
        MountOption::Subtype(FS_NAME.to_owned()),
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    // No `default_permissions`: the guest decides what its login user may.
    config.acl = SessionACL::Owner;
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let adapter = FilesAdapter { files: Arc::clone(files), park: Park::new(runtime, tree)? };
    let session = Session::new(adapter, at, &config)?;
    let notifier = session.notifier();
    files.follow_commands(move |id| {
        // Attributes alone: to drop a page the kernel may have to wait for a read, and so for us.
        if let Err(error) = notifier.inval_inode(INodeNo(id.0), -1, 0) {
            tracing::warn!(%error, "the guests' files may be shown as they were a second ago");
        }
    });
    // It ends when it is unmounted, or with the process.
    let serve = move || {
        if let Err(error) = session.run() {
            tracing::error!(%error, "the guests' files are no longer served");
        }
    };
    thread::Builder::new().name("aq-files".to_owned()).spawn(serve).map(drop)
}

impl FilesAdapter {
    /// Carries out a request and replies with what `done` makes of the result.
    fn answer<T, R, F>(
        &self,
        req: &Request,
        request: impl FnOnce(Arc<GuestFileSystem>) -> F,
        reply: R,
        done: impl FnOnce(&GuestFileSystem, T, R) + Send + 'static,
    ) where
        T: Send + 'static,
        R: Refuse,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let files = Arc::clone(&self.files);
        let future = request(Arc::clone(&files)).boxed();
        self.park.wait_for_file(
            req,
            future,
            |e| errno::of_file(&e),
            move |result| match result {
                Ok(value) => done(&files, value, reply),
                Err(errno) => reply.refuse(errno),
            },
        );
    }

    /// As [`answer`](Self::answer), for what makes or finds a name.
    fn answer_entry<F>(
        &self,
        req: &Request,
        (directory, name): (INodeNo, &OsStr),
        reply: ReplyEntry,
        request: impl FnOnce(Arc<GuestFileSystem>, FileId, Vec<u8>) -> F,
    ) where
        F: Future<Output = Result<FileAttr>> + Send + 'static,
    {
        let (directory, name) = (FileId(directory.0), name.as_bytes().to_vec());
        let wanted = name.clone();
        let request = |files| request(files, directory, wanted);
        self.answer(req, request, reply, move |files, attr, reply| {
            let id = files.note(directory, &name, &attr);
            let ttl = name_ttl(directory);
            reply.entry_with_ttls(&TTL, &ttl, &stat(id, &attr), Generation(0));
        });
    }
}

impl Filesystem for FilesAdapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for wanted in [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            // What the kernel has of a file is void when the guest has changed it.
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            let _lacking = config.add_capabilities(wanted);
        }
        let _largest = config.set_max_write(MAX_TRANSFER);
        let _largest = config.set_max_readahead(MAX_TRANSFER);
        let _largest = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (directory, name) = (FileId(parent.0), name.as_bytes().to_vec());
        let wanted = name.clone();
        // That a name is absent is not remembered: nothing would tell the kernel that it is there now.
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.lookup(directory, &wanted).await
        };
        self.answer(req, request, reply, move |files, found, reply| {
            let (attr, ttl) = found;
            let id = files.note(directory, &name, &attr);
            let name_ttl = ttl.min(name_ttl(directory));
            reply.entry_with_ttls(&ttl, &name_ttl, &stat(id, &attr), Generation(0));
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.files.forget(FileId(ino.0), nlookup);
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let (id, handle) = (FileId(ino.0), fh.map(|fh| fh.0));
        let request =
            move |files: Arc<GuestFileSystem>| async move { files.attr(id, handle).await };
        self.answer(req, request, reply, move |_, attr, reply| reply.attr(&TTL, &stat(id, &attr)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (id, handle) = (FileId(ino.0), fh.map(|fh| fh.0));
        let (atime, mtime) = (atime.map(seconds), mtime.map(seconds));
        let permissions = mode.map(|mode| mode & PERMISSIONS);
        let change = AttrChange { size, uid, gid, permissions, atime, mtime };
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.change(id, handle, &change).await
        };
        self.answer(req, request, reply, move |_, attr, reply| reply.attr(&TTL, &stat(id, &attr)));
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        let request =
            move |files: Arc<GuestFileSystem>| async move { files.target(FileId(ino.0)).await };
        self.answer(req, request, reply, |_, target, reply| reply.data(&target));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        self.answer_entry(req, (parent, name), reply, |files, directory, name| async move {
            files.make_directory(directory, &name, mode).await
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (directory, name) = (FileId(parent.0), name.as_bytes().to_vec());
        let request =
            move |files: Arc<GuestFileSystem>| async move { files.remove(directory, &name).await };
        self.answer(req, request, reply, |_, (), reply| reply.ok());
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (directory, name) = (FileId(parent.0), name.as_bytes().to_vec());
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.remove_directory(directory, &name).await
        };
        self.answer(req, request, reply, |_, (), reply| reply.ok());
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes().to_vec();
        self.answer_entry(req, (parent, name), reply, |files, directory, name| async move {
            files.make_link(directory, &name, &target).await
        });
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
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return reply.error(Errno::EINVAL);
        }
        let keep = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let existing = if keep { Existing::Keep } else { Existing::Replace };
        let (from, to) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.rename((FileId(parent.0), &from), (FileId(newparent.0), &to), existing).await
        };
        self.answer(req, request, reply, |_, (), reply| reply.ok());
    }

    fn link(
        &self,
        req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let id = FileId(ino.0);
        self.answer_entry(req, (newparent, newname), reply, |files, directory, name| async move {
            files.link(id, directory, &name).await
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let how = how_opened(flags);
        let request =
            move |files: Arc<GuestFileSystem>| async move { files.open(FileId(ino.0), &how).await };
        // Without `keep_cache`: what the guest has changed since the last open is seen.
        self.answer(req, request, reply, |_, handle, reply| {
            reply.opened(FileHandle(handle), FopenFlags::empty());
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (directory, name) = (FileId(parent.0), name.as_bytes().to_vec());
        let how = OpenFile {
            create: Some(mode & PERMISSIONS),
            exclusive: flags & libc::O_EXCL != 0,
            ..how_opened(OpenFlags(flags))
        };
        let wanted = name.clone();
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.create(directory, &wanted, &how).await
        };
        self.answer(req, request, reply, move |files, (attr, created), reply| {
            let id = files.note(directory, &name, &attr);
            let handle = files.keep_created(id, how, created);
            let (attr, fh) = (stat(id, &attr), FileHandle(handle));
            reply.created(&TTL, &attr, Generation(0), fh, FopenFlags::empty());
        });
    }

    fn read(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let request =
            move |files: Arc<GuestFileSystem>| async move { files.read(fh.0, offset, size).await };
        self.answer(req, request, reply, |_, bytes, reply| reply.data(&bytes));
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let bytes = data.to_vec();
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.write(fh.0, offset, &bytes).await
        };
        self.answer(req, request, reply, move |_, (), reply| reply.written(count));
    }

    fn flush(&self, req: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // No signal ends a process that ends, and nobody hears what its close is told.
        if proc::is_exiting(req.pid()) {
            return reply.ok();
        }
        let request = move |files: Arc<GuestFileSystem>| async move { files.flush(fh.0).await };
        self.answer(req, request, reply, |_, (), reply| reply.ok());
    }

    fn fsync(&self, req: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let request = move |files: Arc<GuestFileSystem>| async move { files.sync(fh.0).await };
        self.answer(req, request, reply, |_, (), reply| reply.ok());
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
        self.files.close(fh.0);
        reply.ok();
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.open_directory(FileId(ino.0)).await
        };
        self.answer(req, request, reply, |_, handle, reply| {
            reply.opened(FileHandle(handle), FopenFlags::empty());
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
        let Ok(listing) = self.files.listing(fh.0) else { return reply.error(Errno::EBADF) };
        for (next, entry) in listing::from(&listing, offset) {
            let (id, kind) = listing::number_and_kind(&self.files, FileId(ino.0), entry);
            if reply.add(INodeNo(id.0), next, kind, listing::name(entry)) {
                break;
            }
        }
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
        let Ok(listing) = self.files.listing(fh.0) else { return reply.error(Errno::EBADF) };
        for (next, entry) in listing::from(&listing, offset) {
            if listing::add_with_attr(&self.files, FileId(ino.0), (next, entry), &mut reply) {
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
        self.files.close_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // A server's file system has what it has answered; SFTP has no word for more.
        reply.ok();
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // The kernel tells programs of at most so many at a time, and counts in 32 bits here.
        let len = len.min(u64::from(u32::MAX >> 1));
        let request = move |files: Arc<GuestFileSystem>| async move {
            files.copy((fh_in.0, offset_in), (fh_out.0, offset_out), len).await
        };
        self.answer(req, request, reply, |_, copied, reply| {
            reply.written(u32::try_from(copied).unwrap_or(u32::MAX));
        });
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let request = move |files: Arc<GuestFileSystem>| async move {
            match files.space(FileId(ino.0)).await {
                // `df` leaves out what has no blocks.
                Err(FileSystemError::Guest(FileError::Unsupported)) => Ok(Default::default()),
                space => space,
            }
        };
        self.answer(req, request, reply, |_, space, reply| {
            let size = space.fragment_size.max(1);
            let (blocks, free, available) = (space.blocks, space.free, space.available);
            reply.statfs(blocks, free, available, space.files, space.files_free, size, 255, size);
        });
    }
}

/// How long the kernel may remember a name. Names of VMs change without the kernel, and cost nothing.
fn name_ttl(directory: FileId) -> Duration {
    if directory == ROOT { Duration::ZERO } else { TTL }
}
