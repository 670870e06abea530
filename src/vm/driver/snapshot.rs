//! Snapshots: points in a VM's past, kept in its disk.
//!
//! Of a VM that is off, `qemu-img` takes, restores and drops them, and they can be renamed; of one
//! that runs, QEMU does, with its memory. Either way the VM is `saving` meanwhile, and goes on as it was.

use std::sync::Arc;
use std::time::Duration;

use super::suspended::{self, SUSPENDED};
use super::{Answer, Driver, Report, Task, dropped, paused_by_daemon};
use crate::store::layout::VmDir;
use crate::vm::backend::{BackendError, Machine, SnapshotInfo, SnapshotOp};
use crate::vm::dropped::Remover;
use crate::vm::state::{Command, Refusal, State, admit};
use crate::vm::{Vm, VmError, one_line};
use tokio::sync::oneshot;

/// How long a request waits for the end: dropping a snapshot, or taking one of a VM that is off,
/// takes some 20 ms. What takes longer goes on behind it; `status` and `wait` tell.
const ANSWER: Duration = Duration::from_millis(500);

/// What follows an operation that went well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    /// QEMU ends.
    End,
}

/// An operation under way.
pub(super) struct Snapshotting {
    op: SnapshotOp,
    then: Then,
    /// The state to go back to.
    before: State,
    answer: Option<oneshot::Sender<Result<(), VmError>>>,
    _task: Task,
}

impl Driver {
    /// Drops a snapshot for a process.
    pub(super) fn drop_snapshot(&mut self, tag: String, by: Remover, answer: Answer) {
        let command = Command::Drop(tag.clone());
        match admit(&self.state(), &command, self.vm.spec().protect) {
            Ok(()) => self.snapshot_for(by, SnapshotOp::Drop(tag), answer),
            Err(refusal) => drop(answer.send(Err(self.explained(refusal).into()))),
        }
    }

    /// Begins an operation that the policy has admitted.
    pub(super) fn snapshot(&mut self, op: SnapshotOp, answer: Answer) {
        self.snapshot_for(None, op, answer);
    }

    fn snapshot_for(&mut self, by: Remover, op: SnapshotOp, answer: Answer) {
        match self.check_snapshot(&op) {
            Ok(()) => self.begin_snapshot(by, op, answer),
            Err(refusal) => drop(answer.send(Err(refusal.into()))),
        }
    }

    /// Gives up what `suspend` has saved of a VM that is off; says whether there was anything.
    pub(super) fn gives_up_suspended(&self) -> bool {
        matches!(self.state(), State::Stopped | State::Failed(_)) && self.suspended().is_some()
    }

    /// Gives it up: the next start boots.
    pub(super) fn give_up_suspended(&mut self, answer: Answer) {
        let tag = self.suspended().unwrap_or(SUSPENDED);
        self.begin_snapshot(None, SnapshotOp::Drop(tag.to_owned()), answer);
    }

    fn begin_snapshot(&mut self, by: Remover, op: SnapshotOp, answer: Answer) {
        if let SnapshotOp::Take(tag) = &op {
            self.vm.0.pending.lock().insert(tag.clone(), None);
        }
        let before = self.state();
        self.enter(State::Saving);
        let machine = self.running.as_ref().map(|running| Arc::clone(&running.machine));
        let (vm, work, suspended) = (self.vm.clone(), op.clone(), self.suspended());
        let task = self.task(|to| async move {
            let done = match machine {
                Some(machine) => machine.snapshot(&work).await,
                None => while_off(&vm, &work, by, suspended).await,
            };
            to.report(Report::Snapshot(done)).await;
        });
        self.detached(|to| async move {
            tokio::time::sleep(ANSWER).await;
            to.report(Report::SnapshotOverdue).await;
        });
        let (then, answer) = (Then::GoOn, Some(answer));
        self.snapshotting = Some(Snapshotting { op, then, before, answer, _task: task });
    }

    /// Saves everything, with the processors stopped, so that nothing happens after it.
    pub(super) fn suspend(&mut self, answer: oneshot::Sender<Result<(), VmError>>) {
        let Some(machine) = self.running.as_ref().map(|running| Arc::clone(&running.machine))
        else {
            return;
        };
        if self.in_force().is_some_and(|i| i.spec.ephemeral) {
            drop(answer.send(Err(Refusal::Ephemeral.into())));
            return;
        }
        let op = SnapshotOp::Take(SUSPENDED.to_owned());
        let (before, stale) = (self.state(), self.suspended());
        self.enter(State::Saving);
        let (vm, was_paused) = (self.vm.clone(), before == State::Paused);
        let task = self.task(|to| async move {
            let done = match was_paused {
                true => suspended::save(&*machine, stale).await,
                false => stop_and_save(&*machine, stale, vm.dir()).await,
            };
            to.report(Report::Snapshot(done)).await;
        });
        self.detached(|to| async move {
            tokio::time::sleep(ANSWER).await;
            to.report(Report::SnapshotOverdue).await;
        });
        let (then, answer) = (Then::End, Some(answer));
        self.snapshotting = Some(Snapshotting { op, then, before, answer, _task: task });
    }

