//! A job's output: taken in from the guest, read by anyone from its start.

use std::sync::Arc;

use async_trait::async_trait;

use super::Job;
use crate::store::spool::Reader;
use crate::vm::VmError;
use crate::vm::backend::{BackendError, OutputKind, OutputSink};

/// Output goes to the spool; a full one keeps the sender waiting until a reader has caught up.
#[async_trait]
impl OutputSink for Job {
    async fn accept(&self, source: OutputKind, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let mut room = std::pin::pin!(self.room.notified());
            // Registered before the look, so that room made in between is not missed.
            room.as_mut().enable();
            match self.spool(source).try_append(bytes) {
                Ok(0) => room.await,
                Ok(taken) => {
                    bytes = &bytes[taken..];
                    self.bell.ring();
                }
                Err(e) => {
                    let error = BackendError::io("keeping a command's output", &e);
                    return self.abandon(error.into());
                }
            }
        }
    }
}

/// One reading of a job's output.
#[derive(Debug)]
pub struct Output {
    // Dropped in this order: the room is announced once the reader has left.
    reader: Reader,
    job: Attached,
}

/// Tells the job when a reading ends.
#[derive(Debug)]
struct Attached(Arc<Job>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.room.notify_waiters();
    }
}

impl Output {
    pub(super) fn new(reader: Reader, job: Arc<Job>) -> Self {
        Self { reader, job: Attached(job) }
    }

    /// Takes at most `max` bytes: `None` if there are none yet, empty at the job's end, and an
    /// error after the last byte of one that was lost.
    pub fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        // Looked at before the bytes: what comes before the end is there once the end is.
        let end = self.job.0.end();
        match self.reader.read(max) {
            Ok(bytes) if bytes.is_empty() => end.map(|end| end.map(|()| Vec::new())),
            Ok(bytes) => {
                self.job.0.room.notify_waiters();
                Some(Ok(bytes))
            }
            Err(e) => {
                let error = BackendError::io("reading a command's output", &e);
                Some(Err(error.into()))
            }
        }
    }

    /// Says whether [`Self::try_read`] would answer something.
    pub fn readable(&self) -> bool {
        self.job.0.is_over() || self.has_bytes()
    }

    /// Says whether there are bytes to read.
    pub fn has_bytes(&self) -> bool {
        self.reader.pending() > 0
    }

    /// Returns the job.
    pub fn job(&self) -> &Arc<Job> {
        &self.job.0
    }
}
