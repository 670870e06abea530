//! A QMP client over one Unix connection: commands out, replies and events in.
//!
//! QEMU serves one QMP client at a time, so a machine has one connection, which is kept for good
//! and shared with users' conversations (`monitor`). What commands and events mean is not known
//! here.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, oneshot, watch};
use tokio::time::timeout;

use super::monitor::Talk;
use crate::vm::backend::{BackendError, Result};

/// How long a command may take: QEMU answers within milliseconds unless its main loop hangs, on a
/// dead network disk for instance.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Events that a listener may be behind.
const EVENTS: usize = 64;
/// The longest line taken in. The longest that QEMU sends, its schema, has about 0.2 MiB.
const LINE_LIMIT: u64 = 4 << 20;

/// Says that the connection is gone, and so is QEMU most likely.
pub(super) fn closed() -> BackendError {
    BackendError::QemuDied {
        status: "unknown".to_owned(),
        stderr: "its QMP connection was closed".to_owned(),
    }
}

/// Something that QEMU reports by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct QmpEvent {
    /// Its name, such as `STOP`.
    pub name: String,
    /// Its data, `null` if it has none.
    pub data: Value,
}

/// One line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum QmpMessage {
    /// The first line, with QEMU's version: `7.2.22`.
    Greeting(String),
    /// An event.
    Event(QmpEvent),
    /// The answer to the command with this number, or QEMU's description of the error.
    Reply(u64, Result<Value, String>),
    /// Anything else, which is passed over.
    Garbage,
}

/// Reads one line of QEMU's. Never fails: what is not understood is [`QmpMessage::Garbage`].
pub fn parse(line: &[u8]) -> QmpMessage {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else {
        return QmpMessage::Garbage;
    };
    if let Some(version) = object.get("QMP").and_then(version) {
        return QmpMessage::Greeting(version);
    }
    if let Some(Value::String(name)) = object.remove("event") {
        let data = object.remove("data").unwrap_or(Value::Null);
        return QmpMessage::Event(QmpEvent { name, data });
    }
    let Some(id) = object.get("id").and_then(Value::as_u64) else {
        return QmpMessage::Garbage;
    };
    match (object.remove("return"), object.remove("error")) {
        (Some(value), _) => QmpMessage::Reply(id, Ok(value)),
        (None, Some(error)) => QmpMessage::Reply(id, Err(description(&error))),
        (None, None) => QmpMessage::Garbage,
    }
}

fn version(greeting: &Value) -> Option<String> {
    let part = |name: &str| greeting["version"]["qemu"][name].as_u64();
    Some(format!("{}.{}.{}", part("major")?, part("minor")?, part("micro")?))
}

fn description(error: &Value) -> String {
    error["desc"].as_str().unwrap_or("no description").to_owned()
}

/// Commands whose replies are awaited; `None` once the connection is closed.
type Pending = Arc<Mutex<Option<HashMap<u64, Waiting>>>>;
/// Conversations that want events.
type Talks = Arc<Mutex<Vec<Weak<Talk>>>>;

/// The receiver of a reply.
#[derive(Debug)]
enum Waiting {
    Own(oneshot::Sender<Result<Value, String>>),
    /// A user's conversation, with the `id` that it gave.
    Talk(Arc<Talk>, Option<Box<RawValue>>),
}

/// A connection to QEMU after the greeting. Cloning copies the handle.
#[derive(Clone, Debug)]
pub struct Qmp {
    version: String,
    greeting: Arc<[u8]>,
    next: Arc<AtomicU64>,
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    pending: Pending,
    talks: Talks,
    events: broadcast::Sender<QmpEvent>,
    closed: watch::Receiver<bool>,
    runtime: Handle,
}

