//! Snapshots of a running machine: QEMU's jobs `snapshot-save`, `-load` and `-delete`.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::cmdline::DISK_NODE;
use super::connect::{self, VcpuStatus};
use super::qmp::{Qmp, refused, timed_out};
use super::{migrate, vm_disk};
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, Result, SnapshotOp};

/// The prefix of our jobs' names: users may start jobs of their own.
const OURS: &str = "aq-";
/// QEMU's name for a restore, of the command and of the job.
const LOAD: &str = "snapshot-load";
/// How often a job is polled. QEMU's event at the end of a job may belong to another job.
const LOOK: Duration = Duration::from_millis(10);
/// How long a job that an earlier daemon started may take to conclude. QEMU answers nobody while a
/// restore runs: when it answers, the job has concluded or is about to begin.
const PAST_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a job may take: a large memory on a slow disk takes minutes. `kill` ends it sooner.
const JOB_TIMEOUT: Duration = Duration::from_secs(1800);

/// Carries out an operation. `ignores_shared` says whether the memory that is restored was saved
/// with the capability `x-ignore-shared`; memory is always saved without it. `beside` are the nodes that
/// take part beside that of the disk.
pub(super) async fn run(
    qmp: &Qmp,
    op: &SnapshotOp,
    (ignores_shared, beside): (bool, &[String]),
) -> Result<()> {
    if matches!(op, SnapshotOp::Take(_) | SnapshotOp::Restore(_)) {
        migrate::ignore_shared(qmp, ignores_shared).await?;
    }
    let done = carry_out(qmp, op, beside).await;
    if ignores_shared {
        // Every later migration sets it again.
        migrate::ignore_shared(qmp, false).await.ok();
    }
    done
}

async fn carry_out(qmp: &Qmp, op: &SnapshotOp, beside: &[String]) -> Result<()> {
    let (command, tag) = match op {
        SnapshotOp::Take(tag) => ("snapshot-save", tag),
        SnapshotOp::Restore(tag) => (LOAD, tag),
        SnapshotOp::Drop(tag) => ("snapshot-delete", tag),
        SnapshotOp::Rename { .. } => {
            return Err(refused("rename", "it has no command for that"));
        }
    };
    forget_ended(qmp).await?;
    let ran = connect::status(qmp).await? == VcpuStatus::Runs;
    let job = format!("{OURS}{}", uuid::Uuid::new_v4().simple());
    // QEMU may answer only when the job has concluded: it does both on one thread.
    qmp.execute_within(command, arguments(command, &job, tag, beside), JOB_TIMEOUT).await?;
    let end = concluded(qmp, command, &job, JOB_TIMEOUT).await?;
    if end.is_some() && matches!(op, SnapshotOp::Take(_)) {
        // They may have it; the next snapshot of this name would be the second.
        for node in beside {
            drop_in(qmp, node, tag).await.ok();
        }
    }
    match (end, op) {
        // It stays on QEMU's list until the next job, for a daemon that adopts the machine
        // (`last_restore`).
        (None, SnapshotOp::Restore(_)) => Ok(()),
        (None, _) => dismiss(qmp, &job).await,
        (Some(text), SnapshotOp::Restore(_)) => Err(not_restored(qmp, text, ran).await),
        (Some(text), _) if text.contains("No space left on device") => {
            Err(BackendError::NoSpace { what: format!("the snapshot {tag}") })
        }
        (Some(text), _) => Err(refused(command, text)),
    }
}

/// Handles a failed restore: QEMU has paused the vCPUs, and resumes them only after success.
async fn not_restored(qmp: &Qmp, text: String, ran: bool) -> BackendError {
    if is_half_way(&text) {
        return BackendError::HalfRestored { reason: text };
    }
    if ran {
        // If it does not resume, the VM's status says so.
        qmp.execute("cont", json!({})).await.ok();
    }
    refused(LOAD, text)
}

