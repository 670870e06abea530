//! Bounds the files that QEMU appends to without end, console log and stderr, while a machine runs.
//!
//! inotify reports writes (one instance for all machines), so that a quiet machine costs no
//! wake-up. QEMU writes the files itself and outlives the daemon: what it writes while no daemon
//! runs is bounded when the next daemon adopts it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use crate::store::bounded;
use crate::store::layout::VmDir;
use crate::sys;
use crate::vm::backend::Machine;

/// How long writes are gathered before the files are bounded.
const PAUSE: Duration = Duration::from_millis(500);
/// Room for events: one without a name has 16 bytes.
const EVENTS: usize = 4096;
/// Events that are read between two pauses.
const MOST: usize = 4096;

/// The files that are kept bounded.
#[derive(Debug, Default)]
pub(super) struct LogLimiter {
    watch: Mutex<Option<Arc<LogWatch>>>,
}

#[derive(Debug)]
struct LogWatch {
    inotify: AsyncFd<OwnedFd>,
    files: Mutex<HashMap<i32, BoundedFile>>,
}

/// A file, and the machine that writes to it.
#[derive(Debug)]
struct BoundedFile {
    path: PathBuf,
    machine: Weak<dyn Machine>,
}

impl LogLimiter {
    /// Keeps the files of a machine bounded for as long as it runs. Without inotify they are
    /// bounded this once.
    pub(super) async fn keep(&self, dir: &VmDir, machine: &Arc<dyn Machine>) {
        let paths = [dir.console_log(), dir.log()];
        if let Err(error) = self.begin().and_then(|watch| watch.add(&paths, machine)) {
            tracing::warn!(dir = %dir.0.display(), %error, "its logs may grow without end");
        }
        bound(paths.into()).await;
    }

    /// Returns what watches the files; the first call starts it.
    fn begin(&self) -> io::Result<Arc<LogWatch>> {
        let mut watch = self.watch.lock();
        if let Some(watch) = &*watch {
            return Ok(Arc::clone(watch));
        }
        let flags = CreateFlags::NONBLOCK | CreateFlags::CLOEXEC;
        let inotify = sys::readable_fd(inotify::init(flags)?)?;
        let new = Arc::new(LogWatch { inotify, files: Mutex::default() });
        tokio::spawn(follow(Arc::clone(&new)));
        *watch = Some(Arc::clone(&new));
        Ok(new)
    }
}

impl LogWatch {
    fn add(&self, paths: &[PathBuf], machine: &Arc<dyn Machine>) -> io::Result<()> {
        let mut files = self.files.lock();
        self.forget_ended(&mut files);
        for path in paths {
            let number = inotify::add_watch(&self.inotify, path, WatchFlags::MODIFY)?;
            files.insert(
                number,
                BoundedFile { path: path.clone(), machine: Arc::downgrade(machine) },
            );
        }
        Ok(())
    }

    fn forget_ended(&self, files: &mut HashMap<i32, BoundedFile>) {
        files.retain(|number, kept| {
            let runs = kept.machine.strong_count() > 0;
            if !runs {
                // The kernel drops the watch of a file that is gone by itself.
                let _forgotten = inotify::remove_watch(&self.inotify, *number);
            }
            runs
        });
    }

    /// Waits until files have been written to, and returns them.
    async fn written(&self) -> io::Result<Vec<PathBuf>> {
        let mut ready = self.inotify.readable().await?;
        let mut space = [MaybeUninit::uninit(); EVENTS];
        let mut events = inotify::Reader::new(&self.inotify, &mut space);
        let (mut numbers, mut all, mut are_all_read) = (HashSet::new(), false, false);
        // A machine that writes without end makes events without end.
        for _ in 0..MOST {
            let Ok(event) = events.next() else {
                are_all_read = true;
                break;
            };
            all |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            numbers.insert(event.wd());
        }
        match are_all_read {
            true => ready.clear_ready(),
            false => ready.retain_ready(),
        }
        let files = self.files.lock();
        let written = files.iter().filter(|(number, _)| all || numbers.contains(number));
        Ok(written.map(|(_, kept)| kept.path.clone()).collect())
    }
}

/// Bounds files that are written to, for the life of the daemon.
async fn follow(watch: Arc<LogWatch>) {
    loop {
        match watch.written().await {
            Ok(paths) => bound(paths).await,
            Err(error) => return tracing::warn!(%error, "logs may grow without end"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn bound(paths: Vec<PathBuf>) {
    let work = move || {
        for path in paths {
            if let Err(error) = bounded::bound(&path) {
                tracing::warn!(path = %path.display(), %error, "it may grow without end");
            }
        }
    };
    // The panic hook has reported a panic in there.
    spawn_blocking(work).await.ok();
}
