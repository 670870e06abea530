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
mod edit;
pub mod environment;
mod exec;
mod fanout;
mod files;
mod info;
mod job;
mod logs;
mod ls;
mod names;
mod new;
mod power;
mod progress;
mod prune;
mod remove;
mod signals;
mod snapshot;
mod ssh;
mod text;
mod timing;
mod top;
mod wait;

use std::io;

use crate::cli::Command;
use crate::daemon::{self, DaemonError};
use files::Tree;
pub use names::Near;

/// The exit status by which a shell knows a process that SIGPIPE ended.
const BROKEN_PIPE: u8 = 141;

/// Why a command has failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// There is no such VM.
    #[error("VM '{0}' does not exist.{1}")]
    NoVm(String, Near),
    /// There is one.
    #[error("VM '{0}' already exists.")]
    Exists(String),
    /// It runs.
    #[error("VM '{0}' is already running.")]
    Running(String),
    /// It does not run.
    #[error("VM '{0}' is not running. Start it with: aq start {0}")]
    Off(String),
    /// There is no such image.
    #[error("snapshot or alias '{0}' does not exist.{1} `aq snapshot ls` and `ls {2}` list them")]
    NoImage(String, Near, String),
    /// There is an image of that name.
    #[error(
        "snapshot '{0}' already exists. Pick a new tag or remove the existing one with: aq snapshot rm {0}"
    )]
    ImageExists(String),
    /// The tree refused.
    #[error("{what}: {sentence}")]
    Refused {
        /// What was asked.
        what: String,
        /// Why not, as `error` has it.
        sentence: String,
        /// The errno; 0 if there was none.
        errno: i32,
    },
    /// The words do not fit together.
    #[error("{0}")]
    Usage(String),
    /// The reader of our output is gone, or its disk is full.
    #[error("standard output: {0}")]
    Output(#[source] io::Error),
    /// Something of this process's own options.
    #[error("{0}: {1}")]
    Local(String, #[source] io::Error),
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A part has failed, and its reason has been reported.
    #[error("the reason is above")]
    Reported(u8),
}

impl Failure {
    /// Says whether the reason has been reported already, or cannot be reported.
    pub fn is_reported(&self) -> bool {
        match self {
            Self::Daemon(error) => error.is_reported(),
            Self::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            Self::Reported(_) => true,
            Self::NoVm(..)
            | Self::Exists(_)
            | Self::Running(_)
            | Self::Off(_)
            | Self::NoImage(..)
            | Self::ImageExists(_)
            | Self::Refused { .. }
            | Self::Usage(_)
            | Self::Local(..) => false,
        }
    }

    /// Returns the exit status.
    pub fn code(&self) -> u8 {
        match self {
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => BROKEN_PIPE,
            Self::Reported(code) => *code,
            Self::NoVm(..)
            | Self::Exists(_)
            | Self::Running(_)
            | Self::Off(_)
            | Self::NoImage(..)
            | Self::ImageExists(_)
            | Self::Refused { .. }
            | Self::Usage(_)
            | Self::Output(_)
            | Self::Local(..)
            | Self::Daemon(_) => 1,
        }
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
        Command::Stop(args) => power::stop(&tree, args),
        Command::Console(args) => ssh::console(&tree, args),
        Command::Exec(args) => return exec::run(&tree, args),
        Command::Scp(args) => ssh::scp(&tree, args),
        Command::Rm(args) => remove::run(&tree, args),
        Command::Ls(args) => ls::run(&tree, args),
        Command::Snapshot(args) => snapshot::run(&tree, args),
        Command::Fanout(args) => return fanout::run(&tree, args),
        Command::Info(args) => info::run(&tree, args),
        Command::Wait(args) => wait::run(&tree, args),
        Command::Logs(args) => logs::run(&tree, args),
        Command::Attach(args) => attach::run(&tree, args),
        Command::Edit(args) => edit::run(&tree, args),
        Command::Top(args) => top::run(&tree, args),
        Command::Prune(args) => prune::run(&tree, args),
        Command::Mount(_)
        | Command::Umount(_)
        | Command::Doctor
        | Command::Completion(_)
        | Command::Man(_)
        | Command::TouchStatus(_) => Ok(()),
    }
    .map(|()| 0)
}
