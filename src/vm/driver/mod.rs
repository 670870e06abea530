//! The task that drives one VM: the only writer of its state.
//!
//! What a VM is at is one value, its [`Phase`]. The driver hears three things, in this order: what the
//! machine reports, what its own background tasks report, and what users ask. Each is an input of
//! [`Phase::step`], a pure function that returns the next phase and the effects: words, and tasks that
//! report back. Nothing is awaited in the loop, so `kill` is heard at any time.
//!
//! ```text
//!                 take, restore, drop, pin
//!             ┌──────────────────────────────▶ UsingDisk ──┐
//!             │ ◀──────────────── done ────────────────────┘
//!             │   retire                   gone
//!   ┌───────▶ Off ─────────▶ Removing ─────────────▶ Removed
//!   │         │ ▲ ◀──────────────┘ stays
//!   │   start │ │ failed, called off
//!   │         ▼ │
//!   │       Starting: Planning ──▶ Launching ──▶ CalledOff
//!   │                                 │ greeted      │ greeted
//!   │                                 ▼              │
//!   │   ┌────▶ Running, Idle ─────────┐              │
//!   │   │ done   │ take, restore,     │ stop, kill   │
//!   │   │        ▼ suspend, capture   ▼              ▼
//!   │   └── Running, Snapshot ──────▶ Running, Stopping
//!   │       Running, Capture    kill, suspended
//!   │
//!   └── QEMU ended: from each Running
//!
//!   A QEMU that an earlier daemon has started, and that does not answer:
//!
//!       Unreachable ──── kill ────▶ EndingSilent ──── ended ────▶ Off
//!          │  ▲                         │
//!          │  └─────── not ended ───────┘
//!          └── it answers ──▶ Running, Idle;  it has ended ──▶ Off
//! ```
//!
//! The published [`State`] follows from the phase, in [`Phase::state`] alone. A request passes
//! `admission.rs` (is it possible now, or must it wait?), and then takes a step in `requested.rs`; what
//! machines and tasks report takes one in `reported.rs`. The effects are listed in `effect.rs`, and the
//! tasks are in `start`, `connect`, `clock`, `snapshot`, `suspended`, `warm_start`, `capture`,
//! `configure`, `verb`, `remove`, `adopt` and `recover`.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use uuid::Uuid;

use self::admission::Queue;
use self::phase::{Input, Phase, Rest, StartStage};
use self::task::{Report, Sent};
use super::backend::{Adoption, BackendError, ExitReport, Hypervisor, Lifetime, MachineEvent};
use super::definition::Definition;
use super::disks::Disks;
use super::dropped::DroppedSnapshots;
use super::events::Event;
use super::exec::{Exec, Link};
use super::files::Files;
use super::idle::{self, Usage};
use super::probe::Probes;
use super::settings::CurrentSettings;
use super::shares::Shares;
use super::spec::{VmSettings, VmSpec};
use super::state::State;
use super::stream::Bell;
use super::template::Template;
use super::{Action, Answer, Backends, Request, Shared, View, Vm, VmId, one_line};
use crate::store::file;
use crate::store::layout::VmDir;

mod admission;
mod adopt;
pub(crate) mod capture;
mod clock;
mod configure;
mod connect;
mod dropped;
mod effect;
mod memory;
mod paused_by_daemon;
mod phase;
mod recover;
pub(crate) mod remove;
mod reported;
mod requested;
mod running;
mod snapshot;
mod start;
pub(crate) mod suspended;
mod task;
#[cfg(test)]
pub(in crate::vm) mod tests;
mod verb;
mod warm_start;

/// What is needed to bring a VM to life in the daemon.
#[derive(Debug)]
pub struct NewVm {
    pub(crate) id: VmId,
    pub(crate) uuid: Uuid,
    pub(crate) dir: VmDir,
    pub(crate) name: String,
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
    spawn_with(new_vm, None, &backends, adoption)
}

/// Starts the driver of a VM that was just made, and whose first start loads this machine.
pub fn spawn_fork(new_vm: NewVm, of: Template, backends: &Backends) -> Vm {
    spawn_with(new_vm, Some(of), backends, Adoption::NeverRan)
}

