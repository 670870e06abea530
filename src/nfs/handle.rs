//! File handles: how the guest names a file.
//!
//! A handle outlives the daemon that gave it: it says which file it is (device, inode, time of birth), and by the
//! inodes of the directories above where to look for it. It is signed with a key of the VM, so a guest that
//! makes one up names nothing.

use sha2::{Digest, Sha256};

use super::export::FileId;
use super::facts::mix;
use super::xdr::{Decoder, Garbage};

/// The longest handle of NFSv3.
pub(super) const LONGEST: usize = 64;
/// The form of the handles below.
const VERSION: u8 = 1;
const SIGNATURE: usize = 8;
/// Directories above a file that its handle has room for.
pub(super) const MARKS: usize = 15;

/// The key of a VM's handles.
pub type Key = [u8; 32];

/// The directories above a file, from the share's root on: a few bits of each one's inode. A directory keeps its
/// inode when it is renamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Trail {
    /// How many there are, also where they are more than have room.
    pub(super) depth: u8,
    pub(super) marks: [u16; MARKS],
}

impl Trail {
    /// Returns the trail of what lies in a directory that has this trail itself.
    pub(super) fn below(self, inode: u64) -> Self {
        let mut trail = self;
        if let Some(mark) = trail.marks.get_mut(usize::from(self.depth)) {
            *mark = Self::mark(inode);
        }
        trail.depth = self.depth.saturating_add(1);
        trail
    }

    /// Returns the bits of a directory's inode.
    pub(super) fn mark(inode: u64) -> u16 {
        u16::try_from(mix(inode) >> 16).unwrap_or_default()
    }

    /// Returns the mark of the directory at this depth; `None` if it is not known.
    pub(super) fn at(&self, depth: usize) -> Option<u16> {
        self.marks.get(depth).copied().filter(|_| depth < usize::from(self.depth))
    }
}

/// A file of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle {
    /// The share's number.
    pub(super) share: u64,
    pub(super) file: FileId,
    pub(super) trail: Trail,
}

impl Handle {
    pub(super) fn root(share: u64) -> Self {
        Self { share, file: FileId::ROOT, trail: Trail::default() }
    }

    /// Returns it as the guest gets it.
    pub(super) fn seal(&self, key: &Key) -> [u8; LONGEST] {
        let mut bytes = [0; LONGEST];
        bytes[0] = VERSION;
        bytes[1] = self.trail.depth;
        bytes[10..18].copy_from_slice(&self.share.to_be_bytes());
        bytes[18..26].copy_from_slice(&self.file.inode.to_be_bytes());
        bytes[26..30].copy_from_slice(&self.file.device.to_be_bytes());
        bytes[30..34].copy_from_slice(&self.file.birth.to_be_bytes());
        for (place, mark) in bytes[34..].chunks_exact_mut(2).zip(self.trail.marks) {
            place.copy_from_slice(&mark.to_be_bytes());
        }
        let signature = sign(key, &bytes);
        bytes[2..2 + SIGNATURE].copy_from_slice(&signature);
        bytes
    }

    /// Reads one that this key has signed.
    pub(super) fn open(bytes: &[u8], key: &Key) -> Option<Self> {
        let bytes: [u8; LONGEST] = bytes.try_into().ok()?;
        let mut unsigned = bytes;
        unsigned[2..2 + SIGNATURE].fill(0);
        (bytes[2..2 + SIGNATURE] == sign(key, &unsigned)).then_some(())?;
        Self::read(&bytes).ok().flatten()
    }

    fn read(bytes: &[u8; LONGEST]) -> Result<Option<Self>, Garbage> {
        let mut decoder = Decoder::new(&bytes[10..]);
        let share = decoder.long()?;
        let inode = decoder.long()?;
        let (device, birth) = (decoder.word()?, decoder.word()?);
        let mut marks = [0; MARKS];
        for mark in &mut marks {
            *mark = u16::from_be_bytes(decoder.fixed()?);
        }
        let trail = Trail { depth: bytes[1], marks };
        let handle = Self { share, file: FileId { device, inode, birth }, trail };
        Ok((bytes[0] == VERSION).then_some(handle))
    }
}

/// Signs bytes of one length, so that nobody can append to them.
fn sign(key: &Key, bytes: &[u8; LONGEST]) -> [u8; SIGNATURE] {
    let digest = Sha256::new().chain_update(key).chain_update(bytes).finalize();
    let mut signature = [0; SIGNATURE];
    signature.copy_from_slice(&digest[..SIGNATURE]);
    signature
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = [7; 32];

    fn handle() -> Handle {
        let trail = (1..20).fold(Trail::default(), Trail::below);
        let file = FileId { device: 1, inode: 1 << 40, birth: 3 };
        Handle { share: 9, file, trail }
    }

    #[test]
    fn a_handle_is_read_with_its_key_alone() {
        let sealed = handle().seal(&KEY);
        assert_eq!(Handle::open(&sealed, &KEY), Some(handle()));
        assert_eq!(Handle::open(&sealed, &[8; 32]), None);
        assert_eq!(Handle::open(&sealed[..63], &KEY), None);
        assert_eq!(Handle::open(&[], &KEY), None);
    }

    #[test]
    fn no_byte_of_it_can_be_changed() {
        for at in 0..LONGEST {
            let mut forged = handle().seal(&KEY);
            forged[at] ^= 1;
            assert_eq!(Handle::open(&forged, &KEY), None, "{at}");
        }
    }

    #[test]
    fn a_trail_has_the_first_directories_and_counts_all() {
        let trail = handle().trail;
        assert_eq!(trail.depth, 19);
        assert_eq!(trail.at(0), Some(Trail::mark(1)));
        assert_eq!((trail.at(MARKS - 1), trail.at(MARKS)), (Some(Trail::mark(15)), None));
        assert_eq!(Trail::default().at(0), None);
    }
}
