//! The tree: which names exist and what is done with them, over the descriptors of `directories/`.
//!
//! No kernel and no sockets: every operation is a plain function that answers now or returns a
//! future (`Answer`); it neither awaits nor reads a clock, so it is tested without a mount.

mod answer;
mod control;
mod descriptor;
mod directories;
mod directory;
mod draft;
mod error;
pub(crate) mod handle;
pub(crate) mod manual;
mod metrics;
pub(crate) mod names;
pub(crate) mod node;
pub(crate) mod number;
mod owner;
mod refused;
mod render;
mod requests;
mod scope;
mod settings;
mod value;
pub mod verbs;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use self::control::noted;
use self::directory::Directory;
use self::handle::{Open, OpenRequest};
use self::names::Names;
use self::node::{Attr, Keep, Kind};
use self::number::{NodeId, Numbers};
use self::refused::Refused;
use self::scope::Scope;
use crate::registry::Registry;
use crate::store::failure_log::{Failure, FailureLog};
use crate::vm::caller::Caller;
use crate::vm::one_line;
use crate::vm::state::Command;

pub(crate) use self::answer::{Answer, Found, Listing, Opened, OpenedDirectory, Requester};
pub(crate) use self::error::TreeError;

pub(crate) struct Tree {
    scope: Scope,
    open: Mutex<HashMap<u64, Arc<Open>>>,
    listings: Mutex<HashMap<u64, Listing>>,
    next_handle: AtomicU64,
    refused: Refused,
}

