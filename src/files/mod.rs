//! The guests' files as one file system: a directory for each VM, and its guest's root in it.
//!
//! Each method is one request of a program. `nodes` has which path a number stands for, [`open_file`]
//! what is open, `target` where links lead. Nothing is remembered of a guest but what the kernel
//! knows by number: the kernel keeps names and attributes for a second, or until a command of ours in
//! the guest has ended. So a script that runs a command and then looks at files sees what it has done.
//!
//! Not here: the kernel's words (`fuse::files`), the guest's (`guest::sftp`), and waiting for a guest
//! (`vm::files`).

mod error;
mod names;
mod nodes;
mod open_file;
mod read_ahead;
mod siblings;
mod target;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

pub(crate) use self::error::{FileSystemError, Result};
use self::nodes::Nodes;
pub(crate) use self::nodes::{FileId, ROOT};
use self::open_file::{Budget, OpenedFile, Remote};
use self::siblings::Siblings;
pub(crate) use self::siblings::TTL;
use crate::registry::Registry;
use crate::vm::backend::{
    DirectoryEntry, FileAttr, FileChange, FileError, FileSystemSpace, GuestFiles, OpenFile,
};
use crate::vm::{Vm, VmId};

/// The bits of a mode that are permissions.
pub(crate) const PERMISSIONS: u32 = 0o7777;
/// Bytes that a guest copies at a time: its server does nothing else meanwhile.
const LONGEST_COPY: u64 = 16 << 20;
/// What Linux has. A server has no word for it.
const LONGEST_NAME: usize = 255;
/// Names that are read of one directory.
const MOST_NAMES: usize = 100_000;
const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const KIND: u32 = 0o170_000;

/// The files of all guests.
#[derive(Debug)]
pub(crate) struct GuestFileSystem {
    registry: Arc<Registry>,
    nodes: Nodes,
    siblings: Siblings,
    /// Who the files of the login user belong to on the host.
    owner: (u32, u32),
    /// When it was mounted: the time of the directories that no guest is asked for.
    since: u32,
    budgets: Mutex<HashMap<VmId, Budget>>,
    open: Mutex<HashMap<u64, Arc<OpenedFile>>>,
    listings: Mutex<HashMap<u64, Arc<Vec<DirectoryEntry>>>>,
    last_handle: AtomicU64,
}

/// A path in a guest that is reached.
struct At {
    files: Arc<dyn GuestFiles>,
    vm: VmId,
    path: Vec<u8>,
}

impl GuestFileSystem {
    /// Makes it for the VMs of a store. `owner` is the user and the group that the login user's files
    /// belong to on the host.
    pub(crate) fn new(registry: Arc<Registry>, owner: (u32, u32)) -> Arc<Self> {
        Arc::new(Self {
            registry,
            nodes: Nodes::default(),
            siblings: Siblings::default(),
            owner,
            since: seconds(SystemTime::now()),
            budgets: Mutex::default(),
            open: Mutex::default(),
            listings: Mutex::default(),
            last_handle: AtomicU64::new(0),
        })
    }

    // ----- numbers ---------------------------------------------------------------------------------

    /// Notes that the kernel is told of a file, and returns its number.
    pub(crate) fn note(&self, directory: FileId, name: &[u8], attr: &FileAttr) -> FileId {
        match directory {
            ROOT => match self.named(name) {
                Some(vm) => self.nodes.note_root(vm.id()),
                None => ROOT,
            },
            directory => self.nodes.note(directory, name, attr.mode),
        }
    }

    /// Returns the number that a file would have.
    pub(crate) fn number(&self, directory: FileId, name: &[u8]) -> FileId {
        self.nodes.number(directory, name)
    }

    pub(crate) fn forget(&self, id: FileId, lookups: u64) {
        self.nodes.forget(id, lookups);
    }

    /// Has `forget` called for each file of which the kernel may remember what a command in the guest
    /// has changed.
    pub(crate) fn follow_commands(
        self: &Arc<Self>,
        forget: impl Fn(FileId) + Send + Sync + 'static,
    ) {
        let files = Arc::downgrade(self);
        self.registry.backends().file_changes.follow(move |vm| {
            if let Some(files) = files.upgrade() {
                files.void(vm);
                files.nodes.remembered().into_iter().for_each(&forget);
            }
        });
    }

    /// What is remembered here of a VM's files is void.
    fn void(&self, vm: VmId) {
        self.siblings.count(vm);
        let open = self.open.lock();
        open.values().filter(|open| open.vm == vm).for_each(|open| open.forget_reads());
    }

    fn named(&self, name: &[u8]) -> Option<Vm> {
        self.registry.get(str::from_utf8(name).ok()?)
    }

    // ----- finding ---------------------------------------------------------------------------------

