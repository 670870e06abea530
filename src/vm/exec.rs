//! (stand-in until the exec file's semantics land)
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use super::VmError;
use super::backend::GuestSession;
use super::caller::Caller;
use super::stream::Stream;

/// The way into the guest at this moment.
#[derive(Clone, Debug)]
pub enum Link {
    /// The VM is off.
    Off,
    /// It runs and SSH has not answered yet.
    Coming,
    /// SSH answers.
    Up(Arc<dyn GuestSession>),
}

/// How `exec` is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecAccess {
    /// The caller's last job.
    Read,
    /// A new job.
    Write,
    /// A conversation.
    Converse,
    /// A crawler.
    Peek,
}

/// The `exec` file of a VM.
#[derive(Debug)]
pub struct Exec;

impl Exec {
    /// Makes it.
    pub fn new(_dir: PathBuf, _link: watch::Receiver<Link>, _rt: tokio::runtime::Handle) -> Self {
        Self
    }
    /// Opens it.
    pub fn open(&self, _caller: Caller, _access: ExecAccess) -> Result<Arc<dyn Stream>, VmError> {
        Err(VmError::Nul)
    }
}
