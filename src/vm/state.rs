//! The states of a VM and what can be asked of it: pure, without clock, locks or I/O. What each state
//! admits is in `policy.rs`.
//!
//! ```text
//!            start             greeted            exec worked
//! stopped ─────────▶ starting ─────────▶ running ─────────────▶ ready
//!    ▲                  │ launch failed    │ ▲ pause/resume ▲     │
//!    │                  ▼                  ▼ │              │     │
//!    │               failed              paused ◀───────────┴─────┤
//!    │  QEMU ended                                                │ stop
//!    └──────────────────────────── stopping ◀─────────────────────┘
//! ```
//!
//! `failed` is like `stopped` with a reason; `unreachable` (a QEMU runs that an earlier daemon started,
//! and does not answer) admits nothing but `kill`, and may become any other state; `broken` (damaged
//! files) admits nothing but removal.

use std::fmt;

pub use self::policy::admit;
use super::backend::SnapshotOp;
use super::dropped::Remover;
use super::spec::Edit;

pub(super) mod policy;

/// The state of a VM, as `status` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No QEMU.
    Stopped,
    /// The image is being made ready, or QEMU has not greeted yet.
    Starting,
    /// QEMU runs the guest; SSH has not answered yet.
    Running,
    /// An SSH exec has worked since the last start or reset.
    Ready,
    /// The processors are stopped.
    Paused,
    /// Memory is being written to disk.
    Saving,
    /// On the way to `stopped`.
    Stopping,
    /// QEMU or the launch died.
    Failed(String),
    /// A QEMU runs that may be the VM's, and does not answer.
    Unreachable(String),
    /// The files on disk are damaged.
    Broken(String),
}

impl State {
    /// All words, in the order of a VM's life.
    pub const WORDS: [&str; 10] = [
        "stopped",
        "starting",
        "running",
        "ready",
        "paused",
        "saving",
        "stopping",
        "failed",
        "unreachable",
        "broken",
    ];

    /// Returns the word.
    pub fn word(&self) -> &'static str {
        Self::WORDS[self.index()]
    }

    /// Returns its place in [`Self::WORDS`].
    fn index(&self) -> usize {
        match self {
            Self::Stopped => 0,
            Self::Starting => 1,
            Self::Running => 2,
            Self::Ready => 3,
            Self::Paused => 4,
            Self::Saving => 5,
            Self::Stopping => 6,
            Self::Failed(_) => 7,
            Self::Unreachable(_) => 8,
            Self::Broken(_) => 9,
        }
    }

    /// Says whether there is no QEMU and none is coming.
    pub fn is_off(&self) -> bool {
        matches!(self, Self::Stopped | Self::Failed(_) | Self::Broken(_))
    }

    /// Says whether the state will end by itself: what `wait` waits for.
    pub fn is_transition(&self) -> bool {
        matches!(self, Self::Starting | Self::Saving | Self::Stopping)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        if let Self::Failed(reason) | Self::Unreachable(reason) | Self::Broken(reason) = self {
            write!(f, ": {reason}")?;
        }
        Ok(())
    }
}

/// What a user asks of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a command says what its fields are")]
pub enum Command {
    /// Launch QEMU; `paused` leaves the processors stopped.
    Start { paused: bool },
    /// End gracefully, and by force after so many seconds.
    Stop { seconds: u64 },
    /// End QEMU now.
    Kill,
    /// Stop the processors.
    Pause,
    /// Let them run.
    Resume,
    /// Press the reset button.
    Reset,
    /// Press keys on the guest's keyboard: those of a chord together, one chord after the other.
    PressKeys { chords: Vec<Vec<String>> },
    /// Change a setting.
    Configure(Edit),
    /// Save everything to disk and end QEMU; the next start resumes it.
    Suspend,
    /// Do something with a snapshot, for this process. Of a VM that is off, one that is dropped is only
    /// marked: if that process then removes the VM, it comes back with it.
    Snapshot(SnapshotOp, Remover),
    /// Remove the VM.
    Remove,
}

