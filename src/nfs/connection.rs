//! A connection of a guest's kernel: calls in, replies out, several at work at a time.
//!
//! What a guest can make the daemon hold is bounded: by the longest call, by the calls at work, and by the
//! bytes of calls that wait for their turn.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::timeout;

use super::{LONGEST_IO, Server};

/// The longest call: a write, and what comes before its bytes.
const LONGEST_CALL: usize = LONGEST_IO as usize + 4096;
/// Calls at work at a time.
const WORKERS: usize = 8;
/// Replies that wait to be sent.
const REPLIES: usize = 8;
/// Bytes of calls that wait before no further one is read, in KiB.
const WAITING: u32 = 8 << 10;
/// Bytes of calls that wait, in KiB, before the connection is given up: see [`Reader::admit`].
const OVERDRAFT: u32 = 64 << 10;
/// For how long a reply may stay unsent before further calls are read all the same.
const STALLED: Duration = Duration::from_millis(200);
/// The bit of a fragment's length that marks the last one.
const LAST: u32 = 1 << 31;

/// Serves a connection to its end.
///
/// # Errors
/// The peer has ended it, or does not speak the protocol.
pub(super) async fn serve(
    server: Arc<Server>,
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
) -> io::Result<()> {
    let (incoming, outgoing) = tokio::io::split(stream);
    let (replies, queue) = mpsc::channel(REPLIES);
    let stalled = Arc::new(AtomicBool::new(false));
    let reader = Reader {
        server,
        replies,
        workers: Arc::new(Semaphore::new(WORKERS)),
        room: Arc::new(Semaphore::new(WAITING as usize)),
        overdraft: Arc::new(Semaphore::new(OVERDRAFT as usize)),
        stalled: Arc::clone(&stalled),
    };
    tokio::select! {
        done = reader.run(incoming) => done,
        done = write(outgoing, queue, &stalled) => done,
    }
}

struct Reader {
    server: Arc<Server>,
    replies: mpsc::Sender<Vec<u8>>,
    workers: Arc<Semaphore>,
    room: Arc<Semaphore>,
    overdraft: Arc<Semaphore>,
    /// A reply cannot be sent.
    stalled: Arc<AtomicBool>,
}

impl Reader {
    async fn run(self, mut incoming: impl AsyncRead + Unpin) -> io::Result<()> {
        while let Some(call) = read_call(&mut incoming).await? {
            let place = self.admit(&call).await?;
            self.start(call, place);
        }
        Ok(())
    }

    /// Waits until there is room for a call. While a reply is stuck it does not wait: the SSH connection hands
    /// on that the guest has taken a reply only after it has handed on the calls that came before.
    async fn admit(&self, call: &[u8]) -> io::Result<OwnedSemaphorePermit> {
        let size = u32::try_from(call.len() >> 10).unwrap_or(u32::MAX).saturating_add(1);
        loop {
            let room = Arc::clone(&self.room).acquire_many_owned(size);
            match timeout(STALLED, room).await {
                Ok(place) => return place.map_err(io::Error::other),
                Err(_) if self.stalled.load(Ordering::Relaxed) => break,
                Err(_) => {}
            }
        }
        let more = Arc::clone(&self.overdraft).try_acquire_many_owned(size);
        more.map_err(|_| io::Error::other("the guest sends calls and takes no replies"))
    }

    fn start(&self, call: Vec<u8>, place: OwnedSemaphorePermit) {
        let (server, replies) = (Arc::clone(&self.server), self.replies.clone());
        let workers = Arc::clone(&self.workers);
        tokio::spawn(async move {
            let Ok(_turn) = workers.acquire_owned().await else { return };
            let reply = match server.answer_at_once(&call) {
                Some(reply) => Some(reply),
                None => {
                    tokio::task::spawn_blocking(move || server.answer(&call)).await.ok().flatten()
                }
            };
            drop(place);
            if let Some(reply) = reply {
                // The connection may be over.
                drop(replies.send(reply).await);
            }
        });
    }
}

/// Reads a call, which may come in pieces; `None` at the end of the connection.
async fn read_call(incoming: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut call = Vec::new();
    loop {
        let head = match incoming.read_u32().await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && call.is_empty() => {
                return Ok(None);
            }
            head => head?,
        };
        let length = (head & !LAST) as usize;
        // A piece without bytes would let a call have any number of them.
        if length == 0 || call.len() + length > LONGEST_CALL {
            return Err(io::Error::other(format!("a call of {length} bytes more")));
        }
        append(incoming, &mut call, length).await?;
        if head & LAST != 0 {
            return Ok(Some(call));
        }
    }
}

/// Reads bytes as they come: none are reserved on the peer's word.
async fn append(
    incoming: &mut (impl AsyncRead + Unpin),
    call: &mut Vec<u8>,
    length: usize,
) -> io::Result<()> {
    let mut piece = incoming.take(length as u64);
    match piece.read_to_end(call).await? {
        read if read == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

async fn write(
    mut outgoing: impl AsyncWrite + Unpin,
    mut replies: mpsc::Receiver<Vec<u8>>,
    stalled: &AtomicBool,
) -> io::Result<()> {
    while let Some(reply) = replies.recv().await {
        let head = u32::try_from(reply.len()).map_err(io::Error::other)? | LAST;
        let message = [&head.to_be_bytes()[..], &reply].concat();
        let mut sending = std::pin::pin!(outgoing.write_all(&message));
        match timeout(STALLED, &mut sending).await {
            Ok(sent) => sent?,
            Err(_) => {
                stalled.store(true, Ordering::Relaxed);
                let sent = sending.await;
                stalled.store(false, Ordering::Relaxed);
                sent?;
            }
        }
    }
    Ok(())
}
