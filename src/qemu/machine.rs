//! A running QEMU: what is asked of it over QMP, what it reports, and how it ends. Changes of its
//! hardware while it runs are in [`live`].

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::capture::CaptureRequest;
use super::events::EventSink;
use super::install::Installation;
use super::limits::Groups;
use super::limits::group::Group;
use super::limits::watch::Watch;
use super::monitor::Conversation;
use super::process::{Process, last_words};
use super::qmp::Qmp;
use super::{capture, repair, run_record};
use crate::store::layout::VmDir;
use crate::vm::backend::{
    BackendError, DataDisk, DiskPlace, ExitReport, LaunchPlan, Launched, Machine, MachineEvent,
    NicPlace, Result, RunFacts, SnapshotOp,
};
use crate::vm::live::InForce;
use crate::vm::spec::net::{Forward, Mac};
use crate::vm::spec::{HostLimits, IoLimit, render_size};
use crate::vm::template::{Purpose, SavedMachine, Template};

mod data_disks;
mod grow;
pub mod live;
mod nics;
mod processors;
mod snapshot;
pub mod throttle;
use crate::vm::stream::{Stream, StreamAccess};

/// The steps of `kill`, with what each may take: QEMU flushes its disks on `quit` and on SIGTERM,
/// and the kernel needs a while to free a large memory after SIGKILL.
const QUIT_TIMEOUT: Duration = Duration::from_secs(2);
const TERM_TIMEOUT: Duration = Duration::from_secs(2);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of one of {process, QMP connection} may follow that of the other.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// How a process ended, once it has.
pub type Ended = watch::Receiver<Option<String>>;

/// Watches a process to its end and reaps it.
pub fn watch_end(process: Arc<Process>) -> Ended {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move { sender.send_replace(Some(process.ended().await)) });
    receiver
}

/// Waits for a process's end and says how it ended.
pub async fn end_of(ended: &Ended) -> String {
    let mut ended = ended.clone();
    let status = ended.wait_for(Option::is_some).await;
    // The watching task is gone only when the runtime is.
    status.map_or_else(|_| None, |s| s.clone()).unwrap_or_else(|| "unknown".to_owned())
}

/// Ends a QEMU that was not asked to, or does not listen.
pub async fn end_by_signals(process: &Process, ended: &Ended) -> Result<()> {
    let what = || format!("end QEMU, pid {}", process.pid);
    for (signal, bound) in [(Signal::TERM, TERM_TIMEOUT), (Signal::KILL, KILL_TIMEOUT)] {
        process.signal(signal).map_err(|e| BackendError::io(what(), &e))?;
        if timeout(bound, end_of(ended)).await.is_ok() {
            return Ok(());
        }
    }
    let fact = "it survives SIGKILL: the kernel waits for a disk or network that hangs";
    Err(BackendError::fact(what(), fact, libc::EBUSY))
}

/// Says that QEMU died, with its last words.
pub fn died(dir: &VmDir, status: String) -> BackendError {
    let said = Some(last_words(dir)).filter(|words| !words.is_empty());
    let silent = || "it left no message; `cat log` shows how it was started".to_owned();
    BackendError::QemuDied { status, stderr: said.unwrap_or_else(silent) }
}

/// Says whether QEMU ended cleanly. The exit status is known of our own children only; for others a
/// `SHUTDOWN` event counts, which no crash sends.
fn is_clean(status: &str, shut_down: bool) -> bool {
    status == "exit 0" || (status == "unknown" && shut_down)
}

/// The parts of a machine just started or found.
#[derive(Debug)]
pub struct MachineParts {
    /// What is known about it.
    pub facts: RunFacts,
    /// Its directory.
    pub dir: VmDir,
    /// The connection to it.
    pub qmp: Qmp,
    /// Its process.
    pub process: Arc<Process>,
    /// That process's end.
    pub ended: Ended,
    /// QEMU may have leaked clusters of the disk: it has loaded a snapshot, or may have under an earlier
    /// daemon.
    pub may_leak: AtomicBool,
    /// Its processors, with those that were added; 0: as many as `facts` says.
    pub processors: AtomicU32,
    /// What holds it to its limits; a capture target has none.
    pub groups: Option<Arc<Groups>>,
}

impl MachineParts {
    /// Returns what is known about it, with the processors that it has now.
    fn facts_now(&self) -> RunFacts {
        let mut facts = self.facts.clone();
        let processors = self.processors.load(Ordering::Relaxed);
        if let Some(shape) = facts.shape.as_mut().filter(|_| processors > 0) {
            shape.cpus = processors;
        }
        facts
    }

    /// Puts the machine together, and follows it to its end.
    pub fn run(
        self,
        (sink, events): (EventSink, mpsc::Receiver<MachineEvent>),
        paused: bool,
    ) -> Launched {
        let (killed, unusable) = (AtomicBool::new(false), OnceLock::new());
        let (watch, events_of_watch) = (Mutex::default(), Mutex::new(Some(sink.clone())));
        let machine =
            Arc::new(RunningQemu { parts: self, killed, unusable, events_of_watch, watch });
        machine.watch_memory();
        tokio::spawn(Arc::clone(&machine).follow(sink));
        Launched { machine, events, paused, clock_is_behind: false }
    }
}

