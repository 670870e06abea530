//! Starting QEMU: from a plan to a machine that has greeted.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, SystemTime};

use rustix::process::Signal;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::cmdline::{self, LaunchDetails, SeedMedium};
use super::events::EventSink;
use super::install::{Installation, not_started};
use super::limits::Groups;
use super::machine::{Ended, MachineParts, died, end_of, live, throttle, watch_end};
use super::nvram::Flash;
use super::process::{self, Process};
use super::qmp::{Qmp, timed_out};
use super::vm_disk::{self, TemporaryDisk};
use super::{connect, nvram, rename, repair, run_record};
use crate::store::layout::VmDir;
use crate::store::operation::{self, Operation};
use crate::vm::backend::{
    BackendError, LaunchPlan, Launched, MachineEvent, Result, RunFacts, SeedKind,
};
use crate::vm::driver::off_thread;
use crate::vm::hardware::Devices;
use crate::vm::live::InForce;
use crate::vm::spec::VmSpec;
use crate::vm::spec::net::Forward;
use crate::vm::template::{Memory, Shape};

/// How often the socket of a starting QEMU is tried: it appears after some 10 ms without an event,
/// and a try costs a few microseconds.
const RETRY: Duration = Duration::from_millis(2);
/// How long the greeting of a QEMU that is just starting may take. It needs some 50 ms; where many
/// start at once, seconds. A write of `start` is answered sooner in any case.
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a process may take to end after SIGKILL, or to be reaped after its socket closed.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts the machine of `plan`; `ram` is a sealed copy of a clone's memory, where QEMU needs one.
/// A launch that fails or is cancelled leaves no QEMU behind.
///
/// # Errors
/// `QemuDied` with its last words, `QmpTimeout` if it does not greet, or why it was not started.
pub(super) async fn launch(
    plan: &LaunchPlan,
    qemu: &Installation,
    ram: Option<Arc<OwnedFd>>,
    groups: &Arc<Groups>,
) -> Result<Launched> {
    let StartedMachine { parts, events, mut guard } =
        bring_up(plan, qemu, ram, Some(groups)).await?;
    let limits = plan.spec.host_limits();
    if limits.cpu.is_some() {
        groups.hold(plan.uuid, parts.facts.pid, &limits).await;
    }
    if plan.spec.io_limit.is_some() {
        throttle::set(&parts.qmp, plan.spec.io_limit).await?;
    }
    run_record::write(&parts.dir, &parts.facts).await?;
    guard.0 = None;
    let paused = plan.paused || plan.memory != Memory::Own;
    Ok(parts.run(events, paused))
}

/// A machine that has greeted. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct StartedMachine {
    pub(super) parts: MachineParts,
    events: (EventSink, mpsc::Receiver<MachineEvent>),
    guard: KillOnDrop,
}

impl StartedMachine {
    pub(super) async fn end(self) {
        // Whatever it answers, the guard kills it.
        self.parts.qmp.execute("quit", json!({})).await.ok();
        timeout(END_TIMEOUT, end_of(&self.parts.ended)).await.ok();
        drop(self.guard);
        timeout(END_TIMEOUT, end_of(&self.parts.ended)).await.ok();
    }
}

/// Starts the machine of `plan`. It ends with the returned value, unless the caller keeps it. `groups` hold it to its
/// limits.
pub(super) async fn bring_up(
    plan: &LaunchPlan,
    qemu: &Installation,
    ram: Option<Arc<OwnedFd>>,
    groups: Option<&Arc<Groups>>,
) -> Result<StartedMachine> {
    let dir = VmDir(plan.dir.clone());
    refuse_second(&dir).await?;
    recover(&dir).await?;
    check_files(plan).await?;
    let _temporary_disk = make_disk(&dir, plan).await?;
    let flash = nvram::prepare(&dir, plan, machine(plan, qemu)).await?;
    let since = SystemTime::now();
    let process = Arc::new(spawn(plan, qemu, &dir, (flash.as_ref(), ram.as_deref()))?);
    let guard = KillOnDrop(Some(Arc::clone(&process)));
    if let Some(groups) = groups {
        groups.enter(plan.uuid, process.pid, &plan.spec.host_limits()).await;
    }
    let ended = watch_end(Arc::clone(&process));
    let (sink, events) = EventSink::new();
    let greeted = greeted(&dir, &sink, &process, &ended).await;
    let qmp = greeted.map_err(|error| cause_of(error, &plan.spec))?;
    let facts = match facts(plan, qemu, &qmp, &process, since).await {
        Ok(facts) => facts,
        Err(BackendError::QemuDied { .. }) => return Err(died(&dir, end_of_bounded(&ended).await)),
        Err(error) => return Err(error),
    };
    let may_leak = AtomicBool::new(false);
    let parts = MachineParts {
        facts,
        dir,
        qmp,
        process,
        ended,
        may_leak,
        processors: AtomicU32::default(),
        groups: groups.map(Arc::clone),
    };
    Ok(StartedMachine { parts, events: (sink, events), guard })
}

