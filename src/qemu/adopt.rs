//! Finds the QEMU that an earlier daemon started, and checks its identity.
//!
//! Where anything does not agree, QEMU is left alone: a guest is never ended in doubt.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use tokio::net::UnixStream;
use uuid::Uuid;

use super::connect::{self, VcpuStatus};
use super::events::EventSink;
use super::limits::Groups;
use super::live_snapshot::{self, LastRestore};
use super::machine::{MachineParts, throttle, watch_end};
use super::process::{Process, argument_of, arguments_of, last_words, started_at};
use super::qmp::Qmp;
use super::run_record::FoundRecord;
use super::{cmdline, migrate, run_record};
use crate::store::layout::VmDir;
use crate::vm::backend::{
    Accel, AccelKind, Adoption, BackendError, Launched, MachineEvent, Result, RunFacts,
};

/// How long the greeting of a QEMU that runs may take: some milliseconds, unless it hangs.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// Looks for the QEMU of the VM with this identity.
pub async fn adopt(dir: VmDir, uuid: Uuid, groups: &Arc<Groups>) -> Adoption {
    let record = run_record::read(&dir);
    match connect::qmp_socket(&dir).await {
        Ok(stream) => match take_over(&dir, uuid, (record, groups), stream).await {
            Ok(adoption) => adoption,
            // A refused request names the next step.
            Err(BackendError::QmpTimeout { command, seconds }) => {
                Adoption::Unclear(format!("QEMU did not answer {command} within {seconds} s"))
            }
            Err(error) => Adoption::Unclear(error.to_string()),
        },
        Err(error) if connect::means_absent(&error) => absent(&dir, record),
        Err(error) => Adoption::Unclear(format!("its QMP socket: {error}")),
    }
}

/// Says what became of the QEMU on record, when nothing listens on the socket.
fn absent(dir: &VmDir, record: FoundRecord) -> Adoption {
    let record = match record {
        Ok(Some(record)) => record,
        Ok(None) => return Adoption::NeverRan,
        Err(damage) => return Adoption::Ended(format!("run.json is damaged: {damage}")),
    };
    let pid = record.facts.pid;
    if record.is_of_this_boot() == Some(false) {
        return Adoption::Ended("the host was restarted".to_owned());
    }
    if record.runs() {
        let text = "still runs, but its QMP socket is gone";
        return Adoption::Unclear(format!("QEMU, pid {pid}, {text}"));
    }
    Adoption::Ended(match last_words(dir) {
        words if words.is_empty() => "QEMU ended while no daemon watched it".to_owned(),
        words => format!("QEMU ended while no daemon watched it: {words}"),
    })
}

async fn take_over(
    dir: &VmDir,
    uuid: Uuid,
    (record, groups): (FoundRecord, &Arc<Groups>),
    stream: UnixStream,
) -> Result<Adoption> {
    let process = match peer(&stream) {
        Ok(process) => Arc::new(process),
        Err(e) => return Ok(Adoption::Unclear(format!("who serves its QMP socket: {e}"))),
    };
    let (sink, events) = EventSink::new();
    let qmp = sink.connect(stream, GREETING_TIMEOUT).await?;
    if let Some(doubt) = doubt(&qmp, uuid, &process, &record).await? {
        return Ok(Adoption::Unclear(doubt));
    }
    let facts = match record {
        Ok(Some(record)) => record.facts,
        Ok(None) | Err(_) => rebuild(&qmp, uuid, &process, dir).await?,
    };
    reset_capabilities(&qmp).await?;
    if let Some(now) = &facts.in_force {
        // An earlier daemon may have been killed between a change and the record of it.
        throttle::set(&qmp, now.spec.io_limit).await?;
        groups.hold(uuid, process.pid, &now.spec.host_limits()).await;
    }
    let last_restore = live_snapshot::last_restore(&qmp).await?;
    let paused = report_state(&qmp, &sink).await?;
    let ended = watch_end(Arc::clone(&process));
    let may_leak = AtomicBool::new(true);
    let parts = MachineParts {
        facts,
        dir: dir.clone(),
        qmp,
        process,
        ended,
        may_leak,
        processors: AtomicU32::default(),
        groups: Some(Arc::clone(groups)),
    };
    Ok(after_restore(last_restore, parts.run((sink, events), paused)).await)
}

