//! A command's standard input: a pipe of a bounded length between the openings of `stdin` and the
//! guest.
//!
//! The input ends with the last closing, but not before the command runs. One that nobody has opened
//! before ends [`GRACE`] after the command has begun: `echo CMD > cmd` needs no more than that to
//! have an empty input, and a writer in the background is there by then.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::JobError;
use crate::vm::VmError;
use crate::vm::stream::{Bell, Listener, Readiness, Stream};

/// How long after the start of the command its input may be opened for the first time.
pub const GRACE: Duration = Duration::from_secs(1);
/// Bytes that wait for the guest at the most.
const CAPACITY: usize = 256 << 10;
/// Bytes handed over at a time: what SSH packs into one message.
const CHUNK: usize = 32 << 10;

/// The pipe.
#[derive(Debug, Default)]
pub struct Input {
    inner: Mutex<Inner>,
    /// Rings when there may be room, and at the end.
    bell: Bell,
    /// Woken by bytes, openings and closings.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: VecDeque<u8>,
    openings: usize,
    opened: bool,
    ended: bool,
}

impl Input {
    /// Opens it for writing.
    ///
    /// # Errors
    /// [`JobError::InputEnded`].
    pub fn open(self: &Arc<Self>) -> Result<Arc<dyn Stream>, JobError> {
        let mut inner = self.inner.lock();
        if inner.ended {
            return Err(JobError::InputEnded);
        }
        inner.openings += 1;
        inner.opened = true;
        drop(inner);
        self.changed.notify_one();
        Ok(Arc::new(Opening(Arc::clone(self))))
    }

    /// Waits for bytes for the command, which runs; `None` at the end. Whoever types at a terminal
    /// has all the time.
    pub(super) async fn next(&self, on_terminal: bool) -> Option<Vec<u8>> {
        loop {
            if let Some(bytes) = self.take() {
                return bytes;
            }
            let unopened = !self.inner.lock().opened;
            if !unopened || on_terminal {
                self.changed.notified().await;
            } else if timeout(GRACE, self.changed.notified()).await.is_err() {
                self.end_if(|inner| !inner.opened);
            }
        }
    }

    /// Takes bytes, or the end (`Some(None)`).
    #[expect(clippy::option_option, reason = "nothing yet, and nothing any more")]
    fn take(&self) -> Option<Option<Vec<u8>>> {
        self.end_if(|inner| inner.opened && inner.openings == 0 && inner.bytes.is_empty());
        let mut inner = self.inner.lock();
        if inner.ended {
            return Some(None);
        }
        let len = inner.bytes.len().min(CHUNK);
        let bytes: Vec<u8> = inner.bytes.drain(..len).collect();
        drop(inner);
        (len > 0).then(|| {
            self.bell.ring();
            Some(bytes)
        })
    }

    /// Ends it: the command has ended.
    pub(super) fn close(&self) {
        self.end_if(|_| true);
    }

    fn end_if(&self, condition: impl Fn(&Inner) -> bool) {
        let mut inner = self.inner.lock();
        if !inner.ended && condition(&inner) {
            inner.ended = true;
            inner.bytes = VecDeque::new();
            drop(inner);
            self.bell.ring();
        }
    }
}

/// One opening of `stdin`.
#[derive(Debug)]
struct Opening(Arc<Input>);

impl Stream for Opening {
    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        let mut inner = self.0.inner.lock();
        if inner.ended {
            return Some(Err(JobError::InputEnded.into()));
        }
        let len = data.len().min(CAPACITY - inner.bytes.len());
        inner.bytes.extend(&data[..len]);
        drop(inner);
        self.0.changed.notify_one();
        (len > 0 || data.is_empty()).then_some(Ok(len))
    }

    fn readiness(&self) -> Readiness {
        let inner = self.0.inner.lock();
        let writable = inner.ended || inner.bytes.len() < CAPACITY;
        Readiness { readable: false, writable, hung_up: inner.ended }
    }

    fn listen(&self) -> Listener {
        self.0.bell.listen()
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.inner.lock().openings -= 1;
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    fn write(stream: &dyn Stream, data: &[u8]) -> usize {
        stream.try_write(data).map_or(0, |taken| taken.unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_opens_is_empty_after_the_grace() {
        let input = Arc::new(Input::default());
        let began = Instant::now();
        assert_eq!(input.next(false).await, None);
        assert_eq!(began.elapsed(), GRACE);
        assert!(matches!(input.open(), Err(JobError::InputEnded)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_opening_within_the_grace_counts_and_the_last_closing_ends_it() {
        let input = Arc::new(Input::default());
        let writer = Arc::clone(&input);
        let late = tokio::spawn(async move {
            sleep(GRACE / 2).await;
            let (first, second) = (writer.open().unwrap(), writer.open().unwrap());
            sleep(GRACE * 10).await;
            assert_eq!(write(&*first, b"one"), 3);
            drop(first);
            sleep(GRACE * 10).await;
            assert_eq!(write(&*second, b"two"), 3);
        });
        assert_eq!(input.next(false).await.unwrap(), b"one");
        assert_eq!(input.next(false).await.unwrap(), b"two");
        assert_eq!(input.next(false).await, None);
        late.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_written_and_closed_before_the_start_is_kept() {
        let input = Arc::new(Input::default());
        for text in ["a", "b"] {
            assert_eq!(write(&*input.open().unwrap(), text.as_bytes()), 1);
        }
        assert_eq!(input.next(false).await.unwrap(), b"ab");
        assert_eq!(input.next(false).await, None);
    }

    #[tokio::test]
    async fn a_full_pipe_takes_no_more_and_says_when_it_does_again() {
        let input = Arc::new(Input::default());
        let stream = input.open().unwrap();
        assert_eq!(write(&*stream, &vec![0; CAPACITY + 5]), CAPACITY);
        assert!(stream.try_write(b"x").is_none() && !stream.readiness().writable);
        let mut listener = stream.listen();
        assert_eq!(input.next(false).await.unwrap().len(), CHUNK);
        listener.rung().await;
        assert!(stream.readiness().writable && write(&*stream, b"x") == 1);
        input.close();
        assert!(stream.readiness().hung_up);
        assert!(matches!(stream.try_write(b"x"), Some(Err(VmError::Job(JobError::InputEnded)))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_terminal_nobody_types_at_has_no_end() {
        let input = Input::default();
        assert!(timeout(GRACE * 100, input.next(true)).await.is_err());
    }
}
