//! Who makes a request: read from `/proc` by the thread number that the kernel gives.

use fuser::Request;

use crate::vm::caller::{Caller, ProcessId};

/// How far up the ancestors are followed: deeper than any shell's nesting.
const GENERATIONS: usize = 32;

/// Describes the caller of a request. A thread number of 0 (a caller in another pid namespace)
/// or one that cannot be read leaves the lineage empty.
pub(super) fn of(req: &Request) -> Caller {
    let mut caller = Caller { uid: req.uid(), ..Caller::default() };
    let Some(mut process) = process_of(req.pid()) else {
        return caller;
    };
    caller.session = process.session;
    for _ in 0..GENERATIONS {
        caller.lineage.push(process.id);
        match stat(process.parent) {
            Some(parent) if parent.session == caller.session => process = parent,
            _ => break,
        }
    }
    caller
}

struct Process {
    id: ProcessId,
    parent: u32,
    session: u32,
}

/// Finds the process that a thread belongs to.
fn process_of(thread: u32) -> Option<Process> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let leader = status.lines().find_map(|l| l.strip_prefix("Tgid:"))?;
    stat(leader.trim().parse().ok()?)
}

fn stat(pid: u32) -> Option<Process> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything: the fields after its end are counted.
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    Some(Process {
        id: ProcessId { pid, start: fields.get(19)?.parse().ok()? },
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_known_by_its_process() {
        let own = std::process::id();
        let thread = std::thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().get());
        let thread = u32::try_from(thread.join().unwrap()).unwrap();
        assert!(stat(own).unwrap().id.start > 0);
        // The thread has ended: only the process itself is still there.
        assert!(process_of(thread).is_none_or(|p| p.id.pid == own));
        assert_eq!(process_of(own).unwrap().id.pid, own);
    }
}
