//! What goes to the kernel beside an answer: how long it may remember it, and how an open file
//! behaves.

use std::time::Duration;

use fuser::{FopenFlags, OpenFlags};

use crate::tree::handle::IoMode;
use crate::tree::node::{Keep, Kind};

/// How long the kernel may remember what changes by its own requests alone.
pub(super) const LONG: Duration = Duration::from_secs(24 * 3600);

pub(super) fn ttl(keep: Keep) -> Duration {
    match keep {
        Keep::Forever => LONG,
        Keep::Never => Duration::ZERO,
    }
}

pub(super) fn io_mode(flags: OpenFlags) -> IoMode {
    if flags.0 & libc::O_NONBLOCK != 0 { IoMode::NonBlocking } else { IoMode::Blocking }
}

pub(super) fn open_flags(kind: Kind) -> FopenFlags {
    match kind {
        Kind::Value => FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH,
        Kind::Setting | Kind::Link | Kind::Directory => FopenFlags::FOPEN_DIRECT_IO,
        // Without STREAM a parked read holds the lock of the file position, and a write to the
        // same descriptor waits for it beyond any signal.
        Kind::Control | Kind::Stream => {
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_STREAM | FopenFlags::FOPEN_NONSEEKABLE
        }
    }
}

pub(super) fn directory_flags(keep: Keep) -> FopenFlags {
    match keep {
        Keep::Forever => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        Keep::Never => FopenFlags::empty(),
    }
}