    async fn at(&self, id: FileId) -> Result<At> {
        let place = match id {
            ROOT => return Err(FileSystemError::NotOffered),
            id => self.nodes.place(id).ok_or(FileSystemError::Stale)?,
        };
        let vm = self.registry.by_id(place.vm).ok_or(FileError::Absent)?;
        Ok(At { files: vm.files().await?, vm: place.vm, path: place.path })
    }

    async fn at_name(&self, directory: FileId, name: &[u8]) -> Result<At> {
        if name.len() > LONGEST_NAME {
            return Err(FileSystemError::NameTooLong);
        }
        let at = self.at(directory).await?;
        let path = if at.path == b"/" { Vec::new() } else { at.path };
        Ok(At { path: [&path, &b"/"[..], name].concat(), ..at })
    }

    /// The attributes that no guest is asked for: of the directory of all VMs, and of a guest's root.
    /// So a look at a VM's link waits for no guest.
    fn root_attr(&self) -> FileAttr {
        let (uid, gid) = self.owner;
        let since = self.since;
        FileAttr { size: 0, uid, gid, mode: DIRECTORY | 0o755, atime: since, mtime: since }
    }

    fn is_root(&self, id: FileId) -> bool {
        id == ROOT || self.nodes.place(id).is_some_and(|place| place.path == b"/")
    }

    /// Shows a guest's attributes: the login user is the host's user.
    fn shown(&self, files: &dyn GuestFiles, attr: FileAttr) -> FileAttr {
        let ((uid, gid), (our_uid, our_gid)) = (files.login(), self.owner);
        FileAttr {
            uid: if attr.uid == uid { our_uid } else { attr.uid },
            gid: if attr.gid == gid { our_gid } else { attr.gid },
            ..attr
        }
    }

    /// Finds a name, and how long it may be remembered.
    pub(crate) async fn lookup(
        &self,
        directory: FileId,
        name: &[u8],
    ) -> Result<(FileAttr, Duration)> {
        if directory == ROOT {
            self.named(name).ok_or(FileError::Absent)?;
            return Ok((self.root_attr(), TTL));
        }
        let at = self.at_name(directory, name).await?;
        if let Some((attr, ttl)) = self.listed(&at, directory, name).await {
            return Ok((self.shown(&*at.files, attr), ttl));
        }
        Ok((self.shown(&*at.files, at.files.attr(&at.path).await?), TTL))
    }

    /// Finds a name in the listing that its neighbours have caused. One that is not in it may be there
    /// all the same: a directory that may only be listed shows no names to a server that looks at each.
    async fn listed(
        &self,
        at: &At,
        directory: FileId,
        name: &[u8],
    ) -> Option<(FileAttr, Duration)> {
        let list = || at.files.list(&names::parent(at).path, siblings::MOST_NAMES);
        let listed = self.siblings.of(at.vm, directory, list)?;
        match listed.names.await {
            Some(names) => Some((*names.get(name)?, TTL.checked_sub(listed.since.elapsed())?)),
            None => {
                self.siblings.leave_alone(directory);
                None
            }
        }
    }

    pub(crate) async fn attr(&self, id: FileId, handle: Option<u64>) -> Result<FileAttr> {
        if self.is_root(id) {
            return Ok(self.root_attr());
        }
        self.nodes.note_attr(id);
        if let Some(open) = self.opened_of(id, handle) {
            let remote = self.remote(&open).await?;
            return Ok(self.shown(&*remote.files, open.attr(&remote).await?));
        }
        let at = self.at(id).await?;
        let attr = at.files.attr(&at.path).await.map_err(gone)?;
        if !self.nodes.is_kind(id, attr.mode) {
            return Err(FileSystemError::Stale);
        }
        Ok(self.shown(&*at.files, attr))
    }

    /// Changes attributes and returns what they are then. `change` has users as the host has them; of
    /// owner and group, and of the two times, one may be left as it is.
    pub(crate) async fn change(
        &self,
        id: FileId,
        handle: Option<u64>,
        change: &AttrChange,
    ) -> Result<FileAttr> {
        let open = self.opened_of(id, handle).filter(|open| open.how.write);
        if change.size.is_some() {
            self.forget_reads(id);
        }
        if let Some(open) = open {
            let remote = self.remote(&open).await?;
            let _changing = self.siblings.changing(open.vm);
            let change = self.whole(&*remote.files, change, remote.file.attr()).await?;
            open.change(&remote, &change).await?;
            return self.attr(id, handle).await;
        }
        let at = self.at(id).await?;
        let _changing = self.siblings.changing(at.vm);
        let is_link = self.nodes.is_kind(id, LINK);
        let change = self.whole(&*at.files, change, at.files.attr(&at.path)).await?;
        let changed = match is_link {
            true => at.files.change_link(&at.path, &change),
            false => at.files.change(&at.path, &change),
        };
        changed.await.map_err(or(FileSystemError::NotOffered))?;
        self.attr(id, handle).await
    }

