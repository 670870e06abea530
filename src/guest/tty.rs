//! Terminals on a VM's serial line: pseudo-terminals that the daemon bridges to the console, for
//! programs that want a tty (`screen`, `picocom`, `stty`).
//!
//! A [`Terminal`] is one more stream of the console: it shows what the line prints while a program
//! has it open, and what is typed goes to the line. The past is not shown: a terminal answers some
//! of the control sequences in it, which the guest would take for typed, and these programs throw
//! away what is there when they open it. Which terminal a user gets is decided here
//! ([`Terminals`]); how the line is fanned out is the console's business.

use std::fs::Permissions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{ControlModes, OptionalActions, QueueSelector};
use rustix::termios::{tcflush, tcgetattr, tcsetattr};
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::sys;
use crate::vm::stream::Stream;

const CHUNK: usize = 4096;
/// Terminals of one VM: one for each that is open at once, and the next user's.
const MOST: usize = 16;
/// How long the last words may wait to be read: hanging up throws away what has not been.
const GRACE: Duration = Duration::from_millis(300);
/// The speed that a terminal shows. It means nothing here, but 0 means "hang up".
const SPEED: u32 = 115_200;

#[derive(Debug, Default)]
pub(super) struct Terminals(Vec<Arc<Terminal>>);

impl Terminals {
    /// Returns the path of a terminal that no program has open: one that was used before, so that a
    /// path once read stays good for `stty` and then `screen`, or else a new one, so that two
    /// users at once do not take each other's bytes. `open` opens the line.
    pub(super) fn next(
        &mut self,
        runtime: &Handle,
        open: impl Fn() -> Arc<dyn Stream>,
    ) -> io::Result<PathBuf> {
        // A program that took one for itself (TIOCEXCL, as screen does) leaves it so for good:
        // it cannot be opened any more, and is given up.
        self.0.retain(|terminal| terminal.is_open() || terminal.prepare().is_ok());
        let idle = self.0.iter().find(|terminal| !terminal.is_open()).cloned();
        let terminal = match idle {
            Some(terminal) => terminal,
            None if self.0.len() >= MOST => return Err(rustix::io::Errno::NOSPC.into()),
            None => self.add(runtime, open())?,
        };
        Ok(terminal.path.clone())
    }

    /// Says whether a program has one open.
    pub(super) fn has_open(&self) -> bool {
        self.0.iter().any(|terminal| terminal.is_open())
    }

    fn add(&mut self, runtime: &Handle, line: Arc<dyn Stream>) -> io::Result<Arc<Terminal>> {
        let terminal = Arc::new(Terminal::new(line)?);
        let _entered = runtime.enter();
        let bridge = Bridge::new(Arc::clone(&terminal))?;
        runtime.spawn(bridge.run());
        self.0.push(Arc::clone(&terminal));
        Ok(terminal)
    }
}

/// A pseudo-terminal. Its bridge holds it while the machine runs; dropping it hangs up on the
/// programs that have it open.
#[derive(Debug)]
struct Terminal {
    master: OwnedFd,
    path: PathBuf,
    line: Arc<dyn Stream>,
    /// Bytes from the line that the terminal has not accepted yet. Its lock is held while more are
    /// moved.
    printed: Mutex<Vec<u8>>,
}

