//! Output kept for its readers: a command's bytes, from the first one, also for a late or a second
//! reader. The first 64 KiB are in memory. What follows is in an unlinked file, a ring buffer, so
//! that neither memory nor disk grows beyond a limit.
//!
//! Nothing waits here: an append takes what fits, and its caller decides how to wait.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

/// Bytes kept in memory.
pub const MEMORY: u64 = 64 << 10;
/// Bytes kept altogether; more has to wait for the readers.
pub const RETAINED: u64 = 64 << 20;

/// The bytes.
#[derive(Debug)]
pub struct Spool(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    dir: PathBuf,
    /// The length of the head, which never leaves memory before it is given up.
    memory: u64,
    retained: u64,
    head: VecDeque<u8>,
    file: Option<File>,
    /// What is kept, as offsets since the first byte.
    start: u64,
    end: u64,
    cursors: BTreeMap<u64, u64>,
    next_reader: u64,
}

/// One reader of a [`Spool`], with its own cursor. Dropping it frees what only it has not read.
#[derive(Debug)]
pub struct Reader {
    spool: Arc<Spool>,
    id: u64,
}

impl Spool {
    /// Makes an empty one; its file, once needed, is made in `dir` and has no name.
    pub fn new(dir: PathBuf) -> Arc<Self> {
        Self::with_bounds(dir, MEMORY, RETAINED)
    }

    /// Makes one with other bounds: `memory` bytes in memory, `retained` altogether.
    pub fn with_bounds(dir: PathBuf, memory: u64, retained: u64) -> Arc<Self> {
        let inner = Inner { dir, memory, retained, ..Inner::default() };
        Arc::new(Self(Mutex::new(inner)))
    }

    /// Takes as many of `bytes` as fit and says how many. It is full when as much is kept as may
    /// be and the slowest reader has read none of it, or without any reader; a reader that reads or is
    /// dropped may make room.
    ///
    /// # Errors
    /// Whatever making or writing the file answers; `ENOSPC` on a full disk.
    pub fn try_append(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().append(bytes)
    }

    /// Returns the number of bytes that have ever been appended.
    pub fn end(&self) -> u64 {
        self.0.lock().end
    }

    /// Returns a reader at the oldest byte that is still there.
    pub fn reader(self: &Arc<Self>) -> Reader {
        let mut inner = self.0.lock();
        let (id, start) = (inner.next_reader, inner.start);
        inner.next_reader += 1;
        inner.cursors.insert(id, start);
        Reader { spool: Arc::clone(self), id }
    }
}

impl Reader {
    /// Takes at most `max` bytes; none when it has read all that there is.
    pub fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        let mut inner = self.spool.0.lock();
        let at = inner.cursors[&self.id];
        let bytes = inner.read(at, max)?;
        inner.cursors.insert(self.id, at + bytes.len() as u64);
        Ok(bytes)
    }

    /// Says how many bytes there are to read.
    pub fn pending(&self) -> u64 {
        let inner = self.spool.0.lock();
        inner.end - inner.cursors[&self.id]
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.spool.0.lock().cursors.remove(&self.id);
    }
}

impl Inner {
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.make_room(bytes.len() as u64);
        let room = self.retained - (self.end - self.start);
        let bytes = &bytes[..clamp(bytes.len(), room)];
        let (head, rest) = bytes.split_at(clamp(bytes.len(), self.memory.saturating_sub(self.end)));
        if !rest.is_empty() {
            self.write(self.end + head.len() as u64, rest)?;
        }
        self.head.extend(head);
        self.end += bytes.len() as u64;
        Ok(bytes.len())
    }

    /// Gives up what every reader has read, and no more of it than is needed: the longer the
    /// beginning stays, the longer it can be read again.
    fn make_room(&mut self, wanted: u64) {
        let Some(&slowest) = self.cursors.values().min() else {
            return;
        };
        let lacking = (self.end + wanted).saturating_sub(self.start + self.retained);
        let start = slowest.min(self.start + lacking);
        let in_head = start.min(self.memory).saturating_sub(self.start);
        self.head.drain(..clamp(self.head.len(), in_head));
        self.start = start;
    }

    fn read(&self, at: u64, max: usize) -> io::Result<Vec<u8>> {
        let len = clamp(max, self.end - at);
        if at >= self.memory {
            return self.read_file(at, len);
        }
        let from = clamp(self.head.len(), at - self.start);
        let mut bytes: Vec<u8> = self.head.range(from..).take(len).copied().collect();
        if bytes.len() < len {
            bytes.extend(self.read_file(self.memory, len - bytes.len())?);
        }
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile_in(&self.dir)?);
        }
        let (place, first) = self.place(at, bytes.len());
        let Some(file) = &self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        file.write_all_at(&bytes[..first], place)?;
        file.write_all_at(&bytes[first..], 0)
    }

    fn read_file(&self, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let (place, first) = self.place(at, len);
        if let Some(file) = &self.file {
            file.read_exact_at(&mut bytes[..first], place)?;
            file.read_exact_at(&mut bytes[first..], 0)?;
        }
        Ok(bytes)
    }

    /// Returns where a byte lies in the file, and how many of `len` lie there before its end.
    fn place(&self, at: u64, len: usize) -> (u64, usize) {
        let place = at % self.retained;
        (place, clamp(len, self.retained - place))
    }
}

