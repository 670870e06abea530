//! Ways into a guest: SSH sessions, the serial line, and the port that gives a clone its identity.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::{
    BackendError, FilePort, FileServer, GuestFiles, LaunchPlan, NicPlace, NoFiles, OpenPort,
    PortServer,
};
use crate::vm::probe::Probe;
use crate::vm::spec::net::Mac;
use crate::vm::stream::{Stream, StreamAccess};

/// Where a guest's SSH server is and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestAddress {
    /// The port on 127.0.0.1.
    pub port: u16,
    /// The login name.
    pub user: String,
    /// The VM's directory, which holds the public host key to expect.
    pub dir: PathBuf,
}

/// A guest as other SSH clients should know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHost {
    pub(crate) name: String,
    pub(crate) uuid: Uuid,
    pub(crate) dir: PathBuf,
    /// The login name.
    pub user: String,
    /// The port on 127.0.0.1, or why it cannot be reached and what to do.
    pub port: Result<u16, String>,
    /// The program that connects to it, and its arguments, if it may be off until then.
    pub command: Option<Vec<String>>,
}

/// How a command in the guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Its exit status.
    Code(u32),
    /// The signal that ended it, without `SIG`.
    Signal(String),
}

/// Which of a command's outputs bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputKind {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes a command's output, in order of arrival. Waiting in it closes the SSH window.
#[async_trait]
pub trait OutputSink: Send + Sync {
    /// Takes a chunk.
    async fn accept(&self, source: OutputKind, bytes: &[u8]);
}

/// Takes a command's output and forgets it.
#[derive(Clone, Copy, Debug)]
pub struct DiscardOutput;

#[async_trait]
impl OutputSink for DiscardOutput {
    async fn accept(&self, _source: OutputKind, _bytes: &[u8]) {}
}

/// The size of a terminal in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSize {
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// What can be asked of a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobControl {
    /// A signal for all of its processes: a name without `SIG`, or a number.
    Signal(String),
    /// Another size of its terminal.
    Resize(WindowSize),
}

/// The host's side of a command that is talked to while it runs.
#[async_trait]
pub trait JobIo: OutputSink {
    /// Waits for the next bytes of its input; `None` at the end. First asked when the command runs,
    /// and not again after the end. Dropping the future loses nothing.
    async fn input(&self) -> Option<Vec<u8>>;
    /// Waits for the next order. Dropping the future loses nothing.
    async fn control(&self) -> JobControl;
}

/// What a command is run with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// Variables, names checked.
    pub env: Vec<(String, String)>,
    /// Its directory; a relative one starts at the user's home.
    pub cwd: Option<String>,
    /// A terminal of this size: standard error then goes to standard output.
    pub terminal: Option<WindowSize>,
}

/// What a look at a service of the guest has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeAnswer {
    /// It is there, with some words about it, or none.
    Yes(String),
    /// It is not, for this reason.
    No(String),
}

/// A network device on a net, as the guest is to have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestNic {
    /// Where it is.
    pub place: NicPlace,
    /// Its own address.
    pub mac: Mac,
    /// Its address on the net.
    pub address: Ipv4Addr,
    /// The length of the net's prefix.
    pub prefix: u8,
}

/// What became of a network device in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NicOutcome {
    /// It has its address.
    Set,
    /// The guest has not found it.
    Unseen,
    /// It could not be set, for this reason.
    Failed(String),
}

