//! A qcow2 image's table of snapshots, as QEMU's `docs/interop/qcow2.txt` describes it.
//!
//! A look at the file itself costs microseconds, works while QEMU runs, and shows also what others
//! have made; `qemu-img` would cost a process for every `ls`. Nothing is written here: that is done by
//! [`super::rename`] and [`super::repair`].

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::sys;
use crate::vm::backend::{BackendError, SnapshotInfo};

/// QEMU's own bound on the number of snapshots of one image.
const MOST: u32 = 65_536;
/// QEMU's own bound on what it may add to an entry in the future.
const MOST_EXTRA: u32 = 1024;
/// The fixed part of an entry.
const ENTRY: usize = 40;
/// Where in it the length of the name is.
const NAME_SIZE: usize = 14;
/// The incompatible features that leave the table of snapshots what it is: dirty, external data,
/// compression, extended L2. Not among them: an image marked corrupt, and what is yet to come.
const HARMLESS: u64 = 0b1_1101;
/// Among them, the one that makes the references to clusters twice as long.
const EXTENDED_L2: u64 = 1 << 4;
/// QEMU's own bound on the number of entries of the first table of clusters.
const MOST_L1: u32 = 4 << 20;
/// The bytes of an image that QEMU locks for what it does with it, and for what it lets others do
/// (`RAW_LOCK_PERM_BASE`, `RAW_LOCK_SHARED_BASE` in its `block/file-posix.c`).
const QEMU_LOCKS: Range<i64> = 100..300;
/// In a reference to a cluster: where that is in the file, and that it is compressed.
const CLUSTER_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// QEMU's bounds on the size of a cluster, as powers of two.
const CLUSTER_BITS: RangeInclusive<u32> = 9..=21;

/// Lists the snapshots of an image in the order of its table.
///
/// # Errors
/// `NotFound` if there is no image, `InvalidData` if it is none, or damaged.
pub fn snapshots(path: &Path) -> io::Result<Vec<SnapshotInfo>> {
    let file = File::open(path)?;
    let table = Table::read(&file, &Header::read(&file)?)?;
    Ok(table.entries.iter().map(Entry::info).collect())
}

/// Reads the first bytes of the memory and device state in a snapshot, so many at the most; beyond
/// what was saved they are 0. QEMU may run: it writes nothing of a snapshot that it has listed.
///
/// # Errors
/// `NotFound` if there is no such snapshot, `InvalidData` if the image is damaged.
pub(super) fn start_of_vmstate(path: &Path, tag: &str, length: usize) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let header = Header::read(&file)?;
    let table = Table::read(&file, &header)?;
    let found = table.entries.iter().find(|e| e.name == tag.as_bytes());
    let entry = found.ok_or(io::ErrorKind::NotFound)?;
    // It lies behind the end of the disk, as that was when it was saved.
    let disk = Some(entry.info().disk_size).filter(|size| *size > 0).unwrap_or(header.disk);
    let l1_entry = disk.div_ceil(header.per_l1_entry);
    if l1_entry >= u64::from(entry.l1_entries()) {
        return Err(invalid("a snapshot without a memory"));
    }
    let l2 = referred(&file, entry.l1() + 8 * l1_entry)?;
    let first = referred(&file, l2)?;
    bytes_at(&file, first, length.min(usize::try_from(header.cluster).unwrap_or(length)))
}

/// Follows the reference at `offset` to its cluster.
fn referred(file: &File, offset: u64) -> io::Result<u64> {
    let reference = u64_at(&bytes_at(file, offset, 8)?, 0);
    match reference & CLUSTER_OFFSET {
        _ if reference & COMPRESSED != 0 => Err(invalid("a compressed cluster")),
        0 => Err(invalid("a cluster that is not there")),
        cluster => Ok(cluster),
    }
}

