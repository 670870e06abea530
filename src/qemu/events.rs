//! From QMP's events to the events of a VM's task, through a bounded queue.
//!
//! A guest may reset itself or open its ready port in a loop, faster than the task takes the
//! events. Such chatter never takes the room of events that decide a state. After events have been
//! lost, QEMU is asked for its present state.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;

use super::cmdline::READY_ID;
use super::connect::{self, VcpuStatus};
use super::qmp::{Qmp, QmpEvent};
use crate::vm::backend::{BackendError, MachineEvent, Result};

/// The capacity of the queue to the VM's task.
const EVENTS: usize = 256;
/// How much of it is reserved for events that decide a state.
const RESERVED: usize = EVENTS / 2;
/// How often the queue is polled while a flood lasts, and QEMU is asked again when it does not
/// answer.
const RETRY: Duration = Duration::from_millis(100);

/// Translates QMP's events and queues them.
#[derive(Clone, Debug)]
pub struct EventSink {
    sender: mpsc::Sender<MachineEvent>,
    taken: Arc<Mutex<SinkState>>,
    lost: Arc<Notify>,
}

/// What has come in.
#[derive(Debug, Default)]
struct SinkState {
    count: u64,
    shut_down: bool,
    /// A reset or an announcement was lost since QEMU was last asked.
    lost_chatter: bool,
}

impl EventSink {
    /// Returns a sink and what comes out of it.
    pub fn new() -> (Self, mpsc::Receiver<MachineEvent>) {
        let (sender, receiver) = mpsc::channel(EVENTS);
        (Self { sender, taken: Arc::default(), lost: Arc::default() }, receiver)
    }

    /// Opens a connection to QEMU whose events are queued here.
    pub(super) async fn connect(&self, stream: UnixStream, limit: Duration) -> Result<Qmp> {
        let sink = self.clone();
        let take = move |event: QmpEvent| translate(&event).into_iter().for_each(|e| sink.push(e));
        Qmp::open(stream, limit, take).await
    }

    /// Queues an event.
    pub fn push(&self, event: MachineEvent) {
        let mut taken = self.taken.lock();
        taken.count += 1;
        taken.shut_down |= matches!(event, MachineEvent::ShutDown { .. });
        let is_chatter = is_chatter(&event);
        if (is_chatter && self.sender.capacity() <= RESERVED)
            || self.sender.try_send(event).is_err()
        {
            taken.lost_chatter |= is_chatter;
            self.lost.notify_one();
        }
    }

    /// Queues the last event, as soon as there is room.
    pub(super) async fn end(&self, event: MachineEvent) {
        // The receiver may be gone.
        self.sender.send(event).await.ok();
    }

    pub(super) fn has_shut_down(&self) -> bool {
        self.taken.lock().shut_down
    }

    /// Resolves when the receiver is gone.
    pub(super) async fn abandoned(&self) {
        self.sender.closed().await;
    }

    /// Resolves when an event has been lost.
    pub(super) async fn loses(&self) {
        self.lost.notified().await;
    }

    /// Waits until the task has taken what is queued, and queues the present state.
    pub(super) async fn make_up(&self, qmp: &Qmp) {
        // To reserve room would take it from events that arrive meanwhile.
        while self.sender.capacity() < EVENTS {
            if self.sender.is_closed() {
                return;
            }
            sleep(RETRY).await;
        }
        let before = self.taken.lock().count;
        match now(qmp).await {
            Ok(now) if self.report(before, now) => {}
            // The connection's end is followed by the process's.
            Err(BackendError::QemuDied { .. }) => {}
            Ok(_) | Err(_) => {
                sleep(RETRY).await;
                self.lost.notify_one();
            }
        }
    }

