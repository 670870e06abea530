//! Migration over QMP: a machine's memory and device state, sent through a file descriptor.
//!
//! Not here: what it is for, and what happens to the disk meanwhile (`capture`).

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::qmp::{Qmp, QmpEvent, closed, refused, timed_out};
use crate::vm::backend::{BackendError, Result};

/// The name of a descriptor that is handed over for a migration.
const FD: &str = "migration";
/// Bytes a second: no limit.
const BANDWIDTH: u64 = 1 << 40;
/// How long running vCPUs may be paused at the end of a migration, in milliseconds.
const DOWNTIME: u64 = 50;
/// How long a migration of device state to or from a file may take: it needs some milliseconds.
pub(super) const DEVICES_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a migration with memory may take while the vCPUs are paused: it copies some gigabytes a
/// second.
pub(super) const MEMORY_TIMEOUT: Duration = Duration::from_secs(120);

/// The migration status at which everything is transferred.
pub(super) const COMPLETED: &str = "completed";

/// What a migration transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    /// All memory of a running guest. The migration pauses before the last pages until it is
    /// continued.
    Live,
    /// All memory of a paused guest.
    Whole,
    /// The device state, and memory that is not in a file that both sides map: hardly any.
    DevicesOnly,
}

/// The capability under which memory that both sides map from a file is left out. QEMU writes into
/// whatever it saves whether it was set, snapshots included, and loads that only while it is the
/// same.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// Sets that capability for the next save or load.
///
/// # Errors
/// QMP's own; `QmpRefused` while a migration is under way.
pub(super) async fn ignore_shared(qmp: &Qmp, on: bool) -> Result<()> {
    set(qmp, &[(IGNORE_SHARED, on)]).await
}

/// Resets every capability that a migration of ours may have set to QEMU's default.
pub(super) async fn reset(qmp: &Qmp) -> Result<()> {
    set(qmp, &[("events", false), ("pause-before-switchover", false), (IGNORE_SHARED, false)]).await
}

async fn set(qmp: &Qmp, capabilities: &[(&str, bool)]) -> Result<()> {
    let state = |(name, on): &(&str, bool)| json!({"capability": name, "state": on});
    let states: Vec<Value> = capabilities.iter().map(state).collect();
    qmp.execute("migrate-set-capabilities", json!({"capabilities": states})).await.map(drop)
}

/// A migration of one machine, out of it or into it.
#[derive(Debug)]
pub(super) struct Migration<'a> {
    qmp: &'a Qmp,
    events: Receiver<QmpEvent>,
}

impl<'a> Migration<'a> {
    /// Sets the capabilities and limits for one.
    pub(super) async fn new(qmp: &'a Qmp, transfer: Transfer) -> Result<Self> {
        let events = qmp.events();
        let capabilities = [
            ("events", true),
            ("pause-before-switchover", transfer == Transfer::Live),
            (IGNORE_SHARED, transfer == Transfer::DevicesOnly),
        ];
        set(qmp, &capabilities).await?;
        let limits = json!({"max-bandwidth": BANDWIDTH, "downtime-limit": DOWNTIME});
        qmp.execute("migrate-set-parameters", limits).await?;
        Ok(Self { qmp, events })
    }

    pub(super) async fn send(&self, to: &OwnedFd) -> Result<()> {
        self.qmp.give(FD, to).await?;
        self.qmp.execute("migrate", json!({"uri": format!("fd:{FD}")})).await.map(drop)
    }

    pub(super) async fn receive(&self, from: &OwnedFd) -> Result<()> {
        self.qmp.give(FD, from).await?;
        self.qmp.execute("migrate-incoming", json!({"uri": format!("fd:{FD}")})).await.map(drop)
    }

    /// Continues a migration that has paused before its last pages.
    pub(super) async fn continue_after_switchover(&self) -> Result<()> {
        let state = json!({"state": "pre-switchover"});
        self.qmp.execute("migrate-continue", state).await.map(drop)
    }

    /// Waits for a status, at most for `limit`; returns whether it was reached.
    pub(super) async fn wait_for_up_to(&mut self, wanted: &str, limit: Duration) -> Result<bool> {
        match timeout(limit, self.next(wanted)).await {
            Ok(reached) => reached.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Waits for a status that must be reached within `limit`.
    pub(super) async fn wait_for(&mut self, wanted: &str, limit: Duration) -> Result<()> {
        if self.wait_for_up_to(wanted, limit).await? {
            return Ok(());
        }
        Err(timed_out("migrate", limit))
    }

    /// Resets the capabilities after a completed migration.
    pub(super) async fn end(self) -> Result<()> {
        reset(self.qmp).await
    }

    async fn next(&mut self, wanted: &str) -> Result<()> {
        loop {
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = self.qmp.closed() => return Err(closed()),
            };
            let status = match event {
                Ok(event) if event.name == "MIGRATION" => event.data["status"].clone(),
                Ok(_) => continue,
                // The awaited status may be among the events that were lost.
                Err(RecvError::Lagged(_)) => self.query().await["status"].clone(),
                Err(RecvError::Closed) => return Err(closed()),
            };
            match status.as_str().unwrap_or_default() {
                reached if reached == wanted => return Ok(()),
                "failed" | "cancelled" => return Err(self.failure().await),
                _ => {}
            }
        }
    }

    async fn query(&self) -> Value {
        self.qmp.execute("query-migrate", json!({})).await.unwrap_or(Value::Null)
    }

    async fn failure(&self) -> BackendError {
        let answer = self.query().await;
        refused("migrate", answer["error-desc"].as_str().unwrap_or("it did not say why"))
    }
}
