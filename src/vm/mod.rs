//! One VM: what it should be ([`spec`]), which states it has ([`state`]), the task that alone
//! changes them (`driver`), what that task needs from the world ([`backend`]), and the commands
//! run in its guest ([`exec`], [`job`]).
//!
//! No paths of the mount, no errno, no QEMU or SSH words here.

pub mod backend;
pub mod caller;
pub mod exec;
pub mod job;
pub mod spec;
pub mod state;
pub mod stream;

use backend::BackendError;
use spec::SpecError;
use state::Refusal;

/// Why something asked of a VM was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VmError {
    /// The state does not admit it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A setting's value was not accepted.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The world did not play along.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The VM has been removed.
    #[error("the VM has been removed")]
    Removed,
    /// Text for a command is not acceptable as such.
    #[error("{what} is longer than {limit} bytes")]
    TooLong {
        /// What was written.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// A command line holds a NUL byte.
    #[error("a command cannot hold a NUL byte")]
    Nul,
    /// The command's connection was lost before it ended.
    #[error("lost: {0}")]
    Lost(String),
}