    /// Completes a change as the guest wants it.
    async fn whole(
        &self,
        files: &dyn GuestFiles,
        change: &AttrChange,
        now: impl Future<Output = std::result::Result<FileAttr, FileError>>,
    ) -> Result<FileChange> {
        let (owns, times) = (change.uid.or(change.gid), change.atime.or(change.mtime));
        let is_whole = owns.is_none() && (change.atime.is_some() == change.mtime.is_some());
        let now = if is_whole { FileAttr::default() } else { now.await.map_err(gone)? };
        let ((uid, gid), (our_uid, our_gid)) = (files.login(), self.owner);
        let user = change.uid.map_or(now.uid, |u| if u == our_uid { uid } else { u });
        let group = change.gid.map_or(now.gid, |g| if g == our_gid { gid } else { g });
        let both = (change.atime.unwrap_or(now.atime), change.mtime.unwrap_or(now.mtime));
        Ok(FileChange {
            size: change.size,
            owner: owns.map(|_| (user, group)),
            permissions: change.permissions,
            times: times.map(|_| both),
        })
    }

    pub(crate) async fn target(&self, id: FileId) -> Result<Vec<u8>> {
        let at = self.at(id).await?;
        let target = at.files.target(&at.path).await.map_err(gone)?;
        Ok(target::confined(&at.path, &target))
    }

    pub(crate) async fn space(&self, id: FileId) -> Result<FileSystemSpace> {
        if id == ROOT {
            return Ok(FileSystemSpace::default());
        }
        let at = self.at(id).await?;
        Ok(at.files.space(&at.path).await?)
    }

    // ----- directories -----------------------------------------------------------------------------

    /// Reads a directory, and keeps its names until it is closed.
    pub(crate) async fn open_directory(&self, id: FileId) -> Result<u64> {
        let names = if id == ROOT { self.vms() } else { self.list(id).await? };
        let handle = self.next_handle();
        self.listings.lock().insert(handle, Arc::new(names));
        Ok(handle)
    }

    fn vms(&self) -> Vec<DirectoryEntry> {
        let entry =
            |name: String| DirectoryEntry { name: name.into_bytes(), attr: self.root_attr() };
        self.registry.list().into_iter().map(|(name, _)| entry(name)).collect()
    }

    async fn list(&self, id: FileId) -> Result<Vec<DirectoryEntry>> {
        let at = self.at(id).await?;
        let mut names = at.files.list(&at.path, MOST_NAMES).await.map_err(gone)?;
        names.iter_mut().for_each(|entry| entry.attr = self.shown(&*at.files, entry.attr));
        Ok(names)
    }

    pub(crate) fn listing(&self, handle: u64) -> Result<Arc<Vec<DirectoryEntry>>> {
        self.listings.lock().get(&handle).cloned().ok_or(FileSystemError::BadHandle)
    }

    pub(crate) fn close_directory(&self, handle: u64) {
        let gone = self.listings.lock().remove(&handle);
        drop(gone);
    }

    // ----- open files ------------------------------------------------------------------------------