/// A QEMU that runs.
#[derive(Debug)]
struct RunningQemu {
    parts: MachineParts,
    killed: AtomicBool,
    /// Why it cannot be used any more.
    unusable: OnceLock<BackendError>,
    /// What is told of its memory, while it has a control group.
    watch: Mutex<Option<Watch>>,
    /// Where that goes; nowhere once it has ended, as its events end then.
    events_of_watch: Mutex<Option<EventSink>>,
}

impl RunningQemu {
    /// Waits for the end, reports it as the last event and removes the record after a wanted end.
    /// Stops when the receiver of events is gone: the connection closes, for the next daemon.
    async fn follow(self: Arc<Self>, sink: EventSink) {
        let status = loop {
            tokio::select! {
                biased;
                status = end_of(&self.parts.ended) => break status,
                () = sink.abandoned() => return,
                () = sink.loses() => sink.make_up(&self.parts.qmp).await,
            }
        };
        // QEMU's last events may not have arrived yet; nothing is queued after its end.
        timeout(END_TIMEOUT, self.parts.qmp.closed()).await.ok();
        let clean = is_clean(&status, sink.has_shut_down());
        if clean {
            let may_leak = self.parts.may_leak.load(Ordering::Relaxed);
            repair::end_whole(&self.parts.dir, may_leak).await;
        }
        let report = self.report(status, clean);
        self.leave_group().await;
        let wanted = report.clean || self.killed.load(Ordering::Relaxed);
        // The receiver may be gone; the record is removed all the same.
        sink.end(MachineEvent::Exited(report)).await;
        if wanted {
            run_record::forget(&self.parts.dir, &self.parts.facts);
        }
    }

    fn report(&self, status: String, clean: bool) -> ExitReport {
        let unusable = self.unusable.get().cloned().or_else(|| self.memory_limit());
        let stderr = last_words(&self.parts.dir);
        ExitReport { clean: clean && unusable.is_none(), status, stderr, unusable }
    }

    async fn ask(&self, command: &str) -> Result<Value> {
        self.ask_with(command, json!({})).await
    }

    async fn ask_with(&self, command: &str, arguments: Value) -> Result<Value> {
        match self.parts.qmp.execute(command, arguments).await {
            Err(BackendError::QemuDied { .. }) => Err(self.death().await),
            result => result,
        }
    }

    /// Says why the connection is gone.
    async fn death(&self) -> BackendError {
        let status = timeout(END_TIMEOUT, end_of(&self.parts.ended)).await;
        let unknown = |_| "its QMP connection was closed".to_owned();
        died(&self.parts.dir, status.unwrap_or_else(unknown))
    }

    /// Begins to watch the memory of its group, as soon as it has one.
    fn watch_memory(&self) {
        let RunFacts { pid, uuid, .. } = self.parts.facts;
        let (mut watch, events) = (self.watch.lock(), self.events_of_watch.lock());
        if let (None, Some(_), Some(events)) = (&*watch, &self.parts.groups, &*events) {
            *watch = Group::of(pid, uuid).map(|group| Watch::begin(group, events.clone()));
        }
    }

    /// Says whether the kernel has ended it for want of memory.
    fn memory_limit(&self) -> Option<BackendError> {
        let watch = self.watch.lock();
        watch.as_ref().filter(|watch| watch.was_killed())?;
        let limits = self.parts.groups.as_ref()?.limits_of(self.parts.facts.uuid);
        Some(BackendError::MemoryLimit { max: render_size(limits.memory_max?) })
    }

    /// Takes its group away after its end.
    async fn leave_group(&self) {
        drop((self.watch.lock().take(), self.events_of_watch.lock().take()));
        let Some(groups) = &self.parts.groups else { return };
        groups.remove(self.parts.facts.uuid).await;
    }

    /// Ends a machine that cannot be used any more; its end then reports `why`.
    async fn end_as_unusable(&self, why: BackendError) -> BackendError {
        let why = self.unusable.get_or_init(|| why).clone();
        match self.kill().await {
            Ok(()) => why,
            Err(error) => error,
        }
    }
}

#[async_trait]
impl Machine for RunningQemu {
    fn facts(&self) -> &RunFacts {
        &self.parts.facts
    }

    async fn has_run(&self) -> Result<bool> {
        Ok(self.ask("query-status").await?["status"] != "prelaunch")
    }

    async fn pause(&self) -> Result<()> {
        self.ask("stop").await.map(drop)
    }

    async fn resume(&self) -> Result<()> {
        self.ask("cont").await.map(drop)
    }

    async fn recover(&self) -> Result<()> {
        capture::recover(&self.parts.qmp).await
    }