    /// Returns the snapshot that the next start resumes, if there is one.
    pub(super) fn suspended(&self) -> Option<&'static str> {
        suspended::saved(&*self.backends.hypervisor, self.vm.dir())
    }

    fn check_snapshot(&self, op: &SnapshotOp) -> Result<(), Refusal> {
        if !self.vm.dir().disk().exists() {
            return Err(Refusal::NoDisk);
        }
        if self.in_force().is_some_and(|i| i.spec.ephemeral) {
            return Err(Refusal::Ephemeral);
        }
        let known = self.vm.snapshots();
        let find = |tag: &str| known.iter().find(|s| s.tag == tag);
        match op {
            SnapshotOp::Take(tag) if find(tag).is_some() => {
                Err(Refusal::SnapshotExists { tag: tag.clone() })
            }
            SnapshotOp::Rename { to, .. } if find(to).is_some() => {
                Err(Refusal::SnapshotExists { tag: to.clone() })
            }
            SnapshotOp::Take(_) => Ok(()),
            SnapshotOp::Rename { from, .. } if find(from).is_none() => {
                Err(Refusal::NoSnapshot { tag: from.clone() })
            }
            SnapshotOp::Rename { .. } => Ok(()),
            SnapshotOp::Restore(tag) | SnapshotOp::Drop(tag) => match find(tag) {
                None => Err(Refusal::NoSnapshot { tag: tag.clone() }),
                Some(found) if matches!(op, SnapshotOp::Restore(_)) && self.running.is_some() => {
                    check_live(found, &known)
                }
                Some(_) => Ok(()),
            },
        }
    }

    /// Tells who waits that the work goes on.
    pub(super) fn on_snapshot_overdue(&mut self) {
        if let Some(answer) = self.snapshotting.as_mut().and_then(|s| s.answer.take()) {
            drop(answer.send(Ok(())));
        }
    }

    pub(super) fn on_snapshot(&mut self, done: Result<(), BackendError>) {
        // The end of QEMU is an event of its own, which is on its way and tells how it ended.
        if self.running.is_some() && done.as_ref().is_err_and(BackendError::is_the_end) {
            return;
        }
        let Some(Snapshotting { op, then, before, answer, .. }) = self.snapshotting.take() else {
            return;
        };
        self.settle_pending(&op, &done);
        if let (SnapshotOp::Restore(tag), Ok(())) = (&op, &done) {
            self.note(&format!("restored {tag}"));
            self.after_restore();
        }
        if then == Then::End && done.is_ok() {
            self.kill();
        } else if self.state() == State::Saving {
            self.enter_again(before);
        }
        let done = done.map_err(VmError::from);
        match answer {
            Some(answer) => drop(answer.send(done)),
            None if done.is_err() => self.vm.note_outcome(done),
            None => {}
        }
    }

    /// Gives up what was under way when QEMU ended; the state is the caller's to set.
    pub(super) fn abandon_snapshot(&mut self, error: BackendError) {
        let Some(Snapshotting { op, answer, .. }) = self.snapshotting.take() else { return };
        let done = Err(error);
        self.settle_pending(&op, &done);
        if let Some(answer) = answer {
            drop(answer.send(done.map_err(VmError::from)));
        }
    }

    /// A snapshot that was taken is in the disk now; one that failed stays listed with its reason
    /// until it is dropped or taken again.
    fn settle_pending(&self, op: &SnapshotOp, done: &Result<(), BackendError>) {
        let SnapshotOp::Take(tag) = op else { return };
        // Users see nothing of it but its error.
        if tag == SUSPENDED {
            return;
        }
        let mut pending = self.vm.0.pending.lock();
        match done {
            Ok(()) => drop(pending.remove(tag)),
            Err(error) => drop(pending.insert(tag.clone(), Some(one_line(&error.to_string())))),
        }
    }

    /// A guest that was brought back has the clock of then, and knows nothing of our connection.
    fn after_restore(&mut self) {
        if self.running.is_none() {
            return;
        }
        self.session = None;
        self.link.send_replace(crate::vm::exec::Link::Coming);
        self.setting_clock = None;
        self.clock.is_of_the_past();
        self.begun = std::time::Instant::now();
        self.reach(super::reach::Announcement::Missed);
    }
}

/// Says whether a VM that runs can go back to a snapshot.
fn check_live(wanted: &SnapshotInfo, known: &[SnapshotInfo]) -> Result<(), Refusal> {
    let tag = wanted.tag.clone();
    if wanted.memory == 0 {
        return Err(Refusal::NoMemory { tag });
    }
    match known.iter().find(|s| s.id == tag && s.tag != tag) {
        Some(other) => Err(Refusal::NumberOfAnother { tag, other: other.tag.clone() }),
        None => Ok(()),
    }
}

/// A guest that cannot be saved goes on as if nothing had been asked; if not even that works, its
/// status tells. One that is saved stays marked as long as its machine is there.
async fn stop_and_save(
    machine: &dyn Machine,
    stale: Option<&'static str>,
    dir: &VmDir,
) -> Result<(), BackendError> {
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

/// What is dropped is only marked, and what is marked is dropped before anything else is done. Who
/// goes back in time does not want what was suspended after it any more.
async fn while_off(
    vm: &Vm,
    op: &SnapshotOp,
    by: Remover,
    suspended: Option<&'static str>,
) -> Result<(), BackendError> {
    if let SnapshotOp::Drop(tag) = op
        && suspended != Some(tag)
    {
        return dropped::mark(vm, tag, by).await;
    }
    dropped::drop_now(vm).await?;
    let (hypervisor, dir) = (&vm.0.hypervisor, vm.dir().0.clone());
    hypervisor.snapshot(dir.clone(), op).await?;
    if let (SnapshotOp::Restore(_), Some(saved)) = (op, suspended) {
        hypervisor.snapshot(dir, &SnapshotOp::Drop(saved.to_owned())).await?;
    }
    Ok(())
}