impl From<SnapshotOp> for Command {
    fn from(op: SnapshotOp) -> Self {
        Self::Snapshot(op, None)
    }
}

/// What was asked for, and the state that it met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The verb.
    pub verb: &'static str,
    /// The state, with its reason where there is one: a failure must not hide behind its consequence.
    pub state: String,
}

impl Asked {
    /// Returns the state without its reason.
    fn word(&self) -> &str {
        self.state.split(':').next().unwrap_or_default()
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.verb, self.state)
    }
}

/// Why a command is not carried out. The state does not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each error's sentence says it")]
pub enum Refusal {
    #[error("{}: already {}", .0.verb, .0.state)]
    Already(Asked),
    #[error("{0}; `echo start > ctl` first")]
    Off(Asked),
    /// Its QEMU does not answer, and nothing reaches the guest.
    #[error("{0}; `echo kill > ctl` ends its QEMU")]
    Unreachable(Asked),
    /// Its QEMU runs and does not answer, so that nothing may be done to its files.
    #[error("{}: its QEMU still runs and is {}; `echo kill > ctl` ends it", .0.verb, .0.state)]
    Occupied(Asked),
    #[error("{0}; `echo resume > ctl` first")]
    Paused(Asked),
    #[error("{}: busy {}; `cat wait` returns when that is over", .0.verb, .0.state)]
    Busy(Asked),
    #[error("{0}; `echo stop > ctl; cat wait` first")]
    InUse(Asked),
    #[error("{}: the VM is {}; `echo stop > ctl` first, then `cat wait`", .0.verb, .0.state)]
    MustStop(Asked),
    #[error("{}: the VM is {}; `cat ready` waits for its guest", .0.verb, .0.word())]
    NotReady(Asked),
    /// The VM's files are damaged.
    #[error("{0}")]
    Broken(Asked),
    #[error("{verb}: image {image} is being made of this VM; `cat wait` returns when that is done")]
    Pinned { verb: &'static str, image: String },
    #[error("{0} requests wait for a change of settings already; try again when they are done")]
    TooMany(usize),
    #[error("rmdir: protected; `echo 0 > config/protect` first")]
    Protected,
    #[error("no snapshot named {0}; `ls snapshots` lists them")]
    NoSnapshot(String),
    #[error("a snapshot named {0} exists; `rmdir snapshots/{0}` drops it")]
    SnapshotExists(String),
    /// A VM that runs cannot go back to a time when it was off, as in this snapshot.
    #[error("snapshot {0} was taken while the VM was off; `echo stop > ctl; cat wait` first")]
    NoMemory(String),
    /// QEMU would go back to another one.
    #[error(
        "restore: {tag} is also the number of snapshot {other}, for which QEMU would take it; \
         `echo stop > ctl; cat wait`, then restore, or `mv snapshots/{tag} snapshots/NAME`"
    )]
    NumberOfAnother { tag: String, other: String },
    #[error("there is no disk yet: it is made at the first start")]
    NoDisk,
    #[error("image: the VM already has a disk made from {0}; make a new VM for another image")]
    HasDisk(String),
    /// What the machine writes is thrown away at its end.
    #[error("snapshots: the VM runs ephemeral, and they would vanish with it; stop it first")]
    Ephemeral,
    /// What was suspended is in the VM's own disk, and QEMU loads it only from the disk it runs on.
    #[error(
        "start: the VM is suspended, and config/ephemeral is 1, with which it cannot be resumed; \
         `echo 0 > config/ephemeral`, or `echo kill > ctl` to give up what is suspended"
    )]
    SuspendedEphemeral,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_prints_its_word_and_its_reason() {
        assert_eq!(State::Ready.to_string(), "ready");
        assert_eq!(State::Failed("no space".into()).to_string(), "failed: no space");
    }
}
