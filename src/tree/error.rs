//! Why an operation on the tree fails. The numbers of these errors are in `fuse/errno.rs`.

use super::verbs::VerbError;
use crate::registry::RegistryError;
use crate::vm::VmError;
use crate::vm::state::Refusal;

/// Why an operation on the tree was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TreeError {
    /// There is no such name.
    #[error("no such file")]
    NotFound,
    /// There is no such name, unless the kernel makes it.
    #[error("no such file")]
    NeverFound,
    /// A directory was wanted.
    #[error("not a directory")]
    NotADirectory,
    /// A symbolic link was wanted.
    #[error("not a symbolic link")]
    NotALink,
    /// A file was wanted.
    #[error("a directory")]
    IsADirectory,
    /// The file cannot be written.
    #[error("read-only")]
    ReadOnly,
    /// The file cannot be read.
    #[error("write-only")]
    WriteOnly,
    /// Files are not created here.
    #[error("files cannot be created here; `mkdir NAME` at the root makes a VM")]
    NoCreation,
    /// The operation is not offered here.
    #[error("not permitted here: {0}")]
    NotOffered(&'static str),
    /// A name that is not of the form of names here.
    #[error(
        "{0:?} cannot be a name here: letters, digits, dots, dashes and underscores, at most 64"
    )]
    BadName(String),
    /// A rename that is not from one name that users make to another in the same directory.
    #[error("only what `mkdir` makes can be renamed, and only within its directory")]
    BadRename,
    /// A snapshot that is to be another VM's.
    #[error(
        "a snapshot is a point in the past of this VM alone; `mkdir .images/x; echo VM@TAG > \
         .images/x/source` makes an image of it for others"
    )]
    OthersSnapshot,
    /// The open file is unknown.
    #[error("unknown file handle")]
    BadHandle,
    /// Nothing can be read or written without waiting.
    #[error("would have to wait")]
    WouldBlock,
    /// An earlier line of this open file has failed.
    #[error("an earlier line failed; read this descriptor, or open the file again")]
    Latched,
    /// A write is too long.
    #[error("more than {0} bytes in one write")]
    TooBig(usize),
    /// Text was wanted.
    #[error("not UTF-8 text")]
    NotText,
    /// A line of a control file is not a command.
    #[error(transparent)]
    Verb(#[from] VerbError),
    /// The VM refused or failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The registry refused or failed.
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
