//! What a procedure answers instead of a result: NFS's errors (RFC 1813, section 2.6), and which of them
//! an error of the host's kernel is.

use std::io;

use rustix::io::Errno;

use super::xdr::Garbage;

/// An error of NFS, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    NotOwner = 1,
    NoEntry = 2,
    Io = 5,
    NoDevice = 6,
    Access = 13,
    Exists = 17,
    CrossDevice = 18,
    NotDirectory = 20,
    IsDirectory = 21,
    Invalid = 22,
    FileTooBig = 27,
    NoSpace = 28,
    ReadOnly = 30,
    TooManyLinks = 31,
    NameTooLong = 63,
    NotEmpty = 66,
    Quota = 69,
    Stale = 70,
    BadHandle = 10001,
    NotSynchronized = 10002,
    NotSupported = 10004,
    TooSmall = 10005,
    BadType = 10007,
}

/// Why a procedure has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Status(Status),
    /// Its arguments cannot be read.
    Garbage,
}

impl From<Garbage> for Fault {
    fn from(_: Garbage) -> Self {
        Self::Garbage
    }
}

impl From<Status> for Fault {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Status(errno.into())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Status(error.into())
    }
}

impl From<io::Error> for Status {
    fn from(error: io::Error) -> Self {
        Errno::from_io_error(&error).map_or(Self::Io, Self::from)
    }
}

impl From<Errno> for Status {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PERM => Self::NotOwner,
            Errno::NOENT => Self::NoEntry,
            Errno::NXIO | Errno::NODEV => Self::NoDevice,
            Errno::ACCESS => Self::Access,
            Errno::EXIST => Self::Exists,
            Errno::XDEV => Self::CrossDevice,
            Errno::NOTDIR => Self::NotDirectory,
            Errno::ISDIR => Self::IsDirectory,
            // A symbolic link where none may be: the server follows none.
            Errno::LOOP => Self::Stale,
            Errno::INVAL | Errno::BUSY => Self::Invalid,
            Errno::FBIG => Self::FileTooBig,
            Errno::NOSPC => Self::NoSpace,
            Errno::ROFS => Self::ReadOnly,
            Errno::MLINK => Self::TooManyLinks,
            Errno::NAMETOOLONG => Self::NameTooLong,
            Errno::NOTEMPTY => Self::NotEmpty,
            Errno::DQUOT => Self::Quota,
            Errno::STALE => Self::Stale,
            Errno::OPNOTSUPP | Errno::NOSYS => Self::NotSupported,
            _ => Self::Io,
        }
    }
}
