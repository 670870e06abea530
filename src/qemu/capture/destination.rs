//! Where a capture's memory and device state go: into files of a template, or into memfds that forks
//! are loaded from at once.
//!
//! Not here: how QEMU writes them (`capture`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;

use super::RAM;
use crate::disk::sparse;
use crate::qemu::template_memfd::{seal, sealable};
use crate::vm::backend::{BackendError, Result};
use crate::vm::driver::off_thread;
use crate::vm::template::{NamelessMemory, Purpose, Saved, names};

/// Memory and state while they are written.
#[derive(Debug)]
pub(super) enum Destination {
    Files(PathBuf),
    Nameless { ram: Arc<OwnedFd>, state: OwnedFd },
}

impl Destination {
    /// Makes room for a memory of this many bytes: in a directory, or without a name.
    pub(super) fn new(purpose: Purpose, dir: &Path, memory: u64) -> io::Result<Self> {
        match purpose {
            Purpose::Template => {
                new_file(&dir.join(names::RAM))?.set_len(memory)?;
                new_file(&dir.join(names::STATE))?;
                Ok(Self::Files(dir.to_owned()))
            }
            // Nothing of a fork's memory waits for the disk, and a full one does not prevent it.
            Purpose::Fork => {
                Ok(Self::Nameless { ram: Arc::new(sealable(memory)?), state: sealable(0)? })
            }
        }
    }

    /// Returns the file of the memory, if it has a name.
    pub(super) fn ram_file(&self) -> Option<PathBuf> {
        match self {
            Self::Files(dir) => Some(dir.join(names::RAM)),
            Self::Nameless { .. } => None,
        }
    }

    /// Returns the memory that the capture target inherits, if it has no name.
    pub(super) fn inherited(&self) -> Option<Arc<OwnedFd>> {
        match self {
            Self::Files(_) => None,
            Self::Nameless { ram, .. } => Some(Arc::clone(ram)),
        }
    }

    /// Opens what the state is written to.
    pub(super) fn state(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Files(dir) => {
                let state = File::options().read(true).write(true).open(dir.join(names::STATE))?;
                Ok(state.into())
            }
            Self::Nameless { state, .. } => state.as_fd().try_clone_to_owned(),
        }
    }

    /// Has the capture target end, and makes memory and state final. What forks are loaded from becomes
    /// so behind this: their disks are made meanwhile.
    pub(super) async fn settle(
        self,
        end: impl Future<Output = Result<()>> + Send + 'static,
    ) -> Result<Saved> {
        match self {
            Self::Files(dir) => {
                end.await?;
                let saved = Saved::in_dir(&dir);
                off_thread(move || settle_files(&dir), RAM).await.map(|()| saved)
            }
            Self::Nameless { ram, state } => {
                let (to_settle, to_seal) =
                    duplicates(&ram, &state).map_err(BackendError::at(RAM))?;
                let settled = async move {
                    end.await?;
                    off_thread(move || settle_nameless(to_settle, &to_seal), RAM).await
                };
                let settled = tokio::spawn(settled).map(|done| match done {
                    Ok(done) => done,
                    Err(panic) => Err(BackendError::fact(RAM, panic.to_string(), 0)),
                });
                let is_final = settled.boxed().shared();
                Ok(Saved::Nameless(Arc::new(NamelessMemory { ram, state, is_final })))
            }
        }
    }
}

fn settle_files(dir: &Path) -> io::Result<()> {
    let ram = File::options().read(true).write(true).open(dir.join(names::RAM))?;
    sparse::punch_holes(&ram)?;
    ram.sync_all()?;
    File::open(dir.join(names::STATE))?.sync_all()
}

fn duplicates(ram: &OwnedFd, state: &OwnedFd) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok((ram.as_fd().try_clone_to_owned()?, state.as_fd().try_clone_to_owned()?))
}

fn settle_nameless(ram: OwnedFd, state: &OwnedFd) -> io::Result<()> {
    seal(state)?;
    let ram = File::from(ram);
    sparse::punch_holes(&ram)?;
    seal(&ram.into())
}

fn new_file(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}
