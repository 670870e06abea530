//! Holes in files: found, kept in copies, and made where there are zeros.
//!
//! Not here: what the files hold, and what for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, sendfile};
use rustix::io::Errno;

/// In what units zeros are looked for. Of 182 MiB of zeros in a guest's 256 MiB, pages of 4 KiB
/// find all, in 294 holes; these find 97 %, in 33.
const GRAIN: usize = 64 << 10;
static ZEROS: [u8; GRAIN] = [0; GRAIN];

/// Returns the first data at or behind `at`; `None` if only a hole follows. On a file system
/// without holes, all is data.
pub fn next_data(file: &File, at: u64) -> io::Result<Option<Range<u64>>> {
    let length = file.metadata()?.len();
    if at >= length {
        return Ok(None);
    }
    let data = || {
        let start = seek(file, SeekFrom::Data(at))?;
        Ok(start..seek(file, SeekFrom::Hole(start))?)
    };
    match data() {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL) => Ok(Some(at..length)),
        Err(error) => Err(error.into()),
    }
}

/// Iterates over all data, in order.
fn all_data(file: &File) -> impl Iterator<Item = io::Result<Range<u64>>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let next = next_data(file, at).transpose()?;
        at = next.as_ref().map_or(u64::MAX, |data| data.end);
        Some(next)
    })
}

/// Copies the data of a file, to the same places. Holes stay holes if they are holes in `to`.
pub fn copy(from: &File, to: impl AsFd) -> io::Result<()> {
    for data in all_data(from) {
        let Range { start: mut at, end } = data?;
        seek(&to, SeekFrom::Start(at))?;
        while at < end {
            let rest = usize::try_from(end - at).unwrap_or(usize::MAX);
            if sendfile(&to, from, Some(&mut at), rest)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

/// Lets `to` share the blocks of `from`, on file systems that can (ioctl_ficlone(2)).
///
/// # Errors
/// What the system answers; `to` is unchanged then.
pub fn reflink(from: &File, to: &File) -> io::Result<()> {
    Ok(rustix::fs::ioctl_ficlone(to, from)?)
}

/// Makes holes of zeros, which take no room then. Where the file system knows no holes the zeros
/// stay.
pub fn punch_holes(file: &File) -> io::Result<()> {
    let mut grain = vec![0; GRAIN];
    for data in all_data(file) {
        let Range { start: mut at, end } = data?;
        let mut zeros = at..at;
        while at < end {
            let length = (GRAIN as u64).min(end - at);
            let grain = &mut grain[..usize::try_from(length).unwrap_or(GRAIN)];
            file.read_exact_at(grain, at)?;
            at += length;
            if *grain == ZEROS[..grain.len()] {
                zeros.end = at;
            } else {
                punch_if_possible(file, zeros)?;
                zeros = at..at;
            }
        }
        punch_if_possible(file, zeros)?;
    }
    Ok(())
}

fn punch_if_possible(file: &File, range: Range<u64>) -> io::Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    match punch_hole(file, range) {
        Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes a hole of a range. The length of the file and every offset in it stay what they are.
///
/// # Errors
/// `OPNOTSUPP` on a file system without holes; what else fallocate(2) answers.
pub fn punch_hole(file: &File, range: Range<u64>) -> Result<(), Errno> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, mode, range.start, range.end - range.start)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE: usize = 8 << 20;
    const PIECES: [(usize, usize); 4] =
        [(1 << 20, 5000), ((2 << 20) + 4096, GRAIN), ((4 << 20) - 1, 2), (SIZE - 3, 3)];

    fn content() -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        for (at, length) in PIECES {
            bytes[at..at + length].fill(7);
        }
        bytes
    }

    fn read(mut file: &File) -> Vec<u8> {
        use std::io::{Read, Seek};
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn zeros_become_holes_and_nothing_else_changes() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&content(), 0).unwrap();
        punch_holes(&file).unwrap();
        assert!(read(&file) == content());
        let room = file.metadata().unwrap().blocks() * 512;
        assert!(room <= 2 * GRAIN as u64 * PIECES.len() as u64, "{room}");
        punch_holes(&file).unwrap();
        assert!(read(&file) == content());
    }

    #[test]
    fn a_copy_is_the_same_and_has_the_holes() {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let size = SIZE as u64;
        from.set_len(size).unwrap();
        to.set_len(size).unwrap();
        for (at, length) in PIECES {
            from.write_all_at(&vec![7; length], at as u64).unwrap();
        }
        copy(&from, &to).unwrap();
        assert!(read(&to) == content());
        assert!(to.metadata().unwrap().blocks() * 512 < size / 2);
    }
}
