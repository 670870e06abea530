//! The process that makes a request: found in `/proc` by the thread number that the kernel gives.

use fuser::Request;

use crate::proc::{self, Stat};
use crate::vm::caller::{Caller, ProcessId};

/// How far up the ancestors are followed: deeper than any shell's nesting.
const GENERATIONS: usize = 32;

/// Describes the caller of a request. A thread number of 0 (a caller in another pid namespace)
/// or one that cannot be read leaves the lineage empty.
pub(super) fn of(req: &Request) -> Caller {
    let mut caller = Caller { uid: req.uid(), ..Caller::default() };
    let Some(mut process) = proc::process_of(req.pid()).and_then(Process::of) else {
        return caller;
    };
    caller.session = process.stat.session;
    for _ in 0..GENERATIONS {
        caller.lineage.push(process.id);
        match Process::of(process.stat.parent) {
            Some(parent) if parent.stat.session == caller.session => process = parent,
            _ => break,
        }
    }
    caller
}

/// A process and what leads from it to its relations.
#[derive(Clone, Copy)]
struct Process {
    id: ProcessId,
    stat: Stat,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        let stat = Stat::of(pid).ok()?;
        Some(Self { id: ProcessId { pid, start: stat.start }, stat })
    }
}
