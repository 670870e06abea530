//! What the tree is asked by, and what it answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use futures::{FutureExt, TryFutureExt};

use super::TreeError;
use super::control::noted;
use super::names::Entry;
use super::node::{Attr, Keep, Kind};
use crate::vm::Vm;
use crate::vm::caller::Caller;

/// The process that makes a request, and when.
pub struct Requester<'a> {
    /// Finds the process and its relations, which takes a look at `/proc`.
    pub caller: &'a dyn Fn() -> Caller,
    /// The time of the request.
    pub now: SystemTime,
}

impl std::fmt::Debug for Requester<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requester").field("now", &self.now).finish_non_exhaustive()
    }
}

/// A result that is here, or one to come.
pub enum Answer<T> {
    /// Here it is.
    Now(Result<T, TreeError>),
    /// The caller waits for it; dropping the future abandons it.
    Later(Pin<Box<dyn Future<Output = Result<T, TreeError>> + Send>>),
}

impl<T> Answer<T> {
    /// Answers about what was found, or why it was not.
    pub(super) fn about<F>(found: Result<F, TreeError>, answer: impl FnOnce(F) -> Self) -> Self {
        found.map_or_else(|error| Self::Now(Err(error)), answer)
    }

    pub(super) fn later<E: Into<TreeError>>(
        future: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Self {
        Self::Later(Box::pin(future.err_into()))
    }

    /// Answers later, and notes how it went in the VM's `error` file.
    pub(super) fn noted<E: Into<TreeError>>(
        vm: Option<Vm>,
        future: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Self {
        Self::later(future.map(move |done| noted(vm.as_ref(), done.map_err(E::into))))
    }
}

impl<T> std::fmt::Debug for Answer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

/// A file that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The number of the open file.
    pub handle: u64,
    /// What kind of file it is, from which the kernel's flags follow.
    pub kind: Kind,
}

/// A directory that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedDirectory {
    /// The number of the open directory.
    pub handle: u64,
    /// Whether the kernel may remember its names.
    pub keep: Keep,
}

/// The names of an open directory, fixed when it was opened.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The names, without `.` and `..`.
    pub entries: Arc<[Entry]>,
    /// Whether the kernel may remember them.
    pub keep: Keep,
}

/// A name that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub attr: Attr,
    /// Whether the kernel may remember the name.
    pub keep: Keep,
}