/// A working SSH connection to a guest.
#[async_trait]
pub trait GuestSession: fmt::Debug + Send + Sync {
    /// Runs `command` with `stdin` as its whole input and returns how it ended. Dropping the
    /// future hangs up on the command (SIGHUP, then the channel is closed).
    async fn exec(
        &self,
        command: &[u8],
        stdin: &[u8],
        output: &dyn OutputSink,
    ) -> Result<Exit, BackendError>;
    /// Runs `command` in a process group of its own and returns how it ended. Dropping the future
    /// kills the group.
    async fn run(
        &self,
        command: &[u8],
        options: &ExecOptions,
        io: &dyn JobIo,
    ) -> Result<Exit, BackendError>;
    /// Looks once at a service, from inside the guest. The caller bounds it by dropping the future.
    async fn probe(&self, probe: &Probe) -> Result<ProbeAnswer, BackendError>;
    /// Opens the way to the guest's files.
    async fn files(&self) -> Result<Arc<dyn GuestFiles>, NoFiles>;
    /// Opens a port of the guest's 127.0.0.1 that leads to a file server, over a connection of its own.
    async fn serve_files(
        &self,
        server: Arc<dyn FileServer>,
    ) -> Result<Box<dyn FilePort>, BackendError>;
    /// Sets the variables that commands find from now on, unless they have their own.
    fn set_environment(&self, variables: Vec<(String, String)>);
    /// Opens the port of the guest's 127.0.0.1 that leads to its proxy, over a connection of its own.
    async fn serve_web(
        &self,
        proxy: Arc<dyn PortServer>,
    ) -> Result<Box<dyn OpenPort>, BackendError>;
    /// Has the guest have these addresses, none on the idle devices, and these lines in its `/etc/hosts`. It may
    /// take so long to find a device. Says of each device what became of it.
    async fn set_nets(
        &self,
        nics: &[GuestNic],
        idle: &[NicPlace],
        hosts: &str,
        wait: Duration,
    ) -> Result<Vec<NicOutcome>, BackendError>;
    /// Resolves when the connection is lost.
    async fn closed(&self);
}

/// Opens connections to guests.
#[async_trait]
pub trait Guests: fmt::Debug + Send + Sync {
    /// Makes what lets us in (host key, seed) under the VM's directory, before its first start.
    async fn prepare(&self, plan: &LaunchPlan) -> Result<(), BackendError>;
    /// Connects, logs in and proves it by running `true`: one attempt, bounded.
    async fn connect(&self, at: &GuestAddress) -> Result<Arc<dyn GuestSession>, BackendError>;
    /// Opens the port on which a guest is given its identity.
    async fn identity(&self, dir: &Path) -> Result<Box<dyn IdentityPort>, BackendError>;
    /// Returns a configuration with which other clients get into a guest without a question.
    fn client_config(&self, host: &ClientHost) -> String;
    /// Returns the serial line of the VM with this directory. It is not attached yet.
    fn console(&self, dir: PathBuf) -> Arc<dyn Console>;
}

/// The way to a program in the guest that waits for the guest's identity. It is no SSH: no key is
/// exchanged before the guest has random numbers of its own.
#[async_trait]
pub trait IdentityPort: fmt::Debug + Send + Sync {
    /// Has the guest of `session` wait on this port.
    async fn arm(&mut self, session: &dyn GuestSession) -> Result<(), BackendError>;
    /// Gives the guest the identity of `plan`, and returns when it has it: with its own
    /// random numbers, time, name, network address and keys.
    async fn personalize(&mut self, plan: &LaunchPlan) -> Result<(), BackendError>;
    /// Has the guest wait no more.
    async fn dismiss(&mut self);
}

/// A VM's serial line, fanned out to any number of readers.
pub trait Console: fmt::Debug + Send + Sync {
    /// Connects to the running machine's serial socket, and again whenever that is lost. Streams
    /// opened since the last [`detach`](Self::detach) get its bytes.
    fn attach(&self);
    /// The machine has ended, or its launch has failed: readers get what is left, then end of
    /// file. Streams opened from now on wait for the next machine.
    fn detach(&self);
    /// Opens a stream with a cursor of its own.
    fn open(&self, access: StreamAccess) -> Arc<dyn Stream>;
    /// Returns the path of a terminal on this line that nobody has open now. It stays good until
    /// the machine ends, and then hangs up.
    fn terminal(&self) -> Result<PathBuf, BackendError>;
    /// Says whether a program has one of the terminals open.
    fn has_terminal_open(&self) -> bool;
    /// Bytes that slow readers have lost.
    fn lost(&self) -> u64;
}
