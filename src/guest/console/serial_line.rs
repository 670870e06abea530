//! One run's connection to QEMU's serial socket, which QEMU gives to one client only.
//!
//! A single task ([`SerialLine::serve`]) reads and writes it, and connects again when it is lost.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::Start;
use super::log::Log;
use super::ring::Ring;
use crate::store::layout::{VmDir, names};
use crate::vm::VmError;
use crate::vm::stream::{Bell, Listener, Readiness};

/// What may wait for the guest to take it.
pub(super) const TYPED: usize = 64 << 10;
const CHUNK: usize = 16 << 10;
/// How long QEMU's last words may take to arrive once it has ended.
const GRACE: Duration = Duration::from_millis(500);
/// How long QEMU may take to log what it has just sent.
const LAG: Duration = Duration::from_millis(10);
/// Pauses between attempts to connect, growing from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

#[derive(Debug, Default)]
pub(super) struct SerialLine {
    inner: Mutex<Inner>,
    bell: Bell,
    typed: Notify,
    stop: watch::Sender<bool>,
    lost: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Inner {
    ring: Ring,
    typed: VecDeque<u8>,
    over: bool,
}

impl SerialLine {
    /// Makes one that nothing is connected to; what its readers lose is added to `lost`.
    pub(super) fn new(lost: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { lost, ..Self::default() })
    }

    /// Ends [`Self::serve`] once it has read what is left.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Gives every reader end of file.
    pub(super) fn end(&self) {
        self.inner.lock().over = true;
        self.bell.ring();
    }

    pub(super) fn listen(&self) -> Listener {
        self.bell.listen()
    }

    pub(super) fn join(&self, start: Start) -> u64 {
        self.inner.lock().ring.join(start)
    }

    pub(super) fn leave(&self, reader: u64) {
        self.inner.lock().ring.leave(reader);
    }

    /// Takes bytes for a reader: `None` if there are none yet, empty at the end.
    pub(super) fn read(&self, reader: u64, max: usize) -> Option<Vec<u8>> {
        let mut inner = self.inner.lock();
        let bytes = inner.ring.read(reader, max);
        (!bytes.is_empty() || inner.over).then_some(bytes)
    }

    /// Takes in what there is room for; `None` if there is none.
    pub(super) fn write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        let mut inner = self.inner.lock();
        if inner.over {
            return Some(Err(VmError::Lost("the machine has ended".to_owned())));
        }
        let taken = data.len().min(TYPED - inner.typed.len());
        inner.typed.extend(&data[..taken]);
        self.typed.notify_one();
        (taken > 0 || data.is_empty()).then_some(Ok(taken))
    }

    pub(super) fn readiness(&self, reader: Option<u64>) -> Readiness {
        let inner = self.inner.lock();
        let waiting = reader.is_none_or(|reader| inner.ring.behind(reader) > 0);
        Readiness {
            readable: waiting || inner.over,
            writable: inner.over || inner.typed.len() < TYPED,
            hung_up: inner.over,
        }
    }

    /// Relays between the socket in `dir` and the streams, until it is stopped.
    pub(super) async fn serve(self: Arc<Self>, dir: PathBuf) {
        let dir = VmDir(dir);
        let mut log = Log::tail(dir.console_log());
        let (mut pause, longest) = PAUSES;
        while !*self.stop.borrow() {
            match super::super::socket(&dir.0, names::SERIAL).await {
                Ok(socket) => {
                    self.seed(&mut log);
                    self.relay(socket, &mut log).await;
                    pause = PAUSES.0;
                }
                Err(error) => tracing::debug!(%error, "serial socket"),
            }
            let _stopped = timeout(pause, self.stopped()).await;
            pause = (2 * pause).min(longest);
        }
        // What came while the daemon was not connected; nothing, as a rule.
        self.publish(&log.catch_up());
        self.end();
    }

    async fn stopped(&self) {
        let mut stop = self.stop.subscribe();
        // The sender is ours, so it is there.
        drop(stop.wait_for(|stop| *stop).await);
    }

    /// Shows what the log has from before the connection.
    fn seed(&self, log: &mut Log) {
        let bytes = log.catch_up();
        let lost = self.inner.lock().ring.seed(&bytes);
        self.account(lost);
    }

    fn publish(&self, bytes: &[u8]) {
        let lost = self.inner.lock().ring.push(bytes);
        self.account(lost);
    }

    fn account(&self, lost: u64) {
        self.lost.fetch_add(lost, Ordering::Relaxed);
        self.bell.ring();
    }

    /// Returns when the connection is lost, or some time after the stop.
    async fn relay(&self, mut socket: UnixStream, log: &mut Log) {
        let (from_guest, to_guest) = socket.split();
        let leave = async {
            self.stopped().await;
            sleep(GRACE).await;
        };
        tokio::select! {
            _ = self.hear(from_guest, log) => {}
            _ = self.speak(to_guest) => {}
            () = leave => {}
        }
    }

    async fn hear(&self, mut socket: ReadHalf<'_>, log: &mut Log) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut first = true;
        let mut shown_already = 0;
        loop {
            let len = socket.read(&mut chunk).await?;
            if len == 0 {
                return Ok(());
            }
            if std::mem::take(&mut first) {
                shown_already = self.join_log(&chunk[..len], log).await;
            }
            let known = shown_already.min(len);
            shown_already -= known;
            log.advance(len - known);
            self.publish(&chunk[known..len]);
        }
    }

    /// Puts the socket's first bytes to the end of the log; says how many are known from there.
    async fn join_log(&self, first: &[u8], log: &mut Log) -> usize {
        let mut seam = log.join(first);
        if seam.is_none() {
            sleep(LAG).await;
            seam = log.join(first);
        }
        let (known, missed) = seam.unwrap_or_default();
        log.advance(missed.len());
        self.publish(&missed);
        known
    }

    async fn speak(&self, mut socket: WriteHalf<'_>) -> io::Result<()> {
        loop {
            let chunk: Vec<u8> = {
                let inner = self.inner.lock();
                inner.typed.range(..inner.typed.len().min(CHUNK)).copied().collect()
            };
            if chunk.is_empty() {
                self.typed.notified().await;
                continue;
            }
            match socket.write(&chunk).await {
                Ok(len) => self.spoken(len),
                // The reading side reports how the connection ends, after the bytes that are left
                // to read.
                Err(_) => std::future::pending().await,
            }
        }
    }

    fn spoken(&self, len: usize) {
        let mut inner = self.inner.lock();
        inner.typed.drain(..len);
        if inner.typed.is_empty() {
            inner.typed.shrink_to_fit();
        }
        drop(inner);
        self.bell.ring();
    }
}
