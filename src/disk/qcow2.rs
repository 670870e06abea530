//! The header of a qcow2 image, as QEMU's `docs/interop/qcow2.txt` describes it, and the lock that
//! keeps QEMU out of an image.
//!
//! The header is checked as QEMU checks it before anything is computed from it: an image may come
//! from anybody.

use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::DiskError;
use crate::sys;

/// How an image begins.
pub const MAGIC: &[u8] = b"QFI\xfb";
/// The bytes of the header that are read. One of version 2 ends after 72, in a file of 3 clusters
/// at the least.
pub const HEADER: usize = 80;
/// QEMU's limits: on the number of snapshots, on the number of L1 entries, on the size of a cluster
/// as a power of two, and on every offset in a file.
const MAX_SNAPSHOTS: u32 = 65_536;
const MAX_L1_ENTRIES: u32 = 4 << 20;
const CLUSTER_BITS: RangeInclusive<u32> = 9..=21;
const MAX_OFFSET: u64 = i64::MAX as u64;
/// The incompatible feature that says that the data are in another file, which the header names.
const DATA_FILE: u64 = 1 << 2;
/// The incompatible feature that doubles the size of L2 entries.
const EXTENDED_L2: u64 = 1 << 4;
/// The incompatible features that do not change where the snapshots are: dirty, data file,
/// compression, extended L2. An image marked corrupt is not among them.
const HARMLESS: u64 = 0b1_1101;
/// The bytes of an image that QEMU locks for what it does with it, and for what it allows others
/// (`RAW_LOCK_PERM_BASE`, `RAW_LOCK_SHARED_BASE` in its `block/file-posix.c`).
const QEMU_LOCKS: Range<i64> = 100..300;

/// Why a header cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The file does not begin as a qcow2 image does.
    #[error("not a qcow2 image")]
    Foreign,
    /// The format is of a version that did not exist when this was written.
    #[error("qcow2 of version {0}, which is unknown")]
    Version(u32),
    /// QEMU would not open it either.
    #[error("a damaged qcow2 header")]
    Damaged,
}

impl From<HeaderError> for io::Error {
    fn from(error: HeaderError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What the header of an image says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The size that a guest sees, in bytes.
    pub virtual_size: u64,
    /// It names a file that holds what this one does not.
    pub has_backing_file: bool,
    /// Its data are encrypted.
    pub is_encrypted: bool,
    /// The bytes of a cluster.
    pub(super) cluster_size: u64,
    /// The bytes of the guest's disk that one entry of an L1 table maps.
    pub(super) bytes_per_l1_entry: u64,
    pub(super) snapshot_count: u32,
    /// Where the table of snapshots is. Its clusters hold nothing else.
    pub(super) snapshot_table: u64,
    features: u64,
    l1_entries: u32,
    l1_table: u64,
}

impl Header {
    /// Reads the header of an image.
    pub fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; HEADER];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Self::parse(&bytes)?)
    }

    /// Reads the header of the image at `path`.
    pub fn of(path: &Path) -> io::Result<Self> {
        Self::read(&File::open(path)?)
    }

    /// Parses the first bytes of an image.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, HeaderError> {
        if !bytes.starts_with(MAGIC) {
            return Err(HeaderError::Foreign);
        }
        let version = u32_at(bytes, 4);
        if !(2..=3).contains(&version) {
            return Err(HeaderError::Version(version));
        }
        let cluster_bits = u32_at(bytes, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(HeaderError::Damaged);
        }
        // In version 2 the bytes there belong to something else.
        let features = if version > 2 { u64_at(bytes, 72) } else { 0 };
        let l2_entry_bits = if features & EXTENDED_L2 == 0 { 3 } else { 4 };
        let header = Self {
            virtual_size: u64_at(bytes, 24),
            has_backing_file: u64_at(bytes, 8) != 0,
            is_encrypted: u32_at(bytes, 32) != 0,
            cluster_size: 1 << cluster_bits,
            // The entry stands for a cluster of L2 entries, each of which maps a cluster.
            bytes_per_l1_entry: 1 << (2 * cluster_bits - l2_entry_bits),
            snapshot_count: u32_at(bytes, 60),
            snapshot_table: u64_at(bytes, 64),
            features,
            l1_entries: u32_at(bytes, 36),
            l1_table: u64_at(bytes, 40),
        };
        if header.is_sane() { Ok(header) } else { Err(HeaderError::Damaged) }
    }

    fn is_sane(&self) -> bool {
        let is_table = |at: u64| at < MAX_OFFSET / 2 && at.is_multiple_of(self.cluster_size);
        self.virtual_size <= MAX_OFFSET
            && self.snapshot_count <= MAX_SNAPSHOTS
            && self.l1_entries <= MAX_L1_ENTRIES
            && is_table(self.l1_table)
            && is_table(self.snapshot_table)
            // The header itself is in the first cluster, and must not be overwritten by a table's
            // bytes.
            && (self.l1_entries == 0 || self.l1_table > 0)
            && (self.snapshot_count == 0 || self.snapshot_table > 0)
    }

    /// Says whether it names another file for its data, which QEMU would open.
    pub fn has_data_file(&self) -> bool {
        self.features & DATA_FILE != 0
    }

    /// Says whether the image is marked corrupt, or has a feature that is unknown here. Nothing may
    /// be written to it then.
    pub(super) fn is_read_only(&self) -> bool {
        self.features & !HARMLESS != 0
    }

    /// Returns the L1 entries that map a part of the guest's disk, or what lies behind it: for each
    /// where it is in the file, and the part that it maps.
    pub(super) fn l1_entries_of(
        &self,
        part: &Range<u64>,
    ) -> impl Iterator<Item = (u64, Range<u64>)> {
        let (size, table) = (self.bytes_per_l1_entry, self.l1_table);
        let last = part.end.div_ceil(size).min(u64::from(self.l1_entries));
        let first = part.start.div_ceil(size).min(last);
        (first..last).map(move |entry| (table + 8 * entry, entry * size..(entry + 1) * size))
    }

    /// Returns the length of an L2 entry.
    pub(super) fn l2_entry_size(&self) -> usize {
        if self.features & EXTENDED_L2 == 0 { 8 } else { 16 }
    }

    /// Returns where, in the file, the L1 entries are that map nothing of the guest's disk. QEMU
    /// puts a memory there while it saves a snapshot.
    pub(super) fn l1_behind_the_disk(&self) -> Range<u64> {
        let all = u64::from(self.l1_entries);
        let disk = self.virtual_size.div_ceil(self.bytes_per_l1_entry).min(all);
        self.l1_table + 8 * disk..self.l1_table + 8 * all
    }
}

