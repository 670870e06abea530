//! The jobs of one VM: their names, and which of them is a caller's last.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::stage_for;
use crate::vm::caller::Caller;
use crate::vm::job::{Job, JobError, JobId, Origin};
use crate::vm::spec::is_object_name;

/// Finished jobs kept for readers who come late.
pub(super) const KEPT: usize = 64;
/// The name in `jobs/` that is not a job's.
const LAST: &str = "last";

#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// In the order in which they were written, oldest first.
    jobs: VecDeque<Arc<Job>>,
    last_id: u64,
}

impl Inner {
    fn named(&self, name: &str) -> Option<&Arc<Job>> {
        self.jobs.iter().find(|job| job.name() == name)
    }

    fn admit(&self, name: &str) -> Result<(), JobError> {
        match is_object_name(name) {
            false => Err(JobError::BadName(name.to_owned())),
            true if name == LAST || self.named(name).is_some() => {
                Err(JobError::Exists(name.to_owned()))
            }
            true => Ok(()),
        }
    }

    fn push(&mut self, make: impl FnOnce(JobId) -> Job) -> Arc<Job> {
        self.last_id += 1;
        let job = Arc::new(make(JobId(self.last_id)));
        self.jobs.push_back(Arc::clone(&job));
        job
    }
}

impl Roster {
    /// Adds a job named by its number, or by the next one that is free.
    pub(super) fn add(&self, make: impl FnOnce(JobId, String) -> Job) -> Arc<Job> {
        let mut inner = self.0.lock();
        while inner.named(&(inner.last_id + 1).to_string()).is_some() {
            inner.last_id += 1;
        }
        inner.push(|id| make(id, id.0.to_string()))
    }

    /// Adds a job with a name.
    pub(super) fn add_named(
        &self,
        name: &str,
        make: impl FnOnce(JobId) -> Job,
    ) -> Result<Arc<Job>, JobError> {
        let mut inner = self.0.lock();
        inner.admit(name)?;
        Ok(inner.push(make))
    }

    pub(crate) fn find(&self, name: &str) -> Option<Arc<Job>> {
        self.0.lock().named(name).cloned()
    }

    pub(crate) fn by_id(&self, id: JobId) -> Option<Arc<Job>> {
        self.0.lock().jobs.iter().find(|job| job.id() == id).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<Job>> {
        self.0.lock().jobs.iter().cloned().collect()
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), JobError> {
        let inner = self.0.lock();
        let job = inner.named(from).ok_or(JobError::Absent)?;
        if from != to {
            inner.admit(to)?;
            job.rename(to);
        }
        Ok(())
    }

    pub(super) fn remove(&self, name: &str) -> Result<Arc<Job>, JobError> {
        let mut inner = self.0.lock();
        let at = inner.jobs.iter().position(|job| job.name() == name);
        at.and_then(|at| inner.jobs.remove(at)).ok_or(JobError::Absent)
    }

    /// Makes a job the newest one, written by `writer`.
    pub(super) fn written(&self, job: &Arc<Job>, writer: Caller) {
        let mut inner = self.0.lock();
        job.written_by(writer);
        // One that was removed meanwhile does not come back.
        if let Some(at) = inner.jobs.iter().position(|other| Arc::ptr_eq(other, job)) {
            inner.jobs.remove(at);
            inner.jobs.push_back(Arc::clone(job));
        }
    }

    /// Returns the caller's last job among some: of its closest relative's the newest.
    pub(super) fn last(&self, caller: &Caller, among: impl Fn(&Job) -> bool) -> Option<Arc<Job>> {
        let inner = self.0.lock();
        let related = inner.jobs.iter().enumerate().filter(|(_, job)| among(job));
        let related = related.filter_map(|(age, job)| {
            let kinship = caller.kinship(&job.writer())?;
            Some((kinship, stage_for(caller, job), Reverse(age), job))
        });
        let closest = related.min_by_key(|(kinship, stage, age, _)| (*kinship, *stage, *age));
        closest.map(|(_, _, _, job)| Arc::clone(job))
    }

    /// Forgets the oldest of the finished jobs beyond the bound, those of `exec` first.
    pub(super) fn forget_old(&self) {
        let mut inner = self.0.lock();
        let over = inner.jobs.iter().filter(|job| job.is_over()).count();
        let mut surplus = over.saturating_sub(KEPT);
        for origin in [Origin::Exec, Origin::Directory] {
            inner.jobs.retain(|job| {
                let drop = surplus > 0 && job.is_over() && job.origin() == origin;
                surplus -= usize::from(drop);
                !drop
            });
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().jobs.len()
    }
}
