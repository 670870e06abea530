//! A pause of the guest that the daemon makes for an operation of its own and ends itself. It is
//! written down, so that the guest does not stay paused if the daemon is killed.
//!
//! Not here: what the pause is for (`snapshot`, `capture`, `qemu::machine::grow`), and its recovery (`recover`).

use super::off_thread;
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::backend::BackendError;

/// Writes down that the daemon is about to pause the guest.
pub(super) async fn begin(dir: &VmDir) -> Result<(), BackendError> {
    let dir = dir.clone();
    let begin = move || operation::begin(&dir, Operation::PausedByDaemon);
    off_thread(begin, "the note of a pause").await.map(drop)
}

/// Writes down that the guest runs again, or has ended.
pub(super) fn end(dir: &VmDir) {
    if let Err(error) = operation::end(dir, &Operation::PausedByDaemon) {
        tracing::warn!(dir = %dir.0.display(), %error, "the next daemon resumes the guest in vain");
    }
}
