//! A VM's `jobs`: commands as directories. Users make them with `mkdir`; `exec` makes them too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use super::line;
use crate::tree::control::{self, noted};
use crate::tree::descriptor::Descriptor;
use crate::tree::handle::OpenRequest;
use crate::tree::names::{Entry, Names};
use crate::tree::node::Node;
use crate::tree::number::{NodeId, pack_job, unpack_job};
use crate::tree::owner::NodeOwner;
use crate::tree::scope::Scope;
use crate::tree::{Answer, TreeError};
use crate::vm::backend::OutputKind;
use crate::vm::caller::Caller;
use crate::vm::job::{Job, JobError};
use crate::vm::spec::is_object_name;
use crate::vm::stream::{Listener, Nothing, Stream};
use crate::vm::{Vm, VmError};

/// `VM/jobs`. Names that are not among its rows are jobs.
pub(super) static JOBS: Descriptor<Vm> = Descriptor {
    page: Some("VM/jobs/"),
    rows: || JOBS_ROWS,
    names: |_, vm| Box::new(JobNames(vm.clone())),
    members: &[&JOB],
    ..Descriptor::new(9, Scope::vm, |vm| format!("/{}/jobs", vm.name()), Vm::created)
};

/// `VM/jobs/NAME`. Its object is a VM's number and a job's, packed ([`pack_job`]).
static JOB: Descriptor<JobOwner> = Descriptor {
    page: Some("VM/jobs/NAME/"),
    rows: || JOB_ROWS,
    ..Descriptor::new(
        10,
        JobOwner::resolve,
        |j| format!("/{}/jobs/{}", j.vm.name(), j.job.name()),
        JobOwner::mtime,
    )
};

static JOBS_ROWS: &[Node<Vm>] = &[Node::link(
    "last",
    "the caller's last command, of `exec` or of `jobs`",
    |vm: &Vm, caller| Some(last_job(vm, &caller())),
)
.follows(Vm::configured)];

static JOB_ROWS: &[Node<JobOwner>] = &[
    Node::stream("cmd", 0o600, "the command: it starts when the file is closed", open_cmd),
    Node::control(
        "ctl",
        "lines: signal NAME, winsize COLUMNSxROWS; before the start pty COLUMNSxROWS, env NAME=VALUE, cwd DIR",
        |_, j, text| {
            control::each_line(text, |line| Ok(j.job.obey(line).map_err(VmError::from)?))
        },
    ),
    Node::value("status", "`new`, `running`, `exit 3`, `signal TERM`, `lost: reason`", |j| {
        line(&j.job.status_line())
    }),
    Node::stream(
        "stderr",
        0o400,
        "what it says on standard error, from the start, to its end",
        |j, open| Ok(j.output(OutputKind::Stderr, open)),
    ),
    Node::stream("stdin", 0o600, "its standard input; the last closing is its end", open_stdin),
    Node::stream(
        "stdout",
        0o400,
        "what it says on standard output, from the start, to its end",
        |j, open| Ok(j.output(OutputKind::Stdout, open)),
    ),
    Node::stream(
        "wait",
        0o444,
        "blocks until the command has ended, then gives the status",
        |j, _| Ok(j.vm.exec().open_wait(&j.job)),
    ),
];

#[derive(Clone)]
struct JobOwner {
    vm: Vm,
    job: Arc<Job>,
}

impl JobOwner {
    fn resolve(scope: &Scope, object: u64) -> Result<Self, TreeError> {
        let (vm, job) = unpack_job(object);
        let vm = scope.vm(vm.0)?;
        let job = vm.exec().jobs().by_id(job).ok_or(TreeError::NotFound)?;
        Ok(Self { vm, job })
    }

    fn mtime(&self) -> SystemTime {
        self.job.changed()
    }

    fn output(&self, source: OutputKind, open: &OpenRequest<'_>) -> Arc<dyn Stream> {
        self.vm.exec().open_output(&self.job, source, open.crawler)
    }
}

impl NodeOwner for JobOwner {
    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }

    fn prepare_open(&self) {
        self.vm.exec().settle(&self.job);
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(())
    }

    fn listen(&self) -> Option<Listener> {
        Some(self.job.listen())
    }
}

/// A caller without a last job gets a dangling link: one that cannot be read is
/// an error to `ls`, `tar` and `cp -r`.
fn last_job(vm: &Vm, caller: &Caller) -> PathBuf {
    vm.exec().last_job(caller).map_or_else(|| ".none".into(), |job| job.name().into())
}

fn open_cmd(owner: &JobOwner, open: &OpenRequest<'_>) -> Result<Arc<dyn Stream>, TreeError> {
    if open.access.writes() {
        return Ok(owner.vm.open_command(&owner.job, (open.caller)())?);
    }
    Ok(owner.vm.exec().open_text(&owner.job))
}

/// Reading it gives nothing, at once: it is readable so that programs which walk over everything,
/// as `cp -r` and `grep -r` do, meet no error.
fn open_stdin(owner: &JobOwner, open: &OpenRequest<'_>) -> Result<Arc<dyn Stream>, TreeError> {
    if !open.access.writes() {
        return Ok(Arc::new(Nothing));
    }
    Ok(owner.job.input().open().map_err(VmError::from)?)
}

pub(super) struct JobNames(pub(super) Vm);

impl JobNames {
    fn id(&self, job: &Job) -> NodeId {
        JOB.node(pack_job(self.0.id(), job.id()))
    }

    fn noted<T>(&self, done: Result<T, JobError>) -> Result<T, TreeError> {
        noted(Some(&self.0), done.map_err(|e| VmError::from(e).into()))
    }
}

impl Names for JobNames {
    // Commands of `exec` come, and old ones go, without the kernel's doing.
    fn is_stable(&self) -> bool {
        false
    }

    fn find(&self, name: &str) -> Option<NodeId> {
        self.0.exec().jobs().find(name).map(|job| self.id(&job))
    }

    fn entries(&self) -> Vec<Entry> {
        let entry = |job: Arc<Job>| Entry::directory(self.id(&job), job.name());
        self.0.exec().jobs().list().into_iter().map(entry).collect()
    }

    fn is_possible(&self, name: &str) -> bool {
        is_object_name(name)
    }

    fn make(&self, name: &str) -> Answer<NodeId> {
        let made = self.noted(self.0.exec().make(name));
        Answer::Now(made.map(|job| self.id(&job)))
    }

    fn remove(&self, name: &str, _caller: &dyn Fn() -> Caller) -> Answer<()> {
        Answer::Now(self.noted(self.0.exec().remove(name)))
    }

    fn rename(&self, from: &str, to: &str) -> Answer<()> {
        if self.find(from).is_none() {
            return Answer::Now(Err(TreeError::BadRename));
        }
        Answer::Now(self.noted(self.0.exec().jobs().rename(from, to)))
    }
}
