//! A VM's serial line: one connection to QEMU's socket, any number of readers.
//!
//! Each run of the machine has a [`SerialLine`] of its own: streams of the last run drain and end
//! while those of the next one begin. What is not here: the connection (`line`), the bytes that are
//! kept (`ring`), and how the socket and the log are put together (`log`).

mod log;
mod ring;
mod serial_line;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Handle;

use self::serial_line::SerialLine;
use super::tty::Terminals;
use crate::vm::VmError;
use crate::vm::backend::{BackendError, Console};
use crate::vm::stream::{Listener, Readiness, Stream, StreamAccess, Text};

/// The serial line of one VM.
#[derive(Debug)]
pub struct SerialConsole {
    dir: PathBuf,
    runtime: Handle,
    run: Mutex<Run>,
    lost: Arc<AtomicU64>,
}

/// The machine's present run, or the one to come.
#[derive(Debug)]
struct Run {
    line: Arc<SerialLine>,
    attached: bool,
    terminals: Terminals,
}

impl Run {
    fn new(lost: &Arc<AtomicU64>) -> Self {
        let line = SerialLine::new(Arc::clone(lost));
        Self { line, attached: false, terminals: Terminals::default() }
    }
}

impl SerialConsole {
    /// Describes the line of the VM in `dir`; its task will live on `runtime`.
    pub fn new(dir: PathBuf, runtime: Handle) -> Self {
        let lost = Arc::<AtomicU64>::default();
        Self { dir, runtime, run: Mutex::new(Run::new(&lost)), lost }
    }
}

impl Console for SerialConsole {
    fn attach(&self) {
        let mut run = self.run.lock();
        if !run.attached {
            run.attached = true;
            let serve = Arc::clone(&run.line).serve(self.dir.clone());
            self.runtime.spawn(serve);
        }
    }

    fn detach(&self) {
        let mut run = self.run.lock();
        let last = std::mem::replace(&mut *run, Run::new(&self.lost));
        if last.attached {
            last.line.stop();
        } else {
            last.line.end();
        }
    }

    fn open(&self, access: StreamAccess) -> Arc<dyn Stream> {
        let line = Arc::clone(&self.run.lock().line);
        match access {
            StreamAccess::Read => Arc::new(Opened::new(line, Some(Start::Scrollback))),
            StreamAccess::Converse => Arc::new(Opened::new(line, Some(Start::Now))),
            StreamAccess::Write => Arc::new(Opened::new(line, None)),
            StreamAccess::Peek => Arc::new(scrollback(&line)),
        }
    }

    fn terminal(&self) -> Result<PathBuf, BackendError> {
        let mut run = self.run.lock();
        let line = Arc::clone(&run.line);
        let open = || Arc::new(Opened::new(Arc::clone(&line), Some(Start::Now))) as _;
        let next = run.terminals.next(&self.runtime, open);
        next.map_err(|e| BackendError::io("a pseudo-terminal on the serial line", &e))
    }

    fn has_terminal_open(&self) -> bool {
        self.run.lock().terminals.has_open()
    }

    fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

impl Drop for SerialConsole {
    fn drop(&mut self) {
        self.detach();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    Scrollback,
    Now,
}

#[derive(Debug)]
struct Opened {
    line: Arc<SerialLine>,
    /// `None` does not read.
    reader: Option<u64>,
}

impl Opened {
    fn new(line: Arc<SerialLine>, start: Option<Start>) -> Self {
        let reader = start.map(|start| line.join(start));
        Self { line, reader }
    }
}

impl Stream for Opened {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        match self.reader {
            Some(reader) => self.line.read(reader, max).map(Ok),
            None => Some(Ok(Vec::new())),
        }
    }

    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        self.line.write(data)
    }

    fn readiness(&self) -> Readiness {
        self.line.readiness(self.reader)
    }

    fn listen(&self) -> Listener {
        self.line.listen()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(reader) = self.reader {
            self.line.leave(reader);
        }
    }
}

/// Returns what a crawler gets: the scrollback at the moment of its open.
fn scrollback(line: &SerialLine) -> Text {
    let reader = line.join(Start::Scrollback);
    let bytes = line.read(reader, usize::MAX).unwrap_or_default();
    line.leave(reader);
    Text::new(bytes)
}
