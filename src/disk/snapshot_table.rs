//! A qcow2 image's table of snapshots, as QEMU's `docs/interop/qcow2.txt` describes it: read, and
//! rewritten to give a snapshot another name.
//!
//! Reading the file takes microseconds, works while QEMU runs, and shows also the snapshots that
//! others have made; `qemu-img` would be a process for every `ls`. Neither `qemu-img` nor QMP can
//! rename a snapshot; `doc/adr/0010` weighs the alternatives.
//!
//! Not here: taking, restoring and dropping a snapshot ([`super::img`], or QMP), and where a rename
//! that a crash may interrupt is noted down.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::DiskError;
use super::qcow2::{Header, LockedDisk, invalid, read_padded, u16_at, u32_at, u64_at};

/// QEMU's own limits: on the size of a table, and on what later versions may add to an entry.
const MAX_TABLE: u64 = 64 << 20;
const MAX_EXTRA: u32 = 1024;
/// The fixed part of an entry, and where in it the length of the name is.
const FIXED: usize = 40;
const NAME_SIZE: usize = 14;

/// A point in a disk's past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub tag: String,
    /// Its number, for which QEMU may take a name.
    pub id: String,
    /// When it was taken.
    pub created: SystemTime,
    /// Bytes of memory and device state; 0 if the VM was off.
    pub memory: u64,
    /// The disk's virtual size at that time, in bytes.
    pub disk_size: u64,
}

/// Lists the snapshots of an image in the order of its table.
///
/// # Errors
/// `NotFound` if there is no image, `InvalidData` if it is no qcow2 image, or damaged.
pub fn list(path: &Path) -> io::Result<Vec<SnapshotInfo>> {
    let file = File::open(path)?;
    let table = SnapshotTable::read(&file, &Header::read(&file)?)?;
    Ok(table.entries.iter().map(Entry::info).collect())
}

/// A rename of a snapshot: the bytes of the table that it replaces. Stored before [`Self::finish`]
/// and removed after it, it lets [`Self::undo`] restore the old name after a crash at any moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRename {
    /// Where the bytes are in the file.
    offset: u64,
    old: Vec<u8>,
    /// As many as there are old ones.
    new: Vec<u8>,
}

impl SnapshotRename {
    /// Prepares to give the snapshot `from` the name `to`, and changes nothing yet.
    ///
    /// # Errors
    /// `NoRoomInTable`; `Io` if there is no such snapshot, or if the image is damaged or cannot be
    /// read.
    pub fn prepare(disk: &LockedDisk, from: &str, to: &str) -> Result<Self, DiskError> {
        let failed = |e| DiskError::io(format!("rename the snapshot {from}"), e);
        let header = Header::read(disk.file()).map_err(failed)?;
        if header.is_read_only() {
            let damaged = "the disk is damaged, `qemu-img check` says more";
            return Err(failed(io::Error::other(damaged)));
        }
        let mut table = SnapshotTable::read(disk.file(), &header).map_err(failed)?;
        let old = table.bytes().len();
        table.rename(from, to).map_err(failed)?;
        let mut new = table.bytes();
        let clusters = |length: usize| (length as u64).div_ceil(header.cluster_size);
        if clusters(old) != clusters(new.len()) {
            // To allocate clusters is QEMU's business.
            return Err(DiskError::NoRoomInTable { length: from.len() });
        }
        let (offset, length) = (header.snapshot_table, old.max(new.len()));
        new.resize(length, 0);
        let old = read_padded(disk.file(), offset, length).map_err(failed)?;
        Ok(Self { offset, old, new })
    }

    /// Writes the new name, durably.
    ///
    /// # Errors
    /// What writing answers; the table is then a mixture of old and new bytes until [`Self::undo`].
    pub fn finish(&self, disk: &LockedDisk) -> io::Result<()> {
        write(disk.file(), &self.new, self.offset)
    }

    /// Writes the old name, durably. Does nothing if the table has been changed since by anybody
    /// else.
    pub fn undo(&self, disk: &LockedDisk) -> io::Result<()> {
        match self.is_current(disk.file())? {
            true => write(disk.file(), &self.old, self.offset),
            false => Ok(()),
        }
    }

    /// Says whether the disk holds the old bytes, the new ones, or a mixture of both.
    fn is_current(&self, file: &File) -> io::Result<bool> {
        let present = read_padded(file, self.offset, self.new.len())?;
        let mut bytes = self.old.iter().zip(&self.new).zip(&present);
        let is_mixture = bytes.all(|((old, new), now)| now == old || now == new);
        Ok(is_mixture && Header::read(file)?.snapshot_table == self.offset)
    }
}

fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    file.sync_all()
}

/// The table itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotTable {
    entries: Vec<Entry>,
}

impl SnapshotTable {
    /// Reads the table of an image.
    pub(super) fn read(mut file: &File, header: &Header) -> io::Result<Self> {
        file.seek(SeekFrom::Start(header.snapshot_table))?;
        let mut table = BufReader::new(file.take(MAX_TABLE));
        let entries = (0..header.snapshot_count).map(|_| Entry::read(&mut table));
        Ok(Self { entries: entries.collect::<io::Result<_>>()? })
    }

    /// Returns the snapshot with this name.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub(super) fn find(&self, tag: &str) -> io::Result<&Entry> {
        let found = self.entries.iter().find(|e| e.name == tag.as_bytes());
        found.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let found = self.entries.iter_mut().find(|e| e.name == from.as_bytes());
        found.ok_or(io::ErrorKind::NotFound)?.rename(to)
    }

    /// Returns it as it is in the file: the last entry is not padded.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in &self.entries {
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            entry.append_to(&mut bytes);
        }
        bytes
    }
}

/// A snapshot in the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    fixed: [u8; FIXED],
    extra: Vec<u8>,
    id: Vec<u8>,
    name: Vec<u8>,
}

impl Entry {
    fn read(table: &mut impl Read) -> io::Result<Self> {
        let mut fixed = [0; FIXED];
        table.read_exact(&mut fixed)?;
        let (id_size, name_size) = (u16_at(&fixed, 12), u16_at(&fixed, NAME_SIZE));
        let extra_size = u32_at(&fixed, 36);
        if extra_size > MAX_EXTRA {
            return Err(invalid("an entry of the snapshot table is too large"));
        }
        let extra = bytes(table, extra_size as usize)?;
        let id = bytes(table, usize::from(id_size))?;
        let name = bytes(table, usize::from(name_size))?;
        let length = FIXED + extra.len() + id.len() + name.len();
        // The file may end without the last entry's padding.
        let padding = (length.next_multiple_of(8) - length) as u64;
        io::copy(&mut table.take(padding), &mut io::sink())?;
        Ok(Self { fixed, extra, id, name })
    }

    fn append_to(&self, bytes: &mut Vec<u8>) {
        for part in [&self.fixed[..], &self.extra, &self.id, &self.name] {
            bytes.extend_from_slice(part);
        }
    }

    fn info(&self) -> SnapshotInfo {
        let (seconds, nanos) = (u32_at(&self.fixed, 16), u32_at(&self.fixed, 20));
        SnapshotInfo {
            tag: String::from_utf8_lossy(&self.name).into_owned(),
            id: String::from_utf8_lossy(&self.id).into_owned(),
            created: UNIX_EPOCH + Duration::new(u64::from(seconds), nanos.min(999_999_999)),
            memory: self.extra_u64(0).unwrap_or_else(|| u64::from(u32_at(&self.fixed, 32))),
            disk_size: self.disk_size(),
        }
    }

    fn disk_size(&self) -> u64 {
        self.extra_u64(8).unwrap_or(0)
    }

    fn extra_u64(&self, at: usize) -> Option<u64> {
        self.extra.get(at..at + 8).map(|bytes| u64_at(bytes, 0))
    }

    /// Returns where in the file the entry of the snapshot's own L1 table is that maps the first
    /// bytes of its memory: behind the end of the disk, as that was when the snapshot was taken.
    ///
    /// # Errors
    /// `InvalidData` if the snapshot has no memory.
    pub(super) fn first_l1_entry_of_vmstate(&self, header: &Header) -> io::Result<u64> {
        let (l1_table, l1_entries) = (u64_at(&self.fixed, 0), u32_at(&self.fixed, 8));
        let disk = Some(self.disk_size()).filter(|size| *size > 0).unwrap_or(header.virtual_size);
        let entry = disk.div_ceil(header.bytes_per_l1_entry);
        if entry >= u64::from(l1_entries) {
            return Err(invalid("a snapshot without a memory"));
        }
        l1_table.checked_add(8 * entry).ok_or_else(|| invalid("a damaged entry of a snapshot"))
    }

    fn rename(&mut self, name: &str) -> io::Result<()> {
        let size = u16::try_from(name.len()).map_err(|_| invalid("a name too long"))?;
        self.fixed[NAME_SIZE..NAME_SIZE + 2].copy_from_slice(&size.to_be_bytes());
        self.name = name.as_bytes().to_vec();
        Ok(())
    }
}

fn bytes(from: &mut impl Read, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
