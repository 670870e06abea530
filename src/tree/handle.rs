//! What an open file is, and what reading and writing it means.
//!
//! No names (`table.rs`); no waiting: what takes time is returned as a future.

use std::collections::VecDeque;
use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use parking_lot::Mutex;

use super::node::{Carried, Done, TakeLine};
use super::settings::Setting;
use super::verbs::{LONGEST_WRITE, Verb, parse_lines};
use super::{Answer, TreeError};
use crate::store::bounded::Tail;
use crate::vm::caller::Caller;
use crate::vm::stream::{self, Listener, Readiness, Stream};
use crate::vm::{Vm, driver};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `O_RDONLY`
    Read,
    /// `O_WRONLY`
    Write,
    /// `O_RDWR`
    ReadWrite,
}

impl Access {
    /// Says whether the file may be read through this opening.
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    /// Says whether the file may be written through this opening.
    pub fn writes(self) -> bool {
        self != Self::Read
    }
}

/// An open(2), in our own terms.
pub struct OpenRequest<'a> {
    /// Reading, writing or both.
    pub access: Access,
    /// `O_APPEND`: `>>`.
    pub append: bool,
    /// `O_NOFOLLOW`, which only programs that walk trees give: they get what is there and EOF.
    pub crawler: bool,
    /// Finds out who asks, when it matters.
    pub caller: &'a dyn Fn() -> Caller,
}

impl std::fmt::Debug for OpenRequest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenRequest").field("access", &self.access).finish_non_exhaustive()
    }
}

/// Whether a read may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// It may.
    Park,
    /// `O_NONBLOCK`.
    Now,
}

/// An open file.
#[derive(Debug)]
pub enum Open {
    /// A value.
    Value(Value),
    /// The end of a file on disk, which may grow while it is read: `tail -f` follows it.
    Tail(Arc<Tail>),
    /// A setting: frozen content, and where writes go.
    Setting(Setting),
    /// A control file.
    Control(Arc<Control>),
    /// A value that can be written.
    Text(Text),
    /// A stream.
    Stream {
        /// The bytes.
        stream: Arc<dyn Stream>,
        /// A crawler gets end of file where others would wait.
        crawler: bool,
        /// The VM whose `error` tells of failures.
        vm: Option<Vm>,
    },
}

/// An open value: its content is frozen when it is opened, and made anew when it is read from its
/// start again, as sysfs has it.
pub struct Value {
    content: Mutex<Frozen>,
    source: Option<Source>,
    /// Making it takes a look at the disk.
    is_slow: bool,
}

struct Frozen {
    bytes: Arc<[u8]>,
    /// The start has been read: reading it again asks for news.
    begun: bool,
    /// Hears what may have changed since it was made.
    since: Option<Listener>,
}

impl Frozen {
    fn made_by(source: &Source) -> Self {
        let mut since = source.listener.clone();
        // Listening begins before the look, so that no change in between is missed.
        since.forget_past();
        Self { bytes: (source.render)().into(), begun: false, since: Some(since) }
    }
}

/// Where a value's content comes from, for who keeps it open.
pub(super) struct Source {
    /// Makes the content.
    pub(super) render: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// Hears when it may have changed.
    pub(super) listener: Listener,
}

/// What poll(2) is told.
#[derive(Debug)]
pub struct Polled {
    /// What can be done now.
    pub readiness: Readiness,
    /// The content differs from what this open file has read (POLLPRI, POLLERR).
    pub changed: bool,
    /// Hears when the answer may have changed; `None`: never.
    pub listener: Option<Listener>,
}

/// Takes what is written to an open file.
type Taker<R> = Box<dyn Fn(&str) -> Carried<R> + Send + Sync>;

/// An open control file: the results of the verbs written to it.
pub struct Control {
    /// The VM whose `error` tells of failures.
    vm: Option<Vm>,
    carry_out: Taker<Done>,
    results: Mutex<Results>,
}

