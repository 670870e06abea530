//! Snapshots of a machine that runs: QEMU's jobs `snapshot-save`, `-load` and `-delete`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::qmp::Qmp;
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, SnapshotOp};

/// A disk with less room than this is full: QEMU writes memory in pieces, each of which fits or not.
const ROOM: u64 = 1 << 20;
/// The disk's node in the command line: the snapshot and the memory go there.
const NODE: &str = "disk";
/// How often a job is looked at. QEMU tells of its end by an event too, which may be another's.
const LOOK: Duration = Duration::from_millis(10);
/// How long a job may take: a large memory on a slow disk takes minutes. `kill` ends it sooner.
const BOUND: Duration = Duration::from_secs(1800);

/// Carries out an operation to its end.
///
/// # Errors
/// `NoSpace`, or QEMU's own words.
pub(super) async fn run(qmp: &Qmp, op: &SnapshotOp) -> Result<(), BackendError> {
    let (command, tag) = match op {
        SnapshotOp::Take(tag) => ("snapshot-save", tag),
        SnapshotOp::Restore(tag) => ("snapshot-load", tag),
        SnapshotOp::Drop(tag) => ("snapshot-delete", tag),
        SnapshotOp::Rename { .. } => {
            let text = "it has no command for that".to_owned();
            return Err(BackendError::QmpRefused { command: "rename".to_owned(), text });
        }
    };
    let job = format!("aq-{}", uuid::Uuid::new_v4().simple());
    qmp.execute(command, arguments(command, &job, tag)).await?;
    let end = concluded(qmp, command, &job).await?;
    qmp.execute("job-dismiss", json!({"id": job})).await?;
    match end {
        None => Ok(()),
        Some(text) if text.contains("No space left on device") => {
            Err(BackendError::NoSpace { what: format!("the snapshot {tag}") })
        }
        Some(text) => Err(BackendError::QmpRefused { command: command.to_owned(), text }),
    }
}

/// Tells a full disk apart, of which QEMU says that it is an error of input and output when it was
/// the machine's memory that did not fit.
pub(super) fn cause_of(error: BackendError, dir: &VmDir) -> BackendError {
    match &error {
        BackendError::QmpRefused { text, .. } if text.ends_with("Input/output error") => {
            let free = rustix::fs::statvfs(&dir.0).map(|s| s.f_bavail * s.f_frsize);
            let what = "the snapshot: its memory does not fit".to_owned();
            if free.is_ok_and(|free| free < ROOM) { BackendError::NoSpace { what } } else { error }
        }
        _ => error,
    }
}

fn arguments(command: &str, job: &str, tag: &str) -> Value {
    let mut arguments = json!({"job-id": job, "tag": tag, "devices": [NODE]});
    if command != "snapshot-delete" {
        arguments["vmstate"] = json!(NODE);
    }
    arguments
}

/// Waits for a job's end; returns its error.
async fn concluded(qmp: &Qmp, command: &str, job: &str) -> Result<Option<String>, BackendError> {
    let deadline = Instant::now() + BOUND;
    while Instant::now() < deadline {
        // While memory is written QEMU answers late.
        let jobs = qmp.execute_within("query-jobs", json!({}), BOUND).await?;
        let found = jobs.as_array().and_then(|jobs| jobs.iter().find(|j| j["id"] == job));
        match found {
            Some(found) if found["status"] == "concluded" => {
                return Ok(found["error"].as_str().map(str::to_owned));
            }
            _ => sleep(LOOK).await,
        }
    }
    Err(BackendError::QmpTimeout { command: command.to_owned(), seconds: BOUND.as_secs() })
}