    async fn reset(&self) -> Result<()> {
        self.ask("system_reset").await.map(drop)
    }

    async fn power_down(&self) -> Result<()> {
        self.ask("system_powerdown").await.map(drop)
    }

    async fn set_memory(&self, bytes: u64) -> Result<()> {
        self.ask_with("balloon", json!({"value": bytes})).await.map(drop)
    }

    async fn add_processors(&self, count: u32) -> Result<()> {
        self.plug_processors(count).await
    }

    async fn grow_disk(&self, bytes: u64) -> Result<()> {
        self.resize_disk(bytes).await
    }

    async fn limit_host(&self, limits: &HostLimits) {
        if let Some(groups) = &self.parts.groups {
            groups.hold(self.parts.facts.uuid, self.parts.facts.pid, limits).await;
            self.watch_memory();
        }
    }

    async fn limit_io(&self, limit: Option<IoLimit>) -> Result<()> {
        self.throttle_disks(limit).await
    }

    async fn change_disc(&self, disc: Option<&Path>) -> Result<()> {
        self.exchange_disc(disc).await
    }

    async fn add_forward(&self, forward: &Forward) -> Result<u16> {
        self.open_port(forward).await
    }

    async fn remove_forward(&self, bound: &Forward) -> Result<()> {
        self.close_port(bound).await
    }

    async fn nics(&self) -> Result<Vec<NicPlace>> {
        self.list_nics().await
    }

    async fn plug_nic(&self, place: NicPlace, mac: Mac) -> Result<()> {
        self.add_nic(place, mac).await
    }

    async fn unplug_nic(&self, place: NicPlace) -> Result<()> {
        self.remove_nic(place).await
    }

    async fn connect_nic(&self, place: NicPlace, sockets: &Path) -> Result<()> {
        self.join_switch(place, sockets).await
    }

    async fn disconnect_nic(&self, place: NicPlace) -> Result<()> {
        self.leave_switch(place).await
    }

    async fn data_disks(&self) -> Result<Vec<DiskPlace>> {
        self.list_disks().await
    }

    async fn plug_disk(&self, disk: &DataDisk) -> Result<()> {
        self.add_disk(disk).await
    }

    async fn unplug_disk(&self, place: DiskPlace) -> Result<()> {
        self.remove_disk(place).await
    }

    async fn grow_data_disk(&self, number: u32, bytes: u64) -> Result<()> {
        self.resize_data_disk(number, bytes).await
    }

    async fn press_keys(&self, chords: &[Vec<String>]) -> Result<()> {
        self.type_keys(chords).await
    }

    async fn keep(&self, in_force: &InForce) -> Result<()> {
        let facts = RunFacts { in_force: Some(in_force.clone()), ..self.parts.facts_now() };
        run_record::write(&self.parts.dir, &facts).await
    }

    async fn snapshot(&self, op: &SnapshotOp) -> Result<()> {
        self.carry_out(op).await
    }

    async fn capture(
        &self,
        plan: &LaunchPlan,
        (purpose, to): (Purpose, &Path),
        snapshot: &str,
        guest: BoxFuture<'_, Result<()>>,
    ) -> Result<SavedMachine> {
        let qemu = Installation::probe(plan.spec.arch).await?;
        let runs = &self.parts.facts.qemu_version;
        if *runs != qemu.version {
            let installed = &qemu.version;
            let reason = format!(
                "it runs on QEMU {runs}, and {installed} is installed by now; stop and start it first"
            );
            return Err(BackendError::PersonalizationFailed { reason });
        }
        let asked = CaptureRequest { plan, purpose, to, snapshot };
        capture::capture(&self.parts.qmp, asked, &qemu, guest).await
    }

    async fn load_template(&self, template: &Template) -> Result<()> {
        match capture::load_template(&self.parts.qmp, &template.saved).await {
            Err(BackendError::QemuDied { .. }) => Err(self.death().await),
            done => done,
        }
    }

    async fn kill(&self) -> Result<()> {
        self.killed.store(true, Ordering::Relaxed);
        let quit = self.parts.qmp.execute_within("quit", json!({}), QUIT_TIMEOUT);
        // Whatever QEMU says to `quit`, its end is what counts.
        let quit = async { (quit.await.ok(), end_of(&self.parts.ended).await) };
        if timeout(QUIT_TIMEOUT, quit).await.is_ok() {
            return Ok(());
        }
        end_by_signals(&self.parts.process, &self.parts.ended).await
    }

    fn monitor(&self, access: StreamAccess) -> Arc<dyn Stream> {
        Arc::new(Conversation::open(&self.parts.qmp, access))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_clean_by_its_status_or_else_by_the_event() {
        let table = [
            ("exit 0", false, true),
            ("exit 1", true, false),
            ("signal KILL", true, false),
            ("unknown", true, true),
            ("unknown", false, false),
        ];
        for (status, shut_down, expected) in table {
            assert_eq!(is_clean(status, shut_down), expected, "{status} {shut_down}");
        }
    }
}
