//! Who makes a request: a process, its ancestors and its session. Plain data; `fuse` fills it in.
//!
//! `exec` uses it to give every reader the output of its own command.

use serde::{Deserialize, Serialize};

/// A process, told apart from a later one with the same number by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process number in the daemon's pid namespace.
    pub pid: u32,
    /// Start time in clock ticks since the host's boot (`/proc/PID/stat`, field 22).
    pub start: u64,
}

/// The process behind a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user's number.
    pub uid: u32,
    /// The calling process first, then its parent and so on, no further than its session's leader.
    /// Empty when the kernel gave no pid (a caller in another pid namespace).
    pub lineage: Vec<ProcessId>,
    /// Session number (`setsid(2)`); 0 when unknown.
    pub session: u32,
}

impl Caller {
    /// Returns the calling process itself; `None` when it is not known.
    pub fn process(&self) -> Option<ProcessId> {
        self.lineage.first().copied()
    }

    /// Says how closely `self`, a reader, is related to `writer`: smaller is closer, `None` is
    /// unrelated. The reader's own process comes first, then its parent, then a sibling, then what
    /// lies further up the reader's side; a process of the same session comes last.
    pub fn kinship(&self, writer: &Self) -> Option<(usize, usize)> {
        if self.uid != writer.uid {
            return None;
        }
        if self.lineage.is_empty() || writer.lineage.is_empty() {
            return Some((usize::MAX, usize::MAX));
        }
        for (up, ancestor) in self.lineage.iter().enumerate() {
            if let Some(down) = writer.lineage.iter().position(|p| p == ancestor) {
                return Some((up, down));
            }
        }
        (self.session == writer.session).then_some((usize::MAX, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(pids: &[u32], session: u32) -> Caller {
        let lineage = pids.iter().map(|&pid| ProcessId { pid, start: u64::from(pid) }).collect();
        Caller { uid: 1000, lineage, session }
    }

    #[test]
    fn a_parent_is_nearer_than_a_sibling_and_a_sibling_nearer_than_a_cousin() {
        let cat = caller(&[30, 20, 10], 10);
        let own = cat.kinship(&caller(&[30, 20, 10], 10));
        let shell = cat.kinship(&caller(&[20, 10], 10));
        let sibling = cat.kinship(&caller(&[31, 20, 10], 10));
        let cousin = cat.kinship(&caller(&[41, 40, 10], 10));
        assert!(own < shell && shell < sibling && sibling < cousin);
    }

    #[test]
    fn other_users_and_other_sessions_are_strangers() {
        let cat = caller(&[30, 20], 20);
        assert_eq!(cat.kinship(&caller(&[31, 21], 21)), None);
        let other = Caller { uid: 1001, ..caller(&[30, 20], 20) };
        assert_eq!(cat.kinship(&other), None);
    }

    #[test]
    fn a_reused_pid_is_not_the_same_process() {
        let cat = caller(&[30], 30);
        let mut late = caller(&[30], 31);
        late.lineage[0].start += 1;
        assert_eq!(cat.kinship(&late), None);
    }
}
