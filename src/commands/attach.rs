//! `aq attach`: this terminal on a guest's serial line.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::sync::mpsc::{self, Sender};
use std::thread;

use crossterm::terminal::{disable_raw_mode, enable_raw_mode};

use super::files::Tree;
use super::text::note;
use super::{Failure, local, signals};
use crate::cli::guest::Attach;

/// Ctrl-], as telnet has it.
const ESCAPE: u8 = 0x1d;

enum Over {
    Left,
    Ended,
    Signal(i32),
    Failed(io::Error),
}

pub(super) fn run(tree: &Tree, args: &Attach) -> Result<(), Failure> {
    let vm = tree.vm(&args.vm)?;
    vm.wake()?;
    let line = File::options().read(true).write(true).open(vm.path("console"));
    let line = tree.explained(&*vm.name, line)?;
    let shown = line.try_clone().map_err(local("console"))?;
    let (sender, receiver) = mpsc::channel();
    signals::forward(sender.clone(), Over::Signal)?;
    note(format!("[{}: press Return for a prompt; Ctrl-] leaves]", vm.name));
    let raw = Raw::enter().map_err(local("the terminal"))?;
    let ended = sender.clone();
    thread::spawn(move || ended.send(show(shown)));
    type_in(line, sender)?;
    let over = receiver.recv().unwrap_or(Over::Left);
    drop(raw);
    match over {
        Over::Left => note(format!("\n[left {}]", vm.name)),
        Over::Ended => note(format!("\n[{} has ended]", vm.name)),
        Over::Signal(signal) => return Err(Failure::Reported(signals::exit_code(signal))),
        Over::Failed(error) => return tree.explained(&*vm.name, Err(error)),
    }
    Ok(())
}

fn show(mut line: File) -> Over {
    let mut buffer = vec![0; 64 << 10];
    let mut out = io::stdout();
    loop {
        let shown = match line.read(&mut buffer) {
            Ok(0) => return Over::Ended,
            Ok(n) => out.write_all(&buffer[..n]).and_then(|()| out.flush()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => return Over::Failed(error),
        };
        if let Err(error) = shown {
            return Over::Failed(error);
        }
    }
}

/// Sends what is typed, on a thread of its own: at a terminal until Ctrl-], else to the end.
fn type_in(mut line: File, sender: Sender<Over>) -> Result<(), Failure> {
    let on_terminal = io::stdin().is_terminal();
    let stdin = rustix::stdio::stdin().try_clone_to_owned();
    let mut keys = File::from(stdin.map_err(local("standard input"))?);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let typed = match keys.read(&mut buffer) {
                // What was typed is answered for as long as the machine runs.
                Ok(0) if !on_terminal => return,
                Ok(0) => break,
                Ok(n) => &buffer[..n],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            let escape = typed.iter().position(|b| on_terminal && *b == ESCAPE);
            // A guest that does not read its line at this moment misses what is typed.
            drop(line.write_all(&typed[..escape.unwrap_or(typed.len())]));
            if escape.is_some() {
                break;
            }
        }
        drop(sender.send(Over::Left));
    });
    Ok(())
}

/// A terminal that hands on every key. Dropping it brings it back to what it was.
pub(super) struct Raw;

impl Raw {
    /// `None` where standard input is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        io::stdin().is_terminal().then(|| enable_raw_mode().map(|()| Self)).transpose()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _gone = disable_raw_mode();
    }
}
