//! Snapshots of a machine that runs: QEMU's jobs `snapshot-save`, `-load` and `-delete`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::connect::{self, Status};
use super::qmp::Qmp;
use super::{migrate, vm_disk};
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, SnapshotOp};

/// What the names of our jobs begin with: users may have others.
const OURS: &str = "aq-";
/// QEMU's name for going back, of its command and of its job.
const LOAD: &str = "snapshot-load";
/// The disk's node in the command line: the snapshot and the memory go there.
const NODE: &str = "disk";
/// How often a job is looked at. QEMU tells of its end by an event too, which may be another's.
const LOOK: Duration = Duration::from_millis(10);
/// How long the end of a job may take that began under an earlier daemon: until it is over QEMU answers
/// nobody, so that it is over when it answers, or about to begin.
const PAST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a job may take: a large memory on a slow disk takes minutes. `kill` ends it sooner.
const BOUND: Duration = Duration::from_secs(1800);

/// Carries out an operation to its end. `ignores_shared` says under which capability the memory
/// was saved that is to be loaded; what is saved here has it off.
///
/// # Errors
/// `NoSpace`, or QEMU's own words.
pub(super) async fn run(
    qmp: &Qmp,
    op: &SnapshotOp,
    ignores_shared: bool,
) -> Result<(), BackendError> {
    match op {
        SnapshotOp::Take(_) | SnapshotOp::Restore(_) => {
            migrate::ignore_shared(qmp, ignores_shared).await?;
        }
        SnapshotOp::Drop(_) | SnapshotOp::Rename { .. } => {}
    }
    let done = carry_out(qmp, op).await;
    if ignores_shared {
        // Every later use of it sets it anew.
        migrate::ignore_shared(qmp, false).await.ok();
    }
    done
}

async fn carry_out(qmp: &Qmp, op: &SnapshotOp) -> Result<(), BackendError> {
    let (command, tag) = match op {
        SnapshotOp::Take(tag) => ("snapshot-save", tag),
        SnapshotOp::Restore(tag) => (LOAD, tag),
        SnapshotOp::Drop(tag) => ("snapshot-delete", tag),
        SnapshotOp::Rename { .. } => {
            let text = "it has no command for that".to_owned();
            return Err(BackendError::QmpRefused { command: "rename".to_owned(), text });
        }
    };
    forget_ended(qmp).await?;
    let ran = connect::status(qmp).await? == Status::Runs;
    let job = format!("{OURS}{}", uuid::Uuid::new_v4().simple());
    // QEMU may answer only when the job is over, as it does both on one thread.
    qmp.execute_within(command, arguments(command, &job, tag), BOUND).await?;
    let end = concluded(qmp, command, &job, BOUND).await?;
    match (end, op) {
        // It stays on QEMU's list until the next one, for a daemon that finds the machine: see `past`.
        (None, SnapshotOp::Restore(_)) => Ok(()),
        (None, _) => dismiss(qmp, &job).await,
        (Some(text), SnapshotOp::Restore(_)) => Err(not_restored(qmp, text, ran).await),
        (Some(text), _) if text.contains("No space left on device") => {
            Err(BackendError::NoSpace { what: format!("the snapshot {tag}") })
        }
        (Some(text), _) => Err(BackendError::QmpRefused { command: command.to_owned(), text }),
    }
}

/// QEMU has stopped the processors, and lets them run again only when all went well.
async fn not_restored(qmp: &Qmp, text: String, ran: bool) -> BackendError {
    if is_half_way(&text) {
        return BackendError::HalfRestored { reason: text };
    }
    if ran {
        // If it does not run again, its status says so.
        qmp.execute("cont", json!({})).await.ok();
    }
    BackendError::QmpRefused { command: LOAD.to_owned(), text }
}

/// Says whether QEMU had put the disk back, and thrown its memory away, when it failed.
fn is_half_way(text: &str) -> bool {
    ["while loading VM state", "open VM state file", "Could not load snapshot"]
        .iter()
        .any(|words| text.contains(words))
}

/// What became of the last snapshot that a machine was to go back to.
#[derive(Debug)]
pub(super) enum Past {
    /// There was none, or it was refused.
    Same,
    /// The machine has gone back.
    Back,
    /// It has lost its memory in trying.
    Lost(BackendError),
}

