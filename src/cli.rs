//! The command line: clap structs → [`MountConfig`](crate::config::MountConfig). The doc comments
//! are the help. No I/O, no decisions of the domain.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::Mode;

/// Virtual machines as directories.
///
/// `aq mount ~/aq` mounts a directory in which every sub-directory is a virtual machine: mkdir
/// creates one, `echo start > vm1/ctl` runs it. `cat ~/aq/.docs/README.md` explains the rest.
#[derive(Debug, Parser)]
#[command(name = "aq", version, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount the tree on a directory and serve it in the background
    Mount(Mount),
    /// Unmount the tree and end its daemon; virtual machines run on
    Umount(Umount),
}

/// `aq mount`
#[derive(Args, Debug)]
pub struct Mount {
    /// An empty directory
    pub dir: PathBuf,
    /// Where virtual machines and images are kept [default: $XDG_DATA_HOME/aqfs]
    #[arg(long, value_name = "DIR", env = "AQ_STORE")]
    pub store: Option<PathBuf>,
    /// The image of a new virtual machine, as long as this mount lasts [default: .defaults/image]
    #[arg(long, value_name = "NAME")]
    pub image: Option<String>,
    /// Serve in this process, with the log on standard error
    #[arg(short, long)]
    pub foreground: bool,
    /// Serve in this process for a parent that waits for `mounted`
    #[arg(long, hide = true, conflicts_with = "foreground")]
    pub detached: bool,
}

impl Mount {
    /// Returns how to run.
    pub fn mode(&self) -> Mode {
        match (self.foreground, self.detached) {
            (true, _) => Mode::Foreground,
            (_, true) => Mode::Detached,
            _ => Mode::Background,
        }
    }
}

/// `aq umount`
#[derive(Args, Debug)]
pub struct Umount {
    /// The directory that the tree is mounted on
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
