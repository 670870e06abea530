//! Snapshots: points in a VM's past, kept in its disk.
//!
//! Of a VM that is off, `qemu-img` takes, restores and drops them, and they can be renamed; of one
//! that runs, QEMU does, with its memory. Either way the VM is `saving` meanwhile, and is then as it was.

use std::sync::Arc;
use std::time::Duration;

use super::effect::{Effect, Step};
use super::running::RunningMachine;
use super::suspended::{self, SUSPENDED};
use super::task::{Done, Report, Task, Ticket};
use super::{Answer, Driver, dropped, paused_by_daemon};
use crate::store::layout::VmDir;
use crate::vm::backend::{Machine, SnapshotInfo, SnapshotOp};
use crate::vm::dropped::Remover;
use crate::vm::state::Refusal;
use crate::vm::{Vm, one_line};

/// How long a request waits for the end: dropping a snapshot, or taking one of a VM that is off,
/// takes some 20 ms. What takes longer continues behind it; `status` and `wait` say when it ends.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct SnapshotJob {
    op: SnapshotOp,
    /// QEMU ends when it went well.
    pub(super) ends_machine: bool,
    pub(super) answer: Option<Answer>,
    _task: Task,
    _reminder: Task,
}

impl SnapshotJob {
    /// Begins an operation in the machine or, without one, in the disk.
    pub(super) fn begin(
        op: SnapshotOp,
        by: Remover,
        machine: Option<&Arc<dyn Machine>>,
        answer: Answer,
        step: &mut Step,
    ) -> Self {
        if let SnapshotOp::Take(tag) = &op {
            step.first(Effect::List(tag.clone(), None));
        }
        let (task, ticket) = Task::new();
        let machine = machine.map(Arc::clone);
        step.then(Effect::Snapshot(ticket, machine, op.clone(), by));
        Self::new(op, false, task, answer, step)
    }

    /// Begins to save everything, with the processors stopped, so that nothing happens after it.
    pub(super) fn begin_suspend(running: &RunningMachine, answer: Answer, step: &mut Step) -> Self {
        let (task, ticket) = Task::new();
        let (machine, was_paused) = (Arc::clone(&running.machine), running.is_paused);
        step.then(Effect::Suspend(ticket, machine, was_paused));
        Self::new(SnapshotOp::Take(SUSPENDED.to_owned()), true, task, answer, step)
    }

    fn new(
        op: SnapshotOp,
        ends_machine: bool,
        task: Task,
        answer: Answer,
        step: &mut Step,
    ) -> Self {
        let (reminder, ticket) = Task::new();
        step.then(Effect::Remind(ticket, ANSWER_TIMEOUT, Report::AnswerOverdue));
        Self { op, ends_machine, answer: Some(answer), _task: task, _reminder: reminder }
    }

    pub(super) fn restores(&self) -> bool {
        matches!(self.op, SnapshotOp::Restore(_))
    }

    /// Ends it and answers who waits; when nobody does, `error` shows a failure.
    pub(super) fn end(self, done: Done, step: &mut Step) {
        self.list(&done, step);
        if let (SnapshotOp::Restore(tag), Ok(())) = (&self.op, &done) {
            step.note(format!("restored {tag}"));
        }
        step.end(self.answer, done);
    }

    /// A snapshot that was taken is in the disk now; one that failed stays listed with its reason
    /// until it is dropped or taken again.
    fn list(&self, done: &Done, step: &mut Step) {
        let SnapshotOp::Take(tag) = &self.op else { return };
        // Users see nothing of it but its error.
        if tag == SUSPENDED {
            return;
        }
        step.first(match done {
            Ok(()) => Effect::Unlist(tag.clone()),
            Err(error) => Effect::List(tag.clone(), Some(one_line(&error.to_string()))),
        });
    }
}

impl Driver {
    pub(super) fn snapshot(
        &self,
        ticket: Ticket,
        machine: Option<Arc<dyn Machine>>,
        op: SnapshotOp,
        by: Remover,
    ) {
        let (vm, suspended) = (self.vm.clone(), self.suspended());
        let disk = self.in_force().map_or(0, |in_force| in_force.spec.disk);
        self.spawn(ticket, |_| async move {
            Report::SnapshotDone(match machine {
                Some(machine) => while_running(&vm, &*machine, &op, disk).await,
                None => while_off(&vm, &op, by, suspended).await,
            })
        });
    }

    pub(super) fn suspend(&self, ticket: Ticket, machine: Arc<dyn Machine>, was_paused: bool) {
        let (vm, stale) = (self.vm.clone(), self.suspended());
        self.spawn(ticket, |_| async move {
            let _disks = vm.disks().hold().await;
            if let Err(error) = vm.check_disks_of_memory(&*machine).await {
                return Report::SnapshotDone(Err(error));
            }
            Report::SnapshotDone(match was_paused {
                true => suspended::save(&*machine, stale).await,
                false => stop_and_save(&*machine, stale, vm.dir()).await,
            })
        });
    }

