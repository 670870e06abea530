//! Errors → errno: the only table of them. No `_` arm, so that a new error asks for its number.
//!
//! `ENOTCONN`, `EIO` and `ENOSYS` are never ours: they mean that the daemon is gone.

use fuser::Errno;

use crate::files::FileSystemError;
use crate::registry::RegistryError;
use crate::tree::TreeError;
use crate::tree::verbs::VerbError;
use crate::vm::VmError;
use crate::vm::backend::{BackendError, FileError, NoFiles};
use crate::vm::disks::DataDiskError;
use crate::vm::files::FilesError;
use crate::vm::job::JobError;
use crate::vm::nets::NetError;
use crate::vm::shares::ShareError;
use crate::vm::spec::SpecError;
use crate::vm::state::Refusal;

pub(super) fn of(error: &TreeError) -> Errno {
    Errno::from_i32(number(error))
}

pub(crate) fn number(error: &TreeError) -> i32 {
    match error {
        TreeError::NotFound | TreeError::NeverFound => libc::ENOENT,
        TreeError::NotADirectory => libc::ENOTDIR,
        TreeError::IsADirectory => libc::EISDIR,
        TreeError::ReadOnly | TreeError::WriteOnly | TreeError::NoCreation => libc::EACCES,
        // Not EXDEV: `mv` would then copy, that is, take a snapshot of the other VM. Nor EINVAL,
        // which it takes for a directory that is to be moved into itself.
        TreeError::NotOffered(_) | TreeError::OthersSnapshot => libc::EPERM,
        TreeError::BadName(_) | TreeError::BadRename | TreeError::NotText | TreeError::NotALink => {
            libc::EINVAL
        }
        TreeError::BadHandle => libc::EBADF,
        TreeError::WouldBlock => libc::EAGAIN,
        TreeError::Latched => libc::ECANCELED,
        TreeError::TooBig(_) => libc::E2BIG,
        TreeError::Verb(VerbError::Range { .. }) => libc::ERANGE,
        TreeError::Verb(VerbError::Value(error)) => spec(error),
        TreeError::Verb(VerbError::Unknown { .. } | VerbError::Usage { .. }) => libc::EINVAL,
        TreeError::Vm(error) => vm(error),
        TreeError::Registry(error) => registry(error),
    }
}

pub(super) fn of_file(error: &FileSystemError) -> Errno {
    Errno::from_i32(match error {
        FileSystemError::Reach(error) => reach(error),
        FileSystemError::Guest(error) => guest_file(error),
        FileSystemError::Exists => libc::EEXIST,
        FileSystemError::NotEmpty => libc::ENOTEMPTY,
        FileSystemError::IsADirectory => libc::EISDIR,
        FileSystemError::NameTooLong => libc::ENAMETOOLONG,
        FileSystemError::NoSpace => libc::ENOSPC,
        FileSystemError::CrossDevice => libc::EXDEV,
        FileSystemError::NotOffered => libc::EPERM,
        FileSystemError::Stale => libc::ESTALE,
        FileSystemError::BadHandle => libc::EBADF,
    })
}

fn reach(error: &FilesError) -> i32 {
    match error {
        FilesError::Off | FilesError::Start(_) => libc::EHOSTDOWN,
        FilesError::Removed => libc::ENOENT,
        FilesError::Late => libc::ETIMEDOUT,
        FilesError::None(NoFiles::NoServer { .. }) => libc::EOPNOTSUPP,
        FilesError::None(NoFiles::Unreached(error)) => backend(error),
    }
}

fn guest_file(error: &FileError) -> i32 {
    match error {
        FileError::Absent => libc::ENOENT,
        FileError::Denied => libc::EACCES,
        FileError::Invalid => libc::EINVAL,
        FileError::Unsupported => libc::EOPNOTSUPP,
        FileError::Failed => libc::EREMOTEIO,
        FileError::Timeout(_) => libc::ETIMEDOUT,
        FileError::Lost(_) => libc::EHOSTUNREACH,
        FileError::Protocol(_) => libc::EPROTO,
        FileError::TooMany(_) => libc::EOVERFLOW,
    }
}

