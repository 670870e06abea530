//! Why an operation on a name was not carried out.
//!
//! Not here: which errno that is (`fuse::errno`).

use crate::vm::VmError;
use crate::vm::backend::BackendError;
use crate::vm::origin::OriginError;

/// Why a name operation was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(String),
    /// There is no such VM.
    #[error("no VM named {0}")]
    Absent(String),
    /// An earlier operation on this name is not done yet.
    #[error("{0}: an earlier mkdir, mv or rmdir of this name is not done yet; try again")]
    NameBusy(String),
    /// The VM's driver does not answer.
    #[error(
        "rmdir: {name} does not answer within {seconds} s and stays as it is; `cat {name}/status`, \
         then try again"
    )]
    NoAnswer {
        /// The VM.
        name: String,
        /// How long the request waited.
        seconds: u64,
    },
    /// The name is not a VM's name.
    #[error(
        "{0:?} is not a VM's name: at most 32 lower-case letters, digits and dashes, no dash first"
    )]
    BadName(String),
    /// An image's source is not understood.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The VM itself refused.
    #[error(transparent)]
    Vm(#[from] VmError),
}

/// What an operation on a name answers.
pub type Result<T, E = RegistryError> = std::result::Result<T, E>;

impl From<BackendError> for RegistryError {
    fn from(error: BackendError) -> Self {
        Self::Vm(error.into())
    }
}
