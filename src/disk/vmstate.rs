//! The memory and device state of a machine in a qcow2 image: QEMU maps them behind the end of the
//! guest's disk, in the snapshot's own L1 table once the snapshot is whole.
//!
//! Not here: what the bytes mean to QEMU (`qemu::migration_stream`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::qcow2::{Header, LockedDisk, read_padded, u64_at};
use super::snapshot_table::SnapshotTable;

/// In an L1 or L2 entry: where the cluster is in the file, and that it is compressed.
const CLUSTER_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

/// Reads the first bytes of the memory in the snapshot `tag`, at most `length` and no more than a
/// cluster; beyond what was saved they are 0. QEMU may run: it does not change a snapshot that it
/// lists.
///
/// # Errors
/// `NotFound` if there is no such snapshot, `InvalidData` if the image is damaged or the snapshot
/// has no memory.
pub fn start_of(path: &Path, tag: &str, length: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let header = Header::read(&file)?;
    let table = SnapshotTable::read(&file, &header)?;
    let l1_entry = table.find(tag)?.first_l1_entry_of_vmstate(&header)?;
    let l2_table = cluster_of(&file, l1_entry)?;
    let first = cluster_of(&file, l2_table)?;
    let cluster = usize::try_from(header.cluster_size).unwrap_or(length);
    read_padded(&file, first, length.min(cluster))
}

/// Follows the L1 or L2 entry at `offset` to its cluster.
fn cluster_of(file: &File, offset: u64) -> io::Result<u64> {
    let entry = u64_at(&read_padded(file, offset, 8)?, 0);
    match entry & CLUSTER_OFFSET {
        _ if entry & COMPRESSED != 0 => Err(invalid("a compressed cluster")),
        0 => Err(invalid("a cluster that is not there")),
        cluster => Ok(cluster),
    }
}

/// Drops the references to a memory that belongs to no snapshot, as QEMU leaves them when it is
/// killed or finds the disk full while it saves one. Returns whether there were any: their clusters
/// then count as used and are not, until `qemu-img check` gives them back.
///
/// # Errors
/// What reading and writing answer.
pub fn drop_unowned(disk: &LockedDisk) -> io::Result<bool> {
    let file = disk.file();
    let header = Header::read(file)?;
    let entries = header.l1_behind_the_disk();
    let length = usize::try_from(entries.end - entries.start).unwrap_or(0);
    let present = read_padded(file, entries.start, length)?;
    if header.is_read_only() || present.iter().all(|byte| *byte == 0) {
        return Ok(false);
    }
    file.write_all_at(&vec![0; length], entries.start)?;
    // On disk before anything counts the clusters as free.
    file.sync_all()?;
    Ok(true)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
