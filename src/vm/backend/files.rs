//! The files of a guest, as a session with it gives them. Paths are bytes and absolute.
//!
//! A request is sent when its method is called, and the guest carries requests out in that order:
//! the future waits for the answer alone. Dropping it calls nothing off and loses nothing.

use std::fmt;

use futures::future::BoxFuture;

use super::BackendError;

/// The answer to a request.
pub type FileAnswer<T> = BoxFuture<'static, Result<T, FileError>>;

/// Why the guest did not do something with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// There is no such file, or a part of its path is no directory.
    #[error("no such file")]
    Absent,
    /// The login user may not.
    #[error("permission denied")]
    Denied,
    /// A name that is too long, or a value that is none.
    #[error("invalid argument")]
    Invalid,
    /// The guest's server has no such request.
    #[error("not supported by the guest's sftp-server")]
    Unsupported,
    /// Any other reason: SFTP has no more words.
    #[error("the guest's sftp-server failed without a reason")]
    Failed,
    /// No answer in time.
    #[error("the guest has not answered within {0} s")]
    Timeout(u64),
    /// The connection is lost.
    #[error("the connection to the guest's sftp-server is lost: {0}")]
    Lost(String),
    /// What came is no answer to what was asked.
    #[error("the guest's sftp-server does not keep to the protocol: {0}")]
    Protocol(&'static str),
    /// The directory has more names than are read of one.
    #[error("the directory has more than {0} names")]
    TooMany(usize),
}

/// The attributes of a file, numbers of users as the guest has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileAttr {
    /// Bytes.
    pub size: u64,
    /// The owner.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// Kind and permissions, as stat(2) has them.
    pub mode: u32,
    /// Seconds since 1970.
    pub atime: u32,
    /// Seconds since 1970.
    pub mtime: u32,
}

/// What is to be changed of a file's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileChange {
    /// Its length.
    pub size: Option<u64>,
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Its permissions.
    pub permissions: Option<u32>,
    /// Access and change, in seconds since 1970.
    pub times: Option<(u32, u32)>,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFile {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// Every write goes to the end.
    pub append: bool,
    /// It is made if it is absent, with these permissions.
    pub create: Option<u32>,
    /// It must be absent.
    pub exclusive: bool,
    /// It is emptied.
    pub truncate: bool,
}

/// A name in a directory, without `/`, and what it names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// The name.
    pub name: Vec<u8>,
    /// What it names; a link is not followed.
    pub attr: FileAttr,
}

/// The space of a file system, as statvfs(3) has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystemSpace {
    /// The size of a block of [`blocks`](Self::blocks).
    pub fragment_size: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks for users.
    pub available: u64,
    /// Files there can be.
    pub files: u64,
    /// Files there can be more.
    pub files_free: u64,
}

/// What a rename does with a file that has the new name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Replaces it.
    Replace,
    /// Fails.
    Keep,
}

/// The guest's files over one connection.
pub trait GuestFiles: fmt::Debug + Send + Sync {
    /// Says whether the connection is lost.
    fn is_lost(&self) -> bool;
    /// Returns the numbers of the login user and its group in the guest.
    fn login(&self) -> (u32, u32);
    /// Returns the most bytes that one read or write takes.
    fn transfer(&self) -> u32;
    /// Finds a file's attributes; a link is not followed.
    fn attr(&self, path: &[u8]) -> FileAnswer<FileAttr>;
    /// Changes attributes; a link is followed.
    fn change(&self, path: &[u8], change: &FileChange) -> FileAnswer<()>;
    /// Changes the owner or the times of a link itself.
    fn change_link(&self, path: &[u8], change: &FileChange) -> FileAnswer<()>;
    /// Reads where a link leads.
    fn target(&self, path: &[u8]) -> FileAnswer<Vec<u8>>;
    /// Lists a directory, without `.` and `..`; [`FileError::TooMany`] if it has more names than `most`.
    fn list(&self, path: &[u8], most: usize) -> FileAnswer<Vec<DirectoryEntry>>;
    /// Opens a file.
    fn open(&self, path: &[u8], how: &OpenFile) -> FileAnswer<Box<dyn GuestFile>>;
    /// Makes a directory.
    fn make_directory(&self, path: &[u8], permissions: u32) -> FileAnswer<()>;
    /// Removes a directory.
    fn remove_directory(&self, path: &[u8]) -> FileAnswer<()>;
    /// Removes what is no directory.
    fn remove(&self, path: &[u8]) -> FileAnswer<()>;
    /// Renames.
    fn rename(&self, from: &[u8], to: &[u8], existing: Existing) -> FileAnswer<()>;
    /// Makes another name of a file.
    fn link(&self, existing: &[u8], path: &[u8]) -> FileAnswer<()>;
    /// Makes a symbolic link.
    fn make_link(&self, target: &[u8], path: &[u8]) -> FileAnswer<()>;
    /// Says how much space the file system of a path has.
    fn space(&self, path: &[u8]) -> FileAnswer<FileSystemSpace>;
}

/// A file that is open in the guest. Dropping it closes it, after what was asked of it before.
pub trait GuestFile: fmt::Debug + Send + Sync {
    /// Reads; fewer bytes than wanted do not mean the end, none do.
    fn read(&self, offset: u64, length: u32) -> FileAnswer<Vec<u8>>;
    /// Writes all of it.
    fn write(&self, offset: u64, bytes: &[u8]) -> FileAnswer<()>;
    /// Finds its attributes.
    fn attr(&self) -> FileAnswer<FileAttr>;
    /// Changes its attributes.
    fn change(&self, change: &FileChange) -> FileAnswer<()>;
    /// Writes it to the guest's disk.
    fn sync(&self) -> FileAnswer<()>;
    /// Copies bytes from it to a place in another file that is open on the same connection. Fewer are copied where
    /// it ends.
    fn copy(&self, offset: u64, length: u64, to: &dyn GuestFile, at: u64) -> FileAnswer<()>;
    /// What the guest knows it by as long as it is open.
    fn handle(&self) -> &[u8];
}

/// Why there are no files of a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoFiles {
    /// It has no server for them.
    #[error(
        "the guest has no sftp-server, which `fs` needs: {reason}; install it in the guest (Debian, \
         Alpine: openssh-sftp-server)"
    )]
    NoServer {
        /// What the SSH server answered.
        reason: String,
    },
    /// It is not reached.
    #[error(transparent)]
    Unreached(#[from] BackendError),
}
