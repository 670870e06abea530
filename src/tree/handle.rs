//! What an open file is, and what reading and writing it means.
//!
//! Values are in `value.rs`, files to which commands are written in `control.rs`. No names
//! (`directories/`); no waiting: what takes time is returned as a future.

use std::sync::Arc;

use futures::{FutureExt, TryFutureExt};

use super::control::{Assignment, OpenControl, noted};
use super::value::OpenValue;
use super::{Answer, TreeError};
use crate::store::bounded::Tail;
use crate::vm::caller::Caller;
use crate::vm::stream::{self, Listener, Readiness, Stream};
use crate::vm::{Vm, VmError, driver};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    ReadWrite,
}

impl Access {
    pub(crate) fn reads(self) -> bool {
        self != Self::Write
    }

    pub(crate) fn writes(self) -> bool {
        self != Self::Read
    }
}

/// An open(2), in our own terms.
pub(crate) struct OpenRequest<'a> {
    pub(crate) access: Access,
    /// `O_APPEND`: `>>`.
    pub(crate) append: bool,
    /// `O_NOFOLLOW`, which only programs that walk trees give: they get what is there and EOF.
    pub(crate) crawler: bool,
    pub(crate) caller: &'a dyn Fn() -> Caller,
}

/// Whether a read or a write may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IoMode {
    Blocking,
    /// `O_NONBLOCK`: it answers [`TreeError::WouldBlock`] instead.
    NonBlocking,
}

pub(crate) enum Open {
    /// A value, and where writes go: nowhere if it cannot be written.
    Value(OpenValue, Option<Assignment>),
    /// The end of a file on disk, which may grow while it is read: `tail -f` follows it.
    Tail(Arc<Tail>),
    Control(Arc<OpenControl>),
    Stream(OpenStream),
}

pub(crate) struct OpenStream {
    stream: Arc<dyn Stream>,
    /// A crawler gets end of file where others would wait.
    crawler: bool,
    vm: Option<Vm>,
}

/// The answer to poll(2).
pub(crate) struct Polled {
    pub(crate) readiness: Readiness,
    /// The content differs from what this open file has read (POLLPRI, POLLERR).
    pub(crate) changed: bool,
    /// Hears when the answer may have changed; `None`: never.
    pub(crate) listener: Option<Listener>,
}

impl Open {
    /// Opens a stream, or reports why there is none.
    pub(super) fn stream(
        stream: Result<Arc<dyn Stream>, TreeError>,
        request: &OpenRequest<'_>,
        vm: Option<Vm>,
    ) -> Result<Self, TreeError> {
        let crawler = request.crawler && !request.access.writes();
        match stream {
            Ok(stream) => Ok(Self::Stream(OpenStream { stream, crawler, vm })),
            // An error would end a `cp -r` or `grep -r` that has not asked for this file.
            Err(_) if crawler => Ok(Self::Value(OpenValue::fixed(Vec::new()), None)),
            Err(error) => Err(error),
        }
    }

    /// Reads. The offset counts for fixed content; streams and results continue where they were.
    pub(crate) fn read(&self, offset: u64, max: usize, mode: IoMode) -> Answer<Vec<u8>> {
        match self {
            Self::Value(value, _) => Answer::Now(Ok(value.read(offset, max))),
            Self::Tail(tail) => read_tail(Arc::clone(tail), offset, max),
            Self::Control(control) => Answer::Now(Ok(control.read(max))),
            Self::Stream(stream) => stream.read(max, mode),
        }
    }

    pub(crate) fn write(&self, data: &[u8], mode: IoMode) -> Answer<usize> {
        match self {
            Self::Value(_, Some(assignment)) => assignment.write(data),
            Self::Value(_, None) | Self::Tail(_) => Answer::Now(Err(TreeError::ReadOnly)),
            Self::Control(control) => OpenControl::write(control, data),
            Self::Stream(stream) => stream.write(data, mode),
        }
    }

    pub(crate) fn poll(&self) -> Polled {
        match self {
            Self::Value(value, _) => value.poll(),
            // A read of these never waits: at their end it answers 0 bytes.
            Self::Tail(_) | Self::Control(_) => Polled::ALWAYS,
            Self::Stream(stream) => stream.poll(),
        }
    }

    /// Says whether reading at an offset makes the content again, by a look at the disk.
    pub(super) fn remakes_slowly(&self, offset: u64) -> bool {
        matches!(self, Self::Value(value, _) if value.remakes_slowly(offset))
    }

    /// A descriptor of this open file was closed.
    ///
    /// # Errors
    /// Why a text that was written in pieces is not taken.
    pub(crate) fn flush(&self) -> Answer<()> {
        match self {
            Self::Stream(OpenStream { stream, .. }) => {
                stream.flush();
                Answer::Now(Ok(()))
            }
            Self::Value(_, Some(assignment)) => assignment.flush(),
            Self::Value(_, None) | Self::Tail(_) | Self::Control(_) => Answer::Now(Ok(())),
        }
    }
}

impl Polled {
    /// Reads and writes never wait, and nothing changes by itself.
    pub(super) const ALWAYS: Self = Self {
        readiness: Readiness { readable: true, writable: true, hung_up: false },
        changed: false,
        listener: None,
    };
}

impl OpenStream {
    fn read(&self, max: usize, mode: IoMode) -> Answer<Vec<u8>> {
        match self.stream.try_read(max) {
            None | Some(Err(_)) if self.crawler => Answer::Now(Ok(Vec::new())),
            Some(result) => Answer::Now(self.noted(result)),
            None if mode == IoMode::NonBlocking => Answer::Now(Err(TreeError::WouldBlock)),
            None => Answer::noted(self.vm.clone(), stream::read(Arc::clone(&self.stream), max)),
        }
    }

    fn write(&self, data: &[u8], mode: IoMode) -> Answer<usize> {
        match self.stream.try_write(data) {
            Some(result) => Answer::Now(self.noted(result)),
            None if mode == IoMode::NonBlocking => Answer::Now(Err(TreeError::WouldBlock)),
            None => {
                let write = stream::write(Arc::clone(&self.stream), data.to_vec());
                let written = |done: Option<Result<_, VmError>>| match done {
                    Some(result) => result.map_err(TreeError::from),
                    None => Err(TreeError::WouldBlock),
                };
                Answer::noted(self.vm.clone(), write.map(written))
            }
        }
    }

    fn noted<T>(&self, result: Result<T, VmError>) -> Result<T, TreeError> {
        noted(self.vm.as_ref(), result.map_err(TreeError::from))
    }

    fn poll(&self) -> Polled {
        // A change between the look and the listening would be missed: listening begins first.
        let listener = Some(self.stream.listen());
        let mut readiness = self.stream.readiness();
        readiness.readable |= self.crawler;
        Polled { readiness, changed: false, listener }
    }
}

fn read_tail(tail: Arc<Tail>, offset: u64, max: usize) -> Answer<Vec<u8>> {
    let read = driver::off_thread(move || tail.read(offset, max), "a log");
    Answer::later(read.map_err(VmError::from))
}