    fn next_handle(&self) -> u64 {
        self.last_handle.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn opened(&self, handle: u64) -> Result<Arc<OpenedFile>> {
        self.open.lock().get(&handle).cloned().ok_or(FileSystemError::BadHandle)
    }

    /// Returns an open file by its handle; of a file without a name any that is open.
    fn opened_of(&self, id: FileId, handle: Option<u64>) -> Option<Arc<OpenedFile>> {
        match handle {
            Some(handle) => self.opened(handle).ok(),
            None if self.nodes.place(id).is_some() => None,
            None => self.open.lock().values().find(|open| open.id == id).cloned(),
        }
    }

    /// Returns an open file as it is open in the guest, where it may have to be opened again.
    async fn remote(&self, open: &OpenedFile) -> Result<Remote> {
        if let Some(remote) = open.remote()? {
            return Ok(remote);
        }
        let at = self.at(open.id).await?;
        let file = at.files.open(&at.path, &open.how).await?;
        let remote = Remote { files: at.files, file: file.into() };
        open.reopened(remote.clone());
        Ok(remote)
    }

    fn keep(&self, id: FileId, how: OpenFile, remote: Remote, vm: VmId) -> u64 {
        let budget = self.budgets.lock().entry(vm).or_default().clone();
        let handle = self.next_handle();
        let open = Arc::new(OpenedFile::new((vm, id), how, remote, &budget));
        self.open.lock().insert(handle, open);
        handle
    }

    pub(crate) async fn open(&self, id: FileId, how: &OpenFile) -> Result<u64> {
        if how.truncate {
            self.forget_reads(id);
        }
        let at = self.at(id).await?;
        let _changing = how.truncate.then(|| self.siblings.changing(at.vm));
        let file = match at.files.open(&at.path, how).await {
            Ok(file) => file.into(),
            Err(FileError::Failed) => return Err(self.why_not_opened(&at).await),
            Err(error) => return Err(gone(error)),
        };
        Ok(self.keep(id, *how, Remote { files: at.files, file }, at.vm))
    }

    async fn why_not_opened(&self, at: &At) -> FileSystemError {
        match at.files.attr(&at.path).await {
            Ok(attr) if attr.mode & KIND == DIRECTORY => FileSystemError::IsADirectory,
            _ => full_or_failed(at).await,
        }
    }

    pub(crate) async fn read(&self, handle: u64, offset: u64, length: u32) -> Result<Vec<u8>> {
        let open = self.opened(handle)?;
        let remote = self.remote(&open).await?;
        open.read(&remote, offset, length).await
    }

    pub(crate) async fn write(&self, handle: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let open = self.opened(handle)?;
        let remote = self.remote(&open).await?;
        self.forget_reads(open.id);
        let _changing = self.siblings.changing(open.vm);
        let written = open.write(&remote, offset, bytes).await;
        self.explain(&open, written).await
    }

    /// Has a guest copy bytes from one file to another, so that they do not travel twice; returns how many.
    ///
    /// # Errors
    /// [`FileError::Unsupported`] where the bytes have to be read and written.
    pub(crate) async fn copy(
        &self,
        (from, offset): (u64, u64),
        (to, at): (u64, u64),
        length: u64,
    ) -> Result<u64> {
        let (from, to) = (self.opened(from)?, self.opened(to)?);
        let remotes = (self.remote(&from).await?, self.remote(&to).await?);
        if from.id == to.id || !Arc::ptr_eq(&remotes.0.files, &remotes.1.files) {
            return Err(FileError::Unsupported.into());
        }
        let size = from.attr(&remotes.0).await?.size;
        let length = size.saturating_sub(offset).min(length).min(LONGEST_COPY);
        if length == 0 {
            return Ok(0);
        }
        self.forget_reads(to.id);
        let _changing = self.siblings.changing(to.vm);
        let copied = to.copy(&remotes.1, (&remotes.0, offset), (at, length)).await;
        match self.explain(&to, copied).await {
            Err(FileSystemError::Guest(FileError::Failed)) => Err(FileError::Unsupported.into()),
            done => done.map(|()| length),
        }
    }

    pub(crate) async fn flush(&self, handle: u64) -> Result<()> {
        let open = self.opened(handle)?;
        let flushed = open.flush().await;
        self.explain(&open, flushed).await
    }

    pub(crate) async fn sync(&self, handle: u64) -> Result<()> {
        let open = self.opened(handle)?;
        let remote = self.remote(&open).await?;
        let synced = open.sync(&remote).await;
        self.explain(&open, synced).await
    }

    /// SFTP has no word for a full disk.
    async fn explain(&self, open: &OpenedFile, done: Result<()>) -> Result<()> {
        match done {
            Err(FileSystemError::Guest(FileError::Failed)) => {
                let at = self.at(open.id).await?;
                Err(full_or_failed(&at).await)
            }
            done => done,
        }
    }

    pub(crate) fn close(&self, handle: u64) {
        let gone = self.open.lock().remove(&handle);
        drop(gone);
    }

    /// The file changes: what was read ahead of it is void.
    fn forget_reads(&self, id: FileId) {
        let open = self.open.lock();
        open.values().filter(|open| open.id == id).for_each(|open| open.forget_reads());
    }
}

/// Returns a time as SFTP has it: seconds in 32 bits.
pub(crate) fn seconds(time: SystemTime) -> u32 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}

/// What a request wants changed of a file's attributes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AttrChange {
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) permissions: Option<u32>,
    pub(crate) atime: Option<u32>,
    pub(crate) mtime: Option<u32>,
}

/// Names the failure of what was asked of a file by its number: where the file is gone, the kernel
/// looks its path up again, and finds what is there now.
fn gone(error: FileError) -> FileSystemError {
    if error == FileError::Absent { FileSystemError::Stale } else { error.into() }
}

/// Returns `word` for a failure without a reason.
fn or(word: FileSystemError) -> impl FnOnce(FileError) -> FileSystemError {
    |error| if error == FileError::Failed { word } else { error.into() }
}

async fn full_or_failed(at: &At) -> FileSystemError {
    match at.files.space(&at.path).await {
        Ok(space) if space.available == 0 && space.blocks > 0 => FileSystemError::NoSpace,
        Err(error @ (FileError::Timeout(_) | FileError::Lost(_))) => error.into(),
        Ok(_) | Err(_) => FileError::Failed.into(),
    }
}
