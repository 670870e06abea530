//! The command line: clap structs only. The doc comments are the help and the manual pages. No
//! I/O, no decisions of the domain.
//!
//! [`machines`]: making, starting, stopping and looking at VMs. [`guest`]: commands and files in
//! them. [`images`]: what VMs are made from. Values are named `VM`, `IMAGE`, `TAG` and `KEY`, by
//! which completion knows what to offer (`commands::complete`).

pub mod guest;
pub mod images;
pub mod machines;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::Mode;
use crate::fuse;

/// Virtual machines as directories.
///
/// `aq mount ~/aq` mounts a directory in which every sub-directory is a virtual machine: mkdir
/// creates one, `echo start > vm1/ctl` runs it. The other commands are shorthands over the same
/// files; they mount ~/aq by themselves where it is not. `cat ~/aq/.docs/README.md` has the rest.
#[derive(Debug, Parser)]
#[command(name = "aq", version, max_term_width = 100, subcommand_required = true)]
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
    /// Make virtual machines and print their names
    New(machines::New),
    /// Start virtual machines and wait until they answer
    Start(machines::Start),
    /// Shut virtual machines down and wait until they are off
    Stop(machines::Stop),
    /// Make running copies of a virtual machine that runs, wait until they answer, print their names
    Fork(machines::Fork),
    /// Log in to a guest by ssh
    Console(guest::Console),
    /// Run a command, or a script on standard input, in a guest
    Exec(guest::Exec),
    /// Run a command in a new virtual machine of an image, as `docker run` does
    Run(guest::Run),
    /// Copy files and directories into guests, out of them, and between them
    Cp(guest::Cp),
    /// Work on a copy of a directory in a guest: send it, see what has changed there, take it
    Sync(guest::Sync),
    /// Copy files to and from a guest by scp(1), with its words
    Scp(guest::Scp),
    /// Stop and remove virtual machines; for a day they are in `.trash`
    Rm(machines::Rm),
    /// List the virtual machines
    Ls(machines::Ls),
    /// Fetch images, verify them, and show the progress
    Pull(images::Pull),
    /// List the images
    Images(images::Images),
    /// Images made from virtual machines, from which others are made
    #[command(subcommand)]
    Snapshot(images::Snapshot),
    /// Write the disk of an image or of a virtual machine to a file that needs no other
    Export(images::Export),
    /// Run a command in N virtual machines made for it, one shard each
    Fanout(guest::Fanout),
    /// Show the facts about a virtual machine
    Info(machines::Info),
    /// Wait until a virtual machine has a status, or until nothing is under way
    Wait(machines::Wait),
    /// Print what a guest's serial line has said, or what QEMU has
    Logs(machines::Logs),
    /// Print what happens to virtual machines, a line for each event, until interrupted
    Events(machines::Events),
    /// Talk to a guest's serial line
    Attach(guest::Attach),
    /// Change settings in an editor
    Edit(machines::Edit),
    /// Watch all virtual machines in a table
    Top(machines::Top),
    /// Say what works on this host, what does not, and what to do
    Doctor(Doctor),
    /// Erase what is no longer needed: the trash and, if asked, unused images
    Prune(images::Prune),
    /// Print the completion script of a shell
    #[command(after_help = "bash:  source <(aq completion bash)   in ~/.bashrc
zsh:   source <(aq completion zsh)    in ~/.zshrc, after compinit
fish:  aq completion fish | source    in ~/.config/fish/config.fish")]
    Completion(Completion),
    /// Write the manual pages into a directory of them
    #[command(
        after_help = "aq man ~/.local/share/man is found by man(1) where ~/.local/bin is in PATH"
    )]
    Man(Man),
    /// Connect to a guest's SSH server: the `ssh_config` of a VM that may be suspended runs this
    #[command(hide = true)]
    Connect(Connect),
    /// Wake the watchers of status files: the daemon runs this
    #[command(hide = true, name = fuse::touch::COMMAND)]
    TouchStatus(TouchStatus),
}

/// What OpenSSH runs to connect to a guest that may be suspended.
#[derive(Args, Debug)]
pub struct Connect {
    /// The VM's directory
    pub vm: PathBuf,
}

/// What the daemon runs to touch files of its own mount.
#[derive(Args, Debug)]
pub struct TouchStatus {
    /// The mount
    pub mount: PathBuf,
}

/// `aq mount`
#[derive(Args, Debug)]
pub struct Mount {
    /// An empty directory [default: $AQ_MOUNT, else ~/aq]
    pub dir: Option<PathBuf>,
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
    /// The directory that the tree is mounted on [default: where it is mounted]
    pub dir: Option<PathBuf>,
}

/// `aq doctor`
#[derive(Args, Debug)]
pub struct Doctor {
    /// A JSON object
    #[arg(long)]
    pub json: bool,
}

/// `aq completion`
#[derive(Args, Debug)]
pub struct Completion {
    /// Which shell
    pub shell: Shell,
}

/// A shell whose completion is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// bash 4.4 or later
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// `aq man`
#[derive(Args, Debug)]
pub struct Man {
    /// Where they go: into man1 and man5 below it
    pub dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::{Cli, Command};

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &[&str]) -> Command {
        Cli::try_parse_from([&["aq"], line].concat()).unwrap().command
    }

    #[test]
    fn what_follows_the_vm_is_the_command_whatever_it_looks_like() {
        let Command::Exec(exec) = parse(&["exec", "vm1", "ls", "-l", "--color", "-h"]) else {
            panic!("not exec");
        };
        assert_eq!(exec.command, ["ls", "-l", "--color", "-h"]);
        let Command::Exec(exec) = parse(&["exec", "vm1", "--", "-x"]) else { panic!("not exec") };
        assert_eq!(exec.command, ["-x"]);
    }

    #[test]
    fn the_options_of_fanout_may_stand_before_and_after_its_words() {
        let forms: [&[&str]; 3] = [
            &["fanout", "--keep", "--prefix=p", "t", "4", "--", "ls", "-l"],
            &["fanout", "t", "4", "--keep", "--prefix", "p", "--", "ls", "-l"],
            &["fanout", "t", "4", "--keep", "--prefix", "p", "ls", "-l"],
        ];
        for form in forms {
            let Command::Fanout(fanout) = parse(form) else { panic!("not fanout") };
            assert!(fanout.keep && fanout.prefix.as_deref() == Some("p"), "{form:?}");
            assert_eq!((fanout.image.as_str(), fanout.count), ("t", 4));
            assert_eq!(fanout.command, ["ls", "-l"], "{form:?}");
        }
    }

    #[test]
    fn values_of_new_may_be_attached_or_apart() {
        for form in [
            ["new", "--from-snapshot=t", "--count=3", "--size=8G", "-p", "8080:80", "n"].as_slice(),
            &["new", "n", "-p8080:80", "--from-snapshot", "t", "--count", "3", "--size", "8G"],
        ] {
            let Command::New(new) = parse(form) else { panic!("not new") };
            assert_eq!(new.image.as_deref(), Some("t"));
            assert_eq!((new.count, new.ports.len()), (3, 1));
        }
    }
}