    /// Returns the snapshot that the next start resumes, if there is one.
    pub(super) fn suspended(&self) -> Option<&'static str> {
        suspended::saved(&*self.vm.0.backends.hypervisor, self.vm.dir())
    }

    /// Says whether a snapshot operation is possible, with the disk and the snapshots that there are.
    pub(super) fn check_snapshot(&self, op: &SnapshotOp) -> Result<(), Refusal> {
        if !self.vm.dir().disk().exists() {
            return Err(Refusal::NoDisk);
        }
        self.check_not_ephemeral()?;
        let known = self.vm.snapshots();
        let find = |tag: &str| known.iter().find(|s| s.tag == tag);
        let (wanted, new) = match op {
            SnapshotOp::Take(tag) => (None, Some(tag)),
            SnapshotOp::Restore(tag) | SnapshotOp::Drop(tag) => (Some(tag), None),
            SnapshotOp::Rename { from, to } => (Some(from), Some(to)),
        };
        if let Some(tag) = new.filter(|tag| find(tag).is_some()) {
            return Err(Refusal::SnapshotExists(tag.clone()));
        }
        let Some(tag) = wanted else { return Ok(()) };
        let found = find(tag).ok_or_else(|| Refusal::NoSnapshot(tag.clone()))?;
        let is_live = self.phase.machine().is_some();
        match is_live && matches!(op, SnapshotOp::Restore(_)) {
            true => check_live(found, &known),
            false => Ok(()),
        }
    }

    /// What is saved in a disk that is thrown away would be lost.
    pub(super) fn check_not_ephemeral(&self) -> Result<(), Refusal> {
        let is_ephemeral = self.in_force().is_some_and(|now| now.spec.ephemeral);
        if is_ephemeral { Err(Refusal::Ephemeral) } else { Ok(()) }
    }
}

fn check_live(wanted: &SnapshotInfo, known: &[SnapshotInfo]) -> Result<(), Refusal> {
    let tag = wanted.tag.clone();
    if wanted.memory == 0 {
        return Err(Refusal::NoMemory(tag));
    }
    match known.iter().find(|s| s.id == tag && s.tag != tag) {
        Some(other) => Err(Refusal::NumberOfAnother { tag, other: other.tag.clone() }),
        None => Ok(()),
    }
}

/// A guest that cannot be saved is resumed; if that fails too, its status is `paused`. The note of
/// the pause of a guest that is saved stays until its machine has ended.
async fn stop_and_save(machine: &dyn Machine, stale: Option<&'static str>, dir: &VmDir) -> Done {
    paused_by_daemon::begin(dir).await?;
    let saved = async {
        machine.pause().await?;
        suspended::save(machine, stale).await
    };
    let saved = saved.await;
    if saved.is_err() {
        drop(machine.resume().await);
        paused_by_daemon::end(dir);
    }
    saved
}

/// A guest that is brought back finds a disk of at least `disk` bytes.
async fn while_running(vm: &Vm, machine: &dyn Machine, op: &SnapshotOp, disk: u64) -> Done {
    let _disks = vm.disks().hold().await;
    let saved = match op {
        SnapshotOp::Take(_) => vm.check_disks_of_memory(machine).await.map(|()| Vec::new())?,
        SnapshotOp::Restore(tag) => vm.fit_disks(machine, tag).await?,
        SnapshotOp::Drop(_) | SnapshotOp::Rename { .. } => Vec::new(),
    };
    machine.snapshot(op).await?;
    if let SnapshotOp::Restore(_) = op {
        vm.refit_disks(machine, &saved).await;
        let grown = suspended::grow(&*vm.0.backends.hypervisor, machine, vm.dir(), disk).await;
        // The guest is back all the same; the next start gives its disk the size.
        if grown.is_err() {
            vm.note_outcome(grown);
        }
    }
    Ok(())
}

/// What is dropped is only marked, and what is marked is dropped before anything else is done. Who
/// goes back in time does not want what was suspended after it any more.
async fn while_off(vm: &Vm, op: &SnapshotOp, by: Remover, suspended: Option<&'static str>) -> Done {
    if let SnapshotOp::Drop(tag) = op
        && suspended != Some(tag)
    {
        return dropped::mark(vm, tag, by).await;
    }
    dropped::drop_now(vm).await?;
    let (hypervisor, dir) = (&vm.0.backends.hypervisor, vm.dir().0.clone());
    hypervisor.snapshot(dir.clone(), op).await?;
    if let (SnapshotOp::Restore(_), Some(saved)) = (op, suspended) {
        hypervisor.snapshot(dir, &SnapshotOp::Drop(saved.to_owned())).await?;
    }
    Ok(())
}