impl Tree {
    pub(crate) fn new(registry: Arc<Registry>) -> Arc<Self> {
        Arc::new(Self {
            scope: Scope { registry, numbers: Numbers::default() },
            open: Mutex::default(),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
            refused: Refused::default(),
        })
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    /// [`TreeError::NotFound`] for a name that may come by itself, [`TreeError::NeverFound`] for
    /// one that only the kernel could bring about.
    pub(crate) fn lookup(&self, parent: NodeId, name: &str) -> Result<Found, TreeError> {
        let directory = self.scope.directory(parent)?;
        let id = Self::find(&*directory, name)?;
        Ok(Found { attr: self.attr(id)?, keep: keep(&*directory) })
    }

    fn find(directory: &dyn Directory, name: &str) -> Result<NodeId, TreeError> {
        directory.find(name).ok_or_else(|| match directory.names().is_possible(name) {
            true if keep(directory) == Keep::Never => TreeError::NotFound,
            _ => TreeError::NeverFound,
        })
    }

    /// Describes a node.
    ///
    /// # Errors
    /// [`TreeError::NotFound`] for one whose object is gone.
    pub(crate) fn attr(&self, id: NodeId) -> Result<Attr, TreeError> {
        self.scope.attr(id)
    }

    /// Opens a file, as its row says.
    ///
    /// # Errors
    /// [`TreeError::ReadOnly`], [`TreeError::WriteOnly`], or why a stream could not be opened.
    pub(crate) fn open(&self, id: NodeId, request: &OpenRequest<'_>) -> Result<Opened, TreeError> {
        self.open_only(id, request).map(|(open, kind)| self.enter(open, kind))
    }

    fn open_only(&self, id: NodeId, request: &OpenRequest<'_>) -> Result<(Open, Kind), TreeError> {
        let (directory, row) = self.scope.row(id)?;
        let kind = directory.outline(row)?.kind;
        noted(directory.vm(), directory.open(row, request)).map(|open| (open, kind))
    }

    fn enter(&self, open: Open, kind: Kind) -> Opened {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open.lock().insert(handle, Arc::new(open));
        Opened { handle, kind }
    }

    fn list(&self, id: NodeId) -> Result<Listing, TreeError> {
        let directory = self.scope.directory(id)?;
        Ok(Listing { entries: directory.entries().into(), keep: keep(&*directory) })
    }

    fn enter_listing(&self, listing: Listing) -> OpenedDirectory {
        let (handle, keep) = (self.next_handle.fetch_add(1, Ordering::Relaxed), listing.keep);
        self.listings.lock().insert(handle, listing);
        OpenedDirectory { handle, keep }
    }

    /// Returns the names of an open directory, without `.` and `..`.
    ///
    /// # Errors
    /// [`TreeError::BadHandle`].
    pub(crate) fn listing(&self, handle: u64) -> Result<Listing, TreeError> {
        self.listings.lock().get(&handle).cloned().ok_or(TreeError::BadHandle)
    }

    /// As [`Self::listing`], for a reader that is at `offset`. Names that the kernel keeps are those of the
    /// moment of its first request and not of the open: it notes what the directory is at then, and would keep
    /// a name that has gone between the two.
    pub(crate) fn listing_at(
        &self,
        handle: u64,
        id: NodeId,
        offset: u64,
    ) -> Result<Listing, TreeError> {
        let listing = self.listing(handle)?;
        if offset > 0 || listing.keep == Keep::Never {
            return Ok(listing);
        }
        let now = self.list(id)?;
        self.listings.lock().insert(handle, now.clone());
        Ok(now)
    }

    pub(crate) fn release_directory(&self, handle: u64) {
        self.listings.lock().remove(&handle);
    }

    /// Returns an open file.
    ///
    /// # Errors
    /// [`TreeError::BadHandle`].
    pub(crate) fn handle(&self, handle: u64) -> Result<Arc<Open>, TreeError> {
        self.open.lock().get(&handle).cloned().ok_or(TreeError::BadHandle)
    }

    pub(crate) fn release(&self, handle: u64) {
        // Dropped outside the lock: what a stream does at its end is its own affair.
        let open = self.open.lock().remove(&handle);
        drop(open);
    }

    /// Returns where a symbolic link leads for this caller.
    ///
    /// # Errors
    /// [`TreeError::NotALink`]; [`TreeError::NotFound`] for one that leads nowhere at present.
    pub(crate) fn target(
        &self,
        id: NodeId,
        caller: &dyn Fn() -> Caller,
    ) -> Result<PathBuf, TreeError> {
        let (directory, row) = self.scope.row(id)?;
        directory.target(row, caller)
    }

    /// Makes a directory: at the root, a VM.
    pub(crate) fn make_directory(&self, parent: NodeId, name: &str) -> Answer<Attr> {
        self.made(parent, |names| names.make(name))
    }

    /// Makes a symbolic link: in `.images`, an alias.
    pub(crate) fn make_link(&self, parent: NodeId, name: &str, target: &str) -> Answer<Attr> {
        self.made(parent, |names| names.link(name, target))
    }

    fn made(
        &self,
        parent: NodeId,
        make: impl FnOnce(&dyn Names) -> Answer<NodeId>,
    ) -> Answer<Attr> {
        let directory = self.scope.directory(parent);
        let made = Answer::about(directory, |directory| make(directory.names()));
        let scope = self.scope.clone();
        made.map(move |made| made.and_then(|id| scope.attr(id)))
    }

    /// Removes a directory that users make; or (without effect, so that `rm -r` works) a part of a
    /// VM that could be removed.
    pub(crate) fn remove_directory(
        &self,
        parent: NodeId,
        name: &str,
        by: &Requester<'_>,
    ) -> Answer<()> {
        Answer::about(self.scope.directory(parent), |directory| {
            if directory.names().find(name).is_none() {
                return Answer::Now(self.remove_part(parent, name));
            }
            let admitted = self.refuse_with_its_vm(&*directory, by);
            Answer::about(admitted, |()| directory.names().remove(name, by.caller))
        })
    }

    /// Unlinks a link that users have made, or (without effect) a file of ours.
    pub(crate) fn unlink(&self, parent: NodeId, name: &str, by: &Requester<'_>) -> Answer<()> {
        Answer::about(self.scope.directory(parent), |directory| {
            if let Some(unlinked) = directory.names().unlink(name) {
                return unlinked;
            }
            let done = self.remove_part(parent, name);
            if let (Some(vm), Err(_)) = (directory.vm(), &done) {
                self.refused.add(vm.id(), (by.caller)().process(), by.now);
            }
            Answer::Now(done)
        })
    }

    /// Refuses to remove what lies in a VM to a process that has just been refused the VM's own
    /// files: `rm -r` of a VM that stays must leave its snapshots and jobs.
    fn refuse_with_its_vm(
        &self,
        directory: &dyn Directory,
        by: &Requester<'_>,
    ) -> Result<(), TreeError> {
        let Some(vm) = directory.vm() else { return Ok(()) };
        let refusal = vm.would_admit(&Command::Remove).err();
        let Some(refusal) = refusal else { return Ok(()) };
        let process = (by.caller)().process();
        if !self.refused.holds(vm.id(), process, by.now) {
            return Ok(());
        }
        self.refused.add(vm.id(), process, by.now);
        noted(Some(vm), Err(refusal.into()))
    }

    /// Unlinks a file of ours: nothing happens, and it says what `rmdir` of its object would say,
    /// so that `rm -r`, `find -delete` and `rmdir` agree.
    ///
    /// # Errors
    /// The refusal that the object's removal would meet.
    pub(crate) fn remove_part(&self, parent: NodeId, name: &str) -> Result<(), TreeError> {
        let directory = self.scope.directory(parent)?;
        if directory.find(name).is_none() {
            return Err(TreeError::NotFound);
        }
        noted(directory.vm(), directory.admit_removal())
    }

    /// Renames what users have made.
    pub(crate) fn rename(&self, from: (NodeId, &str), to: (NodeId, &str)) -> Answer<()> {
        Answer::about(self.scope.directory(from.0), |directory| match from.0 == to.0 {
            true => directory.names().rename(from.1, to.1),
            false => directory.names().move_out(from.1, to),
        })
    }

    /// Remembers a request that failed, for `.error`.
    pub(crate) fn note_failure(
        &self,
        time: SystemTime,
        pid: u32,
        id: NodeId,
        errno: i32,
        error: &TreeError,
    ) {
        if error.is_worth_noting() {
            let path = self.scope.path(id);
            let text = one_line(&error.to_string());
            self.failures().add(Failure { time, pid, path, errno, text });
        }
    }

    /// Remembers a fault of the daemon itself, for `.error`.
    pub(crate) fn note_fault(&self, time: SystemTime, errno: i32, text: &str) {
        let (pid, path) = (std::process::id(), "/".to_owned());
        self.failures().add(Failure { time, pid, path, errno, text: text.to_owned() });
    }

    fn failures(&self) -> &FailureLog {
        &self.scope.registry.backends().failures
    }
}

fn keep(directory: &dyn Directory) -> Keep {
    if directory.names().is_stable() { Keep::Forever } else { Keep::Never }
}

/// How much of a file's end a [`node::Body::Tail`] shows: what of it is kept.
pub(crate) const TAIL: u64 = crate::store::bounded::KEPT;

#[cfg(test)]
mod tests {
    use super::{NodeId, OpenedDirectory, Tree, TreeError};

    impl Tree {
        /// As [`Tree::request_open_directory`], at once.
        pub(crate) fn open_directory(&self, id: NodeId) -> Result<OpenedDirectory, TreeError> {
            self.list(id).map(|listing| self.enter_listing(listing))
        }
    }
}