/// Looks at what a daemon that is no more may not have heard of.
///
/// # Errors
/// QMP's own.
pub(super) async fn past(qmp: &Qmp) -> Result<Past, BackendError> {
    let jobs = qmp.execute("query-jobs", json!({})).await?;
    let jobs = jobs.as_array().into_iter().flatten();
    let Some(id) = jobs.filter(|j| j["type"] == LOAD).find_map(|j| j["id"].as_str()) else {
        return Ok(Past::Same);
    };
    Ok(match concluded(qmp, LOAD, id, PAST_TIMEOUT).await? {
        None => Past::Back,
        Some(reason) if is_half_way(&reason) => Past::Lost(BackendError::HalfRestored { reason }),
        Some(_) => Past::Same,
    })
}

/// Takes earlier ones of ours off QEMU's list.
async fn forget_ended(qmp: &Qmp) -> Result<(), BackendError> {
    let jobs = qmp.execute("query-jobs", json!({})).await?;
    let ended = jobs.as_array().into_iter().flatten().filter(|j| j["status"] == "concluded");
    for id in ended.filter_map(|j| j["id"].as_str()).filter(|id| id.starts_with(OURS)) {
        dismiss(qmp, id).await?;
    }
    Ok(())
}

async fn dismiss(qmp: &Qmp, job: &str) -> Result<(), BackendError> {
    qmp.execute("job-dismiss", json!({"id": job})).await?;
    Ok(())
}

/// Tells a full disk apart, of which QEMU says that it is an error of input and output when it was
/// the machine's memory that did not fit.
pub(super) fn cause_of(error: BackendError, dir: &VmDir) -> BackendError {
    if let BackendError::QmpRefused { text, .. } = &error
        && text.ends_with("Input/output error")
    {
        return vm_disk::cause_of(error, &dir.0, "the snapshot: its memory does not fit");
    }
    error
}

fn arguments(command: &str, job: &str, tag: &str) -> Value {
    let mut arguments = json!({"job-id": job, "tag": tag, "devices": [NODE]});
    if command != "snapshot-delete" {
        arguments["vmstate"] = json!(NODE);
    }
    arguments
}

/// Waits for a job's end; returns its error.
async fn concluded(
    qmp: &Qmp,
    command: &str,
    job: &str,
    bound: Duration,
) -> Result<Option<String>, BackendError> {
    let deadline = Instant::now() + bound;
    while Instant::now() < deadline {
        // While memory is written QEMU answers late.
        let jobs = qmp.execute_within("query-jobs", json!({}), bound).await?;
        let found = jobs.as_array().and_then(|jobs| jobs.iter().find(|j| j["id"] == job));
        match found {
            Some(found) if found["status"] == "concluded" => {
                return Ok(found["error"].as_str().map(str::to_owned));
            }
            _ => sleep(LOOK).await,
        }
    }
    Err(BackendError::QmpTimeout { command: command.to_owned(), seconds: bound.as_secs() })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;

    use super::*;

    /// A QEMU that answers a command to save memory when that is done, after a minute.
    async fn slow_qemu(far: UnixStream) {
        let (reader, mut writer) = far.into_split();
        let mut lines = BufReader::new(reader).lines();
        let greeting = r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}}}"#;
        writer.write_all(format!("{greeting}\n").as_bytes()).await.unwrap();
        let mut jobs = json!([]);
        while let Some(line) = lines.next_line().await.unwrap() {
            let request: Value = serde_json::from_str(&line).unwrap();
            let answer = match request["execute"].as_str().unwrap() {
                "query-status" => json!({"status": "running", "running": true}),
                "query-jobs" => jobs.clone(),
                "snapshot-save" => {
                    sleep(Duration::from_secs(60)).await;
                    jobs = json!([{"id": request["arguments"]["job-id"], "status": "concluded"}]);
                    json!({})
                }
                _ => json!({}),
            };
            let answer = json!({"return": answer, "id": request["id"]});
            writer.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_memory_that_takes_a_minute_to_save_is_saved() {
        let (near, far) = UnixStream::pair().unwrap();
        tokio::spawn(slow_qemu(far));
        let qmp = Qmp::open(near, Duration::from_secs(1), |_| ()).await.unwrap();
        run(&qmp, &SnapshotOp::Take("x".to_owned()), false).await.unwrap();
    }
}