impl Qmp {
    /// Waits for QEMU's greeting and opens the command mode. `on_event` gets every event in the
    /// order of arrival; it must not wait.
    ///
    /// # Errors
    /// `QmpTimeout` if the greeting takes longer than `limit`: QEMU hangs, or has another
    /// QMP client.
    pub async fn open(
        stream: UnixStream,
        limit: Duration,
        mut on_event: impl FnMut(QmpEvent) + Send + 'static,
    ) -> Result<Self> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let (version, greeting) = timeout(limit, greeting(&mut reader))
            .await
            .map_err(|_| timed_out("greeting", limit))??;
        let pending = Pending::new(Mutex::new(Some(HashMap::new())));
        let talks = Talks::default();
        let (closing, closed) = watch::channel(false);
        let ends = (Arc::clone(&pending), Arc::clone(&talks), closing);
        let events = broadcast::Sender::new(EVENTS);
        let sender = events.clone();
        let emit = move |event: QmpEvent| {
            // Most of the time there is no receiver.
            let _listeners = sender.send(event.clone());
            on_event(event);
        };
        tokio::spawn(serve(reader, ends, emit));
        let qmp = Self {
            version,
            greeting: greeting.into(),
            next: Arc::new(AtomicU64::new(1)),
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            pending,
            talks,
            events,
            closed,
            runtime: Handle::current(),
        };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Returns QEMU's version as it greeted: `7.2.22`.
    pub fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn greeting(&self) -> &[u8] {
        &self.greeting
    }

    /// Returns the runtime that the connection lives on.
    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Subscribes a conversation to events, and to the connection's end.
    pub(super) fn join(&self, talk: &Arc<Talk>) {
        let mut talks = self.talks.lock();
        talks.retain(|talk| talk.strong_count() > 0);
        talks.push(Arc::downgrade(talk));
        drop(talks);
        if self.pending.lock().is_none() {
            talk.end();
        }
    }

    /// Sends a conversation's command, which `render` writes with the number that it gets.
    pub(super) async fn forward(
        &self,
        talk: &Arc<Talk>,
        id: Option<Box<RawValue>>,
        render: impl FnOnce(u64) -> Vec<u8>,
    ) -> Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.expect(number, Waiting::Talk(Arc::clone(talk), id))?;
        self.send(&render(number), None).await
    }

    /// Subscribes to all events from now on. A receiver that lags loses the oldest.
    pub fn events(&self) -> broadcast::Receiver<QmpEvent> {
        self.events.subscribe()
    }

    /// Hands a descriptor over, which later commands name. It is a copy: ours may be closed.
    pub async fn give(&self, name: &str, fd: &OwnedFd) -> Result<()> {
        let request = ("getfd", json!({"fdname": name}), Some(fd));
        self.request(request, COMMAND_TIMEOUT).await.map(drop)
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// `QmpRefused`, `QmpTimeout` after [`COMMAND_TIMEOUT`], or [`closed`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(command, arguments, COMMAND_TIMEOUT).await
    }

    /// Runs a command with a timeout of its own.
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value> {
        self.request((command, arguments, None), limit).await
    }

    async fn request(
        &self,
        (command, arguments, fd): (&str, Value, Option<&OwnedFd>),
        limit: Duration,
    ) -> Result<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.expect(id, Waiting::Own(sender))?;
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        let exchange = async {
            self.send(format!("{line}\n").as_bytes(), fd).await?;
            receiver.await.map_err(|_| closed())
        };
        let result = timeout(limit, exchange).await;
        if result.is_err()
            && let Some(pending) = self.pending.lock().as_mut()
        {
            pending.remove(&id);
        }
        let answer = result.map_err(|_| timed_out(command, limit))??;
        answer.map_err(|text| refused(command, text))
    }

    fn expect(&self, number: u64, waiting: Waiting) -> Result<()> {
        let mut pending = self.pending.lock();
        pending.as_mut().ok_or_else(closed)?.insert(number, waiting);
        Ok(())
    }

    /// Writes one line, along with a descriptor if there is one. A caller that is cancelled cannot leave half a line: our lines are far
    /// smaller than the socket's buffer, which takes them whole, and conversations are not
    /// cancelled.
    async fn send(&self, line: &[u8], fd: Option<&OwnedFd>) -> Result<()> {
        let mut writer = self.writer.lock().await;
        let sent = match fd {
            Some(fd) => send_with(writer.as_ref(), line, fd).await.map_err(|_| closed())?,
            None => 0,
        };
        writer.write_all(&line[sent..]).await.map_err(|_| closed())
    }

    /// Resolves when the connection is closed and every event before that has been delivered.
    pub async fn closed(&self) {
        // An error means that the reading task is gone, which is the same news.
        self.closed.clone().wait_for(|closed| *closed).await.ok();
    }
}