/// Opens an image to change it, while nobody else does.
///
/// # Errors
/// `Io`, with `EBUSY` while another program uses it.
pub(super) fn open(disk: &Path) -> Result<File, BackendError> {
    let what = || format!("the disk {}", disk.display());
    let file = File::options().read(true).write(true).open(disk);
    let file = file.map_err(|e| BackendError::io(what(), &e))?;
    match sys::lock_bytes(&file, QEMU_LOCKS) {
        Ok(()) => Ok(file),
        Err(_) => Err(BackendError::Io {
            what: what(),
            error: "another program uses it; `fuser -v` says which".to_owned(),
            errno: libc::EBUSY,
        }),
    }
}

/// Reads so many bytes; beyond the end of the file they are 0.
pub(super) fn bytes_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut read = 0;
    while let n @ 1.. = file.read_at(&mut bytes[read..], offset + read as u64)? {
        read += n;
    }
    Ok(bytes)
}

/// What an image's header says of its snapshots, and of what was to become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    count: u32,
    /// Where the table is in the file.
    pub(super) offset: u64,
    /// The bytes of a cluster: the table has whole ones to itself.
    pub(super) cluster: u64,
    /// The bytes of the disk for which one entry of the first table of clusters stands.
    pub(super) per_l1_entry: u64,
    /// The disk's size in bytes.
    pub(super) disk: u64,
    /// The image is marked corrupt, or of a kind yet to come.
    pub(super) read_only: bool,
    /// The references to a machine's memory, beyond those to the disk: bytes of the file. Those
    /// that count are a snapshot's own.
    pub(super) machine_state: Range<u64>,
}

impl Header {
    /// Reads it.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        // A header of version 2 ends after 72 bytes, in a file of 3 clusters at the least.
        let mut header = [0; 80];
        file.read_exact_at(&mut header, 0)?;
        if &header[..4] != b"QFI\xfb" {
            return Err(invalid("not a qcow2 image"));
        }
        let (version, bits) = (u32_at(&header, 4), u32_at(&header, 20));
        let (count, offset) = (u32_at(&header, 60), u64_at(&header, 64));
        if count > MOST || !CLUSTER_BITS.contains(&bits) {
            return Err(invalid("a damaged qcow2 header"));
        }
        let features = if version > 2 { u64_at(&header, 72) } else { 0 };
        let (l1_entries, l1) = (u32_at(&header, 36), u64_at(&header, 40));
        if l1_entries > MOST_L1 {
            return Err(invalid("a damaged qcow2 header"));
        }
        // An entry of the first table stands for a cluster full of references.
        let reference_bits = if features & EXTENDED_L2 == 0 { 3 } else { 4 };
        let (disk, per_l1_entry) = (u64_at(&header, 24), 1 << (2 * bits - reference_bits));
        let end = u64::from(l1_entries);
        let machine_state = l1 + 8 * disk.div_ceil(per_l1_entry).min(end)..l1 + 8 * end;
        let read_only = features & !HARMLESS != 0;
        Ok(Self { count, offset, cluster: 1 << bits, per_l1_entry, disk, read_only, machine_state })
    }
}

/// The table itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    entries: Vec<Entry>,
}

impl Table {
    /// Reads the table of an image.
    pub(super) fn read(mut file: &File, header: &Header) -> io::Result<Self> {
        file.seek(SeekFrom::Start(header.offset))?;
        let mut table = BufReader::new(file);
        let entries = (0..header.count).map(|_| Entry::read(&mut table));
        Ok(Self { entries: entries.collect::<io::Result<_>>()? })
    }

