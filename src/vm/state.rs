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
use super::spec::net::Forward;

mod policy;

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
    pub const WORDS: &[&str] = &[
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
        match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ready => "ready",
            Self::Paused => "paused",
            Self::Saving => "saving",
            Self::Stopping => "stopping",
            Self::Failed(_) => "failed",
            Self::Unreachable(_) => "unreachable",
            Self::Broken(_) => "broken",
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
        match self {
            Self::Failed(reason) | Self::Unreachable(reason) | Self::Broken(reason) => {
                write!(f, "{}: {reason}", self.word())
            }
            Self::Stopped
            | Self::Starting
            | Self::Running
            | Self::Ready
            | Self::Paused
            | Self::Saving
            | Self::Stopping => f.write_str(self.word()),
        }
    }
}

/// What a user asks of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Launch QEMU.
    Start {
        /// Leave the processors stopped.
        paused: bool,
    },
    /// End gracefully, and by force after so many seconds.
    Stop {
        /// How long the guest has.
        seconds: u64,
    },
    /// End QEMU now.
    Kill,
    /// Stop the processors.
    Pause,
    /// Let them run.
    Resume,
    /// Press the reset button.
    Reset,
    /// Make the disk larger.
    Resize {
        /// Its size in bytes.
        bytes: u64,
    },
    /// Add a port of the host that leads into the guest.
    AddPort(Forward),
    /// Take it away.
    RemovePort(Forward),
    /// Press keys on the guest's keyboard.
    PressKeys {
        /// Keys to be pressed together, one such chord after the other.
        chords: Vec<Vec<String>>,
    },
    /// Save everything to disk and end QEMU; the next start resumes it.
    Suspend,
    /// Take a snapshot.
    Take(String),
    /// Go back to a snapshot.
    Restore(String),
    /// Drop a snapshot.
    Drop(String),
    /// Give a snapshot another name.
    RenameSnapshot {
        /// Its name.
        from: String,
        /// The new one.
        to: String,
    },
    /// Remove the VM.
    Remove,
}

impl Command {
    /// Returns the verb.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Reset => "reset",
            Self::Resize { .. } => "resize",
            Self::AddPort(_) | Self::RemovePort(_) => "port",
            Self::PressKeys { .. } => "key",
            Self::Suspend => "suspend",
            Self::Take(_) => "mkdir",
            Self::Restore(_) => "restore",
            Self::Drop(_) => "rmdir",
            Self::RenameSnapshot { .. } => "mv",
            Self::Remove => "rmdir",
        }
    }
}

/// Why a command is not carried out. The state does not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is so already.
    #[error("{verb}: already {state}")]
    Already {
        /// The command's verb.
        verb: &'static str,
        /// The state, with its reason.
        state: String,
    },
    /// The VM is off.
    #[error("{verb}: {state}; `echo start > ctl` first")]
    Off {
        /// The command's verb.
        verb: &'static str,
        /// The state, with its reason: a failure must not hide behind its consequence.
        state: String,
    },
    /// Its QEMU does not answer, and nothing reaches the guest.
    #[error("{verb}: unreachable: {reason}; `echo kill > ctl` ends its QEMU")]
    Unreachable {
        /// What was asked for.
        verb: &'static str,
        /// Why.
        reason: String,
    },
    /// Its QEMU runs and does not answer, so that nothing may be done to its files.
    #[error("{verb}: its QEMU still runs and is unreachable: {reason}; `echo kill > ctl` ends it")]
    Occupied {
        /// What was asked for.
        verb: &'static str,
        /// Why.
        reason: String,
    },
    /// The processors are stopped, so the guest cannot answer.
    #[error("{verb}: paused; `echo resume > ctl` first")]
    Paused {
        /// What was asked for.
        verb: &'static str,
    },
    /// Another transition runs.
    #[error("{verb}: busy {state}; `cat wait` returns when that is over")]
    Busy {
        /// The command's verb.
        verb: &'static str,
        /// The state's word.
        state: &'static str,
    },
    /// It runs, and so cannot be removed.
    #[error("rmdir: {state}; `echo stop > ctl; cat wait` first")]
    InUse {
        /// The state's word.
        state: &'static str,
    },
    /// It is not off, and its disk is in use.
    #[error("{verb}: the VM is {state}; `echo stop > ctl` first, then `cat wait`")]
    MustStop {
        /// What was asked for.
        verb: &'static str,
        /// The state's word.
        state: &'static str,
    },
    /// An image is being made of it.
    #[error("{verb}: image {image} is being made of this VM; `cat wait` returns when that is done")]
    Pinned {
        /// The command's verb.
        verb: &'static str,
        /// The image.
        image: String,
    },
    /// More wait for a change of settings than may.
    #[error(
        "{waiting} requests wait for a change of settings already; try again when they are done"
    )]
    TooMany {
        /// How many.
        waiting: usize,
    },
    /// Its guest does not answer yet, or not any more.
    #[error("{verb}: the VM is {state}; `cat ready` waits for its guest")]
    NotReady {
        /// What was asked for.
        verb: &'static str,
        /// The state's word.
        state: &'static str,
    },
    /// `config/protect` is 1.
    #[error("rmdir: protected; `echo 0 > config/protect` first")]
    Protected,
    /// There is no such snapshot.
    #[error("no snapshot named {tag}; `ls snapshots` lists them")]
    NoSnapshot {
        /// The name.
        tag: String,
    },
    /// There is one of that name.
    #[error("a snapshot named {tag} exists; `rmdir snapshots/{tag}` drops it")]
    SnapshotExists {
        /// The name.
        tag: String,
    },
    /// A VM that runs cannot go back to a time when it was off.
    #[error("snapshot {tag} was taken while the VM was off; `echo stop > ctl; cat wait` first")]
    NoMemory {
        /// The name.
        tag: String,
    },
    /// QEMU would go back to another one.
    #[error(
        "restore: {tag} is also the number of snapshot {other}, for which QEMU would take it; \
         `echo stop > ctl; cat wait`, then restore, or `mv snapshots/{tag} snapshots/NAME`"
    )]
    NumberOfAnother {
        /// The name.
        tag: String,
        /// The name of the one with that number.
        other: String,
    },
    /// There is nothing to take a snapshot of.
    #[error("there is no disk yet: it is made at the first start")]
    NoDisk,
    /// The image cannot be changed any more.
    #[error("image: the VM already has a disk made from {image}; make a new VM for another image")]
    HasDisk {
        /// The image that its disk was made from.
        image: String,
    },
    /// What the machine writes is thrown away at its end.
    #[error("snapshots: the VM runs ephemeral, and they would vanish with it; stop it first")]
    Ephemeral,
    /// What was suspended is in the VM's own disk, and QEMU loads it only from the disk it runs on.
    #[error(
        "start: the VM is suspended, and config/ephemeral is 1, with which it cannot be resumed; \
         `echo 0 > config/ephemeral`, or `echo kill > ctl` to give up what is suspended"
    )]
    SuspendedEphemeral,
    /// The VM's files are damaged.
    #[error("{verb}: broken: {reason}")]
    Broken {
        /// The command's verb.
        verb: &'static str,
        /// What is damaged.
        reason: String,
    },
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
