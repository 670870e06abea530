//! Why something with a guest's file was not done. Numbers are given in `fuse::errno`.

use crate::vm::backend::FileError;
use crate::vm::files::FilesError;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileSystemError {
    /// The guest's files are not reached.
    #[error(transparent)]
    Reach(#[from] FilesError),
    /// The guest's word.
    #[error(transparent)]
    Guest(#[from] FileError),
    #[error("it exists")]
    Exists,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("it is a directory")]
    IsADirectory,
    #[error("the guest's disk is full")]
    NoSpace,
    #[error("it is on another file system")]
    CrossDevice,
    #[error("a name has 255 bytes at the most")]
    NameTooLong,
    #[error("that is not offered here")]
    NotOffered,
    /// It has no name any more, or the guest that had it open is gone.
    #[error("the file is gone, or what was written to it may be lost with the guest's connection")]
    Stale,
    #[error("it is not open")]
    BadHandle,
}

pub(crate) type Result<T> = std::result::Result<T, FileSystemError>;
