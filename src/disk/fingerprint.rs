//! Whether a file still is what it was: a checksum, and a stamp of the file system that saves
//! reading the file again.

use std::fs::{self, File, Metadata};
use std::io::{self, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::sparse;

/// What is hashed at once. A piece of zeros is left out of the checksum, whether it is stored or a
/// hole, so that a copy without holes has the same one.
const PIECE: usize = 64 << 10;

/// What a file was when its fingerprint was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    sha256: String,
    stamp: Stamp,
}

/// What the file system says of a file. Whatever writes to the file, or puts another in its place,
/// changes this; a file that still has its stamp is not read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            inode: meta.ino(),
            length: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Fingerprint {
    /// Takes the fingerprint of a file.
    pub fn of(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let sha256 = hash_data(&file)?;
        Ok(Self { sha256, stamp: Stamp::of(&file.metadata()?) })
    }

    /// Checks that a file has the content that it had, and returns its present fingerprint: another
    /// one if the file is a copy.
    pub fn check(&self, path: &Path) -> Result<Self, String> {
        let failed = |e: io::Error| format!("{}: {e}", path.display());
        if Stamp::of(&fs::metadata(path).map_err(failed)?) == self.stamp {
            return Ok(self.clone());
        }
        let now = Self::of(path).map_err(failed)?;
        if now.sha256 == self.sha256 {
            return Ok(now);
        }
        Err(format!("{} is damaged", path.display()))
    }
}

/// Feeds a whole file into a digest.
pub fn hash_file(digest: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    io::copy(&mut file, digest).map(drop)
}

/// Hashes the pieces that are not all zeros, with their places, and the length.
fn hash_data(file: &File) -> io::Result<String> {
    let (length, mut digest) = (file.metadata()?.len(), Sha256::new());
    let mut piece = vec![0; PIECE];
    let mut at = 0;
    while let Some(data) = sparse::next_data(file, at)? {
        at = data.start / PIECE as u64 * PIECE as u64;
        let size = usize::try_from((length - at).min(PIECE as u64)).unwrap_or(PIECE);
        file.read_exact_at(&mut piece[..size], at)?;
        if piece[..size].iter().any(|b| *b != 0) {
            digest.update(at.to_le_bytes());
            digest.update(&piece[..size]);
        }
        at += size as u64;
    }
    digest.update(length.to_le_bytes());
    Ok(format!("{:x}", digest.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_without_holes_is_the_same_file_and_a_changed_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (path, copy) = (dir.path().join("ram"), dir.path().join("copy"));
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"memory", 300_000).unwrap();
        let taken = Fingerprint::of(&path).unwrap();
        assert_eq!(taken.check(&path), Ok(taken.clone()));
        fs::write(&copy, fs::read(&path).unwrap()).unwrap();
        let of_copy = taken.check(&copy).unwrap();
        assert_ne!(of_copy, taken);
        assert_eq!(of_copy.check(&path), Ok(taken.clone()));
        file.write_all_at(b"X", 999_999).unwrap();
        assert!(taken.check(&path).unwrap_err().contains("damaged"));
        fs::remove_file(&path).unwrap();
        assert!(taken.check(&path).unwrap_err().contains("No such file"));
    }
}
