//! The task of one VM with an idle time: it looks whether the VM is in use, and suspends it.
//!
//! A VM without an idle time has no such task, and one whose processors do not run has no timer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::vm::driver::off_thread;
use crate::vm::events::Event;
use crate::vm::state::{Command, State};
use crate::vm::{Vm, VmError};

/// How long before it is suspended its readers of events hear of it, at the most; of a short time it is a tenth.
const NOTICE: Duration = Duration::from_secs(60);
/// How often in an idle time a VM is looked at.
const LOOKS: u32 = 4;
/// The shortest time between two looks.
const MIN_LOOK: Duration = Duration::from_millis(500);
/// From which share of a processor on a guest is at work, in percent.
const WORK: u128 = 5;

/// Has a VM watched, if it has an idle time.
pub(in crate::vm) fn begin(vm: &Vm) {
    let is_watched = vm.spec().idle.is_some();
    let task = is_watched.then(|| tokio::spawn(watch(vm.clone())).abort_handle());
    vm.0.usage.watched_by(task);
}

async fn watch(vm: Vm) {
    let mut listener = vm.listen();
    while let Some(time) = vm.spec().idle {
        match may_be_suspended(&vm) {
            true => until_suspended(&vm, time).await,
            false => listener.rung().await,
        }
    }
}

/// A VM that its user has paused stays paused.
fn may_be_suspended(vm: &Vm) -> bool {
    matches!(vm.state(), State::Running | State::Ready)
}

/// Returns when the VM is suspended, or its processors do not run.
async fn until_suspended(vm: &Vm, time: Duration) {
    let usage = &vm.0.usage;
    usage.touch();
    let (notice, mut look, mut is_announced) = ((time / 10).min(NOTICE), Look::at(vm), false);
    let mut listener = vm.listen();
    while may_be_suspended(vm) {
        let left = usage.left(time);
        let pause = if is_announced { left } else { left.saturating_sub(notice) };
        let pause = pause.min(time / LOOKS).max(MIN_LOOK.min(notice));
        tokio::select! {
            () = sleep(pause) => {}
            // Only what the VM is at counts, and what it was used for since.
            () = listener.rung() => continue,
        }
        if look.finds_use(vm).await {
            usage.touch();
        }
        match usage.left(time) {
            Duration::ZERO => return suspend(vm).await,
            left if left <= notice && !is_announced => {
                is_announced = true;
                vm.emit(&Event::Suspends(left));
            }
            left => is_announced = is_announced && left <= notice,
        }
    }
}

async fn suspend(vm: &Vm) {
    let usage = &vm.0.usage;
    let Some(suspending) = usage.begin_suspending() else { return };
    let suspended = suspended(vm).await;
    drop(suspending);
    match suspended {
        Ok(true) => vm.emit(&Event::Suspended),
        // Its own outcome is told already.
        Ok(false) => {}
        Err(error) => vm.note_outcome(Err::<(), _>(error)),
    }
}

/// Suspends it, and notes first that its next use brings it back.
async fn suspended(vm: &Vm) -> Result<bool, VmError> {
    let note = vm.dir().asleep();
    let written = note.clone();
    off_thread(move || std::fs::write(written, ""), "the note that the VM is idle").await?;
    let mut listener = vm.listen();
    let asked = vm.perform(Command::Suspend).await;
    while asked.is_ok() && vm.state().is_transition() {
        listener.rung().await;
    }
    let is_asleep = vm.0.usage.is_asleep();
    if !is_asleep {
        off_thread(move || crate::store::file::remove(&note), "the note that the VM is idle")
            .await?;
    }
    asked.map(|()| is_asleep)
}

/// What was seen of a machine.
#[derive(Debug)]
struct Look {
    at: Instant,
    pid: u32,
    cpu_ms: u64,
}

impl Look {
    fn at(vm: &Vm) -> Self {
        let (at, facts) = (Instant::now(), vm.view().facts);
        let cpu_ms = facts.as_ref().map_or(0, |facts| vm.0.backends.hypervisor.cpu_ms(facts));
        Self { at, pid: facts.map_or(0, |facts| facts.pid), cpu_ms }
    }

