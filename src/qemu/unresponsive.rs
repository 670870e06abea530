//! A QEMU that does not answer on QMP: identified as the VM's, and ended by signals.
//!
//! A process that is not surely the VM's QEMU is not ended: a pid alone may belong to anybody.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::machine::{self, Ended};
use super::process::{Process, argument_of};
use super::run_record::{self, RunRecord};
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, Result, RunFacts, SilentMachine};

/// Opens the QEMU on record for the VM with this UUID.
pub(super) fn find(dir: VmDir, uuid: Uuid) -> Result<UnresponsiveQemu> {
    let record = match run_record::read(&dir) {
        Ok(Some(record)) => record,
        Ok(None) => return Err(unrecorded(uuid, "there is no run.json")),
        Err(damage) => return Err(unrecorded(uuid, &format!("run.json is damaged: {damage}"))),
    };
    let pid = record.facts.pid;
    let gone = |error| unrecorded(uuid, &format!("pid {pid} of run.json: {error}"));
    let process = Arc::new(Process::of(pid).map_err(gone)?);
    if let Some(doubt) = doubt(&record, &process, uuid) {
        return Err(doubtful(pid, doubt));
    }
    let ended = machine::watch_end(Arc::clone(&process));
    Ok(UnresponsiveQemu { dir, facts: record.facts, process, ended })
}

/// Says why this process may not be the VM's QEMU.
fn doubt(record: &RunRecord, process: &Process, uuid: Uuid) -> Option<&'static str> {
    // The pidfd is open: what is read of the pid now belongs to this process.
    let argument = argument_of(process.pid, "-uuid");
    if record.is_of_this_boot() != Some(true) || process.start != record.facts.pid_start {
        return Some("did not start when run.json says");
    }
    if record.facts.uuid != uuid || argument.and_then(|u| u.parse().ok()) != Some(uuid) {
        return Some("has not this VM's UUID on its command line");
    }
    None
}

fn doubtful(pid: u32, doubt: &str) -> BackendError {
    let doubt = format!("pid {pid} is not surely this VM's QEMU: it {doubt}");
    BackendError::NotSurelyOurs { doubt, look: format!("ps -fp {pid}") }
}

fn unrecorded(uuid: Uuid, why: &str) -> BackendError {
    let doubt = format!("it is not known which process is this VM's QEMU: {why}");
    BackendError::NotSurelyOurs { doubt, look: format!("pgrep -af {uuid}") }
}

/// A QEMU that does not answer, and is surely the VM's.
#[derive(Debug)]
pub(super) struct UnresponsiveQemu {
    dir: VmDir,
    facts: RunFacts,
    process: Arc<Process>,
    ended: Ended,
}

#[async_trait]
impl SilentMachine for UnresponsiveQemu {
    async fn kill(&self) -> Result<()> {
        machine::end_by_signals(&self.process, &self.ended).await?;
        run_record::forget(&self.dir, &self.facts);
        Ok(())
    }
}
