//! A guest that stands still for our sake, and not because its user has paused it. It is marked, so
//! that it does not stay so for good if the daemon is killed: the next one lets it go on.
//!
//! Not here: what it stands still for (`snapshot`, `suspended`, `warm`).

use std::fs;
use std::io::ErrorKind;

use super::{off_thread, suspended};
use crate::store::layout::VmDir;
use crate::vm::Backends;
use crate::vm::backend::{Adoption, BackendError};

/// Says that it will.
pub(super) async fn mark(dir: &VmDir) -> Result<(), BackendError> {
    let still = dir.still();
    off_thread(move || fs::write(still, b""), "the mark of a guest that stands still").await
}

/// Says that it goes on, or has ended.
pub(super) fn unmark(dir: &VmDir) {
    if let Err(error) = fs::remove_file(dir.still())
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(dir = %dir.0.display(), %error, "a guest stays marked as standing still");
    }
}

/// Lets a guest go on that an earlier daemon has marked.
pub(super) async fn release(
    backends: &Backends,
    dir: &VmDir,
    mut adoption: Adoption,
) -> Result<Adoption, BackendError> {
    if matches!(adoption, Adoption::Unclear(_)) || !dir.still().exists() {
        return Ok(adoption);
    }
    if let Adoption::Running(launched) = &mut adoption {
        let saved = suspended::saved(&*backends.hypervisor, dir);
        suspended::forget(&*launched.machine, saved).await?;
        launched.machine.recover().await?;
        launched.paused = false;
        launched.clock_is_behind = true;
    }
    unmark(dir);
    Ok(adoption)
}