/// Removes what an earlier machine has left, and undoes or completes what was interrupted.
async fn recover(dir: &VmDir) -> Result<()> {
    let at = dir.clone();
    let recover = move || {
        run_record::clear(&at);
        // Of an earlier machine, which has ended.
        operation::end(&at, &Operation::PausedByDaemon)?;
        Ok(rename::recover(&at))
    };
    off_thread(recover, "the VM's directory").await??;
    repair::begin_whole(dir).await
}

/// Refuses files that QEMU must not open, and those that are not there.
async fn check_files(plan: &LaunchPlan) -> Result<()> {
    let (image, base, spec) = (plan.image.name.clone(), plan.base.clone(), plan.spec.clone());
    let check =
        move || Ok(vm_disk::check_base(&image, &base).and_then(|()| cmdline::check_files(&spec)));
    off_thread(check, "the files of a start").await?
}

/// Makes the disk as large as the plan has it; of an ephemeral VM, with an overlay for what it
/// writes.
async fn make_disk(dir: &VmDir, plan: &LaunchPlan) -> Result<Option<TemporaryDisk>> {
    vm_disk::ensure(dir, plan).await?;
    vm_disk::grow(dir, plan.spec.disk).await?;
    match plan.spec.ephemeral {
        true => vm_disk::temporary(dir, plan.spec.disk).await.map(Some),
        false => Ok(None),
    }
}

/// A second QEMU would take the first one's sockets away before it fails on the disk's lock.
async fn refuse_second(dir: &VmDir) -> Result<()> {
    let there = match connect::qmp_socket(dir).await {
        Ok(_) => true,
        Err(error) if connect::means_absent(&error) => {
            matches!(run_record::read(dir), Ok(Some(record)) if record.runs())
        }
        Err(error) => {
            return Err(BackendError::io(format!("the QMP socket in {}", dir.0.display()), &error));
        }
    };
    if !there {
        return Ok(());
    }
    let fact = "a QEMU runs there that is not ours; end it first";
    Err(BackendError::fact(format!("start QEMU in {}", dir.0.display()), fact, libc::EBUSY))
}

pub(super) fn machine<'a>(plan: &'a LaunchPlan, qemu: &'a Installation) -> &'a str {
    plan.spec.machine.as_deref().unwrap_or(&qemu.machine)
}

pub(super) fn shape(plan: &LaunchPlan, qemu: &Installation) -> Result<Shape> {
    let disk = vm_disk::virtual_size(&VmDir(plan.dir.clone()))?;
    Ok(Shape {
        qemu: qemu.version.clone(),
        machine: machine(plan, qemu).to_owned(),
        accel: plan.accel.kind,
        cpu: plan.accel.cpu.clone(),
        cpus: plan.spec.cpus,
        memory: plan.spec.memory,
        disk: disk.unwrap_or(plan.image.disk_size.max(plan.spec.disk)),
        devices: Devices { hardware: plan.hardware, words: cmdline::devices_in_words(plan) },
        nics: plan.nics.clone(),
        disks: plan.disks.iter().map(|disk| disk.place).collect(),
    })
}

/// Recognises why QEMU ended at once: no memory, an unknown machine type, or a port that is taken.
fn cause_of(error: BackendError, spec: &VmSpec) -> BackendError {
    let BackendError::QemuDied { status, stderr } = &error else {
        return error;
    };
    // Its last line is an advice that is of no use here.
    if stderr.contains("-machine help") {
        let newest = spec.arch.platform().machine;
        let machine = spec.machine.as_deref().unwrap_or(newest);
        let stderr = format!("it knows no machine {machine}; `echo {newest} > config/machine`");
        return BackendError::QemuDied { status: status.clone(), stderr };
    }
    if stderr.ends_with("Cannot allocate memory") {
        return BackendError::NoMemory { what: format!("{stderr}; lower config/memory") };
    }
    let refused =
        |f: &&Forward| stderr.contains(&format!("host forwarding rule '{}'", cmdline::rule(f)));
    spec.ports.iter().find(refused).map_or(error.clone(), live::port_refused)
}

