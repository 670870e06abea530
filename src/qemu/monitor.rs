//! The file `qmp`: private QMP conversations over the one connection that QEMU offers.
//!
//! Each has numbers of its own for its commands on the connection, gets exactly its own answers
//! with the `id` that it gave, and every event, in QEMU's order. JSON is handed on as it was
//! written; only `id` is replaced. The handshake is answered here, as QEMU has had its own.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use super::qmp::Qmp;
use crate::vm::VmError;
use crate::vm::stream::{Bell, Listener, Readiness, Stream, StreamAccess};

/// The longest line taken in.
const LINE: usize = 64 << 10;
/// Commands of one conversation that may await an answer: QEMU carries out one at a time, and the
/// daemon's own must not stand behind many.
const AHEAD: usize = 8;
/// Unread bytes beyond which no command is taken, and events are dropped.
const UNREAD: usize = 1 << 20;

/// A JSON object whose values stay as they were written.
type Object = BTreeMap<String, Box<RawValue>>;

/// An open conversation.
#[derive(Debug)]
pub struct Conversation {
    talk: Arc<Talk>,
    /// A line without its end.
    line: Mutex<Vec<u8>>,
    commands: mpsc::UnboundedSender<Command>,
}

/// A command on its way to QEMU.
#[derive(Debug)]
struct Command {
    object: Object,
    id: Option<Box<RawValue>>,
}

/// What a conversation and the connection have in common: the lines for its reader.
#[derive(Debug)]
pub struct Talk {
    access: StreamAccess,
    inner: Mutex<TalkState>,
    bell: Bell,
}

#[derive(Debug, Default)]
struct TalkState {
    unread: VecDeque<u8>,
    /// Commands without an answer yet.
    ahead: usize,
    negotiated: bool,
    over: bool,
}

impl Conversation {
    /// Opens one, which begins with QEMU's greeting.
    pub fn open(qmp: &Qmp, access: StreamAccess) -> Self {
        let talk = Arc::new(Talk { access, inner: Mutex::default(), bell: Bell::default() });
        talk.say(qmp.greeting());
        qmp.join(&talk);
        let (commands, queue) = mpsc::unbounded_channel();
        qmp.runtime().spawn(send(qmp.clone(), Arc::clone(&talk), queue));
        Self { talk, line: Mutex::default(), commands }
    }

    /// Takes bytes up to the end of a line; returns how many.
    fn take_line(&self, line: &mut Vec<u8>, data: &[u8]) -> Result<usize, VmError> {
        let end = data.iter().position(|&byte| byte == b'\n');
        let piece = &data[..end.map_or(data.len(), |n| n + 1)];
        if line.len() + piece.len() > LINE {
            line.clear();
            return Err(VmError::TooLong { what: "a QMP line", limit: LINE });
        }
        line.extend_from_slice(piece);
        if end.is_some() {
            self.submit(&std::mem::take(line));
        }
        Ok(piece.len())
    }

    fn submit(&self, line: &[u8]) {
        if line.trim_ascii().is_empty() {
            return;
        }
        match parse(line) {
            Ok(command) if command.is_handshake() => self.talk.shake_hands(&command),
            Ok(command) => {
                self.talk.inner.lock().ahead += 1;
                // The sender ends with the connection, whose end the talk sees by itself.
                drop(self.commands.send(command));
            }
            Err(text) => self.talk.refuse("GenericError", &text, None),
        }
    }
}

fn parse(line: &[u8]) -> Result<Command, String> {
    let wrong = |e: serde_json::Error| format!("JSON parse error, {e}");
    // Limits the nesting too: QEMU's answer to JSON that is nested too deep has no id.
    if !serde_json::from_slice::<Value>(line).map_err(wrong)?.is_object() {
        return Err("QMP input must be a JSON object".to_owned());
    }
    let mut object: Object = serde_json::from_slice(line).map_err(wrong)?;
    let id = object.remove("id");
    Ok(Command { object, id })
}

impl Command {
    fn is_handshake(&self) -> bool {
        self.object.get("execute").is_some_and(|name| name.get() == "\"qmp_capabilities\"")
    }

    fn wants_capabilities(&self) -> bool {
        let arguments = self.object.get("arguments").map_or("null", |a| a.get());
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
        arguments["enable"].as_array().is_some_and(|wanted| !wanted.is_empty())
    }

    /// Renders it with our number in place of its `id`.
    fn numbered(&self, number: u64) -> Vec<u8> {
        let members = self.object.iter().map(|(key, value)| format!("{}: {value}, ", quote(key)));
        format!("{{{}\"id\": {number}}}\n", members.collect::<String>()).into_bytes()
    }
}

