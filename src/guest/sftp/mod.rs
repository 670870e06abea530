//! A guest's files over SFTP version 3 with OpenSSH's extensions, on an SSH channel of their own
//! connection: [`GuestFiles`] as requests. `client` has who waits for what, `wire` the bytes.
//!
//! Not here: what is remembered, read ahead and written behind (`files`).

mod client;
mod replay;
#[cfg(test)]
mod tests;
mod wire;

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};

use self::client::Conversation;
pub use self::replay::replay;
use self::wire::{Packet, Reply, kind};
use super::connection::unreachable;
use super::identity::CommandOutput;
use super::ssh::Pool;
use crate::vm::backend::{
    BackendError, DirectoryEntry, Existing, FileAnswer, FileAttr, FileChange, FileError,
    FileSystemSpace, GuestFile, GuestFiles, NoFiles, OpenFile,
};

/// What every server takes in one read or write.
const SURE_TRANSFER: u32 = 32 << 10;
/// What is asked for at once, where the server takes it.
const LARGEST_TRANSFER: u32 = 128 << 10;
/// Requests for names that are under way at once.
const LISTING_AHEAD: usize = 3;

/// Extensions of OpenSSH that the server has.
#[derive(Clone, Copy, Debug, Default)]
struct Extensions {
    posix_rename: bool,
    hardlink: bool,
    statvfs: bool,
    fsync: bool,
    limits: bool,
    lsetstat: bool,
    copy_data: bool,
}

impl Extensions {
    fn of(names: &[String]) -> Self {
        let has = |name: &str| names.iter().any(|n| n == name);
        Self {
            posix_rename: has("posix-rename@openssh.com"),
            hardlink: has("hardlink@openssh.com"),
            statvfs: has("statvfs@openssh.com"),
            fsync: has("fsync@openssh.com"),
            limits: has("limits@openssh.com"),
            lsetstat: has("lsetstat@openssh.com"),
            copy_data: has("copy-data"),
        }
    }
}

/// A guest's files.
#[derive(Debug)]
pub(super) struct Sftp {
    conversation: Arc<Conversation>,
    extensions: Extensions,
    login: (u32, u32),
    transfer: u32,
}

/// Starts the server on a connection that nothing else uses: a command whose output is not read would
/// stop it.
///
/// # Errors
/// [`NoFiles::NoServer`] if the guest has none.
pub(super) async fn open(pool: &Arc<Pool>) -> Result<Sftp, NoFiles> {
    let login = login(pool).await?;
    let connection = pool.connect_for_files().await?;
    let channel = connection.channel().await?;
    let no_server = |reason: String| NoFiles::NoServer { reason };
    let asked = channel.request_subsystem(false, "sftp").await;
    asked.map_err(|e| no_server(e.to_string()))?;
    let begun = Sftp::begin(channel.into_stream(), Arc::clone(&connection), login).await;
    begun.map_err(|error| {
        if let FileError::Timeout(seconds) = error {
            return BackendError::GuestTimeout { seconds }.into();
        }
        let reason = error.to_string();
        if connection.is_closed() { unreachable(reason).into() } else { no_server(reason) }
    })
}

/// Asks for the numbers of the user that we log in as.
async fn login(pool: &Arc<Pool>) -> Result<(u32, u32), BackendError> {
    let output = CommandOutput::default();
    pool.lease().await?.connection.exec(b"id -u; id -g", b"", &output).await?;
    let text = output.text();
    let mut numbers = text.lines().map(|line| line.trim().parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0);
    Ok((next(), next()))
}