/// Writes as much of a line as goes at once. QEMU takes the descriptor with its first byte.
async fn send_with(stream: &UnixStream, line: &[u8], fd: &OwnedFd) -> io::Result<usize> {
    loop {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || send_fd(stream, line, fd)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return sent,
        }
    }
}

fn send_fd(stream: &UnixStream, line: &[u8], fd: &OwnedFd) -> io::Result<usize> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = sendmsg(stream, &[io::IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(sent)
}

pub(super) fn refused(command: &str, text: impl Into<String>) -> BackendError {
    BackendError::QmpRefused { command: command.to_owned(), text: text.into() }
}

pub(super) fn timed_out(command: &str, limit: Duration) -> BackendError {
    BackendError::QmpTimeout { command: command.to_owned(), seconds: limit.as_secs() }
}

/// Returns QEMU's version, and the line that has it.
async fn greeting(reader: &mut BufReader<OwnedReadHalf>) -> Result<(String, Vec<u8>)> {
    loop {
        let line = read_line(reader).await.ok_or_else(closed)?;
        match parse(&line) {
            QmpMessage::Greeting(version) => return Ok((version, line)),
            other @ (QmpMessage::Event(_) | QmpMessage::Reply(..) | QmpMessage::Garbage) => {
                tracing::warn!(?other, "QMP: something came before the greeting");
            }
        }
    }
}

/// Returns the next line, `None` at the end or after a line beyond [`LINE_LIMIT`].
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut limited = reader.take(LINE_LIMIT);
    limited.read_until(b'\n', &mut line).await.ok()?;
    line.ends_with(b"\n").then_some(line)
}

async fn serve(
    mut reader: BufReader<OwnedReadHalf>,
    (pending, talks, closing): (Pending, Talks, watch::Sender<bool>),
    mut on_event: impl FnMut(QmpEvent),
) {
    while let Some(line) = read_line(&mut reader).await {
        match parse(&line) {
            QmpMessage::Event(event) => {
                listeners(&talks).for_each(|talk| talk.event(&line));
                on_event(event);
            }
            QmpMessage::Reply(id, result) => answer(&pending, id, result, &line),
            other @ (QmpMessage::Greeting(_) | QmpMessage::Garbage) => {
                tracing::warn!(?other, "QMP: unexpected line");
            }
        }
    }
    pending.lock().take();
    closing.send_replace(true);
    listeners(&talks).for_each(|talk| talk.end());
}

fn listeners(talks: &Talks) -> impl Iterator<Item = Arc<Talk>> {
    let talks: Vec<_> = talks.lock().iter().filter_map(Weak::upgrade).collect();
    talks.into_iter()
}

fn answer(pending: &Pending, id: u64, result: Result<Value, String>, line: &[u8]) {
    match pending.lock().as_mut().and_then(|p| p.remove(&id)) {
        // The caller may have been cancelled.
        Some(Waiting::Own(waiting)) => drop(waiting.send(result)),
        Some(Waiting::Talk(talk, id)) => talk.answer(line, id.as_deref()),
        None => {}
    }
}

#[cfg(test)]
mod tests;
