//! What a stream file is: bytes that come and go while it is open.
//!
//! A [`Stream`] never waits. It answers what can be done now and rings its [`Bell`] when that may
//! have changed; the waiting itself (a parked read, a poll) is written once, in the layers above.
//! No sockets and no kernel here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::VmError;

/// How long a write waits for room before it is answered EAGAIN.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// What an open stream can do at this moment, in the terms of poll(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// A read would return at once: bytes, end of file, or an error.
    pub readable: bool,
    /// A write of one byte would be accepted at once.
    pub writable: bool,
    /// The far end is gone for good.
    pub hung_up: bool,
}

/// How a stream file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamAccess {
    /// Read only: the console's last 64 KiB of scrollback and what follows; the monitor's events; the
    /// output of the caller's last command.
    Read,
    /// Write only: a monitor's answers are not read; `exec` takes one command.
    Write,
    /// Read and write: a private conversation, from now.
    Converse,
    /// Read only, by a crawler: what is there, then end of file.
    Peek,
}

/// An open stream file. Dropping it is its release.
pub trait Stream: fmt::Debug + Send + Sync + 'static {
    /// Takes at most `max` bytes: `None` if there are none yet, an empty vector at end of file.
    /// One that is only written is at its end.
    fn try_read(&self, _max: usize) -> Option<Result<Vec<u8>, VmError>> {
        Some(Ok(Vec::new()))
    }

    /// Takes in some of `data` and says how much: `None` if there is no room yet, as in one that is
    /// only read.
    fn try_write(&self, _data: &[u8]) -> Option<Result<usize, VmError>> {
        None
    }

    /// Says what could be done now.
    fn readiness(&self) -> Readiness;

    /// Returns a receiver of the bell that rings after every change of the answers above. By default
    /// they never change.
    fn listen(&self) -> Listener {
        Bell::default().listen()
    }

    /// A descriptor of this open file was closed (FUSE's FLUSH): not necessarily the last one.
    fn flush(&self) {}
}

/// A stream that is at its end.
#[derive(Debug)]
pub struct Nothing;

impl Stream for Nothing {
    fn readiness(&self) -> Readiness {
        Readiness { readable: true, writable: false, hung_up: true }
    }
}

/// Bytes that are there.
#[derive(Debug)]
pub struct Text(Mutex<Vec<u8>>);

impl Text {
    /// Makes a stream of them, which then is at its end.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(bytes))
    }
}

impl Stream for Text {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let mut rest = self.0.lock();
        let len = rest.len().min(max);
        Some(Ok(rest.drain(..len).collect()))
    }

    fn readiness(&self) -> Readiness {
        Readiness { readable: true, ..Readiness::default() }
    }
}

/// Reads, waiting for as long as there is nothing: the caller bounds it by dropping the future,
/// which loses no bytes.
pub async fn read(stream: Arc<dyn Stream>, max: usize) -> Result<Vec<u8>, VmError> {
    let mut listener = stream.listen();
    loop {
        if let Some(result) = stream.try_read(max) {
            return result;
        }
        listener.rung().await;
    }
}

/// Writes what fits as soon as a byte fits. `None` after [`WRITE_TIMEOUT`] without room: a write
/// holds the inode's lock in the kernel, so it must not wait for a guest for long.
pub async fn write(stream: Arc<dyn Stream>, data: Vec<u8>) -> Option<Result<usize, VmError>> {
    let mut listener = stream.listen();
    let written = async {
        loop {
            if let Some(result) = stream.try_write(&data) {
                return result;
            }
            listener.rung().await;
        }
    };
    tokio::time::timeout(WRITE_TIMEOUT, written).await.ok()
}

/// Rings when a stream may have something new to say. Rings are never lost: a listener made
/// before a look at the stream hears every change after that look.
#[derive(Debug)]
pub struct Bell(watch::Sender<u64>);

/// Hears a [`Bell`].
#[derive(Clone, Debug)]
pub struct Listener(watch::Receiver<u64>);

impl Default for Bell {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Bell {
    /// Wakes every listener.
    pub fn ring(&self) {
        self.0.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Returns a listener that hears rings from now on.
    pub fn listen(&self) -> Listener {
        Listener(self.0.subscribe())
    }
}

impl Listener {
    /// Passes over what has rung before now.
    pub fn forget_past(&mut self) {
        self.0.mark_unchanged();
    }

    /// Says whether it has rung since the last that was passed over or waited for.
    pub fn has_heard(&self) -> bool {
        self.0.has_changed().unwrap_or(false)
    }

    /// Waits for the next ring; waits for ever when the bell is gone, as nothing will change.
    pub async fn rung(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
