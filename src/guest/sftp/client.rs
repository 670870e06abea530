//! A conversation with an SFTP server over any stream: requests go out in the order in which they are
//! made, and each reply finds who waits for it by its number.
//!
//! A guest may send anything or nothing. A reply to no request, or one that breaks the protocol, ends
//! the conversation. A request waits for [`REPLY_TIMEOUT`] of silence, and for [`SYNC_TIMEOUT`] of a guest that
//! answers others; after one that came to nothing while nothing else was heard, further ones fail at once
//! until the guest is heard again.
//!
//! Not here: what is in a packet (`wire`), what a request means (`files`).

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::wire::{self, LONGEST_PACKET, Packet, Reply, kind};
use crate::vm::backend::{FileAnswer, FileError};

/// How long a reply may take.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long writing to the guest's disk may take. Requests behind it wait as long.
pub(super) const SYNC_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests without a reply at the most: more are not taken.
const MOST_PENDING: usize = 4096;
/// Bytes that are handed to the stream at once.
const BATCH: usize = 64 << 10;

type Outcome = Result<Delivered, FileError>;

/// One conversation. It ends when this and all that is open in it are dropped.
pub(super) struct Conversation {
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    table: Mutex<RequestTable>,
    /// Packets that were heard.
    heard: AtomicU64,
    /// Nothing was heard for as long as a reply may take.
    is_silent: AtomicBool,
    /// A [`SYNC_TIMEOUT`] counts for all until then.
    syncing: AtomicU64,
    tasks: Mutex<Vec<AbortHandle>>,
    /// What the stream lives on.
    _carrier: Box<dyn Any + Send + Sync>,
}

#[derive(Default)]
struct RequestTable {
    pending: HashMap<u32, oneshot::Sender<Outcome>>,
    last_id: u32,
    /// Why it is over.
    over: Option<FileError>,
}

impl fmt::Debug for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conversation").field("over", &self.over()).finish_non_exhaustive()
    }
}

impl Conversation {
    /// Greets the server; returns the names of its extensions too.
    pub(super) async fn begin<S>(
        stream: S,
        carrier: impl Any + Send + Sync,
    ) -> Result<(Arc<Self>, Vec<String>), FileError>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (input, mut output) = tokio::io::split(stream);
        let mut input = BufReader::with_capacity(BATCH, input);
        let greeted = async {
            let hello = [&5_u32.to_be_bytes()[..], &[kind::INIT], &3_u32.to_be_bytes()].concat();
            output.write_all(&hello).await.map_err(lost)?;
            output.flush().await.map_err(lost)?;
            wire::version(&packet(&mut input).await?)
        };
        let late = |_| FileError::Timeout(REPLY_TIMEOUT.as_secs());
        let extensions = timeout(REPLY_TIMEOUT, greeted).await.map_err(late)??;
        let (outgoing, queue) = mpsc::unbounded_channel();
        let conversation = Arc::new(Self {
            outgoing,
            table: Mutex::default(),
            heard: AtomicU64::new(0),
            is_silent: AtomicBool::new(false),
            syncing: AtomicU64::new(0),
            tasks: Mutex::default(),
            _carrier: Box::new(carrier),
        });
        let listening = tokio::spawn(listen(Arc::downgrade(&conversation), input));
        let speaking = tokio::spawn(speak(Arc::downgrade(&conversation), queue, output));
        let tasks = [listening.abort_handle(), speaking.abort_handle()];
        conversation.tasks.lock().extend(tasks);
        Ok((conversation, extensions))
    }

    /// Says why it is over.
    pub(super) fn over(&self) -> Option<FileError> {
        self.table.lock().over.clone()
    }

    /// Sends a request now, and returns the wait for its reply.
    pub(super) fn request(
        self: &Arc<Self>,
        build: impl FnOnce(u32) -> Packet,
    ) -> FileAnswer<Reply> {
        let (asked, heard, since) =
            (self.send(build), self.heard.load(Ordering::Relaxed), Instant::now());
        let conversation = Arc::clone(self);
        async move {
            let mut reply = asked?;
            let (mut heard, mut quiet_since) = (heard, since);
            loop {
                let bound = conversation.bound();
                match timeout_at(quiet_since + bound, &mut reply).await {
                    Ok(Ok(outcome)) => return outcome.map(Delivered::take),
                    Ok(Err(_)) => return Err(conversation.over().unwrap_or_else(closed)),
                    // A sync has begun meanwhile.
                    Err(_) if quiet_since.elapsed() < conversation.bound() => {}
                    // Other replies come: it is slow, with much to do before this.
                    Err(_)
                        if conversation.has_said_more(&mut heard)
                            && since.elapsed() < SYNC_TIMEOUT =>
                    {
                        quiet_since = Instant::now();
                    }
                    Err(_) => return Err(conversation.note_silence(heard, since.elapsed())),
                }
            }
        }
        .boxed()
    }

    /// As [`request`](Self::request), for what writes to the guest's disk.
    pub(super) fn request_sync(
        self: &Arc<Self>,
        build: impl FnOnce(u32) -> Packet,
    ) -> FileAnswer<Reply> {
        let syncing = Syncing::begin(self);
        let reply = self.request(build);
        async move {
            let reply = reply.await;
            drop(syncing);
            reply
        }
        .boxed()
    }

    fn bound(&self) -> Duration {
        if self.syncing.load(Ordering::Relaxed) == 0 { REPLY_TIMEOUT } else { SYNC_TIMEOUT }
    }

    fn note_silence(&self, heard: u64, waited: Duration) -> FileError {
        if self.heard.load(Ordering::Relaxed) == heard {
            self.is_silent.store(true, Ordering::Relaxed);
        }
        FileError::Timeout(waited.as_secs())
    }

    /// Says whether more packets were heard than `heard`, which is what they are then.
    fn has_said_more(&self, heard: &mut u64) -> bool {
        let now = self.heard.load(Ordering::Relaxed);
        now != std::mem::replace(heard, now)
    }

    fn send(
        &self,
        build: impl FnOnce(u32) -> Packet,
    ) -> Result<oneshot::Receiver<Outcome>, FileError> {
        let mut table = self.table.lock();
        if let Some(over) = &table.over {
            return Err(over.clone());
        }
        if self.is_silent.load(Ordering::Relaxed) || table.pending.len() >= MOST_PENDING {
            return Err(FileError::Timeout(REPLY_TIMEOUT.as_secs()));
        }
        Ok(self.enqueue(&mut table, build))
    }

    /// Under the lock, so that requests go out in the order of their numbers.
    fn enqueue(
        &self,
        table: &mut RequestTable,
        build: impl FnOnce(u32) -> Packet,
    ) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        table.last_id = table.last_id.wrapping_add(1);
        while table.pending.contains_key(&table.last_id) {
            table.last_id = table.last_id.wrapping_add(1);
        }
        table.pending.insert(table.last_id, sender);
        // Without a speaker it is over, which the table says.
        let _sent = self.outgoing.send(build(table.last_id).finish());
        receiver
    }

    /// Closes a handle; nobody waits for the reply. Never refused: the guest would keep it open.
    pub(super) fn close(&self, handle: &[u8]) {
        let mut table = self.table.lock();
        if table.over.is_none() {
            drop(self.enqueue(&mut table, |id| Packet::new(kind::CLOSE, id).bytes(handle)));
        }
    }

    fn deliver(self: &Arc<Self>, packet: &[u8]) -> Result<(), FileError> {
        let (id, reply) = wire::reply(packet)?;
        self.heard.fetch_add(1, Ordering::Relaxed);
        self.is_silent.store(false, Ordering::Relaxed);
        let waiting = self.table.lock().pending.remove(&id);
        let unknown = FileError::Protocol("a reply is to no request");
        let delivered = Delivered { reply: Some(reply), conversation: Arc::clone(self) };
        // Who does not wait any more lets a handle go by dropping it.
        drop(waiting.ok_or(unknown)?.send(Ok(delivered)));
        Ok(())
    }

    fn end(&self, why: FileError) {
        let mut table = self.table.lock();
        table.over.get_or_insert(why);
        let pending = std::mem::take(&mut table.pending);
        drop(table);
        drop(pending);
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.tasks.lock().iter().for_each(AbortHandle::abort);
    }
}

