//! The task that drives one VM: the only writer of its state.
//!
//! It hears three things, in this order: what the machine reports, what its own background tasks
//! report (a launch, a connection attempt, the patience of a stop), and what users ask. Nothing
//! here takes long: whatever may is a task that reports back, so `kill` is heard at any time.
//!
//! What is admitted is decided in `state.rs`; how a thing is done, by the backends. The phases of a
//! machine's life are in `adopt.rs`, `start.rs`, `reach.rs` and `stop.rs`, settings in `configure.rs`,
//! verbs that QEMU carries out at once in `verb.rs`; here are the loop, what is published, and users' requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use self::clock::GuestClock;
use self::report::{Report, Reporter, Task};
use self::snapshot::Snapshotting;
use self::start::Starting;
use self::verb::MachineVerb;
use super::backend::{
    Adoption, BackendError, ExitReport, GuestSession, Launched, Lifetime, MachineEvent, SnapshotOp,
};
use super::definition::Definition;
use super::dropped::DroppedSnapshots;
use super::events::Event;
use super::exec::{Exec, Link};
use super::memory::Reservation;
use super::settings::Held;
use super::spec::{Edit, VmSettings, VmSpec};
use super::state::{Command, State, admit};
use super::stream::Bell;
use super::{Backends, Request, Shared, View, Vm, VmError, VmId, one_line};
use crate::store::file;
use crate::store::layout::VmDir;

mod adopt;
mod clock;
mod configure;
mod dropped;
mod hold;
mod memory;
mod paused_by_daemon;
mod reach;
mod recover;
pub(crate) mod remove;
mod report;
mod snapshot;
mod start;
mod stop;
pub(crate) mod suspended;
#[cfg(test)]
mod tests;
mod turn;
mod verb;
pub(crate) mod warm;

/// What is needed to bring a VM to life in the daemon.
#[derive(Debug)]
pub struct NewVm {
    /// Its number.
    pub id: VmId,
    /// Its identity.
    pub uuid: Uuid,
    /// Its directory.
    pub dir: VmDir,
    /// Its name.
    pub name: String,
    /// Its definition, or why it cannot be read.
    pub definition: Result<Definition, String>,
    /// How long its machines may live.
    pub lifetime: Lifetime,
}

/// Starts the driver of a VM: adopts the QEMU that runs it, if any, and returns the handle when
/// the state is known.
pub async fn spawn(new_vm: NewVm, backends: Backends) -> Vm {
    let adoption = match &new_vm.definition {
        Ok(_) => adopt::find(&backends, &new_vm.dir, new_vm.uuid).await,
        Err(_) => Adoption::NeverRan,
    };
    let (asks, inbox) = mpsc::channel(16);
    let (link, links) = watch::channel(Link::Off);
    let vm = Vm(Arc::new(shared(new_vm, &backends, asks, links)));
    let mut driver = Driver::new(vm.clone(), backends, inbox, link);
    driver.settle(adoption);
    tokio::spawn(driver.run());
    vm
}

fn shared(
    new_vm: NewVm,
    backends: &Backends,
    asks: mpsc::Sender<Request>,
    links: watch::Receiver<Link>,
) -> Shared {
    let now = SystemTime::now();
    let (definition, state) = match new_vm.definition {
        Ok(definition) => (definition, State::Stopped),
        Err(reason) => {
            let settings = VmSettings::new(VmSpec::default());
            (Definition::new(new_vm.uuid, now, settings), State::Broken(reason))
        }
    };
    let console = backends.guests.console(new_vm.dir.0.clone());
    Shared {
        id: new_vm.id,
        uuid: new_vm.uuid,
        created: definition.created,
        name: RwLock::new(new_vm.name),
        settings: Held::new(definition.settings, definition.created, &new_vm.dir),
        view: watch::Sender::new(View::new(state, definition.created)),
        bell: Bell::default(),
        hypervisor: Arc::clone(&backends.hypervisor),
        pending: Mutex::default(),
        dropped: DroppedSnapshots::open(&new_vm.dir),
        failure: Mutex::new((None, definition.created)),
        exec: Exec::new(new_vm.dir.0.clone(), links, tokio::runtime::Handle::current()),
        asks,
        console,
        events: Arc::clone(&backends.events),
        guests: Arc::clone(&backends.guests),
        images: Arc::clone(&backends.images),
        machine: RwLock::default(),
        lifetime: new_vm.lifetime,
        dir: new_vm.dir,
    }
}