fn spawn_with(
    new_vm: NewVm,
    fork: Option<Template>,
    backends: &Backends,
    adoption: Adoption,
) -> Vm {
    let (requests, inbox) = mpsc::channel(16);
    let (link, links) = watch::channel(Link::Off);
    let (shared, rest) = shared(new_vm, fork, backends, (requests, links));
    let vm = Vm(Arc::new(shared));
    let (reporter, reports) = mpsc::channel(16);
    let mut driver = Driver {
        vm: vm.clone(),
        phase: Phase::Off(rest),
        queue: Queue::default(),
        inbox,
        reports,
        reporter,
        link,
    };
    driver.advance(Input::Report(Report::Found(adoption)));
    vm.enter_nets();
    tokio::spawn(driver.run());
    idle::begin(&vm);
    vm
}

fn shared(
    new_vm: NewVm,
    fork: Option<Template>,
    backends: &Backends,
    (requests, links): (mpsc::Sender<Request>, watch::Receiver<Link>),
) -> (Shared, Rest) {
    let now = SystemTime::now();
    let (definition, rest) = match new_vm.definition {
        Ok(definition) => (definition, Rest::Stopped),
        Err(reason) => {
            let settings = VmSettings::new(VmSpec::default());
            (Definition::new(new_vm.uuid, now, settings), Rest::Broken(reason))
        }
    };
    let usage = Usage::new(Some(requests.clone()));
    usage.set_asleep(is_asleep(&*backends.hypervisor, &new_vm.dir));
    let console = backends.guests.console(new_vm.dir.0.clone());
    let (id, changes) = (new_vm.id, Arc::clone(&backends.file_changes));
    let ended = Box::new(move || changes.tell(id));
    let created = definition.created;
    let shared = Shared {
        id: new_vm.id,
        uuid: new_vm.uuid,
        created,
        name: RwLock::new(new_vm.name),
        settings: CurrentSettings::new(definition, &new_vm.dir),
        view: watch::Sender::new(View {
            state: rest.state(),
            since: created,
            doing: None,
            facts: None,
            ready_after: None,
        }),
        bell: Bell::default(),
        backends: backends.clone(),
        pending: Mutex::default(),
        dropped: DroppedSnapshots::open(&new_vm.dir),
        failure: Mutex::new((None, created)),
        probes: Probes::new(links.clone(), tokio::runtime::Handle::current()),
        files: Files::new(links.clone()),
        shares: Shares::open(&new_vm.dir, backends),
        disks: Disks::open(&new_vm.dir, backends),
        exec: Exec::new(
            new_vm.dir.0.clone(),
            links,
            Arc::clone(&usage),
            tokio::runtime::Handle::current(),
            ended,
        ),
        usage,
        requests,
        console,
        fork: Mutex::new(fork),
        machine: RwLock::default(),
        lifetime: new_vm.lifetime,
        dir: new_vm.dir,
    };
    (shared, rest)
}

/// Says whether a VM that is off was suspended because nobody used it.
fn is_asleep(hypervisor: &dyn Hypervisor, dir: &VmDir) -> bool {
    dir.asleep().exists() && suspended::saved(hypervisor, dir).is_some()
}

struct Driver {
    vm: Vm,
    phase: Phase,
    queue: Queue,
    inbox: mpsc::Receiver<Request>,
    reports: mpsc::Receiver<Sent>,
    /// Where tasks report.
    reporter: mpsc::Sender<Sent>,
    /// The way into the guest, for `exec`.
    link: watch::Sender<Link>,
}

impl Drop for Driver {
    /// Whoever waits for a state must not wait for ever because of a fault of ours. The machine runs
    /// on, and the next daemon adopts it.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "a fault in aqfs; `aq umount` and `aq mount` find the VM again";
            self.phase = Phase::Off(Rest::Failed(reason.to_owned()));
            self.publish();
        }
    }
}

impl Driver {
    async fn run(mut self) {
        self.serve().await;
        self.vm.0.usage.watched_by(None);
    }

    async fn serve(&mut self) {
        while !self.phase.is_removed() {
            if !self.phase.is_removing()
                && let Some(request) = self.queue.next()
            {
                self.carry_out(request);
                continue;
            }
            tokio::select! {
                biased;
                event = next_event(&mut self.phase) => self.advance(Input::Event(event)),
                Some(sent) = self.reports.recv() => {
                    if let Some(report) = sent.heard() {
                        self.on_report(report);
                    }
                }
                request = self.inbox.recv(), if !self.phase.is_removing() => match request {
                    Some(request) => self.on_request(request),
                    None => return,
                },
            }
        }
    }