struct Syncing(Arc<Conversation>);

impl Syncing {
    fn begin(conversation: &Arc<Conversation>) -> Self {
        conversation.syncing.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(conversation))
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        self.0.syncing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A reply on its way to who asked. If it never arrives, a handle in it is closed.
struct Delivered {
    reply: Option<Reply>,
    conversation: Arc<Conversation>,
}

impl Delivered {
    fn take(mut self) -> Reply {
        self.reply.take().unwrap_or(Reply::Status(u32::MAX))
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        if let Some(Reply::Handle(handle)) = &self.reply {
            self.conversation.close(handle);
        }
    }
}

fn lost(error: impl fmt::Display) -> FileError {
    FileError::Lost(error.to_string())
}

fn closed() -> FileError {
    FileError::Lost("it has closed the connection".to_owned())
}

/// Reads one packet, whose length is checked before there is room for it.
async fn packet(input: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, FileError> {
    let length = input.read_u32().await.map_err(|_| closed())?;
    if !(1..=LONGEST_PACKET).contains(&length) {
        return Err(FileError::Protocol("a packet is empty, or longer than 256 KiB"));
    }
    let mut packet = vec![0; length as usize];
    input.read_exact(&mut packet).await.map_err(|_| closed())?;
    Ok(packet)
}

async fn listen<S: AsyncRead>(to: Weak<Conversation>, mut input: BufReader<ReadHalf<S>>) {
    let end = loop {
        let heard = packet(&mut input).await;
        let Some(conversation) = to.upgrade() else { return };
        if let Err(end) = heard.and_then(|packet| conversation.deliver(&packet)) {
            break end;
        }
    };
    if let Some(conversation) = to.upgrade() {
        tracing::info!(%end, "SFTP ended");
        conversation.end(end);
        conversation.tasks.lock().iter().for_each(AbortHandle::abort);
    }
}

async fn speak<S: AsyncWrite>(
    of: Weak<Conversation>,
    mut queue: mpsc::UnboundedReceiver<Vec<u8>>,
    mut output: WriteHalf<S>,
) {
    while let Some(mut batch) = queue.recv().await {
        while batch.len() < BATCH
            && let Ok(next) = queue.try_recv()
        {
            batch.extend(next);
        }
        let written = async {
            output.write_all(&batch).await?;
            output.flush().await
        };
        if let Err(error) = written.await {
            if let Some(conversation) = of.upgrade() {
                conversation.end(lost(error));
            }
            return;
        }
    }
}