impl Sftp {
    /// Greets a server over any stream, which lives on `carrier`.
    async fn begin<S>(
        stream: S,
        carrier: impl Any + Send + Sync,
        login: (u32, u32),
    ) -> Result<Self, FileError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (conversation, names) = Conversation::begin(stream, carrier).await?;
        let extensions = Extensions::of(&names);
        let mut sftp = Self { conversation, extensions, login, transfer: SURE_TRANSFER };
        if extensions.limits {
            sftp.transfer = sftp.limit().await?;
        }
        Ok(sftp)
    }

    async fn limit(&self) -> Result<u32, FileError> {
        let asked = self.conversation.request(|id| Packet::extended(id, "limits@openssh.com"));
        let (read, write) = wire::limits(&extended(asked.await?)?)?;
        let limit = u32::try_from(read.min(write)).unwrap_or(u32::MAX);
        Ok(limit.clamp(SURE_TRANSFER, LARGEST_TRANSFER))
    }

    /// Sends a request that is answered by a status.
    fn ask(&self, build: impl FnOnce(u32) -> Packet) -> FileAnswer<()> {
        self.conversation.request(build).map(|reply| done(&reply?)).boxed()
    }

    fn ask_about_paths(&self, kind: u8, paths: &[&[u8]]) -> FileAnswer<()> {
        self.ask(|id| paths.iter().fold(Packet::new(kind, id), |packet, path| packet.bytes(path)))
    }

    fn ask_extended(&self, has_it: bool, name: &str, paths: &[&[u8]]) -> FileAnswer<()> {
        if !has_it {
            return refuse(FileError::Unsupported);
        }
        self.ask(|id| {
            paths.iter().fold(Packet::extended(id, name), |packet, path| packet.bytes(path))
        })
    }
}

impl GuestFiles for Sftp {
    fn is_lost(&self) -> bool {
        self.conversation.over().is_some()
    }

    fn login(&self) -> (u32, u32) {
        self.login
    }

    fn transfer(&self) -> u32 {
        self.transfer
    }

    fn attr(&self, path: &[u8]) -> FileAnswer<FileAttr> {
        let asked = self.conversation.request(|id| Packet::new(kind::LSTAT, id).bytes(path));
        asked.map(|reply| attr(&reply?)).boxed()
    }

    fn change(&self, path: &[u8], change: &FileChange) -> FileAnswer<()> {
        self.ask(|id| Packet::new(kind::SETSTAT, id).bytes(path).change(change))
    }

    fn change_link(&self, path: &[u8], change: &FileChange) -> FileAnswer<()> {
        if !self.extensions.lsetstat {
            return refuse(FileError::Unsupported);
        }
        self.ask(|id| Packet::extended(id, "lsetstat@openssh.com").bytes(path).change(change))
    }

    fn target(&self, path: &[u8]) -> FileAnswer<Vec<u8>> {
        let asked = self.conversation.request(|id| Packet::new(kind::READLINK, id).bytes(path));
        asked.map(|reply| names(reply?).and_then(wire::target)).boxed()
    }

    fn list(&self, path: &[u8], most: usize) -> FileAnswer<Vec<DirectoryEntry>> {
        let opened = self.conversation.request(|id| Packet::new(kind::OPENDIR, id).bytes(path));
        let conversation = Arc::clone(&self.conversation);
        async move {
            let handle = handle(opened.await?, &conversation)?;
            list(&handle, most).await
        }
        .boxed()
    }

    fn open(&self, path: &[u8], how: &OpenFile) -> FileAnswer<Box<dyn GuestFile>> {
        let change = FileChange { permissions: how.create, ..FileChange::default() };
        let opened = self
            .conversation
            .request(|id| Packet::new(kind::OPEN, id).bytes(path).u32(flags(how)).change(&change));
        let (conversation, extensions) = (Arc::clone(&self.conversation), self.extensions);
        async move {
            let handle = handle(opened.await?, &conversation)?;
            Ok(Box::new(SftpFile { handle, extensions }) as Box<dyn GuestFile>)
        }
        .boxed()
    }

    fn make_directory(&self, path: &[u8], permissions: u32) -> FileAnswer<()> {
        let change = FileChange { permissions: Some(permissions), ..FileChange::default() };
        self.ask(|id| Packet::new(kind::MKDIR, id).bytes(path).change(&change))
    }

    fn remove_directory(&self, path: &[u8]) -> FileAnswer<()> {
        self.ask_about_paths(kind::RMDIR, &[path])
    }

    fn remove(&self, path: &[u8]) -> FileAnswer<()> {
        self.ask_about_paths(kind::REMOVE, &[path])
    }

