//! The guest's clock. It stops while the processors are stopped, whatever for: `pause`, a full disk, a
//! snapshot, a capture, a daemon that ended meanwhile. It is set over SSH before the guest is `ready`
//! again, or `stop` presses the power button.
//!
//! Not here: a clone's clock, which its identity sets (`guest::identity`).

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, timeout};

use super::Driver;
use super::task::{Report, Ticket};
use crate::vm::backend::{DiscardOutput, GuestSession};

/// How long setting the guest's clock may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What a command that sets a clock may take for the clock to be right: it names the time of before.
const PROMPT: Duration = Duration::from_secs(1);
/// How often it is tried to be that prompt, on a host that is busy.
const TRIES: usize = 3;
/// How far behind a clock is set: busybox's `date` knows whole seconds only.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// How far the guest's clock is behind.
#[derive(Debug, Default)]
pub(super) struct GuestClock {
    behind: Duration,
    stopped: Option<Instant>,
}

impl GuestClock {
    pub(super) fn stop(&mut self, now: Instant) {
        self.stopped.get_or_insert(now);
    }

    pub(super) fn run(&mut self, now: Instant) {
        self.behind = self.lag(now);
        self.stopped = None;
    }

    /// Says that it shows the past, and nobody knows how long ago.
    pub(super) fn is_of_the_past(&mut self) {
        self.behind = Duration::MAX;
    }

    /// Says that it is right, or cannot be set.
    pub(super) fn is_settled(&mut self) {
        self.behind = Duration::ZERO;
    }

    pub(super) fn is_behind(&self, now: Instant) -> bool {
        self.lag(now) >= NOTICEABLE
    }

    fn lag(&self, now: Instant) -> Duration {
        let stopped = self.stopped.map_or(Duration::ZERO, |since| now.duration_since(since));
        self.behind.saturating_add(stopped)
    }
}

impl Driver {
    pub(super) fn set_clock(&self, ticket: Ticket, session: Arc<dyn GuestSession>) {
        self.spawn(ticket, |_| async move {
            set(&*session).await;
            Report::ClockSet
        });
    }
}

/// Sets the guest's clock to the host's, as near as its `date` can.
pub(super) async fn set(session: &dyn GuestSession) {
    for _ in 0..TRIES {
        let begun = Instant::now();
        let answered = timeout(TIMEOUT, set_once(session)).await.is_ok();
        if !answered || begun.elapsed() < PROMPT {
            return;
        }
    }
}

async fn set_once(session: &dyn GuestSession) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nearest = (now + Duration::from_millis(500)).as_secs();
    let (seconds, hundredths) = (now.as_secs(), now.subsec_millis() / 10);
    // Users other than root may have sudo.
    let command = format!(
        "s() {{ \"$@\" date -u -s @{seconds}.{hundredths:02} || \"$@\" date -u -s @{nearest}; }}; \
         s || s sudo -n"
    );
    // A guest that will not have its clock set keeps it: it is no less ready for that.
    drop(session.exec(command.as_bytes(), b"", &DiscardOutput).await);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep;

    use super::super::tests::{START, Scratch, until, vm_in};
    use crate::vm::backend::{MachineEvent, SnapshotOp};
    use crate::vm::fake::{Script, backends};
    use crate::vm::state::{Command, State};
    use std::sync::Arc;

    /// What was asked of a machine and its guest, from the first pause on, until it is `ready`.
    async fn calls_of(work: impl AsyncFnOnce(&crate::vm::Vm, &Arc<Script>)) -> Vec<&'static str> {
        let dir = Scratch(tempfile::tempdir().unwrap());
        let script = Arc::<Script>::default();
        let vm = vm_in(&backends(&script), dir.0.path(), uuid::Uuid::new_v4()).await;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        script.calls.lock().clear();
        work(&vm, &script).await;
        until(&vm, &State::Ready).await;
        script.calls.lock().clone()
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_is_set_after_a_pause_that_shows_and_before_the_guest_is_ready() {
        for (pause, expected) in
            [(14_000, &["pause", "resume", "exec"][..]), (100, &["pause", "resume"])]
        {
            let calls = calls_of(async |vm, _| {
                vm.perform(Command::Pause).await.unwrap();
                sleep(Duration::from_millis(pause)).await;
                vm.perform(Command::Resume).await.unwrap();
            });
            assert_eq!(calls.await, expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_is_set_after_a_boot_under_translation() {
        let calls = calls_of(async |vm, _| {
            vm.perform(Command::Reset).await.unwrap();
        });
        assert_eq!(calls.await, ["reset", "exec"]);
        let calls = calls_of(async |vm, script| {
            vm.perform(Command::Kill).await.unwrap();
            until(vm, &State::Stopped).await;
            script.calls.lock().clear();
            vm.perform(START).await.unwrap();
        });
        assert_eq!(calls.await, ["exec"]);
    }

    #[tokio::test(start_paused = true)]
    async fn short_pauses_add_up() {
        let calls = calls_of(async |vm, _| {
            for _ in 0..2 {
                vm.perform(Command::Pause).await.unwrap();
                sleep(Duration::from_millis(300)).await;
                vm.perform(Command::Resume).await.unwrap();
            }
        });
        assert_eq!(calls.await, ["pause", "resume", "pause", "resume", "exec"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_is_set_after_a_full_disk_and_after_a_snapshot() {
        let calls = calls_of(async |vm, script| {
            let events = script.events.lock().clone().unwrap();
            events.send(MachineEvent::DiskFull).await.unwrap();
            until(vm, &State::Paused).await;
            sleep(Duration::from_secs(60)).await;
            events.send(MachineEvent::Resumed).await.unwrap();
            until(vm, &State::Ready).await;
            *script.slow.lock() = Duration::from_secs(2);
            vm.perform(SnapshotOp::Take("s".into()).into()).await.unwrap();
            events.send(MachineEvent::Paused).await.unwrap();
            sleep(Duration::from_secs(1)).await;
            events.send(MachineEvent::Resumed).await.unwrap();
        });
        assert_eq!(calls.await, ["exec", "snapshot", "exec"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_found_paused_has_its_clock_set_and_one_that_is_stopped_before_it_ends() {
        let calls = calls_of(async |vm, script| {
            vm.perform(Command::Pause).await.unwrap();
            let later = vm_in(&backends(script), &vm.dir().0, vm.uuid()).await;
            later.perform(Command::Resume).await.unwrap();
            until(&later, &State::Ready).await;
            later.perform(Command::Pause).await.unwrap();
            sleep(Duration::from_secs(9)).await;
            later.perform(Command::Stop { seconds: 30 }).await.unwrap();
            until(&later, &State::Stopped).await;
            vm.perform(Command::Resume).await.unwrap();
        });
        let expected = ["pause", "resume", "exec", "pause", "resume", "exec", "power_down"];
        assert_eq!(calls.await[..expected.len()], expected);
    }
}