fn registry(error: &RegistryError) -> i32 {
    match error {
        RegistryError::Exists(_) => libc::EEXIST,
        RegistryError::Absent(_) => libc::ENOENT,
        RegistryError::BadName(_) | RegistryError::Origin(_) => libc::EINVAL,
        RegistryError::NameBusy(_) => libc::EBUSY,
        RegistryError::NoAnswer { .. } => libc::ETIMEDOUT,
        RegistryError::Vm(error) => vm(error),
    }
}

fn vm(error: &VmError) -> i32 {
    match error {
        VmError::Refused(refusal) => refused(refusal),
        VmError::Spec(error) => spec(error),
        VmError::Nul => libc::EINVAL,
        VmError::Backend(error) => backend(error),
        VmError::Removed => libc::ENOENT,
        VmError::TooLong { .. } => libc::EFBIG,
        VmError::Lost(_) => libc::EHOSTUNREACH,
        VmError::Job(error) => job(error),
        VmError::Share(error) => share(error),
        VmError::Net(error) => net(error),
        VmError::Disk(error) => data_disk(error),
    }
}

fn job(error: &JobError) -> i32 {
    match error {
        JobError::Exists(_) => libc::EEXIST,
        JobError::BadName(_) | JobError::Usage { .. } => libc::EINVAL,
        JobError::Absent => libc::ENOENT,
        JobError::Started(_) => libc::EBUSY,
        JobError::NotRunning(_) => libc::ESRCH,
        JobError::TooMany(_) => libc::EBUSY,
        JobError::NoTerminal => libc::ENOTTY,
        JobError::InputEnded => libc::EPIPE,
    }
}

fn net(error: &NetError) -> i32 {
    match error {
        NetError::Absent(_) => libc::ENOENT,
        NetError::Exists(_) => libc::EEXIST,
        NetError::HasMembers { .. } => libc::EBUSY,
        NetError::Full { .. } | NetError::NoSubnet(_) | NetError::NoPort(_) => libc::ENOSPC,
        NetError::BadName(_) | NetError::Subnet { .. } | NetError::Overlaps { .. } => libc::EINVAL,
    }
}

fn data_disk(error: &DataDiskError) -> i32 {
    match error {
        DataDiskError::Exists(_) => libc::EEXIST,
        DataDiskError::Absent => libc::ENOENT,
        DataDiskError::Full => libc::ENOSPC,
        DataDiskError::SizeRange(_) => libc::ERANGE,
        DataDiskError::Source { errno, .. } => ours(*errno),
        DataDiskError::Starting
        | DataDiskError::Held(_)
        | DataDiskError::Twice { .. }
        | DataDiskError::SavesSource(_)
        | DataDiskError::NoSnapshot(_)
        | DataDiskError::Lacks { .. }
        | DataDiskError::Elsewhere { .. } => libc::EBUSY,
        DataDiskError::BadName(_)
        | DataDiskError::NotASize(_)
        | DataDiskError::Shrinks { .. }
        | DataDiskError::HasSource(_)
        | DataDiskError::IsOwn(_)
        | DataDiskError::Relative(_)
        | DataDiskError::NoFile(_)
        | DataDiskError::Own { .. }
        | DataDiskError::Format { .. }
        | DataDiskError::Removed(_)
        | DataDiskError::Serial(_) => libc::EINVAL,
    }
}

fn share(error: &ShareError) -> i32 {
    match error {
        ShareError::Exists(_) => libc::EEXIST,
        ShareError::Absent => libc::ENOENT,
        ShareError::TooMany(_) => libc::ENOSPC,
        ShareError::Source { errno, .. } => ours(*errno),
        ShareError::Relative(_)
        | ShareError::Everything
        | ShareError::NoDirectory(_)
        | ShareError::NotText(_)
        | ShareError::Own { .. }
        | ShareError::Target(_)
        | ShareError::SameTarget { .. }
        | ShareError::Mode(_)
        | ShareError::Cache(_) => libc::EINVAL,
    }
}

