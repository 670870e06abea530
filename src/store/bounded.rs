//! Files that another program appends to without end, as QEMU does with a guest's console: their
//! older part is freed, and readers continue.
//!
//! A hole is punched there, so every offset stays the same for the writer and for readers.
//! Where the file system cannot do that, the file is truncated.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::file::if_there;
use crate::disk::sparse;

/// Bytes at a file's end that are kept, and shown.
pub const KEPT: u64 = 1 << 20;
/// Bytes beyond those that the file may take before its older part is freed.
const SLACK: u64 = 1 << 20;
/// The freed part begins and ends with a block.
const BLOCK: u64 = 4096;

/// Frees what lies before the end that is kept; says whether there was anything.
pub fn bound(path: &Path) -> io::Result<bool> {
    let file = if_there(File::options().write(true).open(path))?;
    let Some(file) = file else { return Ok(false) };
    let meta = file.metadata()?;
    let older = meta.len().saturating_sub(KEPT) / BLOCK * BLOCK;
    if meta.blocks() * 512 <= KEPT + SLACK || older == 0 {
        return Ok(false);
    }
    match sparse::punch_hole(&file, 0..older) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(0)?,
        other => other?,
    }
    Ok(true)
}

/// The end of such a file, for one reader.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    /// The reader's offset 0 in the file. It moves forward when bytes are freed that the reader has
    /// not read, and back when the file is truncated.
    origin: Mutex<i64>,
}

impl Tail {
    /// Opens a file's end as it is now; one that is not there yet is empty.
    pub fn open(path: PathBuf) -> Self {
        let length = std::fs::metadata(&path).map_or(0, |meta| meta.len());
        let origin = length.saturating_sub(KEPT).cast_signed();
        Self { path, origin: Mutex::new(origin) }
    }

    /// Reads at most `max` bytes at the reader's offset; none if there are none yet.
    pub fn read(&self, offset: u64, max: usize) -> io::Result<Vec<u8>> {
        let Some(file) = if_there(File::open(&self.path))? else { return Ok(Vec::new()) };
        let mut bytes = vec![0; max];
        let read = file.read_at(&mut bytes, self.place(&file, offset)?)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Returns where the reader's offset lies in the file.
    fn place(&self, file: &File, offset: u64) -> io::Result<u64> {
        let mut origin = self.origin.lock();
        let length = file.metadata()?.len();
        let wanted = origin.saturating_add_unsigned(offset);
        let place = match u64::try_from(wanted) {
            Ok(at) if at == length => at,
            // Only a hole follows if the file is shortened at this moment.
            Ok(at) if at < length => sparse::next_data(file, at)?.map_or(at, |data| data.start),
            // The file has been truncated since.
            Ok(_) | Err(_) => 0,
        };
        *origin = place.cast_signed().saturating_sub_unsigned(offset);
        Ok(place)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A log to which another program appends.
    struct Log {
        dir: tempfile::TempDir,
        writer: File,
        lines: u64,
    }

    impl Log {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut options = File::options();
            let writer = options.append(true).create(true).open(dir.path().join("log")).unwrap();
            Self { dir, writer, lines: 0 }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("log")
        }

        /// Prints a number of lines of 16 bytes, each with its number.
        fn print(&mut self, lines: u64) {
            let text: String =
                (self.lines..self.lines + lines).map(|n| format!("{n:015}\n")).collect();
            self.writer.write_all(text.as_bytes()).unwrap();
            self.lines += lines;
        }

        fn on_disk(&self) -> u64 {
            self.writer.sync_all().unwrap();
            self.writer.metadata().unwrap().blocks() * 512
        }
    }

    #[test]
    fn the_older_part_is_freed_and_the_end_stays_where_it_was() {
        let mut log = Log::new();
        for _ in 0..20 {
            log.print(1 << 16);
            bound(&log.path()).unwrap();
            assert!(log.on_disk() <= KEPT + SLACK + (1 << 16), "{}", log.on_disk());
        }
        assert_eq!(log.writer.metadata().unwrap().len(), 20 << 20);
        let tail = Tail::open(log.path());
        assert_eq!(tail.read(0, 16).unwrap(), format!("{:015}\n", 19 << 16).as_bytes());
        log.print(1);
        assert_eq!(tail.read(KEPT, 100).unwrap(), format!("{:015}\n", 20 << 16).as_bytes());
        assert!(!bound(&log.dir.path().join("nowhere")).unwrap());
    }

    #[test]
    fn a_reader_that_is_far_behind_loses_the_oldest_bytes_and_reads_no_zeros() {
        let mut log = Log::new();
        log.print(4);
        let tail = Tail::open(log.path());
        assert_eq!(tail.read(0, 16).unwrap(), b"000000000000000\n");
        log.print(1 << 18);
        bound(&log.path()).unwrap();
        let next = tail.read(16, 16).unwrap();
        assert!(next.starts_with(b"00000") && next > b"000000000100000\n".to_vec(), "{next:?}");
        let after = tail.read(32, 16).unwrap();
        let number = |line: &[u8]| str::from_utf8(&line[..15]).unwrap().parse::<u64>().unwrap();
        assert_eq!(number(&after), number(&next) + 1);
    }

    #[test]
    fn a_file_that_was_truncated_is_read_from_its_start() {
        let mut log = Log::new();
        log.print(1 << 17);
        let tail = Tail::open(log.path());
        assert_eq!(tail.read(0, 16).unwrap(), b"000000000065536\n");
        log.writer.set_len(0).unwrap();
        log.print(2);
        assert_eq!(tail.read(16, 100).unwrap().len(), 32);
        assert_eq!(tail.read(48, 100).unwrap(), b"");
        log.print(1);
        assert_eq!(tail.read(48, 100).unwrap().len(), 16);
    }
}
