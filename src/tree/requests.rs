//! Requests as the kernel makes them. Those that read the disk, or go through all VMs, are answered
//! on other threads than those that serve the kernel, which must never wait.
//!
//! What a request means is not here (`mod.rs`), only on which thread that is found out.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use futures::FutureExt;
use futures::future::{Either, ready};

use super::descriptor::AnyDescriptor;
use super::handle::{IoMode, Open, OpenRequest};
use super::names::Entry;
use super::node::{Attr, Keep, Kind};
use super::number::NodeId;
use super::{Answer, Found, Opened, OpenedDirectory, Requester, Tree, TreeError, descriptor, keep};
use crate::vm::caller::Caller;
use crate::vm::driver;

impl<T: Send + 'static> Answer<T> {
    pub(crate) fn map<U>(
        self,
        change: impl FnOnce(Result<T, TreeError>) -> Result<U, TreeError> + Send + 'static,
    ) -> Answer<U> {
        match self {
            Self::Now(result) => Answer::Now(change(result)),
            Self::Later(future) => Answer::later(future.map(change)),
        }
    }

    /// Does `work` on a thread where it may wait for the disk.
    fn off_thread(work: impl FnOnce() -> Self + Send + 'static) -> Self {
        let answer = driver::off_thread(move || Ok(work()), "a look at the disk");
        Self::later(answer.then(|answer| match answer {
            Ok(Self::Now(result)) => Either::Left(ready(result)),
            Ok(Self::Later(future)) => Either::Right(future),
            Err(error) => Either::Left(ready(Err(TreeError::Vm(error.into())))),
        }))
    }
}