impl Terminal {
    fn new(line: Arc<dyn Stream>) -> io::Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        rustix::io::ioctl_fionbio(&master, true)?;
        let name = ptsname(&master, Vec::new())?;
        let path = PathBuf::from(name.to_string_lossy().into_owned());
        // As `console`: others of the group tty have no business on it.
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        let terminal = Self { master, path, line, printed: Mutex::default() };
        terminal.prepare()?;
        Ok(terminal)
    }

    /// Prepares it for its next user: raw, as the guest has a line discipline of its own, and
    /// without output that the last user has not read. Once it was opened and closed, the kernel
    /// reports on the master's side whether a program has it open.
    fn prepare(&self) -> io::Result<()> {
        // Opening it below must not look like a user to the bridge, which may lag behind.
        let mut printed = self.printed.lock();
        printed.clear();
        while matches!(self.line.try_read(CHUNK), Some(Ok(bytes)) if !bytes.is_empty()) {}
        let tty = open_tty(&self.path)?;
        let mut attributes = tcgetattr(&tty)?;
        attributes.make_raw();
        attributes.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
        attributes.set_speed(SPEED)?;
        tcsetattr(&tty, OptionalActions::Now, &attributes)?;
        Ok(tcflush(&tty, QueueSelector::IFlush)?)
    }

    fn is_open(&self) -> bool {
        let mut fds = [PollFd::new(&self.master, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let polled = poll(&mut fds, Some(&at_once));
        polled.is_ok() && !fds[0].revents().contains(PollFlags::HUP)
    }
}

fn open_tty(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Relays between a terminal and the line, never waiting for one while the other has something.
struct Bridge {
    terminal: Arc<Terminal>,
    /// Becomes readable when the terminal changes. An epoll within the runtime's: a terminal that
    /// no program has open is hung up, which the runtime's own would report without end.
    events: AsyncFd<OwnedFd>,
    /// Bytes from the terminal that the line has not accepted yet.
    typed: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Moved,
    Idle,
    Over,
}

impl Bridge {
    fn new(terminal: Arc<Terminal>) -> io::Result<Self> {
        let events = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edges = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&events, &terminal.master, epoll::EventData::new_u64(0), edges)?;
        let events = sys::readable_fd(events)?;
        Ok(Self { terminal, events, typed: Vec::new() })
    }

    async fn run(mut self) {
        loop {
            let mut bell = self.terminal.line.listen();
            let typed = self.take_typed();
            match self.take_printed() {
                Step::Over => break,
                Step::Moved => tokio::task::yield_now().await,
                Step::Idle if typed == Step::Moved => tokio::task::yield_now().await,
                Step::Idle => tokio::select! {
                    () = bell.rung() => {}
                    () = self.stirred() => {}
                },
            }
        }
        self.finish().await;
    }

    async fn stirred(&self) {
        if let Ok(mut ready) = self.events.readable().await {
            let mut events = Vec::with_capacity(1);
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            // What it was is found by trying.
            let _tried = epoll::wait(&self.events, spare_capacity(&mut events), Some(&at_once));
            ready.clear_ready();
        }
    }

    fn take_typed(&mut self) -> Step {
        if self.typed.is_empty() {
            let mut chunk = [0; CHUNK];
            // Nothing yet, or (EIO) no program has it open: both end when the terminal stirs.
            let len = rustix::io::read(&self.terminal.master, &mut chunk).unwrap_or(0);
            self.typed.extend_from_slice(&chunk[..len]);
        }
        if self.typed.is_empty() {
            return Step::Idle;
        }
        match self.terminal.line.try_write(&self.typed) {
            Some(Ok(taken)) => drop(self.typed.drain(..taken)),
            Some(Err(_)) => self.typed.clear(),
            None => return Step::Idle,
        }
        Step::Moved
    }

    /// Moves a chunk from the line to the terminal. What no program is there to see is passed over;
    /// what a slow reader leaves waits in the line, which drops the oldest beyond its bound.
    fn take_printed(&self) -> Step {
        let Terminal { master, line, .. } = &*self.terminal;
        let mut printed = self.terminal.printed.lock();
        if printed.is_empty() {
            match line.try_read(CHUNK) {
                Some(Ok(bytes)) if !bytes.is_empty() => *printed = bytes,
                Some(_) => return Step::Over,
                None => return Step::Idle,
            }
        }
        if !self.terminal.is_open() {
            printed.clear();
            return Step::Moved;
        }
        match rustix::io::write(master, &printed) {
            Ok(taken) if taken > 0 => {
                printed.drain(..taken);
                Step::Moved
            }
            _ if line.readiness().hung_up => Step::Over,
            _ => Step::Idle,
        }
    }

    /// Lets programs read the last output before the terminal hangs up.
    async fn finish(self) {
        if self.terminal.is_open() {
            let closed = async {
                while self.terminal.is_open() {
                    self.stirred().await;
                }
            };
            drop(timeout(GRACE, closed).await);
        }
    }
}
