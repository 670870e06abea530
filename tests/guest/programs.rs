//! Real programs on the mount: what each does with each kind of file, as one table.
//!
//! None may hang: every row has a bound, and no process of it may be left waiting in the kernel.

mod table;

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::common::terminal::Terminal;
use crate::common::{Mounted, Output, eventually, proc, shell};
use rustix::process::{Pid, Signal};
use table::{DIALOGUES, Dialogue, Expect, ROWS, Row};

/// What a row may take; nothing in the table waits for longer than three seconds by itself.
const BOUND: Duration = Duration::from_secs(20);
/// How long a program must have waited to count as parked.
const PARKED: Duration = Duration::from_millis(400);
/// "At once": the promise, and what a busy machine may add to it.
const AT_ONCE: Duration = Duration::from_millis(500);

fn three_vms() -> Mounted {
    let aq = Mounted::with_image();
    aq.sh("mkdir off on held && echo 'start paused' > held/ctl").ok();
    aq.boot_existing("on");
    aq
}

#[test]
fn every_program_does_with_every_file_what_the_table_says() {
    let aq = three_vms();
    let wrong: Vec<String> = ROWS.iter().filter_map(|row| check(&aq, row).err()).collect();
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), ROWS.len(), wrong.join("\n"));
}

/// Runs a row; the error names it and says what happened instead.
fn check(aq: &Mounted, row: &Row) -> Result<(), String> {
    let (program, kind, script, expect) = row;
    let own = tempfile::tempdir_in(aq.scratch()).expect("a directory of the row's own");
    let ended = match expect {
        Expect::Dies => dies(aq, script, own.path()),
        Expect::Says(_) | Expect::Fails(_) | Expect::Ends(_) => {
            ends(aq, script, own.path()).and_then(|said| fits(&said, *expect))
        }
    };
    // A copy of `.docs` is as read-only as the original, and could not be removed.
    shell::finish(Command::new("chmod").args(["-R", "u+w"]).arg(own.path()), BOUND).ok();
    ended.map_err(|what| format!("{program} on a {kind}: `{script}`: expected {expect:?}, {what}"))
}

fn fits(said: &Output, expect: Expect) -> Result<(), String> {
    let good = match expect {
        Expect::Says(text) => said.code == 0 && said.stdout == text,
        Expect::Fails(words) => said.code != 0 && said.stderr.contains(words),
        Expect::Ends(code) => said.code == code,
        Expect::Dies => unreachable!("it has no output to judge"),
    };
    if good { Ok(()) } else { Err(format!("got {said:?}")) }
}

/// A script that runs, in a process group of its own.
struct Running {
    child: std::process::Child,
    out: std::path::PathBuf,
    err: std::path::PathBuf,
}

impl Running {
    fn start(aq: &Mounted, script: &str, own: &Path) -> Self {
        let (out, err) = (own.join(".out"), own.join(".err"));
        let file = |path| File::create(path).expect("a file of the row's own");
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).current_dir(aq.dir()).process_group(0);
        command.env("T", own).env("HOME", aq.scratch().join("home")).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        Self { child: command.spawn().expect("bash"), out, err }
    }

    /// Waits for the end; `None` is that it did not come. Nothing of the group may be left in the
    /// kernel then.
    fn end(mut self, bound: Duration) -> Result<Option<Output>, String> {
        let deadline = Instant::now() + bound;
        let status = loop {
            match self.child.try_wait().expect("our child") {
                Some(status) => break Some(status),
                None if Instant::now() > deadline => break None,
                None => sleep(Duration::from_millis(2)),
            }
        };
        let group = self.child.id();
        let left = proc::group(group);
        proc::kill_group(group);
        let _reaped = shell::wait(self.child, BOUND);
        if let Some(stuck) = left.iter().find(|p| p.state == 'D') {
            eventually(&format!("{stuck:?} out of the kernel"), BOUND, || !proc::alive(stuck.pid));
        }
        let Some(status) = status else { return Ok(None) };
        let text = |path| fs::read_to_string(path).map_err(|e| format!("it printed no text: {e}"));
        let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1);
        Ok(Some(Output { stdout: text(&self.out)?, stderr: text(&self.err)?, code }))
    }
}

fn ends(aq: &Mounted, script: &str, own: &Path) -> Result<Output, String> {
    let ended = Running::start(aq, script, own).end(BOUND)?;
    ended.ok_or_else(|| format!("still ran after {BOUND:?}"))
}

fn dies(aq: &Mounted, script: &str, own: &Path) -> Result<(), String> {
    let mut running = Running::start(aq, script, own);
    sleep(PARKED);
    if let Some(status) = running.child.try_wait().expect("our child") {
        let said = running.end(BOUND)?;
        return Err(format!("ended by itself with {status}: {said:?}"));
    }
    let group = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
    rustix::process::kill_process_group(group, Signal::TERM).expect("it runs");
    let said = running.end(AT_ONCE)?.ok_or_else(|| format!("lived {AT_ONCE:?} after SIGTERM"))?;
    if said.code == 128 + 15 { Ok(()) } else { Err(format!("ended otherwise: {said:?}")) }
}

#[test]
fn programs_for_terminals() {
    let aq = three_vms();
    let terminal = Terminal::open(aq.scratch().join("tmux"), &aq.dir());
    terminal.enter(&format!("T={}; HOME=$T; PS1='$ '; clear", aq.scratch().display()));
    DIALOGUES.iter().for_each(|dialogue| hold(&aq, &terminal, dialogue));
}

#[expect(clippy::print_stdout, reason = "it is shown with a test that has failed")]
fn hold(aq: &Mounted, terminal: &Terminal, (program, line, shows, keys): &Dialogue) {
    let needs_tty = line.contains("on/tty");
    if needs_tty && !aq.path("on/tty").exists() {
        println!("NOT RUN: {line}: there is no tty yet");
        return;
    }
    println!("{line}");
    terminal.enter(line);
    terminal.until_foreground(program);
    eventually(&format!("{line} shows {shows:?}"), BOUND, || terminal.screen().contains(shows));
    sleep(PARKED);
    for key in *keys {
        terminal.press(key);
        // Ctrl-C throws away what was typed ahead of it and behind it.
        sleep(PARKED);
    }
    terminal.until_foreground("bash");
    terminal.enter("clear");
}