/// An open value that can be written.
pub struct Text {
    vm: Option<Vm>,
    value: Value,
    take: Taker<Result<(), TreeError>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("results", &self.results).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Text").field("value", &self.value).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Results {
    unread: VecDeque<u8>,
    /// A verb has failed and nobody has read that yet.
    latched: bool,
}

impl Open {
    /// Opens the end of a file; one that is not there yet is empty.
    pub(super) fn tail(path: PathBuf) -> Self {
        Self::Tail(Arc::new(Tail::open(path)))
    }

    /// Opens a control file.
    pub(super) fn control(vm: Vm, verbs: &'static [Verb]) -> Self {
        let of = vm.clone();
        Self::orders(Some(vm), move |text| perform(of.clone(), verbs, text))
    }

    /// Opens a control file whose lines the object itself takes.
    pub(super) fn lines(vm: Vm, taker: TakeLine) -> Self {
        Self::orders(Some(vm), move |text| Box::pin(ready(take_lines(&taker, text))))
    }

    /// Opens a control file whose lines are carried out by `carry_out`.
    pub(super) fn orders(
        vm: Option<Vm>,
        carry_out: impl Fn(&str) -> Carried<Done> + Send + Sync + 'static,
    ) -> Self {
        let (carry_out, results) = (Box::new(carry_out), Mutex::default());
        Self::Control(Arc::new(Control { vm, carry_out, results }))
    }

    /// Opens a value whose writes go to `take`.
    pub(super) fn text(
        vm: Option<Vm>,
        value: Value,
        take: impl Fn(&str) -> Carried<Result<(), TreeError>> + Send + Sync + 'static,
    ) -> Self {
        Self::Text(Text { vm, value, take: Box::new(take) })
    }

    /// Reads. The offset counts for contents that are frozen; others go on where they were.
    pub fn read(&self, offset: u64, max: usize, patience: Patience) -> Answer<Vec<u8>> {
        match self {
            Self::Value(value)
            | Self::Setting(Setting { value, .. })
            | Self::Text(Text { value, .. }) => Answer::Now(Ok(value.read(offset, max))),
            Self::Tail(tail) => read_tail(Arc::clone(tail), offset, max),
            Self::Control(control) => Answer::Now(Ok(control.read(max))),
            Self::Stream { stream, crawler, vm } => {
                read_stream(stream, max, *crawler, patience, vm.as_ref())
            }
        }
    }

    /// Writes.
    pub fn write(&self, data: &[u8], patience: Patience) -> Answer<usize> {
        match self {
            Self::Value(_) | Self::Tail(_) => Answer::Now(Err(TreeError::ReadOnly)),
            Self::Setting(setting) => setting.write(data),
            Self::Text(text) => text.write(data),
            Self::Control(control) => Control::write(control, data),
            Self::Stream { stream, vm, .. } => write_stream(stream, data, patience, vm.as_ref()),
        }
    }

    /// Says what could be done now.
    pub fn poll(&self) -> Polled {
        match self {
            Self::Value(value)
            | Self::Setting(Setting { value, .. })
            | Self::Text(Text { value, .. }) => value.poll(),
            // A read of these never waits: at their end it says so.
            Self::Tail(_) | Self::Control(_) => {
                let readiness = Readiness { readable: true, writable: true, hung_up: false };
                Polled { readiness, changed: false, listener: None }
            }
            Self::Stream { stream, crawler, .. } => {
                // Listening begins before the look, so that no change in between is missed.
                let listener = Some(stream.listen());
                let mut readiness = stream.readiness();
                readiness.readable |= crawler;
                Polled { readiness, changed: false, listener }
            }
        }
    }

    /// Says whether reading at an offset makes the content anew, by a look at the disk.
    pub(super) fn makes_anew(&self, offset: u64) -> bool {
        match self {
            Self::Value(value) => value.is_slow && offset == 0 && value.content.lock().begun,
            Self::Tail(_)
            | Self::Setting(_)
            | Self::Control(_)
            | Self::Text(_)
            | Self::Stream { .. } => false,
        }
    }

    /// A descriptor of this open file was closed.
    pub fn flush(&self) {
        if let Self::Stream { stream, .. } = self {
            stream.flush();
        }
    }
}

