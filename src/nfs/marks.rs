//! Marks of directories: numbers that change when any file in a directory has changed. The directory's time of
//! change has it in its nanoseconds, so that the guest hears of all of its files by asking for one directory.
//!
//! Linux's client asks for the attributes of each file that it has forgotten, one after the other. For a
//! directory that has changed it looks the names up again. So it may remember files for long.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags, statx};

use super::beneath;
use super::export::{FileId, Place};
use super::facts::{Facts, Time, mix};
use super::listing::Pieces;
use super::status::Status;

/// Directories of a share whose marks are remembered.
const MOST: usize = 1 << 14;
/// For how long the files of a directory may be looked at. A directory that takes longer counts as changed.
const LOOK_TIMEOUT: Duration = Duration::from_millis(50);
/// A directory is not looked at again for so many times as long as that took.
const REST: u32 = 20;

/// When a directory is looked at again: where the guest asks whether it has changed, and elsewhere.
pub(super) const ASKED: Duration = Duration::from_millis(100);
pub(super) const BESIDE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<HashMap<FileId, Look>>);

/// What was found when a directory was looked at.
#[derive(Clone, Copy, Debug)]
struct Look {
    at: Instant,
    took: Duration,
    /// The weights of its files together.
    sum: u64,
    /// How much of that the guest has changed by itself since the directory was first looked at.
    own: u64,
}

impl Marks {
    /// Returns the mark of a directory as it was found last.
    pub(super) fn known(&self, dir: FileId) -> u32 {
        let look = self.0.lock().get(&dir).copied();
        look.map_or(0, |look| mix(look.sum.wrapping_sub(look.own)))
    }

    /// Looks at the files of a directory, unless that was done less than `lasts` ago.
    pub(super) fn look(&self, dir: &Place, lasts: Duration) {
        let id = dir.handle.file;
        let known = self.0.lock().get(&id).copied();
        if known.is_some_and(|look| look.at.elapsed() < lasts.max(look.took * REST)) {
            return;
        }
        let at = Instant::now();
        let sum = sum(dir, LOOK_TIMEOUT).unwrap_or_default();
        let mut looks = self.0.lock();
        if looks.len() >= MOST {
            // The guest takes the directories that are forgotten to have changed, no more.
            looks.clear();
        }
        let own = looks.get(&id).map_or(0, |look| look.own);
        looks.insert(id, Look { at, took: at.elapsed(), sum, own });
    }

    /// What the guest has done by itself counts as done by others.
    pub(super) fn forget(&self) {
        self.0.lock().clear();
    }

    /// The guest has changed a file in a directory, and knows it: no file is there before it was made, and after it
    /// was removed.
    pub(super) fn own(&self, dir: FileId, before: Option<&Facts>, after: Option<&Facts>) {
        let weight = |facts: Option<&Facts>| match facts {
            Some(facts) if !facts.is_directory() => weight(facts.inode, facts.ctime),
            Some(_) | None => 0,
        };
        if let Some(look) = self.0.lock().get_mut(&dir) {
            let change = weight(after).wrapping_sub(weight(before));
            // The next look finds the sum to be so by itself.
            look.sum = look.sum.wrapping_add(change);
            look.own = look.own.wrapping_add(change);
        }
    }
}

/// Adds up the files in a directory. Directories in it have their own marks.
pub(super) fn sum(dir: &Place, within: Duration) -> Result<u64, Status> {
    let began = Instant::now();
    let file = beneath::reopen(&dir.fd, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut pieces = Pieces::of(&file);
    let mut sum = 0_u64;
    while let Some(names) = pieces.next()? {
        if began.elapsed() > within {
            return Ok(nanoseconds_now());
        }
        let files = names.iter().filter(|name| name.kind != FileType::Directory);
        sum = files.map(|name| weight_of(&file, &name.name)).fold(sum, u64::wrapping_add);
    }
    Ok(sum)
}

/// A file that is gone changes its directory itself.
fn weight_of(dir: &File, name: &OsStr) -> u64 {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::CTIME | StatxFlags::INO | StatxFlags::TYPE;
    match statx(dir, name, flags, wanted) {
        Ok(stat) if !is_directory(stat.stx_mode) => weight(stat.stx_ino, (&stat.stx_ctime).into()),
        Ok(_) | Err(_) => 0,
    }
}

fn is_directory(mode: u16) -> bool {
    FileType::from_raw_mode(u32::from(mode)) == FileType::Directory
}

fn weight(inode: u64, changed: Time) -> u64 {
    let time = u64::from(changed.seconds) << 30 ^ u64::from(changed.nanoseconds);
    u64::from(mix(time ^ u64::from(mix(inode)) << 32)) << 32 | u64::from(mix(inode ^ time << 1))
}

fn nanoseconds_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs() << 30
}