/// Where the answer to a request goes.
type Answer = oneshot::Sender<Result<(), VmError>>;

struct Driver {
    vm: Vm,
    backends: Backends,
    inbox: mpsc::Receiver<Request>,
    reports: mpsc::Receiver<(u64, Report)>,
    reporter: mpsc::Sender<(u64, Report)>,
    /// Counts lives of the machine: reports of an earlier one are not heard.
    life: u64,
    /// When the present wait for the guest began: its start, or the loss of what was ready.
    begun: Instant,
    link: watch::Sender<Link>,
    running: Option<Launched>,
    session: Option<Arc<dyn GuestSession>>,
    /// Its processors stand still, whatever for.
    halted: bool,
    starting: Option<Starting>,
    preparing: Option<Task>,
    reaching: Option<Task>,
    searching: Option<Task>,
    stopping: Option<Task>,
    snapshotting: Option<Snapshotting>,
    /// The image that is being made of it.
    pinned_by: Option<String>,
    /// It is being removed: requests wait until it is gone (`true`) or stays.
    retiring: Option<oneshot::Receiver<bool>>,
    /// What the host has promised it, from its start to its end.
    memory: Option<Reservation>,
    /// A change of settings is under way.
    is_changing: bool,
    /// Requests that wait for its end.
    waiting: VecDeque<Request>,
    clock: GuestClock,
    setting_clock: Option<Task>,
}

impl Drop for Driver {
    /// Whoever waits for a state must not wait for ever because of a fault of ours. The machine runs
    /// on, and the next daemon adopts it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "a fault in aqfs; `aq umount` and `aq mount` find the VM again";
            self.enter(State::Failed(reason.to_owned()));
        }
    }
}

impl Driver {
    fn new(
        vm: Vm,
        backends: Backends,
        inbox: mpsc::Receiver<Request>,
        link: watch::Sender<Link>,
    ) -> Self {
        let (reporter, reports) = mpsc::channel(16);
        Self {
            vm,
            backends,
            inbox,
            reports,
            reporter,
            life: 0,
            begun: Instant::now(),
            link,
            running: None,
            session: None,
            halted: false,
            starting: None,
            preparing: None,
            reaching: None,
            searching: None,
            stopping: None,
            snapshotting: None,
            pinned_by: None,
            retiring: None,
            memory: None,
            is_changing: false,
            waiting: VecDeque::new(),
            clock: GuestClock::default(),
            setting_clock: None,
        }
    }

    async fn run(mut self) {
        loop {
            if let Some(ask) = self.next_in_turn() {
                if self.carry_out(ask) == Life::Over {
                    return;
                }
                continue;
            }
            tokio::select! {
                biased;
                event = next_event(&mut self.running) => self.on_event(event),
                Some((life, report)) = self.reports.recv() => {
                    match life == self.life {
                        true => self.on_report(report),
                        false => self.on_late_report(report),
                    }
                }
                is_gone = remove::outcome(&mut self.retiring) => {
                    if self.on_retired(is_gone) == Life::Over {
                        return;
                    }
                }
                ask = self.inbox.recv(), if self.retiring.is_none() => match ask {
                    Some(ask) => {
                        if self.on_ask(ask) == Life::Over {
                            return;
                        }
                    }
                    None => return,
                },
            }
        }
    }

    // ----- what is published -------------------------------------------------------------------

    fn publish(&self, change: impl FnOnce(&mut View)) {
        self.vm.0.view.send_modify(change);
        self.vm.0.bell.ring();
    }

    fn enter(&self, state: State) {
        let old = self.vm.state();
        if old == state {
            return;
        }
        tracing::info!(vm = %self.vm.name(), from = old.word(), to = %state, "state");
        let event = Event::Status(state.to_string());
        self.publish(|view| {
            view.doing = None;
            view.since = SystemTime::now();
            view.state = state;
        });
        if self.state().is_off() {
            self.vm.follow_image_without_disk();
        }
        self.vm.tell(&event);
    }

    fn state(&self) -> State {
        self.vm.state()
    }

    fn note(&self, text: &str) {
        let path = self.vm.dir().log();
        let line = format!("aq: {}\n", one_line(text));
        drop(tokio::task::spawn_blocking(move || file::append(&path, line.as_bytes())));
    }

    // ----- users -------------------------------------------------------------------------------