fn quote(text: &str) -> String {
    Value::from(text).to_string()
}

/// Sends commands in their order. Those written before the file was closed are sent all the same.
async fn send(qmp: Qmp, talk: Arc<Talk>, mut queue: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = queue.recv().await {
        let line = |number| command.numbered(number);
        if qmp.forward(&talk, command.id.clone(), line).await.is_err() {
            return talk.end();
        }
    }
}

impl Talk {
    /// Takes an event, as QEMU wrote it.
    pub(super) fn event(&self, line: &[u8]) {
        let full = self.inner.lock().unread.len() > UNREAD;
        if !full {
            self.say(line);
        }
    }

    /// Takes the answer to a command, and gives it back its own `id`.
    pub(super) fn answer(&self, line: &[u8], id: Option<&RawValue>) {
        let mut object: Object = serde_json::from_slice(line).unwrap_or_default();
        let members = ["return", "error"].map(|key| (key, object.remove(key)));
        let own = id.map(|id| ("id", id.to_owned()));
        let members = members.into_iter().filter_map(|(k, v)| Some((k, v?))).chain(own);
        let members: Vec<_> = members.map(|(key, value)| format!("\"{key}\": {value}")).collect();
        self.inner.lock().ahead -= 1;
        self.say(format!("{{{}}}", members.join(", ")).as_bytes());
    }

    /// The connection is gone.
    pub(super) fn end(&self) {
        self.inner.lock().over = true;
        self.bell.ring();
    }

    fn shake_hands(&self, command: &Command) {
        let id = command.id.as_deref();
        if command.wants_capabilities() {
            return self.refuse("GenericError", "no capability is offered in this file", id);
        }
        if std::mem::replace(&mut self.inner.lock().negotiated, true) {
            let text = "Capabilities negotiation is already complete, command ignored";
            return self.refuse("CommandNotFound", text, id);
        }
        self.reply("\"return\": {}", id);
    }

    fn refuse(&self, class: &str, text: &str, id: Option<&RawValue>) {
        let error = format!(r#"{{"class": "{class}", "desc": {}}}"#, quote(text));
        self.reply(&format!("\"error\": {error}"), id);
    }

    fn reply(&self, member: &str, id: Option<&RawValue>) {
        let id = id.map(|id| format!(", \"id\": {id}")).unwrap_or_default();
        self.say(format!("{{{member}{id}}}").as_bytes());
    }

    fn say(&self, line: &[u8]) {
        if self.access != StreamAccess::Write {
            let mut inner = self.inner.lock();
            inner.unread.extend(line.trim_ascii_end());
            inner.unread.extend(b"\r\n");
        }
        self.bell.ring();
    }
}

impl TalkState {
    fn has_room(&self) -> bool {
        self.ahead < AHEAD && self.unread.len() <= UNREAD
    }
}

impl Stream for Conversation {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let mut inner = self.talk.inner.lock();
        if inner.unread.is_empty() {
            let ended = inner.over || self.talk.access == StreamAccess::Write;
            return ended.then(|| Ok(Vec::new()));
        }
        let taken = inner.unread.len().min(max);
        let bytes = inner.unread.drain(..taken).collect();
        if inner.unread.is_empty() {
            inner.unread.shrink_to_fit();
        }
        drop(inner);
        self.talk.bell.ring();
        Some(Ok(bytes))
    }

    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        if self.talk.inner.lock().over {
            return Some(Err(VmError::Lost("the machine has ended".to_owned())));
        }
        let (mut line, mut taken) = (self.line.lock(), 0);
        while taken < data.len() && self.talk.inner.lock().has_room() {
            match self.take_line(&mut line, &data[taken..]) {
                Ok(len) => taken += len,
                // What came before the bad line is accepted; the rest is refused on its own.
                Err(error) if taken == 0 => return Some(Err(error)),
                Err(_) => break,
            }
        }
        (taken > 0 || data.is_empty()).then_some(Ok(taken))
    }

    fn readiness(&self) -> Readiness {
        let inner = self.talk.inner.lock();
        let ended = inner.over || self.talk.access == StreamAccess::Write;
        Readiness {
            readable: ended || !inner.unread.is_empty(),
            writable: inner.over || inner.has_room(),
            hung_up: inner.over,
        }
    }

    fn listen(&self) -> Listener {
        self.talk.bell.listen()
    }
}

impl Drop for Conversation {
    /// What was written without a last newline is a command all the same.
    fn drop(&mut self) {
        let line = std::mem::take(&mut *self.line.lock());
        self.submit(&line);
    }
}
