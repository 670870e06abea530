//! What the rows of [`table`](super::table) are about: their objects, when these change, and how
//! flags of open(2) become the accesses that a VM knows.
//!
//! No names of files here, but for those whose time of change is their own.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use futures::FutureExt;

use super::TreeError;
use super::handle::{Access, Commands, OpenRequest};
use super::host::Host;
use super::node::{Carried, Done, Subject};
use super::table::line;
use super::verbs::IMAGE_VERBS;
use crate::registry::Registry;
use crate::registry::trash::Removed;
use crate::vm::backend::{ConsoleAccess, ImageInfo, MonitorAccess, SnapshotInfo, Source};
use crate::vm::caller::Caller;
use crate::vm::exec::ExecAccess;
use crate::vm::job::Job;
use crate::vm::notice::Notice;
use crate::vm::state::Command;
use crate::vm::stream::{Listener, Nothing, Stream};
use crate::vm::{Snapshot, Vm, VmError};

/// A job as its rows see it.
#[derive(Clone, Debug)]
pub struct JobSubject {
    /// Its VM.
    pub vm: Vm,
    /// The job.
    pub job: Arc<Job>,
}

impl JobSubject {
    pub(super) fn output(&self, source: Source, open: &OpenRequest<'_>) -> Arc<dyn Stream> {
        self.vm.jobs().open_output(&self.job, source, open.crawler)
    }
}

/// Reading it gives nothing, at once: it is readable so that programs which walk over everything, as
/// `cp -r` and `grep -r` do, meet no error.
pub(super) fn open_stdin(
    subject: &JobSubject,
    open: &OpenRequest<'_>,
) -> Result<Arc<dyn Stream>, TreeError> {
    if !open.access.writes() {
        return Ok(Arc::new(Nothing::default()));
    }
    Ok(subject.job.input().open().map_err(VmError::from)?)
}

/// A link that leads nowhere, but can be read, for who has no last job: one that cannot be read is
/// an error to `ls`, `tar` and `cp -r`.
pub(super) fn last_job(vm: &Vm, caller: &Caller) -> PathBuf {
    vm.jobs().last_job(caller).map_or_else(|| ".none".into(), |job| job.name().into())
}

pub(super) fn open_cmd(
    subject: &JobSubject,
    open: &OpenRequest<'_>,
) -> Result<Arc<dyn Stream>, TreeError> {
    if open.access.writes() {
        return Ok(subject.vm.open_command(&subject.job, (open.caller)())?);
    }
    Ok(subject.vm.jobs().open_text(&subject.job))
}

/// An image as its rows see it.
#[derive(Clone, Debug)]
pub struct ImageSubject {
    /// The registry, which knows who uses it.
    pub registry: Arc<Registry>,
    /// The image.
    pub info: ImageInfo,
}

impl ImageSubject {
    /// Nothing, rather than an empty line, where there is none: as for a list setting.
    pub(super) fn source(&self) -> String {
        if self.info.source.is_empty() { String::new() } else { line(&self.info.source) }
    }

    pub(super) fn recipe(&self) -> String {
        match self.info.recipe {
            Some(recipe) if recipe.made_by != recipe.present => {
                format!("{recipe}; `echo refresh > ctl` makes the image again")
            }
            Some(recipe) => recipe.to_string(),
            None => String::new(),
        }
    }

    pub(super) fn set_source(&self, text: &str) -> Carried<Result<(), TreeError>> {
        let registry = Arc::clone(&self.registry);
        let done = registry.set_image_source(self.info.name.clone(), text.to_owned());
        Box::pin(done.map(|done| done.map_err(TreeError::from)))
    }

    pub(super) fn open_wait(&self) -> Arc<dyn Stream> {
        Arc::new(Notice::image(&self.registry.backends().images, &self.info.name))
    }

    pub(super) fn carry_out(&self, text: &str) -> Carried<Done> {
        let Commands { good, fault } = Commands::parse(IMAGE_VERBS, text);
        let (registry, name) = (Arc::clone(&self.registry), self.info.name.clone());
        let done = registry.command_image_all(name, good);
        Box::pin(done.map(|(done, failure)| (done, failure.map(TreeError::from).or(fault))))
    }
}

