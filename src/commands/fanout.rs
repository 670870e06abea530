//! `aq fanout`: one command in N VMs made for it.
//!
//! Whatever happens, none of them is left: each is removed when its command has ended, and all of
//! them when a signal ends this process.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::environment::{self, Override};
use super::files::{Tree, Vm};
use super::job::{End, Job, copy_out};
use super::new::{self, Given};
use super::progress::Progress;
use super::text::{command_text, complain, note};
use super::{Failure, power, remove, signals};
use crate::cli::guest::Fanout;

/// How long a shard may take from QEMU's start to its first answer.
const READY_TIMEOUT: Duration = Duration::from_secs(300);
/// Both outputs are one, in the order in which they are written.
const MERGED: &[u8] = b"exec 2>&1\n";

struct Fleet<'a> {
    args: &'a Fanout,
    vms: Vec<Vm>,
    /// They are copies of a VM that runs, and start without a further request.
    is_forked: bool,
    text: Vec<u8>,
    state: Mutex<FleetState>,
    /// Told when a shard has ended, or all shall.
    changed: Condvar,
}

#[derive(Default)]
struct FleetState {
    waiting: VecDeque<usize>,
    running: usize,
    cancelled: bool,
    worst: u8,
}

enum Event {
    Signal(i32),
    /// A thread finds nothing more to do.
    Idle,
    /// Nobody reads what we print any more.
    Unheard(io::Error),
}

pub(super) fn run(tree: &Tree, args: &Fanout) -> Result<u8, Failure> {
    let (sender, receiver) = mpsc::channel();
    // From the first VM on there is something to clear away.
    signals::forward(sender.clone(), Event::Signal)?;
    let fleet = Fleet::create(tree, args)?;
    let workers = args.jobs.unwrap_or(args.count).min(args.count);
    note(format!("[fanout] running the command in {} shards", args.count));
    let ended = thread::scope(|scope| {
        for _ in 0..workers {
            let (fleet, sender) = (&fleet, sender.clone());
            scope.spawn(move || {
                fleet.work(&sender);
                sender.send(Event::Idle)
            });
        }
        fleet.collect(&receiver, workers)
    });
    let worst = fleet.state.lock().worst;
    note(format!("[fanout] all shards finished (max exit {worst})"));
    ended.map(|signal| signal.map_or(worst, signals::exit_code))
}

impl<'a> Fleet<'a> {
    /// Makes the VMs: all of them, or none.
    fn create(tree: &Tree, args: &'a Fanout) -> Result<Self, Failure> {
        let overrides = environment::overrides()?;
        let parent = tree.image(&args.image).map(|_| None).or_else(|no_image| {
            let parent = tree.vm(&args.image).map_err(|_| no_image)?;
            parent.expect_on().map(|()| Some(parent))
        })?;
        let prefix = args.prefix.clone().unwrap_or_else(|| format!("shard-{}", std::process::id()));
        let names: Vec<String> = (0..args.count).map(|index| format!("{prefix}-{index}")).collect();
        let of = if parent.is_some() { "VM" } else { "snapshot" };
        note(format!(
            "[fanout] creating {} VM(s) from {of} '{}' as '{prefix}-0..{prefix}-{}'",
            args.count,
            args.image,
            args.count - 1
        ));
        let is_forked = parent.is_some();
        let vms = match parent {
            Some(parent) => fork(tree, &parent, &names)?,
            None => create_all(tree, args, overrides, &names)?,
        };
        let waiting = (0..vms.len()).collect();
        let state = Mutex::new(FleetState { waiting, ..FleetState::default() });
        let text = [MERGED, &command_text(&args.command)].concat();
        Ok(Self { args, vms, is_forked, text, state, changed: Condvar::new() })
    }

    /// Waits until all threads are done; a signal ends the shards first.
    fn collect(
        &self,
        receiver: &mpsc::Receiver<Event>,
        mut workers: u32,
    ) -> Result<Option<i32>, Failure> {
        let mut ended = Ok(None);
        while workers > 0 {
            match receiver.recv() {
                Ok(Event::Idle) => workers -= 1,
                Ok(Event::Signal(signal)) => {
                    note("[fanout] interrupted: removing all shards");
                    ended = ended.map(|earlier| earlier.or(Some(signal)));
                    self.cancel();
                }
                Ok(Event::Unheard(error)) => {
                    ended = Err(Failure::Output(error));
                    self.cancel();
                }
                Err(_) => break,
            }
        }
        ended
    }

    /// Ends every shard, which wakes the workers that wait for one.
    fn cancel(&self) {
        self.state.lock().cancelled = true;
        self.changed.notify_all();
        // One that has not been started, or is gone already, is off.
        self.vms.iter().for_each(|vm| drop(vm.order("kill")));
    }

    fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Runs shards until none waits.
    fn work(&self, sender: &mpsc::Sender<Event>) {
        loop {
            let Some(index) = self.state.lock().waiting.pop_front() else { return };
            let vm = &self.vms[index];
            let launched = self.launch(vm);
            let runs = usize::from(launched.is_ok());
            let code = launched.and_then(|()| self.command(vm, index, sender));
            let code = code.unwrap_or_else(|failure| self.report(&failure));
            if !self.args.keep
                && let Err(failure) = clear(vm)
            {
                complain(&failure);
            }
            let mut state = self.state.lock();
            state.running -= runs;
            state.worst = state.worst.max(code);
            drop(state);
            self.changed.notify_all();
        }
    }

    /// What fails because all shall end is not worth a word.
    fn report(&self, failure: &Failure) -> u8 {
        if !self.is_cancelled() {
            complain(failure);
        }
        failure.code()
    }

    /// Starts one. While others run, one that the host has no memory for waits until one of them
    /// has ended.
    fn launch(&self, vm: &Vm) -> Result<(), Failure> {
        loop {
            if self.is_cancelled() {
                return Err(Failure::Reported(1));
            }
            self.state.lock().running += 1;
            let launched = if self.is_forked { Ok(()) } else { power::launch(vm) };
            let Err(failure) = launched else { break };
            let mut state = self.state.lock();
            state.running -= 1;
            if failure.errno() != libc::ENOMEM || state.running == 0 {
                return Err(failure);
            }
            let before = state.running;
            let waits = |state: &mut FleetState| state.running >= before && !state.cancelled;
            self.changed.wait_while(&mut state, waits);
        }
        // The signal came before it was started, and could not end it.
        if self.is_cancelled() {
            drop(vm.order("kill"));
        }
        Ok(())
    }

    fn command(&self, vm: &Vm, index: usize, sender: &mpsc::Sender<Event>) -> Result<u8, Failure> {
        power::until_ready(vm, READY_TIMEOUT, Progress::hidden())?;
        let job = Job::new(vm)?;
        job.env("AQ_SHARD_INDEX", &index.to_string())?;
        job.env("AQ_SHARD_TOTAL", &self.args.count.to_string())?;
        drop(job.stdin()?);
        job.run(&self.text)?;
        let mut lines = PrefixedLines { prefix: format!("[{}] ", vm.name), rest: Vec::new() };
        let mut printed = copy_out(job.output("stdout")?, |bytes| lines.print(bytes));
        printed = printed.and_then(|()| lines.end());
        if let Err(error) = printed {
            drop(sender.send(Event::Unheard(error)));
        }
        let end = job.end()?;
        if let End::Lost(reason) = &end
            && !self.is_cancelled()
        {
            note(format!("aq: {}: {reason}", vm.name));
        }
        Ok(end.code())
    }
}

fn create_all(
    tree: &Tree,
    args: &Fanout,
    overrides: Vec<Override>,
    names: &[String],
) -> Result<Vec<Vm>, Failure> {
    let settings = vec![("image", tree.image(&args.image)?)];
    let given = Given { settings, overrides, volumes: Vec::new() };
    let mut vms: Vec<Vm> = Vec::new();
    for name in names {
        match new::create(tree, name, &given) {
            Ok(vm) => vms.push(vm),
            Err(failure) => {
                vms.iter().for_each(|vm| drop(tree.rmdir(&vm.name)));
                return Err(failure);
            }
        }
    }
    Ok(vms)
}

fn fork(tree: &Tree, parent: &Vm, names: &[String]) -> Result<Vec<Vm>, Failure> {
    super::fork::fork(parent, names.to_vec())?;
    names.iter().map(|name| tree.vm(name)).collect()
}

/// Removes a shard for good, in whatever state it is.
fn clear(vm: &Vm) -> Result<(), Failure> {
    power::end(vm, "kill")?;
    power::until_off(vm, Progress::hidden())?;
    remove::erase(vm)
}

/// Prints whole lines behind a name, so that those of several shards do not mix.
struct PrefixedLines {
    prefix: String,
    rest: Vec<u8>,
}

impl PrefixedLines {
    fn print(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.rest.extend(bytes);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return Ok(()) };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        let prefixed: Vec<u8> = whole
            .split_inclusive(|b| *b == b'\n')
            .flat_map(|line| [self.prefix.as_bytes(), line].concat())
            .collect();
        let mut out = io::stdout().lock();
        out.write_all(&prefixed)?;
        out.flush()
    }

    /// Prints what is left, which has no end of its own.
    fn end(&mut self) -> io::Result<()> {
        if self.rest.is_empty() { Ok(()) } else { self.print(b"\n") }
    }
}
