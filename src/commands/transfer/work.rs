//! Work that ends when the user wants it to: a signal ends the process at once, whatever the work waits for,
//! and what is written in part is removed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, unlinkat};

use super::super::{Failure, signals};
use super::dir::Dir;

/// How long removing what is written in part may take: a guest may be slow, or not answer.
const CLEARING_TIMEOUT: Duration = Duration::from_secs(10);

/// Files that are not complete yet, by number.
#[derive(Debug, Default)]
pub(in crate::commands) struct Partials {
    files: Mutex<HashMap<u64, (OwnedFd, OsString)>>,
    last: AtomicU64,
    is_ending: AtomicBool,
}

/// A name for a file until it is complete; dropped before that, the file is removed.
#[derive(Debug)]
pub(in crate::commands) struct Partial {
    of: Arc<Partials>,
    number: u64,
    pub(in crate::commands) name: OsString,
}

impl Partials {
    /// Finds a name that no other file of this process has, and no other process.
    pub(in crate::commands) fn begin(self: &Arc<Self>, dir: &Dir) -> io::Result<Partial> {
        self.expect_more()?;
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let name = OsString::from(format!(".aq-{}-{number}", std::process::id()));
        let fd = dir.fd().try_clone_to_owned()?;
        self.files.lock().insert(number, (fd, name.clone()));
        Ok(Partial { of: Arc::clone(self), number, name })
    }

    /// Fails once the user has had enough: what is written would not be removed.
    pub(in crate::commands) fn expect_more(&self) -> io::Result<()> {
        if self.is_ending.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }

    fn take(&self, number: u64) -> Option<(OwnedFd, OsString)> {
        self.files.lock().remove(&number)
    }

    fn clear_away(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        let files = std::mem::take(&mut *self.files.lock());
        files.values().for_each(|(dir, name)| remove(dir, name));
    }
}

impl Partial {
    /// It has its own name now.
    pub(in crate::commands) fn complete(self) {
        drop(self.of.take(self.number));
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some((dir, name)) = self.of.take(self.number) {
            remove(&dir, &name);
        }
    }
}

fn remove(dir: &OwnedFd, name: &OsStr) {
    // It may not have been made.
    let _gone = unlinkat(dir, name, AtFlags::empty());
}

enum Event {
    Done(Result<u8, Failure>),
    Signal(i32),
    /// What was written in part is removed.
    Cleared,
}

/// Does something on a thread of its own, until it is done or a signal ends it.
pub(in crate::commands) fn interruptible(
    work: impl FnOnce(&Arc<Partials>) -> Result<u8, Failure> + Send + 'static,
) -> Result<u8, Failure> {
    let (partials, (sender, receiver)) = (Arc::<Partials>::default(), mpsc::channel());
    signals::forward(sender.clone(), Event::Signal)?;
    let (of_work, to) = (Arc::clone(&partials), sender.clone());
    thread::spawn(move || to.send(Event::Done(work(&of_work))));
    match receiver.recv() {
        Ok(Event::Done(done)) => done,
        Ok(Event::Signal(signal)) => {
            clear_away(partials, sender);
            // Or until a second signal. That the work has failed meanwhile says nothing.
            let is_more = |event| matches!(event, Ok(Event::Done(_)));
            while is_more(receiver.recv_timeout(CLEARING_TIMEOUT)) {}
            Err(Failure::Reported(signals::exit_code(signal)))
        }
        Ok(Event::Cleared) | Err(_) => Err(Failure::Reported(1)),
    }
}

fn clear_away(partials: Arc<Partials>, sender: Sender<Event>) {
    thread::spawn(move || {
        partials.clear_away();
        sender.send(Event::Cleared)
    });
}