/// A second name of an image.
#[derive(Clone, Debug)]
pub struct AliasSubject {
    /// The image.
    pub image: String,
    /// When it may have been made.
    pub changed: SystemTime,
}

impl Subject for AliasSubject {
    fn changed(&self, _name: &str) -> SystemTime {
        self.changed
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }
}

impl Subject for Host {
    fn changed(&self, name: &str) -> SystemTime {
        let since = self.registry.changed();
        match name {
            ".error" => self.failures.changed().unwrap_or(since),
            _ => since,
        }
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }
}

/// A snapshot as its rows see it.
#[derive(Clone, Debug)]
pub struct SnapshotSubject {
    /// The VM.
    pub vm: Vm,
    /// The snapshot.
    pub snapshot: Snapshot,
}

impl SnapshotSubject {
    /// Shows something of what is in the disk; nothing of one that is not there.
    pub(super) fn show(&self, what: fn(&SnapshotInfo) -> String) -> String {
        self.snapshot.info.as_ref().map(what).unwrap_or_default()
    }
}

impl Subject for SnapshotSubject {
    fn changed(&self, _name: &str) -> SystemTime {
        self.snapshot.info.as_ref().map_or_else(|| self.vm.view().since, |info| info.created)
    }

    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        let drop = Command::Drop(self.snapshot.tag.clone());
        // One that could not be taken is in nobody's way.
        match &self.snapshot.info {
            Some(_) => Ok(self.vm.would_admit(&drop)?),
            None => Ok(()),
        }
    }
}

impl Subject for Removed {
    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(())
    }

    fn changed(&self, _name: &str) -> SystemTime {
        self.since
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }
}

impl Subject for Vm {
    fn changed(&self, name: &str) -> SystemTime {
        match name {
            "status" | "ready" | "wait" | "info" | "events" | "ssh_config" => self.view().since,
            "error" => self.failure_changed(),
            // No name in these directories comes or goes.
            "." | "ctl" | "exec" | "console" => self.created(),
            _ => self.configured(),
        }
    }

    fn vm(&self) -> Option<&Vm> {
        Some(self)
    }
}

impl Subject for JobSubject {
    fn changed(&self, _name: &str) -> SystemTime {
        self.job.changed()
    }

    fn vm(&self) -> Option<&Vm> {
        Some(&self.vm)
    }

    fn opening(&self) {
        self.vm.jobs().settle(&self.job);
    }

    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(())
    }

    fn listen(&self) -> Option<Listener> {
        Some(self.job.listen())
    }
}

impl Subject for ImageSubject {
    fn admit_removal(&self) -> Result<(), TreeError> {
        Ok(self.registry.admit_image_removal(&self.info.name)?)
    }

    fn changed(&self, _name: &str) -> SystemTime {
        self.info.changed
    }

    fn vm(&self) -> Option<&Vm> {
        None
    }
}

pub(super) fn console_access(open: &OpenRequest<'_>) -> ConsoleAccess {
    match open.access {
        _ if open.crawler => ConsoleAccess::Peek,
        Access::Read => ConsoleAccess::Watch,
        Access::Write => ConsoleAccess::Send,
        Access::ReadWrite => ConsoleAccess::Talk,
    }
}

/// A link that leads nowhere is an error for every `ls -l`. So it leads to `console` where there is
/// no terminal: opening that says why.
pub(super) fn terminal(vm: &Vm) -> PathBuf {
    vm.terminal().unwrap_or_else(|_| "console".into())
}

pub(super) fn monitor_access(open: &OpenRequest<'_>) -> MonitorAccess {
    match open.access {
        Access::Read => MonitorAccess::Watch,
        Access::Write => MonitorAccess::Send,
        Access::ReadWrite => MonitorAccess::Converse,
    }
}

pub(super) fn exec_access(open: &OpenRequest<'_>) -> ExecAccess {
    match open.access {
        _ if open.crawler => ExecAccess::Peek,
        Access::Read => ExecAccess::Read,
        Access::Write => ExecAccess::Write,
        Access::ReadWrite => ExecAccess::Converse,
    }
}