    /// Says whether it was in use since the last look, in a way that says nothing of itself.
    async fn finds_use(&mut self, vm: &Vm) -> bool {
        let now = Self::at(vm);
        let (elapsed, worked) = (now.at - self.at, now.cpu_ms.saturating_sub(self.cpu_ms));
        let is_same = now.pid == self.pid;
        *self = now;
        let works = is_same && u128::from(worked) * 100 > elapsed.as_millis() * WORK;
        works || vm.files_are_open() || vm.console().has_terminal_open() || is_connected(vm).await
    }
}

/// Says whether somebody but ourselves has a connection to one of its ports.
async fn is_connected(vm: &Vm) -> bool {
    let Some(facts) = vm.view().facts else { return false };
    let forwards = facts.in_force.map(|now| now.forwards).unwrap_or_default();
    let mut ports: Vec<u16> = forwards.iter().map(|bound| bound.port).collect();
    ports.push(facts.ssh_port);
    let hypervisor = Arc::clone(&vm.0.backends.hypervisor);
    let look = move || Ok(hypervisor.has_connections(&ports));
    off_thread(look, "connections").await.unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::vm::backend::OutputKind;
    use crate::vm::driver::tests::{START, Scratch, set, until, vm_in};
    use crate::vm::fake::{Script, backends};
    use crate::vm::state::{Command, State};
    use crate::vm::stream::{StreamAccess, read};
    use crate::vm::{Vm, caller::Caller};

    async fn ready() -> (Scratch, Arc<Script>, Vm) {
        let dir = Scratch(tempfile::tempdir().unwrap());
        let script = Arc::<Script>::default();
        let vm = vm_in(&backends(&script), dir.0.path(), uuid::Uuid::new_v4()).await;
        vm.perform(START).await.unwrap();
        until(&vm, &State::Ready).await;
        (dir, script, vm)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_vm_is_suspended_and_its_next_use_brings_it_back() {
        let (dir, script, vm) = ready().await;
        let events = vm.open_events();
        set(&vm, "idle", "10s").await.unwrap();
        let begun = tokio::time::Instant::now();
        until(&vm, &State::Stopped).await;
        assert_eq!(begun.elapsed().as_secs(), 10);
        assert!(vm.is_suspended() && vm.is_asleep());
        let said = String::from_utf8(read(events, 9999).await.unwrap()).unwrap();
        assert!(said.contains(" suspends in ") && said.contains(" config idle"), "{said}");
        // Also under a later daemon.
        let vm = vm_in(&backends(&script), dir.0.path(), vm.uuid()).await;
        assert!(vm.is_asleep());
        let job = vm.exec().make("a").unwrap();
        let caller = Caller { uid: 0, lineage: Vec::new(), session: 1 };
        vm.open_command(&job, caller).unwrap().try_write(b"true").unwrap().unwrap();
        vm.exec().settle(&job);
        let output = vm.exec().open_output(&job, OutputKind::Stdout, false);
        drop(read(output, 100).await);
        assert_eq!((vm.state(), vm.is_asleep()), (State::Ready, false));
        assert!(!vm.dir().asleep().exists());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_in_use_or_paused_is_not() {
        let (_dir, _script, vm) = ready().await;
        set(&vm, "idle", "10s").await.unwrap();
        let console = vm.open_console(StreamAccess::Converse).unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(100)).await;
        assert_eq!(vm.state(), State::Ready);
        drop(console);
        vm.perform(Command::Pause).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(100)).await;
        assert_eq!(vm.state(), State::Paused);
        set(&vm, "idle", "never").await.unwrap();
        vm.perform(Command::Resume).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_secs(100)).await;
        assert_eq!(vm.state(), State::Ready);
        // Who suspends it himself starts it himself.
        vm.perform(Command::Suspend).await.unwrap();
        until(&vm, &State::Stopped).await;
        assert!(vm.is_suspended() && !vm.is_asleep());
    }
}