    fn carry_out(&mut self, mut request: Request) {
        if let Action::Command(command) = &mut request.action
            && let Some(instead) = self.kill_of_suspended(command)
        {
            *command = instead;
            return self.advance(Input::Request(request, None));
        }
        match self.check(&request.action) {
            Ok(memory) => self.advance(Input::Request(request, memory)),
            Err(error) => request.refuse(error),
        }
    }

    fn on_report(&mut self, mut report: Report) {
        if let Report::Planned(planned) = &mut report
            && let Ok(plan) = planned
            && let Err(error) = self.amend(plan)
        {
            *planned = Err(error);
        }
        self.advance(Input::Report(report));
    }

    /// Takes one step, publishes what it led to, and performs its effects.
    fn advance(&mut self, input: Input) {
        let (phase, step) = std::mem::take(&mut self.phase).step(input, Instant::now());
        self.phase = phase;
        step.first.into_iter().for_each(|effect| self.perform(effect));
        self.publish();
        step.then.into_iter().for_each(|effect| self.perform(effect));
    }

    /// Publishes what readers may see of the phase.
    fn publish(&self) {
        let old = self.vm.view();
        self.note_sleep(&old.state);
        self.publish_link();
        let new = self.view(&old);
        if new == old {
            return;
        }
        let state = (new.state != old.state).then(|| new.state.clone());
        self.vm.0.view.send_replace(new);
        self.vm.0.bell.ring();
        let Some(state) = state else { return };
        tracing::info!(vm = %self.vm.name(), from = old.state.word(), to = %state, "state");
        if state.is_off() {
            self.vm.follow_image_without_disk();
        }
        self.vm.emit(&Event::Status(state.to_string()));
    }

    fn view(&self, old: &View) -> View {
        let state = self.phase.state();
        let running = self.phase.machine();
        View {
            since: if state == old.state { old.since } else { SystemTime::now() },
            state,
            doing: match self.phase.start_stage() {
                Some(StartStage::Planning { .. }) => {
                    Some(format!("image {}", self.vm.spec().image))
                }
                Some(StartStage::Launching) => Some("QEMU".to_owned()),
                Some(StartStage::CalledOff) | None => None,
            },
            facts: running.map(|running| running.facts.clone()),
            ready_after: running.and_then(|running| running.ready_after),
        }
    }

    /// A machine that has come is not asleep, whatever suspended it before.
    fn note_sleep(&self, old: &State) {
        let (new, dir) = (self.phase.state(), self.vm.dir());
        if new == *old {
            return;
        }
        if new.is_off() {
            let is_asleep = is_asleep(&*self.vm.0.backends.hypervisor, dir);
            self.vm.0.usage.set_asleep(is_asleep);
        } else if matches!(new, State::Running | State::Ready | State::Paused)
            && (old.is_off() || *old == State::Starting)
        {
            self.vm.0.usage.set_asleep(false);
            drop(file::remove(&dir.asleep()));
        }
    }

    fn publish_link(&self) {
        let usage = &self.vm.0.usage;
        let new = match self.phase.link() {
            Link::Off if self.phase.is_off() && usage.is_asleep() => {
                Link::Asleep(Arc::clone(usage))
            }
            other @ (Link::Off | Link::Coming | Link::Up(_) | Link::Asleep(_)) => other,
        };
        self.link.send_if_modified(|old| {
            let is_new = !old.is(&new);
            *old = new;
            is_new
        });
    }
}

impl Vm {
    /// Adds a line to its log.
    fn note(&self, text: &str) {
        let (path, line) = (self.dir().log(), format!("aq: {}\n", one_line(text)));
        drop(tokio::task::spawn_blocking(move || file::append(&path, line.as_bytes())));
    }
}

async fn next_event(phase: &mut Phase) -> MachineEvent {
    match phase.machine_mut() {
        Some(running) => running.events.recv().await.unwrap_or_else(|| {
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
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    what: impl Into<String>,
) -> Result<T, BackendError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| BackendError::io(what, &e)),
        Err(panic) => Err(BackendError::fact(what, panic.to_string(), 0)),
    }
}
