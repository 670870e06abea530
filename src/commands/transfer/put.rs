//! Writing to a side: a file or a link is made under a name of its own, and renamed when it is whole.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, symlinkat, utimensat};

use super::super::progress::Progress;
use super::super::text::size;
use super::dir::{Dir, Meta, set_mode, set_time, times};
use super::work::{Partial, Partials};
use crate::sys;

/// Bytes that are copied at once; as many zeros are left out of a file with holes.
const CHUNK: usize = 256 << 10;
const CREATION: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Writes files, and shows how far that is.
pub(in crate::commands) struct Writer {
    partials: Arc<Partials>,
    progress: Mutex<Progress>,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Writer {
    pub(in crate::commands) fn new(partials: &Arc<Partials>) -> Self {
        let (files, bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { partials: Arc::clone(partials), progress: Mutex::new(Progress::new()), files, bytes }
    }

    /// Copies an open file to a name. `see` gets all of its bytes too.
    pub(in crate::commands) fn file(
        &self,
        (mut from, meta): (File, &Meta),
        (dir, name): (&Dir, &OsStr),
        mut see: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let partial = self.partials.begin(dir)?;
        let mode = Mode::from_raw_mode(meta.mode);
        let to = File::from(openat(dir.fd(), &partial.name, CREATION, mode)?);
        let mut copied = 0;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = fill(&mut from, &mut buffer)?;
            let bytes = &buffer[..count];
            see(bytes);
            // A guest does not say where its files have holes.
            if !(meta.is_sparse && bytes.iter().all(|b| *b == 0)) {
                to.write_all_at(bytes, copied)?;
            }
            copied += count as u64;
            self.show(name, copied, meta.size, count as u64);
            self.partials.expect_more()?;
            if count < CHUNK {
                break;
            }
        }
        if meta.is_sparse {
            to.set_len(copied)?;
        }
        if Meta::of_file(&to)?.mode != meta.mode {
            set_mode(to.as_fd(), meta.mode)?;
        }
        set_time(to.as_fd(), meta.mtime)?;
        // What a guest could not write is told here.
        sys::close(to)?;
        self.publish(partial, dir, name)
    }

    /// Writes a file of the caller's own, for its user alone.
    pub(in crate::commands) fn bytes(
        &self,
        bytes: &[u8],
        (dir, name): (&Dir, &OsStr),
    ) -> io::Result<()> {
        let partial = self.partials.begin(dir)?;
        let mode = Mode::from_raw_mode(0o600);
        let to = File::from(openat(dir.fd(), &partial.name, CREATION, mode)?);
        to.write_all_at(bytes, 0)?;
        sys::close(to)?;
        self.publish(partial, dir, name)
    }

    /// Makes a link.
    pub(in crate::commands) fn link(
        &self,
        target: &[u8],
        mtime: (i64, u32),
        (dir, name): (&Dir, &OsStr),
    ) -> io::Result<()> {
        let partial = self.partials.begin(dir)?;
        symlinkat(OsStr::from_bytes(target), dir.fd(), &partial.name)?;
        // A guest's server may not be able to.
        let _kept = utimensat(dir.fd(), &partial.name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW);
        self.publish(partial, dir, name)
    }

    /// Says whether the user has had enough.
    pub(in crate::commands) fn is_ending(&self) -> bool {
        self.partials.expect_more().is_err()
    }

    fn publish(&self, partial: Partial, dir: &Dir, name: &OsStr) -> io::Result<()> {
        renameat(dir.fd(), &partial.name, dir.fd(), name)?;
        partial.complete();
        self.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn show(&self, name: &OsStr, copied: u64, of: u64, more: u64) {
        let bytes = self.bytes.fetch_add(more, Ordering::Relaxed) + more;
        let Some(mut progress) = self.progress.try_lock() else { return };
        progress.show(|| match of > (CHUNK as u64) << 5 {
            true => {
                let percent = (copied.min(of) * 100).checked_div(of).unwrap_or(100);
                format!("{} {percent} %", super::dir::printable(name.as_bytes()))
            }
            false => format!("{} files, {}", self.files.load(Ordering::Relaxed), size(bytes)),
        });
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(from: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
