//! Reading a qcow2 image's table of snapshots, as QEMU's `docs/interop/qcow2.txt` describes it.
//!
//! A look at the file itself costs microseconds, works while QEMU runs, and shows also what others
//! have made; `qemu-img` would cost a process for every `ls`. Nothing is ever written here.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use crate::vm::backend::SnapshotInfo;

/// QEMU's own bound on the number of snapshots of one image.
const MOST: u32 = 65_536;
/// QEMU's own bound on what it may add to an entry in the future.
const MOST_EXTRA: u32 = 1024;
/// The fixed part of an entry.
const ENTRY: usize = 40;

/// Lists the snapshots of an image in the order of its table.
///
/// # Errors
/// `NotFound` if there is no image, `InvalidData` if it is none, or damaged.
pub fn snapshots(path: &Path) -> io::Result<Vec<SnapshotInfo>> {
    let mut file = File::open(path)?;
    let mut header = [0; 72];
    file.read_exact(&mut header)?;
    if &header[..4] != b"QFI\xfb" {
        return Err(invalid("not a qcow2 image"));
    }
    let (count, offset) = (u32_at(&header, 60), u64_at(&header, 64));
    if count > MOST {
        return Err(invalid("more snapshots than there can be"));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut table = BufReader::new(file);
    (0..count).map(|_| entry(&mut table)).collect()
}

fn entry(table: &mut impl Read) -> io::Result<SnapshotInfo> {
    let mut fixed = [0; ENTRY];
    table.read_exact(&mut fixed)?;
    let (id_size, name_size) = (u16_at(&fixed, 12), u16_at(&fixed, 14));
    let (seconds, nanos) = (u32_at(&fixed, 16), u32_at(&fixed, 20));
    let extra_size = u32_at(&fixed, 36);
    if extra_size > MOST_EXTRA {
        return Err(invalid("an entry of the snapshot table is too large"));
    }
    let extra = bytes(table, extra_size as usize)?;
    let _id = bytes(table, usize::from(id_size))?;
    let name = bytes(table, usize::from(name_size))?;
    let length = ENTRY + extra.len() + usize::from(id_size) + usize::from(name_size);
    bytes(table, length.next_multiple_of(8) - length)?;
    let large = |at| extra.get(at..at + 8).map(|b| u64_at(b, 0));
    Ok(SnapshotInfo {
        tag: String::from_utf8_lossy(&name).into_owned(),
        created: UNIX_EPOCH + Duration::new(u64::from(seconds), nanos.min(999_999_999)),
        memory: large(0).unwrap_or_else(|| u64::from(u32_at(&fixed, 32))),
        disk_size: large(8).unwrap_or(0),
    })
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

    proptest! {
        #[test]
        fn no_table_makes_the_reader_panic(table in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = table.as_slice();
            while entry(&mut bytes).is_ok() {}
        }
    }
}
