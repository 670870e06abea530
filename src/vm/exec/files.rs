//! The files of `jobs/` and `jobs/NAME/`.

use std::sync::Arc;

use super::roster::Roster;
use super::{Exec, Playback, Shared};
use crate::vm::VmError;
use crate::vm::backend::OutputKind;
use crate::vm::caller::Caller;
use crate::vm::job::{Job, JobError, Stage};
use crate::vm::notice::Notice;
use crate::vm::stream::{Readiness, Stream, Text};

impl Exec {
    /// Returns the jobs by their names.
    pub(crate) fn jobs(&self) -> &Roster {
        &self.0.jobs
    }

    /// `mkdir`
    pub fn make(&self, name: &str) -> Result<Arc<Job>, JobError> {
        let shared = &self.0;
        let make = |id| Job::directory(id, name.to_owned(), shared.spool(), shared.spool());
        shared.jobs.add_named(name, make)
    }

    /// `rmdir`: what runs is killed.
    pub fn remove(&self, name: &str) -> Result<(), JobError> {
        let job = self.0.jobs.remove(name)?;
        job.abandon(VmError::Lost("removed".to_owned()));
        Ok(())
    }

    /// A file of the job is opened: a text that looks complete is. A release comes some time after
    /// close(2), and nobody shall see a job that has not started by then.
    pub fn settle(&self, job: &Arc<Job>) {
        if job.stage() == Stage::Settled {
            self.0.start(job);
        }
    }

    /// Opens `cmd` for writing.
    pub fn open_command(&self, job: &Arc<Job>, caller: Caller) -> Result<Arc<dyn Stream>, VmError> {
        if job.is_started() {
            return Err(JobError::Started("cmd").into());
        }
        self.0.admit()?;
        self.0.jobs.written(job, caller);
        Ok(Arc::new(Writing { shared: Arc::clone(&self.0), job: Arc::clone(job) }))
    }

    /// Opens `cmd` for reading: its text.
    pub fn open_text(&self, job: &Job) -> Arc<dyn Stream> {
        Arc::new(Text::new(job.text()))
    }

    /// Opens `stdout` or `stderr`.
    pub fn open_output(&self, job: &Arc<Job>, source: OutputKind, peek: bool) -> Arc<dyn Stream> {
        let output = match source {
            OutputKind::Stdout => Some(job.output()),
            OutputKind::Stderr => job.errors(),
        };
        Playback::of(output, peek)
    }

    /// Opens `wait`.
    pub fn open_wait(&self, job: &Arc<Job>) -> Arc<dyn Stream> {
        let (listener, job) = (job.listen(), Arc::clone(job));
        Arc::new(Notice::when(listener, move || job.is_over().then(|| Ok(job.status_line()))))
    }
}

/// `cmd` opened for writing.
#[derive(Debug)]
struct Writing {
    shared: Arc<Shared>,
    job: Arc<Job>,
}

impl Stream for Writing {
    fn try_write(&self, data: &[u8]) -> Option<Result<usize, VmError>> {
        Some(match self.job.collect(data) {
            Ok(true) => Ok(data.len()),
            Ok(false) => Err(JobError::Started("cmd").into()),
            Err(error) => Err(error),
        })
    }

    fn readiness(&self) -> Readiness {
        Readiness { readable: true, writable: true, hung_up: false }
    }

    fn flush(&self) {
        self.job.flush();
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.shared.start(&self.job);
    }
}