/// Reads the size that a guest sees; `None` without a file, or if it is no qcow2 image.
pub fn virtual_size(path: &Path) -> io::Result<Option<u64>> {
    match Header::of(path) {
        Ok(header) => Ok(Some(header.virtual_size)),
        Err(error) if is_no_image(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_no_image(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    matches!(error.kind(), NotFound | UnexpectedEof | InvalidData)
}

/// An image that is open to be changed. Its locks are those that QEMU takes, so that neither QEMU
/// nor `qemu-img` opens it meanwhile.
#[derive(Debug)]
pub struct LockedDisk(File);

impl LockedDisk {
    /// Opens and locks an image.
    ///
    /// # Errors
    /// `InUse` while another program has it open; what opening answers.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(|e| DiskError::io(format!("the disk {}", path.display()), e))?;
        match sys::lock_bytes(&file, QEMU_LOCKS) {
            Ok(()) => Ok(Self(file)),
            Err(_) => Err(DiskError::InUse { path: path.to_owned() }),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

/// Says whether another program has an image open.
pub fn is_in_use(path: &Path) -> bool {
    matches!(LockedDisk::open(path), Err(DiskError::InUse { .. }))
}

pub(super) fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Reads `length` bytes; beyond the end of the file they are 0.
pub(super) fn read_padded(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut read = 0;
    while let n @ 1.. = file.read_at(&mut bytes[read..], offset + read as u64)? {
        read += n;
    }
    Ok(bytes)
}

// The callers' slices are long enough: each reads within a buffer of fixed size.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    (u32::from(u16_at(bytes, at)) << 16) | u32::from(u16_at(bytes, at + 2))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    (u64::from(u32_at(bytes, at)) << 32) | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::testing::qemu_img;

    fn header(dir: &Path, options: &[&str], size: &str) -> Header {
        let args = [&["create", "-q", "-f", "qcow2"], options, &["d", size]].concat();
        qemu_img(dir, &args);
        Header::read(&File::open(dir.join("d")).unwrap()).unwrap()
    }

    #[test]
    fn what_qemu_img_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        for options in [&["-o", "compat=0.10"][..], &["-o", "extended_l2=on"], &[]] {
            let header = header(dir.path(), options, "3M");
            assert_eq!(header.virtual_size, 3 << 20, "{options:?}");
            assert!(!header.has_backing_file && !header.is_encrypted && !header.has_data_file());
            assert!(!header.is_read_only(), "{options:?}");
        }
        let overlay = header(dir.path(), &["-u", "-b", "/nowhere", "-F", "raw"], "1M");
        assert!(overlay.has_backing_file);
        let option = format!("data_file={}", dir.path().join("data").display());
        assert!(header(dir.path(), &["-o", &option], "1M").has_data_file());
        assert_eq!(virtual_size(&dir.path().join("d")).unwrap(), Some(1 << 20));
    }

    #[test]
    fn what_is_no_image_has_no_virtual_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        assert_eq!(virtual_size(&path).unwrap(), None);
        for bytes in [&b""[..], MAGIC, &[0; 512]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(virtual_size(&path).unwrap(), None);
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(bytes in any::<[u8; HEADER - 5]>(), bits in 0u8..32) {
            let mut header = [0; HEADER];
            header[5..].copy_from_slice(&bytes);
            header[..4].copy_from_slice(MAGIC);
            header[4..8].copy_from_slice(&[0, 0, 0, 3]);
            header[20..24].copy_from_slice(&[0, 0, 0, bits]);
            if let Ok(header) = Header::parse(&header) {
                let range = header.l1_behind_the_disk();
                prop_assert!(range.start <= range.end);
            }
        }
    }
}