fn spawn(
    plan: &LaunchPlan,
    qemu: &Installation,
    dir: &VmDir,
    (flash, ram): (Option<&Flash>, Option<&OwnedFd>),
) -> Result<Process> {
    let seed = match plan.image.seed {
        SeedKind::FwCfg if dir.seed().exists() => SeedMedium::FwCfg,
        SeedKind::Nocloud if dir.cidata().exists() => SeedMedium::Nocloud,
        SeedKind::FwCfg | SeedKind::Nocloud => SeedMedium::Absent,
    };
    let facts = LaunchDetails {
        machine: machine(plan, qemu),
        generation: Uuid::new_v4(),
        seed,
        ram: ram.map(AsRawFd::as_raw_fd),
        code: flash.map(|flash| &flash.code),
    };
    let args = cmdline::arguments(plan, &facts)?;
    let emulator = &plan.spec.arch.platform().emulator;
    process::spawn(emulator.name, &args, dir, (plan.lifetime, ram))
        .map_err(|e| not_started(emulator, &e))
}

/// Kills a QEMU whose launch does not complete: nothing would own it. `None` once something does.
#[derive(Debug)]
struct KillOnDrop(Option<Arc<Process>>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(process) = &self.0
            && let Err(error) = process.signal(Signal::KILL)
        {
            tracing::warn!(pid = process.pid, %error, "cannot end QEMU");
        }
    }
}

/// Waits for QEMU's greeting, its end, or the timeout.
async fn greeted(dir: &VmDir, sink: &EventSink, process: &Process, ended: &Ended) -> Result<Qmp> {
    let greeting = timeout(GREETING_TIMEOUT, open(dir, sink));
    let result = tokio::select! {
        result = greeting => result,
        status = end_of(ended) => return Err(died(dir, status)),
    };
    match result {
        Ok(Err(BackendError::QemuDied { .. })) => Err(died(dir, end_of_bounded(ended).await)),
        Ok(Err(BackendError::QmpTimeout { .. })) | Err(_) => {
            // On an error the guard tries again, and logs it.
            process.signal(Signal::KILL).ok();
            end_of_bounded(ended).await;
            Err(timed_out("greeting", GREETING_TIMEOUT))
        }
        Ok(greeted) => greeted,
    }
}

async fn open(dir: &VmDir, sink: &EventSink) -> Result<Qmp> {
    let stream = loop {
        match connect::qmp_socket(dir).await {
            Ok(stream) => break stream,
            Err(_) => sleep(RETRY).await,
        }
    };
    sink.connect(stream, GREETING_TIMEOUT).await
}

async fn end_of_bounded(ended: &Ended) -> String {
    let status = timeout(END_TIMEOUT, end_of(ended)).await;
    status.unwrap_or_else(|_| "not ended yet".to_owned())
}

async fn facts(
    plan: &LaunchPlan,
    qemu: &Installation,
    qmp: &Qmp,
    process: &Process,
    since: SystemTime,
) -> Result<RunFacts> {
    let ports = connect::ports(qmp, &plan.spec.ports).await?;
    let balloon = plan.memory == Memory::Own;
    let at_start = InForce::at_start(&plan.spec, ports.bound);
    let most_cpus = cmdline::most_processors(plan);
    Ok(RunFacts {
        pid: process.pid,
        pid_start: process.start,
        uuid: connect::uuid(qmp).await?.unwrap_or(plan.uuid),
        since,
        accel: plan.accel.clone(),
        qemu_version: qmp.version().to_owned(),
        machine: machine(plan, qemu).to_owned(),
        hardware: plan.hardware,
        ssh_port: ports.ssh,
        image_digest: plan.image.digest.clone(),
        announces: plan.image.announces,
        in_force: Some(InForce { balloon, most_cpus, ..at_start }),
        warm: warmth(plan),
        // QEMU has already reported a disk that cannot be read.
        shape: shape(plan, qemu).ok(),
    })
}

/// What `info` says of how it was started.
fn warmth(plan: &LaunchPlan) -> String {
    match (&plan.memory, &plan.cold) {
        (Memory::Clone(_), _) => "yes".to_owned(),
        (_, Some(reason)) => format!("no: {reason}"),
        (_, None) => "no".to_owned(),
    }
}
