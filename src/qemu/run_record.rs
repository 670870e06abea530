//! `run.json`: the facts about a running QEMU, so that a later daemon can adopt it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::process::{boot_id, start_time};
use crate::store::file;
use crate::store::layout::{VmDir, names};
use crate::vm::backend::{Result, RunFacts};
use crate::vm::driver::off_thread;

/// The facts, and the host's boot in which they held.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The host's boot: process numbers and start times mean nothing in another one.
    pub boot_id: String,
    /// What is known about QEMU.
    #[serde(flatten)]
    pub facts: RunFacts,
}

impl RunRecord {
    /// Says whether it is of the host's current boot; `None` if that is unknown.
    pub fn is_of_this_boot(&self) -> Option<bool> {
        Some(self.boot_id == boot_id().ok()?)
    }

    /// Says whether the process on record still runs.
    pub fn runs(&self) -> bool {
        let same = start_time(self.facts.pid).ok() == Some(self.facts.pid_start);
        same && self.is_of_this_boot() != Some(false)
    }
}

/// Writes the record of a QEMU that runs now.
pub async fn write(dir: &VmDir, facts: &RunFacts) -> Result<()> {
    let (path, facts) = (dir.run(), facts.clone());
    let what = path.display().to_string();
    let write = move || {
        let boot_id = boot_id()?;
        file::replace_json(&path, &RunRecord { boot_id, facts })
    };
    off_thread(write, what).await
}

/// `None` if there is no record, and an error's text if it is damaged.
pub type FoundRecord = Result<Option<RunRecord>, String>;

/// Reads the record.
pub fn read(dir: &VmDir) -> FoundRecord {
    file::if_there(file::read_json(&dir.run())).map_err(|e| e.to_string())
}

/// Removes the record if it is that of `facts`, after a clean end. A later launch may have written
/// its own already.
pub fn forget(dir: &VmDir, facts: &RunFacts) {
    let is_it = |r: &RunRecord| (r.facts.pid, r.facts.pid_start) == (facts.pid, facts.pid_start);
    if read(dir).is_ok_and(|r| r.as_ref().is_some_and(is_it)) {
        remove_if_there(&dir.run());
    }
}

/// Removes what an earlier QEMU left behind, which removes its sockets only when it ends by itself,
/// and what a launch was killed over.
pub fn clear(dir: &VmDir) {
    remove_if_there(&dir.run());
    let left = [
        names::QMP,
        names::SERIAL,
        names::IDENTITY,
        names::TEMPORARY_DISK,
        names::TEMPORARY_NVRAM,
        names::DISK_PARTIAL,
        names::NVRAM_PARTIAL,
    ];
    for name in left {
        remove_if_there(&dir.0.join(name));
    }
}

pub(super) fn remove_if_there(path: &Path) {
    if let Err(error) = file::remove(path) {
        tracing::warn!(path = %path.display(), %error, "cannot remove");
    }
}