impl Value {
    /// Opens content that stays as it is.
    pub(super) fn fixed(bytes: Vec<u8>) -> Self {
        let content = Frozen { bytes: bytes.into(), begun: false, since: None };
        Self { content: Mutex::new(content), source: None, is_slow: false }
    }

    /// Opens content that may change while it is open.
    pub(super) fn live(source: Source) -> Self {
        let content = Mutex::new(Frozen::made_by(&source));
        Self { content, source: Some(source), is_slow: false }
    }

    /// Says that making it takes a look at the disk.
    pub(super) fn slow(self) -> Self {
        Self { is_slow: true, ..self }
    }

    fn read(&self, offset: u64, max: usize) -> Vec<u8> {
        if offset == 0 && self.is_begun() {
            self.make_anew();
        }
        let bytes = Arc::clone(&self.content.lock().bytes);
        slice(&bytes, offset, max)
    }

    /// Says whether the start has been read before; from now on it has been.
    fn is_begun(&self) -> bool {
        std::mem::replace(&mut self.content.lock().begun, true)
    }

    /// Nobody waits for the lock while the content is made.
    fn make_anew(&self) {
        if let Some(source) = &self.source {
            let new = Frozen { begun: true, ..Frozen::made_by(source) };
            *self.content.lock() = new;
        }
    }

    fn poll(&self) -> Polled {
        let readiness = Readiness { readable: true, writable: true, hung_up: false };
        let Some(source) = &self.source else {
            return Polled { readiness, changed: false, listener: None };
        };
        let mut listener = source.listener.clone();
        listener.forget_past();
        let changed = match self.is_slow {
            true => self.content.lock().since.as_ref().is_some_and(Listener::has_heard),
            false => (source.render)() != *self.content.lock().bytes,
        };
        Polled { readiness, changed, listener: Some(listener) }
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Value").finish_non_exhaustive()
    }
}

fn slice(content: &[u8], offset: u64, max: usize) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
    content[start..content.len().min(start.saturating_add(max))].to_vec()
}

/// Reads a log off the caller's thread: it lies on a disk.
fn read_tail(tail: Arc<Tail>, offset: u64, max: usize) -> Answer<Vec<u8>> {
    let read = driver::off_thread(move || tail.read(offset, max), "a log");
    Answer::later(read.map(|bytes| bytes.map_err(|e| TreeError::Vm(e.into()))))
}

fn read_stream(
    stream: &Arc<dyn Stream>,
    max: usize,
    crawler: bool,
    patience: Patience,
    vm: Option<&Vm>,
) -> Answer<Vec<u8>> {
    let vm = vm.cloned();
    match stream.try_read(max) {
        None | Some(Err(_)) if crawler => Answer::Now(Ok(Vec::new())),
        Some(result) => Answer::Now(noted(vm.as_ref(), result.map_err(TreeError::from))),
        None if patience == Patience::Now => Answer::Now(Err(TreeError::WouldBlock)),
        None => {
            let read = stream::read(Arc::clone(stream), max);
            Answer::later(read.map(move |r| noted(vm.as_ref(), r.map_err(TreeError::from))))
        }
    }
}

fn write_stream(
    stream: &Arc<dyn Stream>,
    data: &[u8],
    patience: Patience,
    vm: Option<&Vm>,
) -> Answer<usize> {
    let vm = vm.cloned();
    match stream.try_write(data) {
        Some(result) => Answer::Now(noted(vm.as_ref(), result.map_err(TreeError::from))),
        None if patience == Patience::Now => Answer::Now(Err(TreeError::WouldBlock)),
        None => {
            let write = stream::write(Arc::clone(stream), data.to_vec());
            Answer::later(write.map(move |written| match written {
                Some(result) => noted(vm.as_ref(), result.map_err(TreeError::from)),
                None => Err(TreeError::WouldBlock),
            }))
        }
    }
}

/// Reads one write.
pub(super) fn text_of(data: &[u8]) -> Result<&str, TreeError> {
    if data.len() > LONGEST_WRITE {
        return Err(TreeError::TooBig(LONGEST_WRITE));
    }
    std::str::from_utf8(data).map_err(|_| TreeError::NotText)
}

