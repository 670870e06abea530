//! One command in a guest, through the files of `jobs/NAME/`: made, run, signalled, ended, and
//! removed with its owner, which kills those of its processes that run.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use signal_hook::low_level::signal_name;

use super::Failure;
use super::files::Vm;

/// The exit status of ssh when its connection breaks.
const LOST: u8 = 255;
/// Bytes copied at a time: as much as a request of FUSE carries by default.
const CHUNK: usize = 128 << 10;
/// Names that an earlier process with our number may have taken.
const TRIES: u32 = 1000;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(super) struct Job {
    vm: Vm,
    /// `vm1/jobs/aq-812-0`
    dir: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With this exit status; 128 and its number if a signal ended it.
    Code(u8),
    /// The guest, or the way to it, was lost.
    Lost(String),
}

impl Job {
    pub(super) fn new(vm: &Vm) -> Result<Self, Failure> {
        for _ in 0..TRIES {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let dir = format!("{}/jobs/aq-{}-{number}", vm.name, process::id());
            match vm.tree().mkdir(&dir) {
                Err(failure) if failure.errno() == libc::EEXIST => {}
                made => return made.map(|()| Self { vm: vm.clone(), dir }),
            }
        }
        let sentence = "every name for a job of this process is taken".to_owned();
        Err(Failure::Refused { what: vm.name.clone(), sentence, errno: libc::EEXIST })
    }

    /// Sets a variable of its environment, before it is run.
    pub(super) fn env(&self, name: &str, value: &str) -> Result<(), Failure> {
        self.vm.tree().write(&self.file("ctl"), &format!("env {name}={value}"))
    }

    /// Gives it a terminal, before it is run.
    pub(super) fn terminal(&self, columns: u16, rows: u16) -> Result<(), Failure> {
        self.vm.tree().write(&self.file("ctl"), &format!("pty {columns}x{rows}"))
    }

    /// Returns what changes the size of its terminal.
    pub(super) fn resizer(&self) -> impl Fn(u16, u16) + Send + 'static {
        let (tree, ctl) = (self.vm.tree().clone(), self.file("ctl"));
        // It may just have ended.
        move |columns, rows| drop(tree.write(&ctl, &format!("winsize {columns}x{rows}")))
    }

    /// Leaves it to itself: it is not removed with this.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }

    /// Opens its input; the last closing is its end.
    pub(super) fn stdin(&self) -> Result<File, Failure> {
        self.open("stdin", File::options().write(true))
    }

    pub(super) fn output(&self, name: &str) -> Result<File, Failure> {
        self.open(name, File::options().read(true))
    }

    pub(super) fn run(&self, text: &[u8]) -> Result<(), Failure> {
        let mut cmd = self.open("cmd", File::options().write(true))?;
        self.vm.tree().explained(&*self.vm.name, cmd.write_all(text))
    }

    /// Sends it a signal, by its name without `SIG`.
    pub(super) fn signal(&self, name: &str) -> Result<(), Failure> {
        self.vm.tree().write(&self.file("ctl"), &format!("signal {name}"))
    }

    /// Waits until it has ended. Its outputs should be read by then: a command that prints more
    /// than is kept waits for its reader.
    pub(super) fn end(&self) -> Result<End, Failure> {
        Ok(parse(&self.vm.tree().read(&self.file("wait"))?))
    }

    fn open(&self, name: &str, options: &OpenOptions) -> Result<File, Failure> {
        let tree = self.vm.tree();
        tree.explained(&*self.vm.name, options.open(tree.path(self.file(name))))
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // It is gone already where the VM is.
        drop(self.vm.tree().rmdir(&self.dir));
    }
}

impl End {
    /// Returns the exit status that stands for it.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Code(code) => *code,
            Self::Lost(_) => LOST,
        }
    }
}

fn parse(status: &str) -> End {
    if let Some(code) = status.strip_prefix("exit ").and_then(|n| n.parse::<u32>().ok()) {
        return End::Code(u8::try_from(code).unwrap_or(u8::MAX));
    }
    match status.strip_prefix("signal ") {
        Some(name) => End::Code(number(name).map_or(LOST, |n| 128 + n)),
        None => End::Lost(status.strip_prefix("lost: ").unwrap_or(status).to_owned()),
    }
}

fn number(name: &str) -> Option<u8> {
    let is_it =
        |n: &u8| signal_name((*n).into()).is_some_and(|s| s.strip_prefix("SIG") == Some(name));
    (1..=64).find(is_it)
}

/// Copies what a command says to where it goes, as it comes. An output that breaks off ends; how
/// that came about, [`Job::end`] says.
pub(super) fn copy_out(
    mut from: File,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&buffer[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Ok(()),
        }
    }
}

/// Copies an input to a command until either has enough.
pub(super) fn copy_in(mut from: impl Read, mut to: File) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(n @ 1..) if push(&mut to, &buffer[..n]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}

/// Writes all of it, however long the command does not read: a write gives up after 5 s.
fn push(to: &mut File, mut data: &[u8]) -> io::Result<()> {
    use io::ErrorKind::{Interrupted, WouldBlock};
    while !data.is_empty() {
        match to.write(data) {
            Ok(n) => data = &data[n..],
            Err(error) if matches!(error.kind(), Interrupted | WouldBlock) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_exit_codes_as_shells_have_them() {
        let table = [
            ("exit 0", End::Code(0)),
            ("exit 7", End::Code(7)),
            ("signal TERM", End::Code(143)),
            ("signal KILL", End::Code(137)),
            ("signal WEIRD", End::Code(255)),
            ("lost: the VM went off", End::Lost("the VM went off".to_owned())),
        ];
        for (status, end) in table {
            assert_eq!(parse(status), end, "{status}");
        }
        assert_eq!(parse("lost: x").code(), 255);
    }
}
