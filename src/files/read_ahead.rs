//! Reading a file in order, with the next requests under way before they are needed.
//!
//! A second read that continues the first begins it; one elsewhere ends it. What is read ahead is
//! bounded for a file and, by permits, for a VM. It is used for moments only: the guest may change
//! the file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::vm::backend::{FileError, GuestFile};

/// The most bytes ahead of a reader.
const FARTHEST: u64 = 2 << 20;
/// What each read in order adds to the distance.
const STEP: u64 = 256 << 10;
/// How far from where the last one ended a read may begin: the kernel's reads overtake each other.
const NEAR: u64 = 512 << 10;
/// How long what was read ahead is good.
const FRESH: Duration = Duration::from_secs(2);

type Piece = Shared<BoxFuture<'static, Result<Arc<Vec<u8>>, FileError>>>;

#[derive(Debug)]
struct Ahead {
    piece: Piece,
    since: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What is read ahead of one open file.
#[derive(Debug)]
pub(super) struct ReadAhead {
    permits: Arc<Semaphore>,
    /// Where the farthest read in order has ended.
    next: u64,
    /// Reads that continued the one before.
    streak: u64,
    pieces: BTreeMap<u64, Ahead>,
}

impl ReadAhead {
    /// Makes it for a file; a permit is a byte.
    pub(super) fn new(permits: Arc<Semaphore>) -> Self {
        Self { permits, next: 0, streak: 0, pieces: BTreeMap::new() }
    }

    /// Forgets what was read: the file has changed.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }

    /// Returns the pieces that hold what is wanted, and sends for those that come next; none if this
    /// read does not continue the last.
    pub(super) fn pieces(
        &mut self,
        file: &dyn GuestFile,
        offset: u64,
        length: u32,
        size: u32,
    ) -> Vec<(u64, Piece)> {
        let (end, size) = (offset.saturating_add(length.into()), u64::from(size));
        if !self.goes_on(offset) {
            self.clear();
            (self.streak, self.next) = (0, end);
            return Vec::new();
        }
        self.streak += 1;
        self.next = self.next.max(end);
        self.drop_passed(offset.saturating_sub(NEAR));
        let first = offset - offset % size;
        let wanted =
            (first..end).step_by(piece_step(size)).map(|at| (at, self.piece(file, at, size)));
        let wanted = wanted.collect();
        self.send_ahead(file, size);
        wanted
    }

    /// Says whether a read is one of those in order. The first two must fit exactly: of reads at random
    /// in a small file many are near the last.
    fn goes_on(&self, offset: u64) -> bool {
        match self.streak {
            0 => offset == self.next && offset > 0,
            _ => offset.abs_diff(self.next) <= NEAR,
        }
    }

    fn piece(&mut self, file: &dyn GuestFile, at: u64, size: u64) -> Piece {
        let ahead = self.pieces.entry(at).or_insert_with(|| ask(file, at, size, None));
        ahead.piece.clone()
    }

    fn send_ahead(&mut self, file: &dyn GuestFile, size: u64) {
        let distance = (self.streak * STEP).min(FARTHEST);
        let first = self.next - self.next % size;
        for at in (first..self.next.saturating_add(distance)).step_by(piece_step(size)) {
            if self.pieces.contains_key(&at) {
                continue;
            }
            let count = u32::try_from(size).unwrap_or(u32::MAX);
            let Ok(permit) = Arc::clone(&self.permits).try_acquire_many_owned(count) else {
                return;
            };
            self.pieces.insert(at, ask(file, at, size, Some(permit)));
        }
    }

    fn drop_passed(&mut self, before: u64) {
        let is_stale =
            |ahead: &Ahead| ahead.piece.peek().is_some() && ahead.since.elapsed() > FRESH;
        self.pieces.retain(|at, ahead| *at >= before && !is_stale(ahead));
    }
}

fn piece_step(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX).max(1)
}

fn ask(file: &dyn GuestFile, at: u64, size: u64, permit: Option<OwnedSemaphorePermit>) -> Ahead {
    let asked = file.read(at, u32::try_from(size).unwrap_or(u32::MAX));
    let piece = asked.map(|read| read.map(Arc::new)).boxed().shared();
    Ahead { piece, since: Instant::now(), _permit: permit }
}