    fn rename(&self, from: &[u8], to: &[u8], existing: Existing) -> FileAnswer<()> {
        match existing {
            Existing::Replace if self.extensions.posix_rename => {
                self.ask_extended(true, "posix-rename@openssh.com", &[from, to])
            }
            // Where it cannot replace, it fails if the new name is there.
            Existing::Replace | Existing::Keep => self.ask_about_paths(kind::RENAME, &[from, to]),
        }
    }

    fn link(&self, existing: &[u8], path: &[u8]) -> FileAnswer<()> {
        self.ask_extended(self.extensions.hardlink, "hardlink@openssh.com", &[existing, path])
    }

    fn make_link(&self, target: &[u8], path: &[u8]) -> FileAnswer<()> {
        // OpenSSH has the two in this order, the draft in the other.
        self.ask_about_paths(kind::SYMLINK, &[target, path])
    }

    fn space(&self, path: &[u8]) -> FileAnswer<FileSystemSpace> {
        if !self.extensions.statvfs {
            return refuse(FileError::Unsupported);
        }
        let asked = |id| Packet::extended(id, "statvfs@openssh.com").bytes(path);
        let asked = self.conversation.request(asked);
        asked.map(|reply| wire::space(&extended(reply?)?)).boxed()
    }
}

#[derive(Debug)]
struct SftpFile {
    handle: Handle,
    extensions: Extensions,
}

