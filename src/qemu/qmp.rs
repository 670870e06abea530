//! A QMP client over one Unix connection: commands out, replies and events in.
//!
//! QEMU serves one QMP client at a time, so a machine has one connection, which is kept for good.
//! What commands and events mean is not known here.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::vm::backend::BackendError;

/// How long a command may take: QEMU answers within milliseconds unless its main loop hangs, on a
/// dead network disk for instance.
pub const COMMAND_BOUND: Duration = Duration::from_secs(5);
/// How long a greeting may take: a launch answers within 2 s, and QEMU needs some 50 ms.
pub const GREETING_BOUND: Duration = Duration::from_secs(2);
/// The longest line taken in. The longest that QEMU sends, its schema, has about 0.2 MiB.
const LINE_LIMIT: u64 = 4 << 20;

/// Why a command has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {text}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's description.
        text: String,
    },
    /// QEMU did not answer within the bound.
    #[error("QEMU did not answer {command} in time")]
    Timeout {
        /// The command, or `greeting`.
        command: String,
        /// The bound.
        bound: Duration,
    },
    /// The connection is gone, and so is QEMU most likely.
    #[error("the QMP connection is closed")]
    Closed,
}

impl From<QmpError> for BackendError {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Refused { command, text } => Self::QmpRefused { command, text },
            QmpError::Timeout { command, bound } => {
                Self::QmpTimeout { command, seconds: bound.as_secs() }
            }
            QmpError::Closed => Self::QemuDied {
                status: "unknown".to_owned(),
                stderr: "its QMP connection was closed".to_owned(),
            },
        }
    }
}

/// Something that QEMU reports by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its name, such as `STOP`.
    pub name: String,
    /// Its data, `null` if it has none.
    pub data: Value,
}

/// One line from QEMU.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// The first line, with QEMU's version: `7.2.22`.
    Greeting(String),
    /// An event.
    Event(Event),
    /// The answer to the command with this number, or QEMU's description of the error.
    Reply(u64, Result<Value, String>),
    /// Anything else, which is passed over.
    Garbage,
}

