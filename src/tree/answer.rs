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
pub(crate) struct Requester<'a> {
    /// Finds the process and its relations, which takes a look at `/proc`.
    pub(crate) caller: &'a dyn Fn() -> Caller,
    pub(crate) now: SystemTime,
}

/// A result that is here, or one to come.
pub(crate) enum Answer<T> {
    Now(Result<T, TreeError>),
    /// The caller waits for it; dropping the future abandons it.
    Later(Pin<Box<dyn Future<Output = Result<T, TreeError>> + Send>>),
}

impl<T> Answer<T> {
    /// Answers about what was found, or why it was not.
    pub(crate) fn about<F>(found: Result<F, TreeError>, answer: impl FnOnce(F) -> Self) -> Self {
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

pub(crate) struct Opened {
    pub(crate) handle: u64,
    /// What kind of file it is, from which the kernel's flags follow.
    pub(crate) kind: Kind,
}

pub(crate) struct OpenedDirectory {
    pub(crate) handle: u64,
    pub(crate) keep: Keep,
}

/// The names of an open directory, fixed when it was opened.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) entries: Arc<[Entry]>,
    pub(crate) keep: Keep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) attr: Attr,
    pub(crate) keep: Keep,
}
