//! Taking up what an earlier daemon has left: a machine that runs, and what was cut short.
//!
//! Not here: being sure that a QEMU is the VM's own (`qemu::adopt`).

use std::time::Duration;

use uuid::Uuid;

use super::reach::Announcement;
use super::{Driver, Report, dropped, still, suspended, warm};
use crate::store::layout::VmDir;
use crate::vm::backend::Adoption;
use crate::vm::state::State;
use crate::vm::{World, one_line};

/// How often a QEMU that does not answer is asked again. While it writes a snapshot of a large memory
/// it answers nobody, for as long as that takes.
const AGAIN: Duration = Duration::from_secs(3);

/// Finds the VM's machine, and clears away what was cut short.
pub(super) async fn find(world: &World, dir: &VmDir, uuid: Uuid) -> Adoption {
    let found = suspended::adopt(&*world.hypervisor, dir.0.clone(), uuid).await;
    let cleared = async {
        let found = warm::clear(world, dir, found).await?;
        still::release(world, dir, found).await
    };
    cleared.await.unwrap_or_else(|error| Adoption::Unclear(error.to_string()))
}

impl Driver {
    /// Takes up what was found.
    pub(super) fn settle(&mut self, adoption: Adoption) {
        match adoption {
            Adoption::NeverRan => dropped::drop_later(&self.vm),
            Adoption::Running(launched) => {
                dropped::lift_all(&self.vm);
                self.set_clock = launched.restored;
                self.take_over(launched, Announcement::Awaited);
            }
            Adoption::Ended(reason) => {
                dropped::drop_later(&self.vm);
                self.enter(State::Failed(one_line(&reason)));
            }
            Adoption::Unclear(reason) => {
                self.enter(State::Failed(one_line(&reason)));
                self.search();
            }
        }
    }

    /// Looks again for a machine that runs and could not be adopted, until it can be or has ended, or
    /// until the user asks for something else.
    fn search(&mut self) {
        let (vm, world) = (self.vm.clone(), self.world.clone());
        self.searching = Some(self.task(|to| async move {
            let found = loop {
                tokio::time::sleep(AGAIN).await;
                match find(&world, vm.dir(), vm.uuid()).await {
                    Adoption::Unclear(_) => {}
                    found @ (Adoption::NeverRan | Adoption::Running(_) | Adoption::Ended(_)) => {
                        break found;
                    }
                }
            };
            to.report(Report::Found(found)).await;
        }));
    }

    pub(super) fn on_found(&mut self, found: Adoption) {
        match (self.searching.take(), found) {
            (None, _) => {}
            (Some(_), Adoption::NeverRan) => {
                dropped::drop_later(&self.vm);
                self.enter(State::Stopped);
            }
            (
                Some(_),
                found @ (Adoption::Running(_) | Adoption::Ended(_) | Adoption::Unclear(_)),
            ) => self.settle(found),
        }
    }
}
