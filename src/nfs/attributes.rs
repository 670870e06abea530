//! Changing what stat(2) says of a file: mode, owner, size, times.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, CWD, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, chmodat, utimensat,
};

use super::beneath::link;
use super::facts::{Facts, Identity, Time, allowed_mode};
use super::rpc::Caller;
use super::status::{Fault, Status};
use super::xdr::{Decoder, Garbage};

/// What is to be changed (`sattr3`).
#[derive(Clone, Copy, Debug)]
pub(super) struct Changes {
    pub(super) mode: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
    pub(super) size: Option<u64>,
    atime: NewTime,
    mtime: NewTime,
}

#[derive(Clone, Copy, Debug)]
enum NewTime {
    Same,
    Now,
    At(Time),
}

impl Changes {
    pub(super) fn read(rest: &mut Decoder<'_>) -> Result<Self, Garbage> {
        Ok(Self {
            mode: rest.optional(Decoder::word)?,
            owner: rest.optional(Decoder::word)?,
            group: rest.optional(Decoder::word)?,
            size: rest.optional(Decoder::long)?,
            atime: NewTime::read(rest)?,
            mtime: NewTime::read(rest)?,
        })
    }

    /// Sets both times, as an exclusive creation does: they are its mark.
    pub(super) fn times(atime: Time, mtime: Time) -> Self {
        let (atime, mtime) = (NewTime::At(atime), NewTime::At(mtime));
        Self { mode: None, owner: None, group: None, size: None, atime, mtime }
    }

    /// Says why others may not: mode, owner and times are the owner's to set, size and the time of now are for
    /// whoever may write.
    pub(super) fn refusal(&self) -> Status {
        let is_set = |time| matches!(time, NewTime::At(_));
        let owners = self.mode.or(self.owner).or(self.group).is_some();
        match owners || is_set(self.atime) || is_set(self.mtime) {
            true => Status::NotOwner,
            false => Status::Access,
        }
    }

    /// What the guest writes is the user's. Its root may give files away, as `tar` and `cp -a` do, and nothing
    /// happens; others may not.
    pub(super) fn admit_owner(
        &self,
        facts: &Facts,
        caller: Caller,
        who: &Identity,
    ) -> Result<(), Status> {
        let (owner, group) = facts.owner(who);
        let stays =
            self.owner.is_none_or(|uid| uid == owner) && self.group.is_none_or(|gid| gid == group);
        match stays || caller == Caller::User(0) {
            true => Ok(()),
            false => Err(Status::NotOwner),
        }
    }

    /// Changes the mode of a file that [`beneath`](super::beneath) has found.
    pub(super) fn apply_mode(&self, fd: impl AsFd, facts: &Facts) -> Result<(), Fault> {
        let Some(mode) = self.mode.map(|mode| allowed_mode(mode, facts.is_directory())) else {
            return Ok(());
        };
        // Symbolic links have no mode of their own.
        if mode == facts.mode || facts.kind == rustix::fs::FileType::Symlink {
            return Ok(());
        }
        Ok(chmodat(CWD, link(fd), Mode::from_raw_mode(mode), AtFlags::empty())?)
    }

    pub(super) fn apply_size(&self, file: &File) -> Result<(), Fault> {
        match self.size {
            Some(size) => Ok(rustix::fs::ftruncate(file, size)?),
            None => Ok(()),
        }
    }

    pub(super) fn apply_times(&self, fd: impl AsFd) -> Result<(), Fault> {
        if matches!((self.atime, self.mtime), (NewTime::Same, NewTime::Same)) {
            return Ok(());
        }
        let times = Timestamps {
            last_access: self.atime.timespec(),
            last_modification: self.mtime.timespec(),
        };
        Ok(utimensat(fd, "", &times, AtFlags::EMPTY_PATH)?)
    }
}

impl NewTime {
    fn read(rest: &mut Decoder<'_>) -> Result<Self, Garbage> {
        match rest.word()? {
            0 => Ok(Self::Same),
            1 => Ok(Self::Now),
            2 => Ok(Self::At(Time { seconds: rest.word()?, nanoseconds: rest.word()? })),
            _ => Err(Garbage),
        }
    }

    fn timespec(self) -> Timespec {
        match self {
            Self::Same => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            Self::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            Self::At(time) => Timespec {
                tv_sec: i64::from(time.seconds),
                // More than a second's would mean something else.
                tv_nsec: i64::from(time.nanoseconds.min(999_999_999)),
            },
        }
    }
}
