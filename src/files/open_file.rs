//! A file that a program has open: reads ahead, writes behind, and what becomes of it when the
//! guest's connection is lost.
//!
//! A write is answered when it is on its way, as long as few enough are. What fails of it is told by
//! the next write, by fsync(2) and by close(2). When the connection is another one, the file is opened
//! again by its path, unless something was written that may not be on the guest's disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::error::{FileSystemError, Result};
use super::nodes::FileId;
use super::read_ahead::ReadAhead;
use crate::vm::VmId;
use crate::vm::backend::{
    FileAnswer, FileAttr, FileChange, FileError, GuestFile, GuestFiles, OpenFile,
};

/// A file as it is open on one connection.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub(super) files: Arc<dyn GuestFiles>,
    pub(super) file: Arc<dyn GuestFile>,
}

#[derive(Debug)]
pub(super) struct OpenedFile {
    pub(super) vm: VmId,
    pub(super) id: FileId,
    pub(super) how: OpenFile,
    remote: Mutex<Remote>,
    /// Why a write has failed that was answered already.
    failure: Arc<Mutex<Option<FileError>>>,
    /// Something was written since the last fsync.
    is_unsynced: AtomicBool,
    /// Writes that are under way.
    under_way: watch::Sender<usize>,
    write_permits: Arc<Semaphore>,
    ahead: Mutex<ReadAhead>,
}

/// The bytes that may be under way for one VM.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pub(super) reads: Arc<Semaphore>,
    pub(super) writes: Arc<Semaphore>,
}

/// Bytes that are read ahead, and bytes that are written behind, for one VM at the most.
const BUDGET: usize = 8 << 20;

impl Default for Budget {
    fn default() -> Self {
        let semaphore = || Arc::new(Semaphore::new(BUDGET));
        Self { reads: semaphore(), writes: semaphore() }
    }
}

impl OpenedFile {
    pub(super) fn new(
        (vm, id): (VmId, FileId),
        how: OpenFile,
        remote: Remote,
        budget: &Budget,
    ) -> Self {
        // Opened again, it is neither made nor emptied.
        let how = OpenFile { create: None, exclusive: false, truncate: false, ..how };
        Self {
            vm,
            id,
            how,
            remote: Mutex::new(remote),
            failure: Arc::default(),
            is_unsynced: AtomicBool::new(false),
            under_way: watch::Sender::new(0),
            write_permits: Arc::clone(&budget.writes),
            ahead: Mutex::new(ReadAhead::new(Arc::clone(&budget.reads))),
        }
    }

    /// Returns it as it is open now; `None`: its connection is lost, and it may be opened again.
    ///
    /// # Errors
    /// [`FileSystemError::Stale`] if something may be lost.
    pub(super) fn remote(&self) -> Result<Option<Remote>> {
        let remote = self.remote.lock().clone();
        match remote.files.is_lost() {
            false => Ok(Some(remote)),
            true if self.is_unsynced.load(Ordering::Relaxed) => Err(FileSystemError::Stale),
            true => Ok(None),
        }
    }

    pub(super) fn reopened(&self, remote: Remote) {
        *self.remote.lock() = remote;
        self.ahead.lock().clear();
    }

    /// What was read ahead is void.
    pub(super) fn forget_reads(&self) {
        self.ahead.lock().clear();
    }

    pub(super) async fn read(&self, remote: &Remote, offset: u64, length: u32) -> Result<Vec<u8>> {
        let size = remote.files.transfer();
        let pieces = self.ahead.lock().pieces(&*remote.file, offset, length, size);
        let (mut all, wanted) = (Vec::new(), length as usize);
        for (at, piece) in pieces {
            let piece = piece.await?;
            let from = usize::try_from(offset + all.len() as u64 - at).unwrap_or(usize::MAX);
            let rest = piece.get(from..).unwrap_or_default();
            all.extend_from_slice(&rest[..rest.len().min(wanted - all.len())]);
            if piece.len() < size as usize {
                break;
            }
        }
        // What no piece had: after a short one there may be more.
        read_rest(&*remote.file, offset, wanted, size, &mut all).await?;
        Ok(all)
    }

    /// Sends bytes off once there is room for them.
    pub(super) async fn write(&self, remote: &Remote, offset: u64, bytes: &[u8]) -> Result<()> {
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure.into());
        }
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.write_permits).acquire_many_owned(count).await;
        let permit = permit.map_err(|_| FileSystemError::BadHandle)?;
        let size = remote.files.transfer() as usize;
        let sent = (offset..).step_by(size).zip(bytes.chunks(size));
        let answers = sent.map(|(at, bytes)| remote.file.write(at, bytes)).collect();
        self.is_unsynced.store(true, Ordering::Relaxed);
        self.follow(answers, permit);
        Ok(())
    }

    /// Has the guest copy bytes into it from another file of its own.
    pub(super) async fn copy(
        &self,
        remote: &Remote,
        (from, offset): (&Remote, u64),
        (at, length): (u64, u64),
    ) -> Result<()> {
        if let Some(failure) = self.failure.lock().clone() {
            return Err(failure.into());
        }
        self.is_unsynced.store(true, Ordering::Relaxed);
        Ok(from.file.copy(offset, length, &*remote.file, at).await?)
    }

    fn follow(&self, answers: Vec<FileAnswer<()>>, permit: OwnedSemaphorePermit) {
        let (failure, under_way) = (Arc::clone(&self.failure), self.under_way.clone());
        under_way.send_modify(|count| *count += 1);
        tokio::spawn(async move {
            if let Err(error) = try_join_all(answers).await {
                failure.lock().get_or_insert(error);
            }
            drop(permit);
            under_way.send_modify(|count| *count -= 1);
        });
    }

    /// Waits for the writes that are under way, and tells what has failed of them.
    pub(super) async fn flush(&self) -> Result<()> {
        let mut under_way = self.under_way.subscribe();
        let _done = under_way.wait_for(|count| *count == 0).await;
        let failure = self.failure.lock().take();
        failure.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Writes it to the guest's disk.
    pub(super) async fn sync(&self, remote: &Remote) -> Result<()> {
        let synced = remote.file.sync();
        self.flush().await?;
        match synced.await {
            // A server that cannot say so has written all the same.
            Ok(()) | Err(FileError::Unsupported) => {}
            Err(error) => return Err(error.into()),
        }
        self.is_unsynced.store(false, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn attr(&self, remote: &Remote) -> Result<FileAttr> {
        Ok(remote.file.attr().await?)
    }

    pub(super) async fn change(&self, remote: &Remote, change: &FileChange) -> Result<()> {
        Ok(remote.file.change(change).await?)
    }
}

/// Reads on to what is wanted or to the end of the file.
async fn read_rest(
    file: &dyn GuestFile,
    offset: u64,
    wanted: usize,
    size: u32,
    all: &mut Vec<u8>,
) -> Result<()> {
    while all.len() < wanted {
        let (from, rest) = (offset + all.len() as u64, wanted - all.len());
        let asked: Vec<_> = (0..rest)
            .step_by(size as usize)
            .map(|at| {
                let count = (rest - at).min(size as usize);
                (count, file.read(from + at as u64, u32::try_from(count).unwrap_or(size)))
            })
            .collect();
        for (count, answer) in asked {
            let bytes = answer.await?;
            all.extend_from_slice(&bytes);
            match bytes.len() {
                0 => return Ok(()),
                // The next one would leave a gap.
                short if short < count => break,
                _ => {}
            }
        }
    }
    Ok(())
}