impl GuestFile for SftpFile {
    fn read(&self, offset: u64, length: u32) -> FileAnswer<Vec<u8>> {
        let asked = self.handle.request(kind::READ, |packet| packet.u64(offset).u32(length));
        asked.map(move |reply| data(reply?, length as usize)).boxed()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> FileAnswer<()> {
        let asked = self.handle.request(kind::WRITE, |packet| packet.u64(offset).bytes(bytes));
        asked.map(|reply| done(&reply?)).boxed()
    }

    fn attr(&self) -> FileAnswer<FileAttr> {
        self.handle.request(kind::FSTAT, |packet| packet).map(|reply| attr(&reply?)).boxed()
    }

    fn change(&self, change: &FileChange) -> FileAnswer<()> {
        let asked = self.handle.request(kind::FSETSTAT, |packet| packet.change(change));
        asked.map(|reply| done(&reply?)).boxed()
    }

    fn sync(&self) -> FileAnswer<()> {
        if !self.extensions.fsync {
            return refuse(FileError::Unsupported);
        }
        let Handle { bytes, conversation } = &self.handle;
        let asked = |id| Packet::extended(id, "fsync@openssh.com").bytes(bytes);
        conversation.request_sync(asked).map(|reply| done(&reply?)).boxed()
    }

    fn copy(&self, offset: u64, length: u64, to: &dyn GuestFile, at: u64) -> FileAnswer<()> {
        // A length of 0 would be the rest of the file.
        if !self.extensions.copy_data || length == 0 {
            return refuse(FileError::Unsupported);
        }
        let Handle { bytes, conversation } = &self.handle;
        let asked = |id| {
            let packet = Packet::extended(id, "copy-data").bytes(bytes).u64(offset).u64(length);
            packet.bytes(to.handle()).u64(at)
        };
        conversation.request_sync(asked).map(|reply| done(&reply?)).boxed()
    }

    fn handle(&self) -> &[u8] {
        &self.handle.bytes
    }
}

/// What is open in the guest; dropping it closes it.
#[derive(Debug)]
struct Handle {
    bytes: Vec<u8>,
    conversation: Arc<Conversation>,
}

impl Handle {
    fn request(&self, kind: u8, rest: impl FnOnce(Packet) -> Packet) -> FileAnswer<Reply> {
        self.conversation.request(|id| rest(Packet::new(kind, id).bytes(&self.bytes)))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.conversation.close(&self.bytes);
    }
}

/// Reads a directory to its end, with a few requests under way.
async fn list(handle: &Handle, most: usize) -> Result<Vec<DirectoryEntry>, FileError> {
    let ask = || handle.request(kind::READDIR, |packet| packet);
    let mut asked: VecDeque<FileAnswer<Reply>> = (0..LISTING_AHEAD).map(|_| ask()).collect();
    let (mut all, mut heard) = (Vec::new(), 0);
    while let Some(next) = asked.pop_front() {
        let found = match next.await? {
            Reply::Status(status::EOF) => return Ok(all),
            reply @ (Reply::Status(_)
            | Reply::Handle(_)
            | Reply::Data(_)
            | Reply::Names(_)
            | Reply::Attr(_)
            | Reply::Extended(_)) => names(reply)?,
        };
        heard += found.len();
        match heard {
            0 => return Err(FileError::Protocol("a listing goes on without a name")),
            _ if found.is_empty() => {
                return Err(FileError::Protocol("a part of a listing is empty"));
            }
            _ if heard > most => return Err(FileError::TooMany(most)),
            _ => all.extend(found.into_iter().filter(|entry| wire::is_name(&entry.name))),
        }
        asked.push_back(ask());
    }
    Ok(all)
}

fn flags(how: &OpenFile) -> u32 {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    flag(how.read, 1)
        | flag(how.write, 2)
        | flag(how.append, 4)
        | flag(how.create.is_some(), 8)
        | flag(how.truncate, 0x10)
        | flag(how.exclusive, 0x20)
}

mod status {
    pub(super) const OK: u32 = 0;
    pub(super) const EOF: u32 = 1;
    pub(super) const NO_SUCH_FILE: u32 = 2;
    pub(super) const PERMISSION_DENIED: u32 = 3;
    pub(super) const BAD_MESSAGE: u32 = 5;
    pub(super) const OP_UNSUPPORTED: u32 = 8;
}

/// Returns what a status says of a request that has failed; a good one answers no question.
fn failure(reply: &Reply) -> FileError {
    match reply {
        Reply::Status(status::NO_SUCH_FILE) => FileError::Absent,
        Reply::Status(status::PERMISSION_DENIED) => FileError::Denied,
        Reply::Status(status::BAD_MESSAGE) => FileError::Invalid,
        Reply::Status(status::OP_UNSUPPORTED) => FileError::Unsupported,
        Reply::Status(status::OK | status::EOF) => FileError::Protocol("a status is no answer"),
        Reply::Status(_) => FileError::Failed,
        Reply::Handle(_)
        | Reply::Data(_)
        | Reply::Names(_)
        | Reply::Attr(_)
        | Reply::Extended(_) => FileError::Protocol("a reply is of another kind"),
    }
}

fn done(reply: &Reply) -> Result<(), FileError> {
    if *reply == Reply::Status(status::OK) { Ok(()) } else { Err(failure(reply)) }
}

fn attr(reply: &Reply) -> Result<FileAttr, FileError> {
    if let Reply::Attr(attr) = reply { Ok(*attr) } else { Err(failure(reply)) }
}

fn names(reply: Reply) -> Result<Vec<DirectoryEntry>, FileError> {
    if let Reply::Names(names) = reply { Ok(names) } else { Err(failure(&reply)) }
}

fn extended(reply: Reply) -> Result<Vec<u8>, FileError> {
    if let Reply::Extended(data) = reply { Ok(data) } else { Err(failure(&reply)) }
}

fn handle(reply: Reply, conversation: &Arc<Conversation>) -> Result<Handle, FileError> {
    let Reply::Handle(bytes) = reply else { return Err(failure(&reply)) };
    Ok(Handle { bytes, conversation: Arc::clone(conversation) })
}

fn data(reply: Reply, wanted: usize) -> Result<Vec<u8>, FileError> {
    if reply == Reply::Status(status::EOF) {
        return Ok(Vec::new());
    }
    let Reply::Data(data) = reply else { return Err(failure(&reply)) };
    match data.len() <= wanted {
        true => Ok(data),
        false => Err(FileError::Protocol("a read gives more than was asked for")),
    }
}

fn refuse<T: Send + 'static>(error: FileError) -> FileAnswer<T> {
    futures::future::ready(Err(error)).boxed()
}