/// Says whether QEMU had restored the disk, and lost the guest's memory, when it failed.
fn is_half_way(text: &str) -> bool {
    ["while loading VM state", "open VM state file", "Could not load snapshot"]
        .iter()
        .any(|words| text.contains(words))
}

/// What became of the last restore of a machine.
#[derive(Debug)]
pub(super) enum LastRestore {
    /// There was none, or QEMU refused it.
    None,
    /// The machine has been restored.
    Done,
    /// The machine has lost its memory.
    MemoryLost(BackendError),
}

/// Finds a restore whose end the daemon that started it has not seen.
pub(super) async fn last_restore(qmp: &Qmp) -> Result<LastRestore> {
    let jobs = qmp.execute("query-jobs", json!({})).await?;
    let jobs = jobs.as_array().into_iter().flatten();
    let Some(id) = jobs.filter(|j| j["type"] == LOAD).find_map(|j| j["id"].as_str()) else {
        return Ok(LastRestore::None);
    };
    Ok(match concluded(qmp, LOAD, id, PAST_TIMEOUT).await? {
        None => LastRestore::Done,
        Some(reason) if is_half_way(&reason) => {
            LastRestore::MemoryLost(BackendError::HalfRestored { reason })
        }
        Some(_) => LastRestore::None,
    })
}

/// Removes our concluded jobs from QEMU's list.
async fn forget_ended(qmp: &Qmp) -> Result<()> {
    let jobs = qmp.execute("query-jobs", json!({})).await?;
    let ended = jobs.as_array().into_iter().flatten().filter(|j| j["status"] == "concluded");
    for id in ended.filter_map(|j| j["id"].as_str()).filter(|id| id.starts_with(OURS)) {
        dismiss(qmp, id).await?;
    }
    Ok(())
}

async fn dismiss(qmp: &Qmp, job: &str) -> Result<()> {
    qmp.execute("job-dismiss", json!({"id": job})).await?;
    Ok(())
}

/// Recognises a full disk: QEMU reports an input/output error when the machine's memory did not
/// fit.
pub(super) fn cause_of(error: BackendError, dir: &VmDir) -> BackendError {
    if let BackendError::QmpRefused { text, .. } = &error
        && text.ends_with("Input/output error")
    {
        return vm_disk::cause_of(error, &dir.0, "the snapshot: its memory does not fit");
    }
    error
}

/// Drops a snapshot in one node alone.
pub(super) async fn drop_in(qmp: &Qmp, node: &str, tag: &str) -> Result<()> {
    let stale = json!({"device": node, "name": tag});
    qmp.execute("blockdev-snapshot-delete-internal-sync", stale).await.map(drop)
}

/// The disk gets a snapshot last and loses it first: what is cut short in between is one that others alone
/// have, which is dropped again (`companions`).
fn arguments(command: &str, job: &str, tag: &str, beside: &[String]) -> Value {
    let beside = beside.iter().map(String::as_str);
    let devices: Vec<&str> = match command {
        "snapshot-delete" => [DISK_NODE].into_iter().chain(beside).collect(),
        _ => beside.chain([DISK_NODE]).collect(),
    };
    let mut arguments = json!({"job-id": job, "tag": tag, "devices": devices});
    if command != "snapshot-delete" {
        arguments["vmstate"] = json!(DISK_NODE);
    }
    arguments
}

/// Waits until a job has concluded; returns its error.
async fn concluded(qmp: &Qmp, command: &str, job: &str, limit: Duration) -> Result<Option<String>> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        // While it writes memory, QEMU answers late.
        let jobs = qmp.execute_within("query-jobs", json!({}), limit).await?;
        let found = jobs.as_array().and_then(|jobs| jobs.iter().find(|j| j["id"] == job));
        match found {
            Some(found) if found["status"] == "concluded" => {
                return Ok(found["error"].as_str().map(str::to_owned));
            }
            _ => sleep(LOOK).await,
        }
    }
    Err(timed_out(command, limit))
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
        run(&qmp, &SnapshotOp::Take("x".to_owned()), (false, &[])).await.unwrap();
    }
}