    /// Gives the snapshot `from` the name `to`.
    ///
    /// # Errors
    /// `NotFound` if there is none.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let found = self.entries.iter_mut().find(|e| e.name == from.as_bytes());
        found.ok_or(io::ErrorKind::NotFound)?.rename(to)
    }

    /// Gives the entries other extra data, so many words of 8 bytes.
    #[cfg(test)]
    pub(super) fn adorn(&mut self, extras: &[(usize, [u8; 24])]) {
        for (entry, (words, bytes)) in self.entries.iter_mut().zip(extras) {
            entry.extra = bytes.to_vec();
            entry.extra.resize(words * 8, 7);
            let size = u32::try_from(entry.extra.len()).unwrap();
            entry.fixed[36..].copy_from_slice(&size.to_be_bytes());
        }
    }

    /// Returns it as it lies in the file: the last entry is not padded.
    pub(super) fn bytes(&self) -> Vec<u8> {
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
struct Entry {
    fixed: [u8; ENTRY],
    extra: Vec<u8>,
    id: Vec<u8>,
    name: Vec<u8>,
}

impl Entry {
    fn read(table: &mut impl Read) -> io::Result<Self> {
        let mut fixed = [0; ENTRY];
        table.read_exact(&mut fixed)?;
        let (id_size, name_size) = (u16_at(&fixed, 12), u16_at(&fixed, NAME_SIZE));
        let extra_size = u32_at(&fixed, 36);
        if extra_size > MOST_EXTRA {
            return Err(invalid("an entry of the snapshot table is too large"));
        }
        let extra = bytes(table, extra_size as usize)?;
        let id = bytes(table, usize::from(id_size))?;
        let name = bytes(table, usize::from(name_size))?;
        let length = ENTRY + extra.len() + id.len() + name.len();
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
        let large = |at| self.extra.get(at..at + 8).map(|b| u64_at(b, 0));
        SnapshotInfo {
            tag: String::from_utf8_lossy(&self.name).into_owned(),
            id: String::from_utf8_lossy(&self.id).into_owned(),
            created: UNIX_EPOCH + Duration::new(u64::from(seconds), nanos.min(999_999_999)),
            memory: large(0).unwrap_or_else(|| u64::from(u32_at(&self.fixed, 32))),
            disk_size: large(8).unwrap_or(0),
        }
    }

    /// Where its own first table of clusters is in the file.
    fn l1(&self) -> u64 {
        u64_at(&self.fixed, 0)
    }

    fn l1_entries(&self) -> u32 {
        u32_at(&self.fixed, 8)
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

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

// The callers' slices are long enough: each reads within a buffer of fixed size.
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (u32::from(u16_at(bytes, at)) << 16) | u32::from(u16_at(bytes, at + 2))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    (u64::from(u32_at(bytes, at)) << 32) | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn img(dir: &Path, args: &[&str]) {
        let done = Command::new("qemu-img").args(args).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    #[test]
    fn the_table_is_what_qemu_img_wrote() {
        let dir = tempfile::tempdir().unwrap();
        img(dir.path(), &["create", "-q", "-f", "qcow2", "d", "8M"]);
        assert_eq!(snapshots(&dir.path().join("d")).unwrap(), []);
        for tag in ["clean", "with a space", "a-rather-long-name-that-is-padded"] {
            img(dir.path(), &["snapshot", "-c", tag, "d"]);
        }
        img(dir.path(), &["snapshot", "-d", "with a space", "d"]);
        let found = snapshots(&dir.path().join("d")).unwrap();
        let tags: Vec<_> = found.iter().map(|s| s.tag.as_str()).collect();
        assert_eq!(tags, ["clean", "a-rather-long-name-that-is-padded"]);
        assert!(found.iter().all(|s| s.memory == 0 && s.disk_size == 8 << 20));
        assert!(found[0].created.elapsed().unwrap() < Duration::from_secs(60));
    }

    #[test]
    fn what_is_no_image_is_said_to_be_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        assert_eq!(snapshots(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
        std::fs::write(&path, [0; 512]).unwrap();
        assert_eq!(snapshots(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn every_length_of_the_last_name_is_read() {
        let dir = tempfile::tempdir().unwrap();
        img(dir.path(), &["create", "-q", "-f", "qcow2", "d", "8M"]);
        for length in 1..=9 {
            let tag = "x".repeat(length);
            img(dir.path(), &["snapshot", "-c", &tag, "d"]);
            assert_eq!(snapshots(&dir.path().join("d")).unwrap().last().unwrap().tag, tag);
        }
    }

    proptest! {
        #[test]
        fn no_table_makes_the_reader_panic(table in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = table.as_slice();
            while Entry::read(&mut bytes).is_ok() {}
        }
    }
}
