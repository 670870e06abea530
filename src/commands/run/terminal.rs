//! The terminal that `aq run -t` lends to a command: its size, and every key.

use std::io::{self, IsTerminal};
use std::thread;

use rustix::termios::tcgetwinsize;
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;

use crate::cli::guest::Run;
use crate::commands::attach::Raw;
use crate::commands::job::Job;
use crate::commands::{Failure, local};

/// The size of a terminal that has none.
const USUAL: (u16, u16) = (80, 24);

/// Refuses `-it` without a terminal, before anything is made.
pub(super) fn expect(args: &Run) -> Result<(), Failure> {
    if args.tty && args.interactive && !io::stdin().is_terminal() {
        let what = "-t takes a terminal, and standard input is none; leave -t out for a pipe";
        return Err(Failure::Usage(what.to_owned()));
    }
    Ok(())
}

/// Gives a job a terminal like this one, which then hands on every key until the returned value is
/// dropped.
pub(super) fn lend(args: &Run, job: &Job) -> Result<Option<Raw>, Failure> {
    if !args.tty {
        return Ok(None);
    }
    let (columns, rows) = size();
    job.terminal(columns, rows)?;
    follow_size(job)?;
    if !args.interactive {
        return Ok(None);
    }
    Raw::enter().map_err(local("the terminal"))
}

fn size() -> (u16, u16) {
    let known =
        tcgetwinsize(rustix::stdio::stdout()).or_else(|_| tcgetwinsize(rustix::stdio::stdin()));
    match known {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        Ok(_) | Err(_) => USUAL,
    }
}

/// Hands on each change of the size, on a thread of its own.
fn follow_size(job: &Job) -> Result<(), Failure> {
    let mut signals = Signals::new([SIGWINCH]).map_err(local("signals"))?;
    let resize = job.resizer();
    thread::spawn(move || {
        signals.forever().for_each(|_| {
            let (columns, rows) = size();
            resize(columns, rows);
        });
    });
    Ok(())
}
