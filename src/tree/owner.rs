//! Node owners: the objects that directories, and the rows in them, are about.
//!
//! What a directory's owner is and how it is found is in `directories/`.

use super::TreeError;
use super::settings::Settings;
use crate::vm::Vm;
use crate::vm::state::Command;
use crate::vm::stream::Listener;

/// The object that the rows of a directory are about.
pub(super) trait NodeOwner: Clone + Send + Sync + 'static {
    fn vm(&self) -> Option<&Vm> {
        None
    }

    fn settings(&self) -> Option<&Settings> {
        None
    }

    /// Prepares for a row that is about to be opened.
    fn prepare_open(&self) {}

    /// Says whether the rows could be removed, as part of the directory that users made: unlinking
    /// one then succeeds, without effect, so that `rm -r`, `find -delete` and `rmdir` agree.
    fn admit_removal(&self) -> Result<(), TreeError> {
        match self.vm() {
            Some(vm) => Ok(vm.would_admit(&Command::Remove)?),
            None => Err(TreeError::NotOffered("this is part of every mount")),
        }
    }

    /// Returns a listener that hears when a row's content may have changed; `None`: no row reports
    /// changes, and an open file keeps its content.
    fn listen(&self) -> Option<Listener> {
        self.vm().map(Vm::listen)
    }
}
