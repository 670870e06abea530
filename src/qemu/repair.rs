//! What a program leaves in a disk when it is killed while it changes it: never a wrong byte, as
//! QEMU orders what it writes, but clusters that are counted and that nobody uses.
//!
//! A mark in the VM's directory says that somebody changes the disk. A start that finds one looks
//! for lost clusters first, which takes some milliseconds for each gigabyte in the disk.

use std::fs::{self, File};
use std::io;

use super::img;
use crate::store::layout::VmDir;
use crate::vm::backend::BackendError;

/// Says that the disk is being changed from now on. Who finds it said already leaves it so.
///
/// # Errors
/// What the disk answers.
pub(super) fn begin(dir: &VmDir) -> Result<Mark, BackendError> {
    let path = dir.disk_mark();
    match File::options().write(true).create_new(true).open(&path) {
        Ok(_) => Ok(Mark::Ours),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Mark::AnEarlierOne),
        Err(e) => Err(BackendError::io(path.display().to_string(), &e)),
    }
}

/// Whose a mark is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Ours,
    /// Of somebody who was killed.
    AnEarlierOne,
}

/// Says that the disk has been changed, and is whole.
pub(super) fn end(dir: &VmDir) {
    match fs::remove_file(dir.disk_mark()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // The next start looks in vain, no more.
            tracing::warn!(dir = %dir.0.display(), %error, "the disk's mark stays");
        }
        _ => {}
    }
}

/// Carries out a change of a disk that no machine uses.
pub(super) async fn marked(
    dir: &VmDir,
    change: impl Future<Output = Result<(), BackendError>>,
) -> Result<(), BackendError> {
    let mark = begin(dir)?;
    change.await?;
    if mark == Mark::Ours {
        end(dir);
    }
    Ok(())
}

/// Gives back what was lost in a disk whose last user was killed.
pub(super) async fn repair(dir: &VmDir) {
    if !dir.disk_mark().exists() {
        return;
    }
    if dir.disk().exists()
        && let Err(error) = img::repair_leaks(&dir.disk()).await
    {
        // It costs space only; and a disk that is worse off, QEMU refuses itself.
        tracing::warn!(dir = %dir.0.display(), %error, "clusters may be lost");
        return;
    }
    end(dir);
}
