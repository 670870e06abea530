//! Migration over QMP: a machine's memory and state, handed over a descriptor. What for, and what
//! happens to the disk meanwhile, is not known here (`capture`).

use std::os::fd::OwnedFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::qmp::{Event, Qmp, QmpError};
use crate::vm::backend::BackendError;

/// The name of a descriptor that is handed over for a migration.
const FD: &str = "migration";
/// Bytes a second: as fast as it goes.
const BANDWIDTH: u64 = 1 << 40;
/// How long processors that run may stand still at the end of a migration, in milliseconds.
const DOWNTIME: u64 = 50;
/// How long a migration to or from a file may take that holds devices only: some milliseconds.
pub(super) const DEVICES_TIMEOUT: Duration = Duration::from_secs(30);
/// How long processors may stand still, at the very most, while a memory is handed over: it goes at
/// some gigabytes a second.
pub(super) const MEMORY_TIMEOUT: Duration = Duration::from_secs(120);

/// The stage at which all is handed over.
pub(super) const COMPLETED: &str = "completed";

/// How memory is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// All of it, and the processors stop before the end, until they are told to go on.
    Live,
    /// All of it.
    Whole,
    /// Only what is not in a file that both sides map: hardly anything but the devices.
    Shared,
}

/// The capability under which memory that both sides map from a file is left out. QEMU writes into
/// whatever it saves whether it was set, snapshots included, and loads that only while it is the same.
const IGNORE_SHARED: &str = "x-ignore-shared";

/// Sets that capability for what is saved or loaded next.
///
/// # Errors
/// QMP's own; `Refused` while a migration is under way.
pub(super) async fn ignore_shared(qmp: &Qmp, on: bool) -> Result<(), QmpError> {
    set(qmp, &[(IGNORE_SHARED, on)]).await
}

/// Sets every capability that a migration of ours may have set as QEMU has it when it starts.
///
/// # Errors
/// As [`ignore_shared`].
pub(super) async fn reset(qmp: &Qmp) -> Result<(), QmpError> {
    set(qmp, &[("events", false), ("pause-before-switchover", false), (IGNORE_SHARED, false)]).await
}

async fn set(qmp: &Qmp, capabilities: &[(&str, bool)]) -> Result<(), QmpError> {
    let state = |(name, on): &(&str, bool)| json!({"capability": name, "state": on});
    let states: Vec<Value> = capabilities.iter().map(state).collect();
    qmp.execute("migrate-set-capabilities", json!({"capabilities": states})).await.map(drop)
}

/// A migration of one machine, out of it or into it.
#[derive(Debug)]
pub(super) struct Migration<'a> {
    qmp: &'a Qmp,
    events: Receiver<Event>,
}

impl<'a> Migration<'a> {
    /// Prepares one.
    pub(super) async fn new(qmp: &'a Qmp, how: How) -> Result<Self, QmpError> {
        let events = qmp.events();
        let capabilities = [
            ("events", true),
            ("pause-before-switchover", how == How::Live),
            (IGNORE_SHARED, how == How::Shared),
        ];
        set(qmp, &capabilities).await?;
        let limits = json!({"max-bandwidth": BANDWIDTH, "downtime-limit": DOWNTIME});
        qmp.execute("migrate-set-parameters", limits).await?;
        Ok(Self { qmp, events })
    }

    /// Begins to send.
    pub(super) async fn send(&self, to: &OwnedFd) -> Result<(), QmpError> {
        self.qmp.give(FD, to).await?;
        self.qmp.execute("migrate", json!({"uri": format!("fd:{FD}")})).await.map(drop)
    }

    /// Begins to take in.
    pub(super) async fn receive(&self, from: &OwnedFd) -> Result<(), QmpError> {
        self.qmp.give(FD, from).await?;
        self.qmp.execute("migrate-incoming", json!({"uri": format!("fd:{FD}")})).await.map(drop)
    }

    /// Goes on where processors have been stopped before the end.
    pub(super) async fn go_on(&self) -> Result<(), QmpError> {
        let state = json!({"state": "pre-switchover"});
        self.qmp.execute("migrate-continue", state).await.map(drop)
    }

    /// Waits until it is at a stage, for so long at the most; says whether it is.
    pub(super) async fn reaches(
        &mut self,
        stage: &str,
        bound: Duration,
    ) -> Result<bool, BackendError> {
        match timeout(bound, self.next(stage)).await {
            Ok(reached) => reached.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Waits until it is at a stage that it must reach within the bound.
    pub(super) async fn must_reach(
        &mut self,
        stage: &str,
        bound: Duration,
    ) -> Result<(), BackendError> {
        if self.reaches(stage, bound).await? {
            return Ok(());
        }
        let (command, seconds) = ("migrate".to_owned(), bound.as_secs());
        Err(BackendError::QmpTimeout { command, seconds })
    }

    /// Ends one that is completed: QEMU has the capabilities that it had before.
    pub(super) async fn end(self) -> Result<(), QmpError> {
        reset(self.qmp).await
    }

    async fn next(&mut self, stage: &str) -> Result<(), BackendError> {
        loop {
            let event = tokio::select! {
                biased;
                event = self.events.recv() => event,
                () = self.qmp.closed() => return Err(QmpError::Closed.into()),
            };
            let status = match event {
                Ok(event) if event.name == "MIGRATION" => event.data["status"].clone(),
                Ok(_) => continue,
                // Among those that were lost may have been the one.
                Err(RecvError::Lagged(_)) => self.query().await["status"].clone(),
                Err(RecvError::Closed) => return Err(QmpError::Closed.into()),
            };
            match status.as_str().unwrap_or_default() {
                reached if reached == stage => return Ok(()),
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
        let text = answer["error-desc"].as_str().unwrap_or("it did not say why").to_owned();
        BackendError::QmpRefused { command: "migrate".to_owned(), text }
    }
}
