//! Processes that have just been refused a part of a VM: `rm -r` of a VM that runs, or is
//! protected.
//!
//! It continues after the refusal, and would remove the VM's snapshots and jobs, each of which can
//! be removed by itself. So the process is refused those too, as long as the VM itself could not be
//! removed.
//!
//! Not here: whether the VM could be (`vm::state`), and the clock.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use crate::vm::VmId;
use crate::vm::caller::ProcessId;

/// How soon after a refusal a removal belongs to it. The same process may later mean what it asks.
const SHORTLY: Duration = Duration::from_secs(1);
/// How many refusals are remembered: as many programs may do this at once.
const KEPT: usize = 64;

/// The newest refusals, oldest first.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<VecDeque<(VmId, ProcessId, SystemTime)>>);

impl Refused {
    pub(super) fn add(&self, vm: VmId, process: Option<ProcessId>, now: SystemTime) {
        let Some(process) = process else { return };
        let mut newest = self.0.lock();
        newest.retain(|(v, p, _)| (*v, *p) != (vm, process));
        if newest.len() == KEPT {
            newest.pop_front();
        }
        newest.push_back((vm, process, now));
    }

    pub(super) fn holds(&self, vm: VmId, process: Option<ProcessId>, now: SystemTime) -> bool {
        // A clock that was set back makes nothing recent for long.
        let is_recent = |then: SystemTime| now.duration_since(then).is_ok_and(|d| d < SHORTLY);
        let newest = self.0.lock();
        newest.iter().any(|(v, p, then)| (*v, Some(*p)) == (vm, process) && is_recent(*then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_of_one_process_and_one_vm_and_soon_over() {
        let (refused, now) = (Refused::default(), SystemTime::UNIX_EPOCH + Duration::from_secs(9));
        let process = |pid| Some(ProcessId { pid, start: 1 });
        refused.add(VmId(1), process(7), now);
        refused.add(VmId(1), None, now);
        assert!(refused.holds(VmId(1), process(7), now));
        assert!(!refused.holds(VmId(2), process(7), now) && !refused.holds(VmId(1), None, now));
        assert!(!refused.holds(VmId(1), process(8), now));
        assert!(!refused.holds(VmId(1), process(7), now + SHORTLY));
        for pid in 100..200 {
            refused.add(VmId(1), process(pid), now);
        }
        assert!(!refused.holds(VmId(1), process(7), now) && refused.0.lock().len() == KEPT);
    }
}