/// Reads one line of QEMU's. Never fails: what is not understood is [`Line::Garbage`].
pub fn parse(line: &[u8]) -> Line {
    let Ok(Value::Object(mut object)) = serde_json::from_slice(line) else {
        return Line::Garbage;
    };
    if let Some(version) = object.get("QMP").and_then(version) {
        return Line::Greeting(version);
    }
    if let Some(Value::String(name)) = object.remove("event") {
        let data = object.remove("data").unwrap_or(Value::Null);
        return Line::Event(Event { name, data });
    }
    let Some(id) = object.get("id").and_then(Value::as_u64) else {
        return Line::Garbage;
    };
    match (object.remove("return"), object.remove("error")) {
        (Some(value), _) => Line::Reply(id, Ok(value)),
        (None, Some(error)) => Line::Reply(id, Err(description(&error))),
        (None, None) => Line::Garbage,
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
type Pending = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Result<Value, String>>>>>>;

/// A connection to QEMU after the greeting.
#[derive(Debug)]
pub struct Qmp {
    version: String,
    next: AtomicU64,
    writer: tokio::sync::Mutex<OwnedWriteHalf>,
    pending: Pending,
    closed: watch::Receiver<bool>,
}

impl Qmp {
    /// Waits for QEMU's greeting and opens the command mode. `on_event` gets every event in the
    /// order of arrival; it must not wait.
    ///
    /// # Errors
    /// [`QmpError::Timeout`] after [`GREETING_BOUND`]: QEMU hangs, or has another QMP client.
    pub async fn open(
        stream: UnixStream,
        on_event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Self, QmpError> {
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let version = timeout(GREETING_BOUND, greeting(&mut reader))
            .await
            .map_err(|_| timed_out("greeting", GREETING_BOUND))??;
        let pending = Pending::new(Mutex::new(Some(HashMap::new())));
        let (closing, closed) = watch::channel(false);
        tokio::spawn(serve(reader, Arc::clone(&pending), on_event, closing));
        let qmp = Self {
            version,
            next: AtomicU64::new(1),
            writer: tokio::sync::Mutex::new(writer),
            pending,
            closed,
        };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Returns QEMU's version as it greeted: `7.2.22`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Runs a command and returns its result.
    ///
    /// # Errors
    /// QEMU's own, or [`QmpError::Timeout`] after [`COMMAND_BOUND`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_within(command, arguments, COMMAND_BOUND).await
    }

    /// Runs a command with a bound of its own.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn execute_within(
        &self,
        command: &str,
        arguments: Value,
        bound: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let result = timeout(bound, self.exchange(id, command, arguments)).await;
        if result.is_err()
            && let Some(pending) = self.pending.lock().as_mut()
        {
            pending.remove(&id);
        }
        match result.map_err(|_| timed_out(command, bound))?? {
            Ok(value) => Ok(value),
            Err(text) => Err(QmpError::Refused { command: command.to_owned(), text }),
        }
    }

    async fn exchange(
        &self,
        id: u64,
        command: &str,
        arguments: Value,
    ) -> Result<Result<Value, String>, QmpError> {
        let (sender, receiver) = oneshot::channel();
        match self.pending.lock().as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(QmpError::Closed),
        };
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        self.send(format!("{request}\n").into_bytes()).await?;
        receiver.await.map_err(|_| QmpError::Closed)
    }

    /// Writes one line. A caller that gives up cannot cut it short and so spoil the next one: it
    /// is far smaller than the socket's buffer, which takes it whole.
    async fn send(&self, line: Vec<u8>) -> Result<(), QmpError> {
        let mut writer = self.writer.lock().await;
        writer.write_all(&line).await.map_err(|_| QmpError::Closed)
    }

    /// Resolves when the connection is closed and every event before that has been delivered.
    pub async fn closed(&self) {
        // An error means that the reading task is gone, which is the same news.
        self.closed.clone().wait_for(|closed| *closed).await.ok();
    }
}

fn timed_out(command: &str, bound: Duration) -> QmpError {
    QmpError::Timeout { command: command.to_owned(), bound }
}

async fn greeting(reader: &mut BufReader<OwnedReadHalf>) -> Result<String, QmpError> {
    loop {
        match parse(&read_line(reader).await.ok_or(QmpError::Closed)?) {
            Line::Greeting(version) => return Ok(version),
            other => tracing::warn!(?other, "QMP: something came before the greeting"),
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
    pending: Pending,
    mut on_event: impl FnMut(Event),
    closing: watch::Sender<bool>,
) {
    while let Some(line) = read_line(&mut reader).await {
        match parse(&line) {
            Line::Event(event) => on_event(event),
            Line::Reply(id, result) => answer(&pending, id, result),
            other => tracing::warn!(?other, "QMP: unexpected line"),
        }
    }
    pending.lock().take();
    closing.send_replace(true);
}

fn answer(pending: &Pending, id: u64, result: Result<Value, String>) {
    let waiting = pending.lock().as_mut().and_then(|p| p.remove(&id));
    if let Some(waiting) = waiting {
        // Nobody waits for it any more: a caller may give up at any time.
        waiting.send(result).ok();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    const GREETING: &str = concat!(
        r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "x"}, "#,
        r#""capabilities": ["oob"]}}"#
    );

    #[test]
    fn every_kind_of_line_is_told_apart() {
        let event = Event { name: "STOP".into(), data: Value::Null };
        let table = [
            (GREETING, Line::Greeting("7.2.22".into())),
            (r#"{"event": "STOP", "timestamp": {}}"#, Line::Event(event)),
            (r#"{"return": 3, "id": 7}"#, Line::Reply(7, Ok(json!(3)))),
            (
                r#"{"id": 8, "error": {"class": "GenericError", "desc": "no"}}"#,
                Line::Reply(8, Err("no".into())),
            ),
            (r#"{"return": {}}"#, Line::Garbage),
            (r#"{"id": 9}"#, Line::Garbage),
            (r#"{"QMP": {}}"#, Line::Garbage),
            ("[1, 2]", Line::Garbage),
            ("", Line::Garbage),
        ];
        for (line, expected) in table {
            assert_eq!(parse(line.as_bytes()), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&line);
        }

        #[test]
        fn no_nearly_right_line_does_either(id in ".{0,9}", body in "[\\[\\]{}:,\"a-z0-9]{0,30}") {
            parse(format!(r#"{{"id": {id}, "return": {body}}}"#).as_bytes());
            parse(format!(r#"{{"QMP": {body}, "event": {id}}}"#).as_bytes());
        }
    }

    /// The far end of a connection: reads requests, writes what the test wants.
    #[derive(Debug)]
    struct Far {
        lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
        writer: OwnedWriteHalf,
    }

    impl Far {
        async fn request(&mut self) -> Value {
            serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
        }

        async fn say(&mut self, text: &str) {
            self.writer.write_all(format!("{text}\n").as_bytes()).await.unwrap();
        }
    }

    async fn connected() -> (Qmp, Far, mpsc::UnboundedReceiver<Event>) {
        let (near, far) = UnixStream::pair().unwrap();
        let (reader, writer) = far.into_split();
        let lines = BufReader::new(reader).lines();
        let mut far = Far { lines, writer };
        let (sender, events) = mpsc::unbounded_channel();
        far.say(GREETING).await;
        let opening = tokio::spawn(Qmp::open(near, move |e| sender.send(e).unwrap()));
        assert_eq!(far.request().await["execute"], "qmp_capabilities");
        far.say(r#"{"return": {}, "id": 1}"#).await;
        (opening.await.unwrap().unwrap(), far, events)
    }

    #[tokio::test]
    async fn replies_find_their_commands_in_any_order_and_amid_noise() {
        let (qmp, mut far, mut events) = connected().await;
        let (first, second) = (qmp.execute("a", json!({})), qmp.execute("b", json!({})));
        let far_end = async {
            let (a, b) = (far.request().await, far.request().await);
            far.say(&format!(r#"{{"return": "B", "id": {}}}"#, b["id"])).await;
            far.say("} noise {").await;
            far.say(r#"{"event": "RESET", "data": {"guest": true}}"#).await;
            far.say(&format!(r#"{{"error": {{"desc": "no A"}}, "id": {}}}"#, a["id"])).await;
        };
        let (first, second, ()) = tokio::join!(first, second, far_end);
        assert_eq!(second.unwrap(), "B");
        let refused = BackendError::from(first.unwrap_err()).to_string();
        assert_eq!(refused, "QEMU refused a: no A");
        assert_eq!(events.recv().await.unwrap().data["guest"], true);
    }

    #[tokio::test]
    async fn a_closed_connection_fails_what_waits_and_what_comes_later() {
        let (qmp, far, _events) = connected().await;
        let waiting = qmp.execute("a", json!({}));
        let (result, ()) = tokio::join!(waiting, async { drop(far) });
        assert_eq!(result.unwrap_err(), QmpError::Closed);
        qmp.closed().await;
        let late = qmp.execute("b", json!({})).await;
        assert_eq!(late.unwrap_err(), QmpError::Closed);
    }

    #[tokio::test]
    async fn a_silent_qemu_is_given_up_after_the_bound() {
        let (near, _far) = UnixStream::pair().unwrap();
        let error = Qmp::open(near, |_| ()).await.unwrap_err();
        assert_eq!(error, timed_out("greeting", GREETING_BOUND));
        let (qmp, _far, _events) = connected().await;
        let bound = Duration::from_millis(20);
        let error = qmp.execute_within("stop", json!({}), bound).await;
        assert_eq!(error.unwrap_err(), timed_out("stop", bound));
        assert!(qmp.pending.lock().as_ref().unwrap().is_empty());
    }
}