/// Earlier versions left a clone with the capabilities of its start. While a migration is under way they
/// cannot be changed, and are by whoever ends it.
async fn reset_capabilities(qmp: &Qmp) -> Result<()> {
    match migrate::reset(qmp).await {
        Err(BackendError::QmpRefused { .. }) => Ok(()),
        done => done,
    }
}

/// Reports what the machine has done while no daemon listened; says whether its processors are stopped.
async fn report_state(qmp: &Qmp, sink: &EventSink) -> Result<bool> {
    let status = connect::status(qmp).await?;
    if status == VcpuStatus::DiskFull {
        sink.push(MachineEvent::DiskFull);
    }
    if connect::has_announced(qmp).await? {
        sink.push(MachineEvent::Announced);
    }
    Ok(status != VcpuStatus::Runs)
}

/// Ends a machine that has lost its memory.
async fn after_restore(last: LastRestore, launched: Launched) -> Adoption {
    match last {
        LastRestore::Done => Adoption::Running(Launched { clock_is_behind: true, ..launched }),
        // A failed restore leaves the vCPUs paused: a guest that runs was reset since.
        LastRestore::MemoryLost(why) if launched.paused => match launched.machine.kill().await {
            Ok(()) => Adoption::Ended(why.to_string()),
            Err(error) => Adoption::Unclear(error.to_string()),
        },
        LastRestore::None | LastRestore::MemoryLost(_) => Adoption::Running(launched),
    }
}

/// The process at the other end, as the kernel knows it.
fn peer(stream: &UnixStream) -> io::Result<Process> {
    let pid = stream.peer_cred()?.pid().and_then(|p| u32::try_from(p).ok());
    Process::of(pid.ok_or(io::ErrorKind::NotFound)?)
}

/// Says why this QEMU may not be the VM's.
async fn doubt(
    qmp: &Qmp,
    uuid: Uuid,
    process: &Process,
    record: &FoundRecord,
) -> Result<Option<String>> {
    let pid = process.pid;
    if connect::uuid(qmp).await? != Some(uuid) {
        return Ok(Some(format!("QEMU, pid {pid}, has the UUID of another VM")));
    }
    let Ok(Some(record)) = record else {
        return Ok(None);
    };
    let known = (record.facts.pid, record.facts.pid_start, record.facts.uuid);
    let same = known == (pid, process.start, uuid) && record.is_of_this_boot() == Some(true);
    let recorded = record.facts.pid;
    Ok((!same).then(|| format!("run.json has pid {recorded}, but pid {pid} answers")))
}

/// Gathers the facts from QEMU itself when run.json is absent or damaged, and writes them. What
/// only the image knew stays unknown: a guest that has not announced itself is probed, not awaited.
async fn rebuild(qmp: &Qmp, uuid: Uuid, process: &Process, dir: &VmDir) -> Result<RunFacts> {
    let argument = |option| argument_of(process.pid, option).unwrap_or_default();
    let machine = argument("-machine");
    let kind = if connect::uses_kvm(qmp).await? { AccelKind::Kvm } else { AccelKind::Tcg };
    let facts = RunFacts {
        pid: process.pid,
        pid_start: process.start,
        uuid,
        since: started_at(process.start),
        accel: Accel {
            kind,
            cpu: argument("-cpu"),
            reason: "as an earlier daemon chose".to_owned(),
        },
        qemu_version: qmp.version().to_owned(),
        machine: machine.split(',').next().unwrap_or_default().to_owned(),
        hardware: cmdline::hardware_of(&arguments_of(process.pid)),
        ssh_port: connect::ports(qmp, &[]).await?.ssh,
        image_digest: String::new(),
        announces: connect::has_announced(qmp).await?,
        in_force: None,
        warm: String::new(),
        shape: None,
    };
    run_record::write(dir, &facts).await?;
    Ok(facts)
}
