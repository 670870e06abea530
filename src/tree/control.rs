//! Open control files and writable values: what is written to them is carried out, and each verb
//! has a line of result for the next read of the same descriptor.
//!
//! Which verbs there are is in `verbs.rs`, what they do is the owner's business.

use std::collections::VecDeque;
use std::future::ready;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use parking_lot::Mutex;

use super::draft::Draft;
use super::node::VerbOutcome;
use super::verbs::{LONGEST_WRITE, Verb, parse_lines};
use super::{Answer, TreeError};
use crate::vm::Vm;

/// Takes what is written to an open file.
type Write<R> = Box<dyn Fn(&str) -> BoxFuture<'static, R> + Send + Sync>;

/// An open control file: the results of the verbs written to it.
pub(crate) struct OpenControl {
    vm: Option<Vm>,
    carry_out: Write<VerbOutcome>,
    results: Mutex<Results>,
}

#[derive(Debug, Default)]
struct Results {
    unread: VecDeque<u8>,
    /// A verb has failed and nothing has read that yet.
    latched: bool,
}

impl OpenControl {
    pub(super) fn new(
        vm: Option<Vm>,
        carry_out: impl Fn(&str) -> BoxFuture<'static, VerbOutcome> + Send + Sync + 'static,
    ) -> Self {
        Self { vm, carry_out: Box::new(carry_out), results: Mutex::default() }
    }

    pub(super) fn read(&self, max: usize) -> Vec<u8> {
        let mut results = self.results.lock();
        results.latched = false;
        let taken = results.unread.len().min(max);
        results.unread.drain(..taken).collect()
    }

    pub(super) fn write(this: &Arc<Self>, data: &[u8]) -> Answer<usize> {
        let text = match this.check(data) {
            Ok(text) => text,
            Err(error) => {
                let outcome = VerbOutcome { succeeded: 0, failure: Some(error) };
                return Answer::Now(this.record(outcome).map(|()| 0));
            }
        };
        let (control, length) = (Arc::clone(this), data.len());
        let work = (this.carry_out)(text);
        Answer::later(work.map(move |outcome| control.record(outcome).map(|()| length)))
    }

    fn check<'a>(&self, data: &'a [u8]) -> Result<&'a str, TreeError> {
        if self.results.lock().latched {
            return Err(TreeError::Latched);
        }
        text_of(data)
    }

    /// Keeps a line for each verb, for the next read of this descriptor, and notes the outcome in
    /// the VM's `error`.
    fn record(&self, VerbOutcome { succeeded, failure }: VerbOutcome) -> Result<(), TreeError> {
        let mut results = self.results.lock();
        (0..succeeded).for_each(|_| results.unread.extend(b"ok\n"));
        match failure {
            None => {
                if let (1.., Some(vm)) = (succeeded, &self.vm) {
                    vm.note_outcome(Ok::<(), TreeError>(()));
                }
                Ok(())
            }
            Some(TreeError::Latched) => Err(TreeError::Latched),
            Some(error) => {
                results.latched = true;
                results.unread.extend(format!("error: {error}\n").bytes());
                noted(self.vm.as_ref(), Err(error))
            }
        }
    }
}

/// Where what is written to an open value goes.
pub(crate) struct Assignment {
    vm: Option<Vm>,
    set: Write<Result<(), TreeError>>,
    /// What was written, if that makes one text.
    draft: Option<Draft>,
}

impl Assignment {
    pub(super) fn new(
        vm: Option<Vm>,
        set: impl Fn(&str) -> BoxFuture<'static, Result<(), TreeError>> + Send + Sync + 'static,
    ) -> Self {
        Self { vm, set: Box::new(set), draft: None }
    }

    /// Has all that is written make one text.
    pub(super) fn of_text(self, draft: Draft) -> Self {
        Self { draft: Some(draft), ..self }
    }

    pub(super) fn write(&self, data: &[u8]) -> Answer<usize> {
        let (vm, length) = (self.vm.clone(), data.len());
        let text = match &self.draft {
            Some(draft) => draft.add(data),
            None => text_of(data).map(|text| Some(text.to_owned())),
        };
        match text {
            Ok(Some(text)) => Answer::noted(vm, (self.set)(&text).map_ok(move |()| length)),
            Ok(None) => Answer::Now(Ok(length)),
            Err(error) => Answer::Now(noted(vm.as_ref(), Err(error))),
        }
    }

    /// The writer may have ended: takes a text to which nothing was added, or says why it is not taken.
    pub(super) fn flush(&self) -> Answer<()> {
        match self.draft.as_ref().and_then(Draft::at_close) {
            None => Answer::Now(Ok(())),
            Some(Ok(text)) => Answer::noted(self.vm.clone(), (self.set)(&text)),
            Some(Err(error)) => Answer::Now(noted(self.vm.as_ref(), Err(error))),
        }
    }
}

fn text_of(data: &[u8]) -> Result<&str, TreeError> {
    if data.len() > LONGEST_WRITE {
        return Err(TreeError::TooBig(LONGEST_WRITE));
    }
    std::str::from_utf8(data).map_err(|_| TreeError::NotText)
}

/// The lines of one write: those that are commands, and the first that is not.
pub(super) struct Commands<C> {
    good: Vec<C>,
    fault: Option<TreeError>,
}

impl<C> Commands<C> {
    /// Reads lines up to the first bad one. The whole write is read before anything is done; a bad
    /// line is reported after the good ones before it, as if each had been written alone.
    pub(super) fn parse(verbs: &'static [Verb<C>], text: &str) -> Self {
        let mut fault = None;
        let good =
            parse_lines(verbs, text).map_while(|line| line.map_err(|e| fault = Some(e)).ok());
        Self { good: good.collect(), fault: fault.map(TreeError::from) }
    }

    /// Has `run` carry out the commands, which answers how many succeeded and why the next failed.
    pub(super) fn carry_out<F, E>(
        self,
        run: impl FnOnce(Vec<C>) -> F,
    ) -> BoxFuture<'static, VerbOutcome>
    where
        F: Future<Output = (usize, Option<E>)> + Send + 'static,
        TreeError: From<E>,
    {
        let fault = self.fault;
        run(self.good)
            .map(|(succeeded, failure)| {
                let failure = failure.map(TreeError::from).or(fault);
                VerbOutcome { succeeded, failure }
            })
            .boxed()
    }
}

/// Has each line carried out at once, until one fails. Blanks at the ends belong to the line.
pub(super) fn each_line(
    text: &str,
    carry_out: impl Fn(&str) -> Result<(), TreeError>,
) -> BoxFuture<'static, VerbOutcome> {
    let mut lines = text.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#'));
    let mut succeeded = 0;
    let failure = lines.find_map(|line| carry_out(line).map(|()| succeeded += 1).err());
    ready(VerbOutcome { succeeded, failure }).boxed()
}

/// Notes how it went in the VM's `error` file.
pub(super) fn noted<T>(vm: Option<&Vm>, result: Result<T, TreeError>) -> Result<T, TreeError> {
    match (vm, &result) {
        (Some(vm), Err(error)) if error.is_worth_noting() => vm.note_outcome(Err::<(), _>(error)),
        _ => {}
    }
    result
}
