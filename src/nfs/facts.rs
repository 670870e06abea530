//! What stat(2) says of a file, as NFS wants it, and who owns it in the guest.
//!
//! Files of the host's user are those of the guest's login user. All others are nobody's there.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp, statx};

use super::export::FileId;
use super::status::Status;
use super::xdr::Encoder;

/// The owner that files of other users have in the guest.
const NOBODY: u32 = 65534;
/// Bits of a mode that reach the host, by kind: a program that the guest has marked with setuid would run as
/// the user for everybody on the host.
const FILE_MODE: u32 = 0o777;
const DIRECTORY_MODE: u32 = 0o3777;

/// A time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time {
    pub(super) seconds: u32,
    pub(super) nanoseconds: u32,
}

/// What is known of a file.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Tells files apart that have one inode after the other.
    pub(super) birth: u32,
    pub(super) kind: FileType,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    owner: (u32, u32),
    used: u64,
    rdev: (u32, u32),
}

/// Who users are: on the host, and in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) host: (u32, u32),
    pub(super) guest: (u32, u32),
}

impl Identity {
    pub(super) fn of_process(guest: (u32, u32)) -> Self {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Self { host: (uid.as_raw(), gid.as_raw()), guest }
    }
}

impl Facts {
    pub(super) fn of(file: impl AsFd) -> Result<Self, Status> {
        let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = statx(file, "", flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
        Ok(Self::from(&stat))
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Says whether the host's user owns it.
    pub(super) fn is_own(&self, who: &Identity) -> bool {
        self.owner.0 == who.host.0
    }

    /// Returns its owner and group in the guest.
    pub(super) fn owner(&self, who: &Identity) -> (u32, u32) {
        let seen = |id, host, guest| if id == host { guest } else { NOBODY };
        (seen(self.owner.0, who.host.0, who.guest.0), seen(self.owner.1, who.host.1, who.guest.1))
    }

    /// Writes it as `fattr3`. `number` is the file's number in the guest, `fsid` that of the file system.
    pub(super) fn write(&self, out: &mut Encoder, who: &Identity, fsid: u64, number: u64) {
        let (uid, gid) = self.owner(who);
        out.words(&[kind_number(self.kind), self.mode, self.links, uid, gid]);
        out.long(self.size);
        out.long(self.used);
        out.word(self.rdev.0);
        out.word(self.rdev.1);
        out.long(fsid);
        out.long(number);
        for time in [self.atime, self.mtime, self.ctime] {
            time.write(out);
        }
    }

    /// Puts the mark of a directory into its time of change ([`marks`](super::marks)).
    pub(super) fn marked(mut self, mark: u32) -> Self {
        if self.is_directory() {
            let nanoseconds = u64::from(self.ctime.nanoseconds) + u64::from(mark);
            self.ctime.nanoseconds = u32::try_from(nanoseconds % 1_000_000_000).unwrap_or_default();
        }
        self
    }

    /// Writes it as `wcc_attr`: what the guest compares to see whether anybody else has changed the file.
    pub(super) fn write_before(&self, out: &mut Encoder) {
        out.long(self.size);
        self.mtime.write(out);
        self.ctime.write(out);
    }

    /// Returns who it is; `device` is that of the share's root.
    pub(super) fn id(&self, device: u64) -> FileId {
        let device = if self.device == device { 0 } else { mix(self.device) | 1 };
        FileId { device, inode: self.inode, birth: self.birth }
    }
}

/// Returns the bits of a mode that a file of this kind can have.
pub(super) fn allowed_mode(mode: u32, is_directory: bool) -> u32 {
    mode & if is_directory { DIRECTORY_MODE } else { FILE_MODE }
}

impl From<&Statx> for Facts {
    fn from(stat: &Statx) -> Self {
        let kind = FileType::from_raw_mode(u32::from(stat.stx_mode));
        let born = stat.stx_btime.tv_sec.cast_unsigned() ^ u64::from(stat.stx_btime.tv_nsec) << 32;
        Self {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            inode: stat.stx_ino,
            birth: mix(born ^ u64::from(kind_number(kind)) << 29),
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            links: stat.stx_nlink,
            size: stat.stx_size,
            atime: (&stat.stx_atime).into(),
            mtime: (&stat.stx_mtime).into(),
            ctime: (&stat.stx_ctime).into(),
            owner: (stat.stx_uid, stat.stx_gid),
            used: stat.stx_blocks.saturating_mul(512),
            rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
        }
    }
}

impl From<&StatxTimestamp> for Time {
    fn from(time: &StatxTimestamp) -> Self {
        // NFS's times begin in 1970 and end in 2106.
        let seconds = u32::try_from(time.tv_sec.max(0)).unwrap_or(u32::MAX);
        Self { seconds, nanoseconds: time.tv_nsec }
    }
}

impl Time {
    pub(super) fn write(self, out: &mut Encoder) {
        out.word(self.seconds);
        out.word(self.nanoseconds);
    }
}

/// Spreads a number over 32 bits: the finalizer of splitmix64.
pub(super) fn mix(number: u64) -> u32 {
    let mut mixed = number ^ number >> 30;
    mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^= mixed >> 27;
    mixed = mixed.wrapping_mul(0x94d0_49bb_1331_11eb);
    u32::try_from((mixed ^ mixed >> 31) >> 32).unwrap_or_default()
}

/// Returns the number of a kind (`ftype3`).
fn kind_number(kind: FileType) -> u32 {
    match kind {
        FileType::RegularFile | FileType::Unknown => 1,
        FileType::Directory => 2,
        FileType::BlockDevice => 3,
        FileType::CharacterDevice => 4,
        FileType::Symlink => 5,
        FileType::Socket => 6,
        FileType::Fifo => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_has_is_the_login_users_and_all_else_nobodys() {
        let who = Identity::of_process((1000, 100));
        let own = Facts::of(tempfile::tempfile().unwrap()).unwrap();
        assert_eq!((own.owner(&who), own.is_own(&who)), ((1000, 100), true));
        let other = Facts { owner: (who.host.0 + 1, who.host.1 + 1), ..own };
        assert_eq!((other.owner(&who), other.is_own(&who)), ((NOBODY, NOBODY), false));
    }

    #[test]
    fn no_setuid_reaches_the_host() {
        assert_eq!(allowed_mode(0o6755, false), 0o755);
        assert_eq!(allowed_mode(0o7777, true), 0o3777);
    }

    #[test]
    fn numbers_that_differ_little_are_told_apart() {
        let mixed: std::collections::BTreeSet<u32> = (0..1000).map(mix).collect();
        assert_eq!(mixed.len(), 1000);
    }
}
