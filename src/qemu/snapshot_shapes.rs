//! The hardware on which the memory in each snapshot was saved: `memories.json`, beside the disk.
//!
//! QEMU loads a snapshot's memory only after it has restored the disk and given up its own memory,
//! so a memory that does not fit must be refused before. Snapshots made by other programs are not
//! listed here; QEMU tries them.

use std::io;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::disk::snapshot_table;
use crate::store::file;
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, DiskPlace, NicPlace, Result, RunFacts, SnapshotInfo};
use crate::vm::hardware::Hardware;
use crate::vm::template::Shape;

const VERSION: u32 = 1;

#[derive(Debug, Default, Serialize, Deserialize)]
struct SnapshotShapes {
    version: u32,
    machines: Vec<SnapshotShape>,
}

/// The shape of one snapshot. Its number and time identify it: they stay when it is renamed.
#[derive(Debug, Serialize, Deserialize)]
struct SnapshotShape {
    id: String,
    created: SystemTime,
    shape: Shape,
}

impl SnapshotShape {
    fn is_of(&self, snapshot: &SnapshotInfo) -> bool {
        (&self.id, self.created) == (&snapshot.id, snapshot.created)
    }
}

/// Checks that the running machine can load the memory of the snapshot `tag`.
pub(super) fn check(dir: &VmDir, tag: &str, facts: &RunFacts) -> Result<()> {
    let Some(runs) = &facts.shape else { return Ok(()) };
    match shape_of(dir, tag).and_then(|taken| difference(taken, runs)) {
        Some(difference) => Err(BackendError::OtherMachine { tag: tag.to_owned(), difference }),
        None => Ok(()),
    }
}

/// Returns the hardware on which the memory of the snapshot `tag` was saved; `None` if it is not
/// listed.
pub(super) fn hardware_of(dir: &VmDir, tag: &str) -> Option<Hardware> {
    shape_of(dir, tag).map(|taken| taken.devices.hardware)
}

/// Lists the network devices for nets of the machine whose memory is in the snapshot `tag`; none if that
/// is not listed.
pub(super) fn nics_of(dir: &VmDir, tag: &str) -> Vec<NicPlace> {
    shape_of(dir, tag).map(|taken| taken.nics).unwrap_or_default()
}

/// Lists the data disks of the machine whose memory is in the snapshot `tag`; `None` if that is not listed.
pub(super) fn disks_of(dir: &VmDir, tag: &str) -> Option<Vec<DiskPlace>> {
    shape_of(dir, tag).map(|taken| taken.disks)
}

/// Compares the shapes. A machine type stays the same over versions of QEMU, and a restore brings
/// the disk's size back.
fn difference(taken: Shape, runs: &Shape) -> Option<String> {
    let taken = Shape { qemu: runs.qemu.clone(), disk: runs.disk, ..taken };
    taken.difference(runs, "the snapshot's")
}

fn shape_of(dir: &VmDir, tag: &str) -> Option<Shape> {
    let snapshot = listed(dir).into_iter().find(|s| s.tag == tag)?;
    let known = read(dir).machines.into_iter().find(|m| m.is_of(&snapshot))?;
    Some(known.shape)
}

/// Notes the shape of the snapshot just taken, and forgets snapshots that are gone. If that fails,
/// the snapshot can be restored all the same: QEMU tries it.
pub(super) async fn note(
    dir: &VmDir,
    tag: &str,
    facts: &RunFacts,
    (nics, disks): (Vec<NicPlace>, Vec<DiskPlace>),
) {
    let Some(shape) = facts.shape.clone() else { return };
    let shape = Shape { nics, disks, ..shape };
    let (dir, tag) = (dir.clone(), tag.to_owned());
    let noted = tokio::task::spawn_blocking(move || write(&dir, &tag, shape)).await;
    if let Err(error) = noted.unwrap_or_else(|e| Err(io::Error::other(e))) {
        tracing::warn!(%error, "the shape of a snapshot is not noted");
    }
}

fn write(dir: &VmDir, tag: &str, shape: Shape) -> io::Result<()> {
    let (listed, mut machines) = (listed(dir), read(dir).machines);
    machines.retain(|m| listed.iter().any(|s| m.is_of(s) && s.tag != tag));
    if let Some(SnapshotInfo { id, created, .. }) = listed.into_iter().find(|s| s.tag == tag) {
        machines.push(SnapshotShape { id, created, shape });
    }
    file::replace_json(&dir.memories(), &SnapshotShapes { version: VERSION, machines })
}

fn listed(dir: &VmDir) -> Vec<SnapshotInfo> {
    snapshot_table::list(&dir.disk()).unwrap_or_default()
}

/// A list that is absent, damaged, or of a later version counts as empty.
fn read(dir: &VmDir) -> SnapshotShapes {
    let read = file::if_there(file::read_json::<SnapshotShapes>(&dir.memories()));
    if let Err(error) = &read {
        tracing::warn!(%error, path = %dir.memories().display(), "is not used");
    }
    read.ok().flatten().filter(|shapes| shapes.version == VERSION).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_qemu_and_a_larger_disk_load_it_and_another_machine_does_not() {
        let taken = Shape::sample();
        let newer = Shape { qemu: "99".to_owned(), disk: 1 << 40, ..Shape::sample() };
        assert_eq!(difference(taken.clone(), &newer), None);
        let larger = Shape { cpus: 10, ..newer };
        assert_eq!(difference(taken, &larger).unwrap(), "cpus is 10, the snapshot's is 1");
    }
}