impl Tree {
    /// Does `work` at once or, if it is slow, on another thread.
    fn work<T: Send + 'static>(
        self: &Arc<Self>,
        is_slow: bool,
        work: impl FnOnce(&Arc<Self>) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        if !is_slow {
            return work(self);
        }
        let tree = Arc::clone(self);
        Answer::off_thread(move || work(&tree))
    }

    /// Says whether a node's attributes or content take a look at the disk.
    fn is_slow(id: NodeId) -> bool {
        let Some((kind, _, row)) = id.parts() else { return false };
        descriptor::find(kind).is_some_and(|kind| {
            kind.is_slow() || row.and_then(|row| kind.row(row)).is_some_and(|row| row.is_slow)
        })
    }

    fn is_slow_directory(id: NodeId) -> bool {
        let kind = id.parts().and_then(|(kind, ..)| descriptor::find(kind));
        kind.is_some_and(AnyDescriptor::is_slow)
    }

    /// As [`Tree::lookup`], but that what takes a look at the disk is left out: the kernel holds
    /// the name while it waits, and a program that lists the directory waits for it. It may not
    /// remember the attributes, and asks for them again (`request_attr`) before it shows them to a
    /// program.
    pub(crate) fn request_lookup(self: &Arc<Self>, parent: NodeId, name: &str) -> Answer<Found> {
        if Self::is_slow_directory(parent) {
            let name = name.to_owned();
            return self.work(true, move |tree| Answer::Now(tree.lookup(parent, &name)));
        }
        let found = self.scope.directory(parent).and_then(|directory| {
            let id = Self::find(&*directory, name)?;
            Ok((id, keep(&*directory)))
        });
        Answer::Now(found.and_then(|(id, keep)| Ok(Found { attr: self.outline(id)?, keep })))
    }

    fn outline(&self, id: NodeId) -> Result<Attr, TreeError> {
        match id.parts() {
            Some((_, _, Some(_))) if Self::is_slow(id) => {
                let (directory, row) = self.scope.row(id)?;
                directory.outline(row)
            }
            Some(_) | None => self.attr(id),
        }
    }

    pub(crate) fn request_attr(self: &Arc<Self>, id: NodeId) -> Answer<Attr> {
        self.work(Self::is_slow(id), move |tree| Answer::Now(tree.attr(id)))
    }

    pub(crate) fn request_open(
        self: &Arc<Self>,
        id: NodeId,
        request: &OpenRequest<'_>,
    ) -> Answer<Opened> {
        if !Self::is_slow(id) {
            return Answer::Now(self.open(id, request));
        }
        let OpenRequest { access, append, crawler, .. } = *request;
        let opened = self.work(true, move |tree| {
            // Whose job a file is about is asked of none of these.
            let caller: &dyn Fn() -> Caller = &Caller::default;
            Answer::Now(tree.open_only(id, &OpenRequest { access, append, crawler, caller }))
        });
        // Entered here, where the request can no longer be given up: one that is given up is never
        // released.
        let tree = Arc::clone(self);
        opened.map(move |open| open.map(|(open, kind)| tree.enter(open, kind)))
    }

    /// Opens a directory: its names are fixed, so that offsets into it stay right.
    pub(crate) fn request_open_directory(self: &Arc<Self>, id: NodeId) -> Answer<OpenedDirectory> {
        let tree = Arc::clone(self);
        let listed = self.work(Self::is_slow_directory(id), move |tree| Answer::Now(tree.list(id)));
        listed.map(move |listing| listing.map(|listing| tree.enter_listing(listing)))
    }

    /// As [`Tree::remove_directory`] or [`Tree::unlink`], which `remove` is.
    pub(crate) fn request_removal(
        self: &Arc<Self>,
        remove: fn(&Self, NodeId, &str, &Requester<'_>) -> Answer<()>,
        parent: NodeId,
        name: &str,
        by: &Requester<'_>,
    ) -> Answer<()> {
        if !Self::is_slow_directory(parent) {
            return remove(self, parent, name, by);
        }
        let (name, caller, now) = (name.to_owned(), (by.caller)(), by.now);
        self.work(true, move |tree| {
            remove(tree, parent, &name, &Requester { caller: &|| caller.clone(), now })
        })
    }

    pub(crate) fn request_rename(
        self: &Arc<Self>,
        from: (NodeId, &str),
        to: (NodeId, &str),
    ) -> Answer<()> {
        let is_slow = Self::is_slow_directory(from.0);
        let ((from, old), (to, new)) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        self.work(is_slow, move |tree| tree.rename((from, &old), (to, &new)))
    }

    /// Says whether the kernel may remember a node's attributes if it may remember its name.
    fn is_kept(id: NodeId) -> bool {
        let Some((kind, _, row)) = id.parts() else { return false };
        let keep = |row| descriptor::find(kind).and_then(|kind| kind.row(row)).map(|row| row.keep);
        row.is_none_or(|row| keep(row) == Some(Keep::Forever))
    }

    /// Describes a name of a listing as far as the kernel may remember it. What it may not remember
    /// it asks for again before a program sees it, so only the kind counts, and no content is made.
    ///
    /// # Errors
    /// [`TreeError::NotFound`] for one that is gone meanwhile.
    pub(crate) fn listed(&self, entry: &Entry, keep: Keep) -> Result<Attr, TreeError> {
        if keep == Keep::Forever && Self::is_kept(entry.id) {
            return self.attr(entry.id);
        }
        let mode = match entry.kind {
            Kind::Directory => 0o700,
            Kind::Link => 0o777,
            Kind::Value | Kind::Setting | Kind::Control | Kind::Stream => 0o600,
        };
        let (id, kind, keep) = (entry.id, entry.kind, Keep::Never);
        Ok(Attr { id, kind, mode, size: 0, links: 1, mtime: UNIX_EPOCH, keep })
    }
}

impl Open {
    pub(crate) fn request_read(
        self: &Arc<Self>,
        offset: u64,
        max: usize,
        mode: IoMode,
    ) -> Answer<Vec<u8>> {
        if !self.remakes_slowly(offset) {
            return self.read(offset, max, mode);
        }
        let open = Arc::clone(self);
        Answer::off_thread(move || open.read(offset, max, mode))
    }
}
