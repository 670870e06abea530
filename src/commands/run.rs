//! `aq run`: a command in a new VM of an image: its input, outputs, terminal, signals and exit status
//! as if it ran here. The VM ends with the command.
//!
//! [`image`]: which image, made if it is not there. [`command`]: which command, as shell text.
//! [`terminal`]: this terminal and its size.

mod command;
pub(super) mod image;
mod terminal;

use std::fs::File;
use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use self::command::Process;
use self::image::Chosen;
use super::exec::{self, Event, Over};
use super::files::{Tree, Vm};
use super::job::{Job, copy_in};
use super::new::{self, Given};
use super::progress::Progress;
use super::text::{complain, line, note};
use super::volume::Volume;
use super::{Failure, environment, power, remove, signals};
use crate::cli::guest::Run;

/// How long a guest may take from QEMU's start to its first answer.
const BOOT_TIMEOUT: Duration = Duration::from_secs(300);
/// How long an image may take to notice that it was cancelled.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn run(tree: &Tree, args: &Run) -> Result<u8, Failure> {
    terminal::expect(args)?;
    let (sender, receiver) = mpsc::channel();
    // From the first name on there is something to clear away.
    signals::forward(sender.clone(), Event::Signal)?;
    let volumes = new::volumes(&args.volumes)?;
    let image = Chosen::find_or_make(tree, &args.image)?;
    let vm =
        create(tree, args, &image.name, volumes.clone()).inspect_err(|_| image.give_up(tree))?;
    let begun = begin(&vm, args, &receiver, &volumes);
    if begun.is_err() {
        complain_of(clear(&vm));
        image.give_up(tree);
    }
    let process = begun.map_err(|failure| failure.about(args.image.clone()))?;
    if args.detach {
        detach(&vm, args, &process).inspect_err(|_| complain_of(clear(&vm)))?;
        warm(tree, args, &image);
        return line(&vm.name).map(|()| 0);
    }
    let code = converse(&vm, args, &process, (sender, &receiver));
    complain_of(if args.rm { clear(&vm) } else { stop(&vm) });
    if code.is_ok() {
        warm(tree, args, &image);
    }
    code
}

/// Makes the VM.
fn create(tree: &Tree, args: &Run, image: &str, volumes: Vec<Volume>) -> Result<Vm, Failure> {
    let ports = args.ports.iter().map(|p| new::forward(p)).collect::<Vec<_>>().join("\n");
    let settings = [
        ("image", Some(image.to_owned())),
        ("memory", args.memory.clone()),
        ("cpus", args.cpus.map(|n| n.to_string())),
        ("disk", args.size.clone()),
        ("net", args.net.clone()),
        ("ports", Some(ports).filter(|p| !p.is_empty())),
    ];
    let settings = settings.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
    let given = Given { settings, overrides: environment::overrides()?, volumes };
    match &args.name {
        Some(name) => new::create(tree, name, &given),
        None => new::create_any(tree, &given),
    }
}

/// Starts the VM, waits until its guest answers, and says what to run in it. A signal ends it.
fn begin(
    vm: &Vm,
    args: &Run,
    receiver: &Receiver<Event>,
    volumes: &[Volume],
) -> Result<Process, Failure> {
    power::launch(vm)?;
    let mut signalled = None;
    let answered = power::until_ready_while(vm, BOOT_TIMEOUT, Progress::new(), || {
        if let Ok(Event::Signal(signal)) = receiver.try_recv() {
            signalled = Some(signal);
        }
        signalled.is_none()
    });
    if let Some(signal) = signalled {
        return Err(Failure::Reported(signals::exit_code(signal)));
    }
    answered?;
    volumes.iter().try_for_each(|volume| volume.expect(vm))?;
    Process::of(vm, args)
}

/// Runs the command and returns its exit status.
fn converse(
    vm: &Vm,
    args: &Run,
    process: &Process,
    (sender, receiver): (Sender<Event>, &Receiver<Event>),
) -> Result<u8, Failure> {
    let job = Job::new(vm)?;
    let raw = terminal::lend(args, &job)?;
    let input = job.stdin()?;
    job.run(&process.text)?;
    if args.interactive {
        let stdin = rustix::stdio::stdin().try_clone_to_owned();
        let stdin = File::from(stdin.map_err(super::local("standard input"))?);
        thread::spawn(move || copy_in(stdin, input));
    } else {
        drop(input);
    }
    exec::copy(&job, "stdout", io::stdout(), sender.clone())?;
    exec::copy(&job, "stderr", io::stderr(), sender)?;
    let over = exec::follow(vm, &job, receiver);
    let code = match over? {
        Over::Ended { full } => exec::conclude(vm, &job.end()?, full),
        Over::Interrupted(signal) => signals::exit_code(signal),
    };
    drop(raw);
    Ok(code)
}

/// Runs the command as a job that outlives this process; the VM ends with it, and with `--rm` the daemon
/// removes it then.
fn detach(vm: &Vm, args: &Run, process: &Process) -> Result<(), Failure> {
    let job = Job::new(vm)?;
    drop(job.stdin()?);
    let autoremove = |word| vm.tree().write(&format!("{}/config/autoremove", vm.name), word);
    if args.rm {
        autoremove("1")?;
    }
    // One that could not run it is removed by this process.
    job.run(&process.and_then_power_off()).inspect_err(|_| drop(autoremove("0")))?;
    job.leave();
    Ok(())
}

/// Removes a VM for good, in whatever state it is.
fn clear(vm: &Vm) -> Result<(), Failure> {
    power::end(vm, "kill")?;
    power::until_off(vm, Progress::hidden())?;
    remove::erase(vm)
}

/// Shuts a VM down, with all that its guest has written on its disk.
fn stop(vm: &Vm) -> Result<(), Failure> {
    power::end(vm, "stop")?;
    power::until_off(vm, Progress::new())
}

fn complain_of(done: Result<(), Failure>) {
    if let Err(failure) = done {
        complain(&failure);
    }
}

/// Has the image captured, so that the next VM of it resumes instead of booting. The daemon does it
/// in the background; what prevents it is no failure of this run.
fn warm(tree: &Tree, args: &Run, image: &Chosen) {
    // A template fits VMs of its own shape alone.
    let is_usual = args.memory.is_none() && args.cpus.is_none() && args.size.is_none();
    let dir = format!(".images/{}", image.name);
    if is_usual && tree.read_or_nothing(&format!("{dir}/warm")) == "no" {
        drop(tree.write(&format!("{dir}/ctl"), "warm"));
    }
}

impl Chosen {
    /// Ends the work on an image that this run has begun, as `aq pull` does. One that was to be made for
    /// this run alone, and has not become one, is removed.
    fn give_up(&self, tree: &Tree) {
        let dir = format!(".images/{}", self.name);
        if !self.is_begun_here || tree.read_or_nothing(&format!("{dir}/status")) == "ready" {
            return;
        }
        let is_cancelled = tree.write(&format!("{dir}/ctl"), "cancel").is_ok();
        let since = Instant::now();
        let may_wait = || since.elapsed() < CANCEL_TIMEOUT;
        drop(tree.awaited(&format!("{dir}/wait"), may_wait));
        let is_gone = self.is_new && tree.rmdir(&dir).is_ok();
        match (is_cancelled, is_gone) {
            (true, true) => note(format!("{}: cancelled", self.name)),
            (true, false) => {
                let name = &self.name;
                note(format!("{name}: cancelled; `aq pull {name}` continues where it was"));
            }
            (false, _) => {}
        }
    }
}
