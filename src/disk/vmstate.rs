//! The memory and device state of a machine in a qcow2 image: QEMU maps them behind the end of the
//! guest's disk, in the snapshot's own L1 table once the snapshot is whole.
//!
//! Not here: what the bytes mean to QEMU (`qemu::migration_stream`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::qcow2::{Header, LockedDisk, invalid, read_padded, u64_at};
use super::snapshot_table::SnapshotTable;

/// In an L1 or L2 entry: where the cluster is in the file, and that it is compressed.
const CLUSTER_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// In an L2 entry that is not compressed: the cluster reads as zeros.
const ZEROS: u64 = 1;

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

/// Returns the part of an image's disk that shows a memory as soon as the disk has `size` bytes: QEMU
/// leaves the memory of the snapshot that it has loaded where the disk ends. QEMU may run, if it has
/// written its caches.
pub fn overgrown_by(path: &Path, size: u64) -> io::Result<Range<u64>> {
    let end = Header::of(path)?.virtual_size;
    data_within(path, &(end..size))
}

/// Returns the smallest range that begins within a part of a disk and has all of its data, except that
/// data which an L1 entry maps that also maps something before the part do not count. Empty if there
/// are none. QEMU may run, if it has written its caches.
pub fn data_within(path: &Path, part: &Range<u64>) -> io::Result<Range<u64>> {
    let file = File::open(path)?;
    let header = Header::read(&file)?;
    let mut found = 0..0;
    for (l1_entry, mapped) in header.l1_entries_of(part) {
        if has_data(&file, &header, l1_entry)? {
            let start = if found.is_empty() { mapped.start } else { found.start };
            found = start..mapped.end.min(part.end);
        }
    }
    Ok(found)
}

/// Says whether the L2 table of an L1 entry leads to a cluster that does not read as zeros.
fn has_data(file: &File, header: &Header, l1_entry: u64) -> io::Result<bool> {
    let l2_table = u64_at(&read_padded(file, l1_entry, 8)?, 0) & CLUSTER_OFFSET;
    if l2_table == 0 {
        return Ok(false);
    }
    let length = usize::try_from(header.cluster_size).unwrap_or(0);
    let entries = read_padded(file, l2_table, length)?;
    let mut entries = entries.chunks_exact(header.l2_entry_size()).map(|entry| u64_at(entry, 0));
    Ok(entries.any(|e| e & COMPRESSED != 0 || (e & CLUSTER_OFFSET != 0 && e & ZEROS == 0)))
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::disk::testing::qemu_img;

    fn write(dir: &Path, command: &str) {
        let mut qemu_io = Command::new("qemu-io");
        let done = qemu_io.args(["-f", "qcow2", "-c", command, "d"]).current_dir(dir).output();
        assert!(done.unwrap().status.success(), "{command}");
    }

    #[test]
    fn data_are_found_where_they_are_and_zeros_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("d");
        qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "d", "3G"]);
        let all = 2 << 30..3 << 30;
        assert_eq!(data_within(&disk, &all).unwrap(), 0..0);
        write(dir.path(), "write 1G 64k");
        assert_eq!(data_within(&disk, &all).unwrap(), 0..0);
        write(dir.path(), "write 2G 64k");
        assert_eq!(data_within(&disk, &all).unwrap(), 2 << 30..5 << 29);
        write(dir.path(), "write 2800M 64k");
        assert_eq!(data_within(&disk, &all).unwrap(), 2 << 30..3 << 30);
        assert_eq!(data_within(&disk, &(2 << 30..2700 << 20)).unwrap(), 2 << 30..2700 << 20);
        write(dir.path(), "write -z 2G 64k");
        write(dir.path(), "write -z -u 2800M 64k");
        assert_eq!(data_within(&disk, &all).unwrap(), 0..0);
        assert_eq!(overgrown_by(&disk, 4 << 30).unwrap(), 0..0);
    }
}
