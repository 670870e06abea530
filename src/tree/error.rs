//! Why an operation on the tree fails. The numbers of these errors are in `fuse/errno.rs`.

use super::verbs::VerbError;
use crate::registry::RegistryError;
use crate::vm::VmError;
use crate::vm::state::Refusal;

/// Why an operation on the tree was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum TreeError {
    #[error("no such file")]
    NotFound,
    /// There is no such name, unless the kernel makes it.
    #[error("no such file")]
    NeverFound,
    #[error("not a directory")]
    NotADirectory,
    #[error("not a symbolic link")]
    NotALink,
    #[error("a directory")]
    IsADirectory,
    #[error("read-only")]
    ReadOnly,
    #[error("write-only")]
    WriteOnly,
    #[error("files cannot be created here; `mkdir NAME` at the root makes a VM")]
    NoCreation,
    #[error("not permitted here: {0}")]
    NotOffered(&'static str),
    #[error(
        "{0:?} cannot be a name here: letters, digits, dots, dashes and underscores, at most 64"
    )]
    BadName(String),
    /// A rename that is not from one name that users make to another in the same directory.
    #[error("only what `mkdir` makes can be renamed, and only within its directory")]
    BadRename,
    #[error(
        "a snapshot is a point in the past of this VM alone; `mkdir .images/x; echo VM@TAG > \
         .images/x/source` makes an image of it for others"
    )]
    OthersSnapshot,
    #[error("unknown file handle")]
    BadHandle,
    #[error("would have to wait")]
    WouldBlock,
    #[error("an earlier line failed; read this descriptor, or open the file again")]
    Latched,
    #[error("more than {0} bytes in one write")]
    TooBig(usize),
    #[error("not UTF-8 text")]
    NotText,
    #[error(transparent)]
    Verb(#[from] VerbError),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl TreeError {
    /// Says whether `error` should report it: not where the errno alone says everything.
    pub(crate) fn is_worth_noting(&self) -> bool {
        !matches!(
            self,
            Self::NotFound | Self::NeverFound | Self::WouldBlock | Self::Latched | Self::BadHandle
        )
    }
}

impl From<Refusal> for TreeError {
    fn from(refusal: Refusal) -> Self {
        Self::Vm(refusal.into())
    }
}