impl Text {
    fn write(&self, data: &[u8]) -> Answer<usize> {
        let (vm, length) = (self.vm.clone(), data.len());
        match text_of(data) {
            Ok(text) => Answer::later(
                (self.take)(text).map(move |done| noted(vm.as_ref(), done.map(|()| length))),
            ),
            Err(error) => Answer::Now(noted(vm.as_ref(), Err(error))),
        }
    }
}

/// Carries out a VM's verbs. The whole write is read before anything is done; a bad line is met
/// after the good ones before it, as if each had been written alone.
fn perform(vm: Vm, verbs: &'static [Verb], text: &str) -> Carried<Done> {
    let Commands { good, fault } = Commands::parse(verbs, text);
    let done = vm.perform_all(good);
    Box::pin(done.map(|(done, failure)| (done, failure.map(TreeError::from).or(fault))))
}

impl Control {
    fn read(&self, max: usize) -> Vec<u8> {
        let mut results = self.results.lock();
        results.latched = false;
        let taken = results.unread.len().min(max);
        results.unread.drain(..taken).collect()
    }

    fn write(this: &Arc<Self>, data: &[u8]) -> Answer<usize> {
        let text = match this.check(data) {
            Ok(text) => text,
            Err(error) => return Answer::Now(this.record(0, Some(error)).map(|()| 0)),
        };
        let (control, length) = (Arc::clone(this), data.len());
        let work = (this.carry_out)(text);
        Answer::later(
            work.map(move |(done, failure)| control.record(done, failure).map(|()| length)),
        )
    }

    fn check<'a>(&self, data: &'a [u8]) -> Result<&'a str, TreeError> {
        if self.results.lock().latched {
            return Err(TreeError::Latched);
        }
        text_of(data)
    }

    /// Keeps a line for each verb, for who reads this descriptor, and tells the VM's `error`.
    fn record(&self, done: usize, failure: Option<TreeError>) -> Result<(), TreeError> {
        let mut results = self.results.lock();
        (0..done).for_each(|_| results.unread.extend(b"ok\n"));
        match failure {
            None => {
                if let (1.., Some(vm)) = (done, &self.vm) {
                    vm.note_outcome(Ok::<(), TreeError>(()));
                }
                Ok(())
            }
            Some(TreeError::Latched) => Err(TreeError::Latched),
            Some(error) => {
                results.latched = true;
                results.unread.extend(format!("error: {error}\n").bytes());
                noted(self.vm.as_ref(), Err(error))
            }
        }
    }
}

/// Has each line carried out until one fails: how many went well, and the failure. Blanks at the
/// ends belong to the line.
fn take_lines(taker: &TakeLine, text: &str) -> Done {
    let lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    let mut done = 0;
    for line in lines {
        match taker(line) {
            Ok(()) => done += 1,
            Err(error) => return (done, Some(error)),
        }
    }
    (done, None)
}

/// The lines of one write: those that are commands, and the first that is not.
#[derive(Debug)]
pub(super) struct Commands<C> {
    pub(super) good: Vec<C>,
    pub(super) fault: Option<TreeError>,
}

impl<C> Commands<C> {
    /// Reads lines up to the first bad one.
    pub(super) fn parse(verbs: &'static [Verb<C>], text: &str) -> Self {
        let mut commands = Self { good: Vec::new(), fault: None };
        for line in parse_lines(verbs, text) {
            match line {
                Ok(command) => commands.good.push(command),
                Err(error) => {
                    commands.fault = Some(error.into());
                    break;
                }
            }
        }
        commands
    }
}

/// Has the VM remember how it went, for its `error` file.
pub(super) fn noted<T>(vm: Option<&Vm>, result: Result<T, TreeError>) -> Result<T, TreeError> {
    match (vm, &result) {
        (Some(vm), Err(error)) if error.is_worth_noting() => vm.note_outcome(Err::<(), _>(error)),
        _ => {}
    }
    result
}
