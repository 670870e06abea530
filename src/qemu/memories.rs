//! Of which machine the memory in each snapshot is: `memories.json`, beside the disk.
//!
//! QEMU takes a memory in only after it has put the disk back and thrown its own memory away, so what
//! does not fit must be known before. Snapshots made by others are not listed here, and tried.

use std::io;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::disk::snapshot_table;
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, RunFacts, SnapshotInfo};
use crate::vm::hardware::Hardware;
use crate::vm::warm::Shape;

const VERSION: u32 = 1;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Memories {
    version: u32,
    machines: Vec<Memory>,
}

/// One snapshot's. Its number and time stay when it gets another name, and no other one has both.
#[derive(Debug, Serialize, Deserialize)]
struct Memory {
    id: String,
    created: SystemTime,
    shape: Shape,
}

impl Memory {
    fn is_of(&self, snapshot: &SnapshotInfo) -> bool {
        (&self.id, self.created) == (&snapshot.id, snapshot.created)
    }
}

/// Says whether the machine that runs can take in the memory of the snapshot `tag`.
///
/// # Errors
/// `OtherMachine`.
pub(super) fn check(dir: &VmDir, tag: &str, facts: &RunFacts) -> Result<(), BackendError> {
    let Some(runs) = &facts.shape else { return Ok(()) };
    match shape_of(dir, tag).and_then(|taken| difference(taken, runs)) {
        Some(difference) => Err(BackendError::OtherMachine { tag: tag.to_owned(), difference }),
        None => Ok(()),
    }
}

/// Returns the hardware of the machine whose memory is in the snapshot `tag`; `None` if it is not
/// listed.
pub(super) fn hardware_of(dir: &VmDir, tag: &str) -> Option<Hardware> {
    shape_of(dir, tag).map(|taken| taken.devices.hardware)
}

/// A machine type keeps its shape over versions of QEMU, and a disk's size comes back with it.
fn difference(taken: Shape, runs: &Shape) -> Option<String> {
    let taken = Shape { qemu: runs.qemu.clone(), disk: runs.disk, ..taken };
    taken.difference(runs, "the snapshot's")
}

fn shape_of(dir: &VmDir, tag: &str) -> Option<Shape> {
    let snapshot = listed(dir).into_iter().find(|s| s.tag == tag)?;
    let known = read(dir).machines.into_iter().find(|m| m.is_of(&snapshot))?;
    Some(known.shape)
}

/// Takes note of what machine the snapshot just taken is of, and forgets those that are gone. The
/// snapshot is no worse without: whoever goes back to it finds out then.
pub(super) async fn note(dir: &VmDir, tag: &str, facts: &RunFacts) {
    let Some(shape) = facts.shape.clone() else { return };
    let (dir, tag) = (dir.clone(), tag.to_owned());
    let noted = tokio::task::spawn_blocking(move || write(&dir, &tag, shape)).await;
    if let Err(error) = noted.unwrap_or_else(|e| Err(io::Error::other(e))) {
        tracing::warn!(%error, "not noted of which machine a snapshot is");
    }
}

fn write(dir: &VmDir, tag: &str, shape: Shape) -> io::Result<()> {
    let (listed, mut machines) = (listed(dir), read(dir).machines);
    machines.retain(|m| listed.iter().any(|s| m.is_of(s) && s.tag != tag));
    if let Some(SnapshotInfo { id, created, .. }) = listed.into_iter().find(|s| s.tag == tag) {
        machines.push(Memory { id, created, shape });
    }
    file::replace_json(&dir.memories(), &Memories { version: VERSION, machines })
}

fn listed(dir: &VmDir) -> Vec<SnapshotInfo> {
    snapshot_table::list(&dir.disk()).unwrap_or_default()
}

/// A list that is not there, damaged, or a later version's is an empty one.
fn read(dir: &VmDir) -> Memories {
    match file::read_json::<Memories>(&dir.memories()) {
        Ok(memories) if memories.version == VERSION => memories,
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %dir.memories().display(), "is not used");
            Memories::default()
        }
        _ => Memories::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_qemu_and_a_larger_disk_take_it_in_and_another_machine_does_not() {
        let taken = Shape::sample();
        let newer = Shape { qemu: "99".to_owned(), disk: 1 << 40, ..Shape::sample() };
        assert_eq!(difference(taken.clone(), &newer), None);
        let larger = Shape { cpus: 10, ..newer };
        assert_eq!(difference(taken, &larger).unwrap(), "cpus is 10, the snapshot's is 1");
    }
}