    /// Queues the present state, unless events have arrived since the count was `before`.
    fn report(&self, before: u64, (status, announced): (VcpuStatus, bool)) -> bool {
        let mut taken = self.taken.lock();
        if taken.count != before {
            return false;
        }
        let mut events = Vec::new();
        if std::mem::take(&mut taken.lost_chatter) {
            events.push(MachineEvent::Reset);
            events.extend(announced.then_some(MachineEvent::Announced));
        }
        events.push(match status {
            VcpuStatus::Runs => MachineEvent::Resumed,
            VcpuStatus::Paused => MachineEvent::Paused,
            VcpuStatus::DiskFull => MachineEvent::DiskFull,
        });
        if taken.shut_down {
            events.push(MachineEvent::ShutDown { by_guest: false });
        }
        // There is room: nothing has come in since the queue was empty.
        events.into_iter().all(|event| self.sender.try_send(event).is_ok())
    }
}

async fn now(qmp: &Qmp) -> Result<(VcpuStatus, bool)> {
    Ok((connect::status(qmp).await?, connect::has_announced(qmp).await?))
}

/// Says whether a guest can cause as many of these as it likes, none of which decides a state.
fn is_chatter(event: &MachineEvent) -> bool {
    matches!(event, MachineEvent::Reset | MachineEvent::Announced)
}

fn translate(event: &QmpEvent) -> Option<MachineEvent> {
    let (name, data) = (event.name.as_str(), &event.data);
    match name {
        "STOP" => Some(MachineEvent::Paused),
        "RESUME" => Some(MachineEvent::Resumed),
        "RESET" => Some(MachineEvent::Reset),
        "SHUTDOWN" => Some(MachineEvent::ShutDown { by_guest: data["guest"] == true }),
        "VSERPORT_CHANGE" if data["id"] == READY_ID && data["open"] == true => {
            Some(MachineEvent::Announced)
        }
        "BLOCK_IO_ERROR" if data["nospace"] == true && data["action"] == "stop" => {
            Some(MachineEvent::DiskFull)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn events_mean_what_they_say_and_others_nothing() {
        let port = |open| json!({"id": READY_ID, "open": open});
        let error = |nospace, action| json!({"nospace": nospace, "action": action});
        let table = [
            ("STOP", Value::Null, Some(MachineEvent::Paused)),
            ("RESUME", Value::Null, Some(MachineEvent::Resumed)),
            ("RESET", json!({"guest": true}), Some(MachineEvent::Reset)),
            (
                "SHUTDOWN",
                json!({"guest": true, "reason": "guest-shutdown"}),
                Some(MachineEvent::ShutDown { by_guest: true }),
            ),
            ("SHUTDOWN", Value::Null, Some(MachineEvent::ShutDown { by_guest: false })),
            ("VSERPORT_CHANGE", port(true), Some(MachineEvent::Announced)),
            ("VSERPORT_CHANGE", port(false), None),
            ("VSERPORT_CHANGE", json!({"id": "other", "open": true}), None),
            ("BLOCK_IO_ERROR", error(true, "stop"), Some(MachineEvent::DiskFull)),
            ("BLOCK_IO_ERROR", error(false, "report"), None),
            ("POWERDOWN", Value::Null, None),
        ];
        for (name, data, expected) in table {
            let event = QmpEvent { name: name.into(), data };
            assert_eq!(translate(&event), expected, "{event:?}");
        }
    }

    #[test]
    fn a_flood_of_resets_is_cut_off_and_leaves_room_for_what_decides_a_state() {
        let (sink, mut events) = EventSink::new();
        for _ in 0..2 * EVENTS {
            sink.push(MachineEvent::Reset);
            sink.push(MachineEvent::Announced);
        }
        sink.push(MachineEvent::Paused);
        sink.push(MachineEvent::ShutDown { by_guest: true });
        let mut all = Vec::new();
        while let Ok(event) = events.try_recv() {
            all.push(event);
        }
        assert_eq!(all.len(), RESERVED + 2);
        let last = [MachineEvent::Paused, MachineEvent::ShutDown { by_guest: true }];
        assert_eq!(all[RESERVED..], last);
        assert!(sink.has_shut_down());
    }
}
