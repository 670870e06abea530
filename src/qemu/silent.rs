//! A QEMU that does not answer: being sure that it is the VM's, and ending it by signals.
//!
//! What is not sure is not ended: a process number alone may be anybody's.

use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::machine::{self, Ended};
use super::process::{Process, argument_of};
use super::record::{self, Record};
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, RunFacts, SilentMachine};

/// Takes hold of the QEMU on record for the VM with this identity.
///
/// # Errors
/// [`BackendError::NotSurelyOurs`].
pub(super) fn find(dir: VmDir, uuid: Uuid) -> Result<Silent, BackendError> {
    let record = match record::read(&dir) {
        Ok(Some(record)) => record,
        Ok(None) => return Err(unrecorded(uuid, "there is no run.json")),
        Err(damage) => return Err(unrecorded(uuid, &format!("run.json is damaged: {damage}"))),
    };
    let pid = record.facts.pid;
    let process = match Process::of(pid) {
        Ok(process) => process,
        Err(error) => return Err(unrecorded(uuid, &format!("pid {pid} of run.json: {error}"))),
    };
    match doubt(&record, &process, uuid) {
        Some(doubt) => Err(doubtful(pid, doubt)),
        None => {
            let process = Arc::new(process);
            let ended = machine::watch_end(Arc::clone(&process));
            Ok(Silent { dir, facts: record.facts, process, ended })
        }
    }
}

/// Says what speaks against this process's being the VM's QEMU.
fn doubt(record: &Record, process: &Process, uuid: Uuid) -> Option<&'static str> {
    // The process is held by a pidfd: what is read of its number now is read of it.
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
    BackendError::NotSurelyOurs {
        doubt: format!("pid {pid} is not surely this VM's QEMU: it {doubt}"),
        look: format!("ps -fp {pid}"),
    }
}

fn unrecorded(uuid: Uuid, why: &str) -> BackendError {
    BackendError::NotSurelyOurs {
        doubt: format!("it is not known which process is this VM's QEMU: {why}"),
        look: format!("pgrep -af {uuid}"),
    }
}

/// A QEMU that does not answer, and is surely the VM's.
#[derive(Debug)]
pub(super) struct Silent {
    dir: VmDir,
    facts: RunFacts,
    process: Arc<Process>,
    ended: Ended,
}

#[async_trait]
impl SilentMachine for Silent {
    async fn kill(&self) -> Result<(), BackendError> {
        machine::end_by_signals(&self.process, &self.ended).await?;
        record::forget(&self.dir, &self.facts);
        Ok(())
    }
}
