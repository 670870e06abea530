//! The commands of `aq`: each reads and writes files of the mount, and nothing else. A shell can do
//! everything that a command does.
//!
//! [`files`]: the mount as a command sees it. [`job`]: one command in a guest. [`environment`]:
//! what variables mean. [`progress`], [`signals`], [`text`], [`timing`]: what they share towards
//! the user.
//!
//! Not here: finding and starting the daemon (`daemon`), what the files mean (`tree`).

mod attach;
pub mod complete;
pub mod connect;
mod cp;
mod edit;
pub mod environment;
mod events;
mod exec;
mod export;
mod fanout;
mod files;
mod fork;
mod images;
mod info;
mod job;
mod logs;
mod ls;
mod names;
mod new;
mod power;
mod progress;
mod prune;
mod pull;
mod remove;
mod run;
mod signals;
mod snapshot;
mod ssh;
mod sync;
mod text;
mod timing;
mod top;
mod transfer;
mod volume;
mod wait;

use std::io;

use crate::cli::Command;
use crate::daemon::{self, DaemonError};
use files::Tree;
pub use names::Near;

/// The exit status by which a shell knows a process that SIGPIPE ended.
const BROKEN_PIPE: u8 = 141;

/// Why a command has failed.
#[expect(missing_docs, reason = "each error's sentence says it")]
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("VM '{0}' does not exist.{1}")]
    NoVm(String, Near),
    #[error("VM '{0}' already exists.")]
    Exists(String),
    #[error("VM '{0}' is already running.")]
    Running(String),
    #[error("VM '{0}' is not running. Start it with: aq start {0}")]
    Off(String),
    #[error("snapshot or alias '{0}' does not exist.{1} `aq snapshot ls` and `ls {2}` list them")]
    NoImage(String, Near, String),
    #[error(
        "image '{0}' does not exist.{1} `aq images --all` lists those that there are; an image of a registry is named oci:NAME"
    )]
    NoSuchImage(String, Near),
    #[error(
        "snapshot '{0}' already exists. Pick a new tag or remove the existing one with: aq snapshot rm {0}"
    )]
    ImageExists(String),
    #[error("{what}: {sentence}")]
    Refused {
        what: String,
        /// Why not, as `error` has it.
        sentence: String,
        /// The errno; 0 if there was none.
        errno: i32,
    },
    #[error("{0}")]
    Usage(String),
    /// The reader of our output is gone, or its disk is full.
    #[error("standard output: {0}")]
    Output(#[source] io::Error),
    /// Something of this process's own options.
    #[error("{0}: {1}")]
    Local(String, #[source] io::Error),
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A part has failed, and its reason has been reported.
    #[error("the reason is above")]
    Reported(u8),
}

impl Failure {
    /// Says whether the reason has been reported already, or cannot be reported.
    pub fn is_reported(&self) -> bool {
        let reported_by_daemon = matches!(self, Self::Daemon(error) if error.is_reported());
        reported_by_daemon || matches!(self, Self::Reported(_)) || self.is_broken_pipe()
    }

    /// Returns the exit status.
    pub fn code(&self) -> u8 {
        if let Self::Reported(code) = self {
            return *code;
        }
        if self.is_broken_pipe() { BROKEN_PIPE } else { 1 }
    }

    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// Says what was asked for in the user's own words, not in those of the file that refused.
    fn about(self, asked: String) -> Self {
        let Self::Refused { sentence, errno, .. } = self else { return self };
        Self::Refused { what: asked, sentence, errno }
    }

    fn errno(&self) -> i32 {
        let Self::Refused { errno, .. } = self else { return 0 };
        *errno
    }
}

fn local(what: impl Into<String>) -> impl FnOnce(io::Error) -> Failure {
    let what = what.into();
    move |error| Failure::Local(what, error)
}

/// Runs a command over the tree, which is mounted where it is not. Returns the exit status.
///
/// # Errors
/// Why it has failed; `main` prints it.
pub fn run(command: &Command) -> Result<u8, Failure> {
    let tree = Tree::at(daemon::find_or_start()?);
    match command {
        Command::New(args) => new::run(&tree, args),
        Command::Start(args) => power::start(&tree, args),
        Command::Fork(args) => fork::run(&tree, args),
        Command::Stop(args) => power::stop(&tree, args),
        Command::Console(args) => ssh::console(&tree, args),
        Command::Exec(args) => return exec::run(&tree, args),
        Command::Run(args) => return run::run(&tree, args),
        Command::Scp(args) => ssh::scp(&tree, args),
        Command::Cp(args) => return cp::run(&tree, args),
        Command::Sync(args) => return sync::run(&tree, args),
        Command::Rm(args) => remove::run(&tree, args),
        Command::Ls(args) => ls::run(&tree, args),
        Command::Pull(args) => pull::run(&tree, args),
        Command::Images(args) => images::run(&tree, args),
        Command::Snapshot(args) => snapshot::run(&tree, args),
        Command::Export(args) => export::run(&tree, args),
        Command::Fanout(args) => return fanout::run(&tree, args),
        Command::Info(args) => info::run(&tree, args),
        Command::Wait(args) => wait::run(&tree, args),
        Command::Logs(args) => logs::run(&tree, args),
        Command::Events(args) => events::run(&tree, args),
        Command::Attach(args) => attach::run(&tree, args),
        Command::Edit(args) => edit::run(&tree, args),
        Command::Top(args) => top::run(&tree, args),
        Command::Prune(args) => prune::run(&tree, args),
        Command::Mount(_)
        | Command::Umount(_)
        | Command::Doctor(_)
        | Command::Completion(_)
        | Command::Man(_)
        | Command::Connect(_)
        | Command::TouchStatus(_) => Ok(()),
    }
    .map(|()| 0)
}