/// The smaller of the two.
fn clamp(len: usize, bound: u64) -> usize {
    usize::try_from(bound).map_or(len, |bound| len.min(bound))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spool(memory: u64, retained: u64) -> (tempfile::TempDir, Arc<Spool>) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::with_bounds(dir.path().to_owned(), memory, retained);
        (dir, spool)
    }

    #[test]
    fn output_that_was_kept_whole_can_be_read_twice() {
        let (dir, spool) = spool(4, 16);
        assert_eq!(spool.try_append(b"0123456789").unwrap(), 10);
        for _ in 0..2 {
            let reader = spool.reader();
            assert_eq!(reader.read(3).unwrap(), b"012");
            assert_eq!(reader.pending(), 7);
            assert_eq!(reader.read(100).unwrap(), b"3456789");
            assert_eq!(reader.read(100).unwrap(), b"");
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }

    #[test]
    fn without_readers_output_beyond_the_bound_waits() {
        let (_dir, spool) = spool(4, 16);
        assert_eq!(spool.try_append(&[b'x'; 20]).unwrap(), 16);
        assert_eq!(spool.try_append(b"y").unwrap(), 0);
        let reader = spool.reader();
        assert_eq!(spool.try_append(b"y").unwrap(), 0, "nothing has been read yet");
        assert_eq!(reader.read(5).unwrap().len(), 5);
        assert_eq!(spool.try_append(b"yyyyyyyy").unwrap(), 5);
        assert_eq!(reader.read(100).unwrap(), b"xxxxxxxxxxxyyyyy");
    }

    #[test]
    fn the_slowest_reader_holds_the_output_back_until_it_leaves() {
        let (_dir, spool) = spool(4, 16);
        let (slow, fast) = (spool.reader(), spool.reader());
        assert_eq!(spool.try_append(&[b'a'; 16]).unwrap(), 16);
        assert_eq!(fast.read(100).unwrap().len(), 16);
        assert_eq!(spool.try_append(b"b").unwrap(), 0);
        drop(slow);
        assert_eq!(spool.try_append(b"b").unwrap(), 1);
        assert_eq!(fast.read(100).unwrap(), b"b");
    }

    #[test]
    fn the_beginning_is_kept_as_long_as_there_is_room() {
        let (_dir, spool) = spool(4, 16);
        let reader = spool.reader();
        spool.try_append(b"0123456789").unwrap();
        reader.read(100).unwrap();
        assert_eq!(spool.reader().read(100).unwrap(), b"0123456789");
        spool.try_append(b"abcdefgh").unwrap();
        assert_eq!(spool.reader().read(100).unwrap(), b"23456789abcdefgh");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(usize),
        Read(usize, usize),
        Join,
        Leave(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..40).prop_map(Step::Append),
            4 => (0usize..4, 0usize..40).prop_map(|(who, max)| Step::Read(who, max)),
            1 => Just(Step::Join),
            1 => (0usize..4).prop_map(Step::Leave),
        ]
    }

    proptest! {
        #[test]
        fn every_reader_gets_every_byte_once_in_order(
            memory in 0u64..32,
            steps in proptest::collection::vec(step(), 1..200),
        ) {
            let (_dir, spool) = spool(memory, 32);
            let byte = |n: u64| u8::try_from(n % 251).unwrap();
            let mut readers: Vec<(Reader, u64)> = Vec::new();
            for step in steps {
                match step {
                    Step::Append(len) => {
                        let end = spool.end();
                        let bytes: Vec<u8> = (end..end + len as u64).map(byte).collect();
                        let taken = spool.try_append(&bytes).unwrap() as u64;
                        prop_assert_eq!(spool.end(), end + taken);
                    }
                    Step::Join => {
                        let reader = spool.reader();
                        let at = spool.end() - reader.pending();
                        prop_assert!(reader.pending() <= 32);
                        readers.push((reader, at));
                    }
                    Step::Read(who, max) => if let Some((reader, at)) = readers.get_mut(who) {
                        let bytes = reader.read(max).unwrap();
                        let wanted: Vec<u8> = (*at..*at + bytes.len() as u64).map(byte).collect();
                        prop_assert!(!bytes.is_empty() || max == 0 || *at == spool.end());
                        prop_assert_eq!(&bytes, &wanted);
                        *at += bytes.len() as u64;
                    },
                    Step::Leave(who) => if who < readers.len() {
                        drop(readers.remove(who));
                    },
                }
            }
        }
    }
}