    fn carry_out(&mut self, ask: Request) -> Life {
        match ask {
            Request::Command(command, answer) => return self.on_command(command, answer),
            Request::Configure(edit, answer) => self.configure(edit, answer),
            Request::Hold(image, answer) => self.hold(image, answer),
            Request::Capture(to, answer) => self.capture(to, answer),
            Request::DropSnapshot(tag, by, answer) => self.drop_snapshot(tag, by, answer),
            Request::Retire(by, answer) => self.retire(by, answer),
        }
        Life::GoesOn
    }

    fn on_command(&mut self, command: Command, answer: Answer) -> Life {
        if command == Command::Kill && self.gives_up_suspended() {
            self.give_up_suspended(answer);
            return Life::GoesOn;
        }
        if let Err(refusal) = admit(&self.state(), &command, self.vm.spec().protect) {
            drop(answer.send(Err(self.explained(refusal).into())));
            return Life::GoesOn;
        }
        match command {
            Command::Start { paused } => return self.start(paused, answer),
            Command::Stop { seconds } => {
                self.stop(Duration::from_secs(seconds));
                drop(answer.send(Ok(())));
            }
            Command::Kill if matches!(self.state(), State::Unreachable(_)) => {
                self.kill_silent(answer);
            }
            Command::Kill => {
                self.kill();
                drop(answer.send(Ok(())));
            }
            Command::Pause => self.machine_command(MachineVerb::Pause, answer),
            Command::Resume => self.machine_command(MachineVerb::Resume, answer),
            Command::Reset => self.machine_command(MachineVerb::Reset, answer),
            Command::PressKeys { chords } => {
                self.machine_command(MachineVerb::PressKeys(chords), answer);
            }
            Command::Resize { bytes } => self.configure(Edit::Disk(bytes), answer),
            Command::AddPort(forward) => self.configure(Edit::AddPort(forward), answer),
            Command::RemovePort(forward) => self.configure(Edit::RemovePort(forward), answer),
            Command::Suspend => self.suspend(answer),
            Command::Take(tag) => self.snapshot(SnapshotOp::Take(tag), answer),
            Command::Restore(tag) => self.snapshot(SnapshotOp::Restore(tag), answer),
            Command::Drop(tag) => self.snapshot(SnapshotOp::Drop(tag), answer),
            Command::RenameSnapshot { from, to } => {
                self.snapshot(SnapshotOp::Rename { from, to }, answer);
            }
            Command::Remove => {
                self.link.send_replace(Link::Off);
                drop(answer.send(Ok(())));
                return Life::Over;
            }
        }
        Life::GoesOn
    }

    fn on_event(&mut self, event: MachineEvent) {
        match event {
            MachineEvent::Paused => self.on_paused(),
            MachineEvent::Resumed => self.on_resumed(),
            MachineEvent::Reset => {
                self.vm.tell(&Event::Reset);
                self.on_reset();
            }
            MachineEvent::Announced => self.on_announced(),
            MachineEvent::ShutDown { by_guest } => self.on_shut_down(by_guest),
            MachineEvent::DiskFull => self.on_disk_full(),
            MachineEvent::Exited(report) => self.on_exited(&report),
        }
    }

    fn on_paused(&mut self) {
        self.halted = true;
        self.clock.stop();
        if matches!(self.state(), State::Running | State::Ready) {
            self.enter(State::Paused);
        }
    }

    fn on_shut_down(&mut self, by_guest: bool) {
        if by_guest {
            self.note("the guest has shut down");
        }
        self.enter(State::Stopping);
    }

    fn on_disk_full(&mut self) {
        let error = BackendError::NoSpace { what: "the VM's disk: it is paused".to_owned() };
        self.note(&error.to_string());
        self.vm.note_outcome(Err::<(), _>(error));
        self.on_paused();
    }
}

/// Whether the driver goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    GoesOn,
    Over,
}

async fn next_event(running: &mut Option<Launched>) -> MachineEvent {
    match running {
        Some(launched) => launched.events.recv().await.unwrap_or_else(|| {
            // The watcher of the process is gone without a report: nothing is known any more.
            MachineEvent::Exited(ExitReport {
                clean: false,
                status: "unknown".to_owned(),
                stderr: String::new(),
                unusable: None,
            })
        }),
        None => std::future::pending().await,
    }
}

/// Runs disk work off the runtime's own threads.
///
/// # Errors
/// What the disk answered, with `what` for the sentence.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    what: &'static str,
) -> Result<T, BackendError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| BackendError::io(what, &e)),
        Err(panic) => {
            let error = panic.to_string();
            Err(BackendError::Io { what: what.to_owned(), error, errno: 0 })
        }
    }
}