fn spec(error: &SpecError) -> i32 {
    match error {
        SpecError::Malformed { .. } | SpecError::Text { .. } | SpecError::Shrinks { .. } => {
            libc::EINVAL
        }
        SpecError::OutOfRange { .. } => libc::ERANGE,
        SpecError::Duplicate { .. } => libc::EEXIST,
        SpecError::NotThere { .. } => libc::ENOENT,
    }
}

fn refused(refusal: &Refusal) -> i32 {
    match refusal {
        Refusal::Already { .. } => libc::EALREADY,
        Refusal::Off { .. } => libc::EHOSTDOWN,
        Refusal::Paused { .. } | Refusal::Unreachable { .. } => libc::EHOSTUNREACH,
        Refusal::Busy { .. }
        | Refusal::Pinned { .. }
        | Refusal::TooMany { .. }
        | Refusal::Occupied { .. }
        | Refusal::InUse { .. }
        | Refusal::MustStop { .. }
        | Refusal::NotReady { .. } => libc::EBUSY,
        Refusal::Protected => libc::EPERM,
        Refusal::HasDisk { .. } | Refusal::Ephemeral | Refusal::SuspendedEphemeral => libc::EINVAL,
        Refusal::NoSnapshot { .. } | Refusal::NoDisk => libc::ENOENT,
        Refusal::SnapshotExists { .. } => libc::EEXIST,
        Refusal::NoMemory { .. } | Refusal::NumberOfAnother { .. } => libc::EBUSY,
        Refusal::Broken { .. } => libc::EUCLEAN,
    }
}

fn backend(error: &BackendError) -> i32 {
    match error {
        BackendError::Missing { .. } => libc::ENOPKG,
        BackendError::NoAccelerator { .. } => libc::ENODEV,
        BackendError::QemuDied { .. }
        | BackendError::QmpRefused { .. }
        | BackendError::CannotResume { .. }
        | BackendError::HalfRestored { .. }
        | BackendError::MemoryLimit { .. }
        | BackendError::ForkFailed { .. }
        | BackendError::PersonalizationFailed { .. } => libc::EREMOTEIO,
        BackendError::QmpTimeout { .. } | BackendError::GuestTimeout { .. } => libc::ETIMEDOUT,
        BackendError::NoImage { .. } | BackendError::NoSource { .. } => libc::ENOENT,
        BackendError::BadSource { .. } => libc::EINVAL,
        BackendError::Disks(error) => data_disk(error),
        BackendError::ImageExists { .. } => libc::EEXIST,
        BackendError::ImageBusy { .. } | BackendError::OtherMachine { .. } => libc::EBUSY,
        BackendError::NothingUnderWay { .. } => libc::EALREADY,
        BackendError::ImageFailed { .. } => libc::EREMOTEIO,
        BackendError::NotSurelyOurs { .. } => libc::EPERM,
        BackendError::Unreachable { .. } => libc::EHOSTUNREACH,
        BackendError::KeyRefused { .. } | BackendError::WrongHostKey => libc::EKEYREJECTED,
        BackendError::TooLong { .. } => libc::E2BIG,
        BackendError::NoSpace { .. } => libc::ENOSPC,
        BackendError::NoRoomInTable { .. } => libc::ENAMETOOLONG,
        BackendError::NoMemory { .. } => libc::ENOMEM,
        BackendError::Quota { .. } => libc::EDQUOT,
        BackendError::PortTaken { .. } => libc::EADDRINUSE,
        BackendError::NoFile { .. } => libc::ENOENT,
        BackendError::NotAFile { .. }
        | BackendError::Unfit { .. }
        | BackendError::UnknownKey { .. } => libc::EINVAL,
        BackendError::Io { errno, .. } => ours(*errno),
    }
}

/// Keeps the numbers that mean "the daemon is gone", and none at all, out of our answers.
fn ours(errno: i32) -> i32 {
    match errno {
        0 | libc::EIO | libc::ENOTCONN | libc::ENOSYS => libc::EREMOTEIO,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_answer_of_ours_looks_like_a_dead_daemon() {
        for errno in [0, libc::EIO, libc::ENOTCONN, libc::ENOSYS] {
            let io = BackendError::Io { what: "x".into(), error: "y".into(), errno };
            assert_eq!(number(&VmError::from(io).into()), libc::EREMOTEIO);
        }
    }
}
