//! What can be opened of a VM: its events, its serial line, its monitor, and ways to run commands. All but
//! the events is refused with [`Refusal::Off`] while no QEMU runs.
//!
//! Not here: what then flows (`guest`, `qemu`, [`exec`](super::exec)).

use std::path::PathBuf;
use std::sync::Arc;

use super::backend::{ClientHost, Console, GuestFiles};
use super::caller::Caller;
use super::exec::Exec;
use super::files::{self, FilesError};
use super::idle::Used;
use super::job::Job;
use super::probe::{Probe, Probes};
use super::shares::Shares;
use super::state::{Asked, Refusal, State, policy};
use super::stream::{Stream, StreamAccess};
use super::{Vm, VmError};

/// The hidden command that connects to a guest (`cli::Command::Connect`).
const CONNECT: &str = "connect";

impl Vm {
    /// Opens a stream of what happens to it from now on.
    pub fn open_events(&self) -> Arc<dyn Stream> {
        self.0.backends.events.open(Some(self.id()))
    }

    /// Returns the serial line.
    pub fn console(&self) -> &Arc<dyn Console> {
        &self.0.console
    }

    /// Opens the serial line.
    pub fn open_console(&self, access: StreamAccess) -> Result<Arc<dyn Stream>, VmError> {
        self.expect_on("console")?;
        Ok(self.used(self.0.console.open(access), access))
    }

    /// Returns the path of a terminal on the serial line that nobody has open now.
    pub fn terminal(&self) -> Result<PathBuf, VmError> {
        self.expect_on("tty")?;
        Ok(self.0.console.terminal()?)
    }

    /// Opens a conversation in the hypervisor's own protocol.
    pub fn open_monitor(&self, access: StreamAccess) -> Result<Arc<dyn Stream>, VmError> {
        let machine = self.0.machine.read();
        let state = || self.state().to_string();
        let off = || Refusal::Off(Asked { verb: "qmp", state: state() });
        Ok(self.used(machine.as_ref().ok_or_else(off)?.monitor(access), access))
    }

    /// Counts a stream as a use of the VM as long as it is open, but for what crawlers read.
    fn used(&self, stream: Arc<dyn Stream>, access: StreamAccess) -> Arc<dyn Stream> {
        match access {
            StreamAccess::Peek => stream,
            StreamAccess::Read | StreamAccess::Write | StreamAccess::Converse => {
                Arc::new(Used { stream, _use: self.0.usage.hold() })
            }
        }
    }

    /// Returns a configuration with which other SSH clients get into the guest.
    pub fn client_config(&self) -> String {
        let view = self.view();
        let port = match (&view.state, &view.facts) {
            // Its port is that of its next start.
            _ if self.is_asleep() => Ok(0),
            (State::Paused, _) => Err("is paused; `echo resume > ctl` first".to_owned()),
            (State::Starting, _) => Err("is starting; `cat ready` waits for it".to_owned()),
            (_, Some(facts)) => Ok(facts.ssh_port),
            (state, None) => Err(format!("is {}; `echo start > ctl` first", state.word())),
        };
        self.0.backends.guests.client_config(&ClientHost {
            name: self.name(),
            uuid: self.uuid(),
            dir: self.dir().0.clone(),
            user: self.spec().ssh_user.clone(),
            port,
            command: self.connect_command(),
        })
    }

    /// Returns the command that connects to the guest of a VM which may be suspended when that is needed.
    fn connect_command(&self) -> Option<Vec<String>> {
        let may_sleep = self.spec().idle.is_some() || self.is_asleep();
        let program = std::env::current_exe().ok().filter(|_| may_sleep)?;
        // After an upgrade there is another program at its path.
        let program = program.to_str()?.trim_end_matches(" (deleted)").to_owned();
        let vm = self.0.backends.own_dirs.first()?.join(self.name());
        Some(vec![program, CONNECT.to_owned(), vm.to_str()?.to_owned()])
    }

    /// Says whether somebody has files of the guest open.
    pub(super) fn files_are_open(&self) -> bool {
        self.0.files.are_open()
    }

    /// Opens the way to run commands.
    pub fn open_exec(
        &self,
        caller: Caller,
        access: StreamAccess,
    ) -> Result<Arc<dyn Stream>, VmError> {
        if matches!(access, StreamAccess::Write | StreamAccess::Converse) {
            self.expect_running("exec")?;
            self.0.usage.touch();
        }
        self.0.exec.open(caller, access)
    }

    /// Opens a job's `cmd` for writing.
    pub fn open_command(&self, job: &Arc<Job>, caller: Caller) -> Result<Arc<dyn Stream>, VmError> {
        self.expect_running("cmd")?;
        self.0.exec.open_command(job, caller)
    }

    /// Returns the commands of this VM, each with its files.
    pub fn exec(&self) -> &Exec {
        &self.0.exec
    }

    /// Returns what was looked at in its guest.
    pub fn probes(&self) -> &Probes {
        &self.0.probes
    }

    /// Returns the directories of the host that its guest has.
    pub fn shares(&self) -> &Shares {
        &self.0.shares
    }

    /// Looks at a service in the guest; the stream gives one line.
    ///
    /// # Errors
    /// [`Refusal::Off`] while no QEMU runs, [`Refusal::Paused`] while its processors are stopped.
    pub fn open_probe(&self, probe: &Probe) -> Result<Arc<dyn Stream>, VmError> {
        self.expect_on("probe")?;
        self.expect_running("probe")?;
        Ok(self.0.probes.open(probe))
    }

    /// Returns the way to the guest's files, which is opened at the first use; see [`Files`](super::files::Files).
    ///
    /// # Errors
    /// [`FilesError`]: at once while no QEMU runs, after [`super::files::TIMEOUT`] at the latest.
    pub async fn files(&self) -> Result<Arc<dyn GuestFiles>, FilesError> {
        let in_use = tokio::time::timeout(files::TIMEOUT, self.0.usage.enter());
        let _use = in_use.await.map_err(|_| FilesError::Late)?;
        self.0.files.connected(|sentence| self.note_outcome(Err(sentence))).await
    }

    fn expect_running(&self, verb: &'static str) -> Result<(), VmError> {
        let state = self.state();
        let is_paused = state == State::Paused;
        let paused = || Refusal::Paused(Asked { verb, state: state.to_string() });
        if is_paused { Err(paused().into()) } else { Ok(()) }
    }

    /// Refuses in the name of `verb` while no QEMU runs and none is coming.
    pub fn expect_on(&self, verb: &'static str) -> Result<(), VmError> {
        Ok(policy::use_of_machine(verb).admit(&self.state())?)
    }
}
