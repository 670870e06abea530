//! `aq exec`: a command in a guest as if it were one here: its input, its outputs as they come, its
//! signals, its exit status.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use super::files::{Tree, Vm};
use super::job::{End, Job, copy_in, copy_out};
use super::text::{command_text, note};
use super::{Failure, local, signals};
use crate::cli::guest::Exec;

/// What runs a script that comes on standard input.
const SCRIPT: &[u8] = b"exec sh -s";
/// What programs say when a disk is full.
const FULL: &[u8] = b"No space left on device";

pub(super) enum Event {
    Signal(i32),
    /// An output has ended; true if it reported a full disk.
    Copied(io::Result<bool>),
}

pub(super) fn run(tree: &Tree, args: &Exec) -> Result<u8, Failure> {
    let vm = tree.vm(&args.vm)?;
    vm.expect_on()?;
    let text = text(args)?;
    let (sender, receiver) = mpsc::channel();
    signals::forward(sender.clone(), Event::Signal)?;
    // It is removed, and what runs of it killed, however this function ends.
    let job = Job::new(&vm)?;
    let input = job.stdin()?;
    job.run(&text)?;
    let stdin = rustix::stdio::stdin().try_clone_to_owned().map_err(local("standard input"))?;
    thread::spawn(move || copy_in(File::from(stdin), input));
    copy(&job, "stdout", io::stdout(), sender.clone())?;
    copy(&job, "stderr", io::stderr(), sender)?;
    match follow(&vm, &job, &receiver)? {
        Over::Ended { full } => Ok(conclude(&vm, &job.end()?, full)),
        Over::Interrupted(signal) => Ok(signals::exit_code(signal)),
    }
}

pub(super) enum Over {
    /// Both outputs have; `full` if one reported a full disk.
    Ended { full: bool },
    /// The user has had enough.
    Interrupted(i32),
}

/// Hands signals on until both outputs have ended.
pub(super) fn follow(vm: &Vm, job: &Job, receiver: &Receiver<Event>) -> Result<Over, Failure> {
    let (mut outputs, mut signalled, mut full) = (2, false, false);
    while outputs > 0 {
        match receiver.recv() {
            // A command that does not mind is ended by the second one, and at once where it waits
            // for its guest.
            Ok(Event::Signal(signal)) if signalled || !is_ready(vm) => {
                return Ok(Over::Interrupted(signal));
            }
            Ok(Event::Signal(signal)) => {
                signalled = true;
                // It may just have ended.
                drop(job.signal(signals::name(signal)));
            }
            Ok(Event::Copied(copied)) => {
                full |= copied.map_err(Failure::Output)?;
                outputs -= 1;
            }
            Err(_) => break,
        }
    }
    Ok(Over::Ended { full })
}

fn text(args: &Exec) -> Result<Vec<u8>, Failure> {
    if !args.command.is_empty() {
        return Ok(command_text(&args.command));
    }
    if io::stdin().is_terminal() {
        let usage = "No command or stdin provided. Usage: `aq exec VM [COMMAND]` or pipe a script";
        return Err(Failure::Usage(usage.to_owned()));
    }
    Ok(SCRIPT.to_vec())
}

fn is_ready(vm: &Vm) -> bool {
    vm.status().is_ok_and(|s| s.word() == "ready")
}

/// Copies one of its outputs to ours, on a thread of its own.
pub(super) fn copy(
    job: &Job,
    name: &str,
    mut to: impl Write + Send + 'static,
    sender: Sender<Event>,
) -> Result<(), Failure> {
    let (from, mut full) = (job.output(name)?, false);
    let may_tell = name == "stderr";
    thread::spawn(move || {
        let copied = copy_out(from, |bytes| {
            full |= may_tell && bytes.windows(FULL.len()).any(|w| w == FULL);
            to.write_all(bytes)?;
            to.flush()
        });
        sender.send(Event::Copied(copied.map(|()| full)))
    });
    Ok(())
}

pub(super) fn conclude(vm: &Vm, end: &End, full: bool) -> u8 {
    if let End::Lost(reason) = end {
        note(format!("aq: {}: {reason}", vm.name));
    }
    if full && end.code() != 0 {
        let (name, ctl) = (&vm.name, vm.path("ctl"));
        note(format!(
            "aq: the disk of {name} is full; `echo 'resize 8G' > {}`, then `aq exec {name} resize2fs \
             /dev/vda` where the image has it (or a restart), makes it larger",
            ctl.display()
        ));
    }
    end.code()
}
