//! Images made from VMs, and clearing away.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

/// `aq snapshot`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Make an image of a virtual machine, which outlives it
    Create(Create),
    /// List the images made from virtual machines
    Ls(Ls),
    /// Remove one
    Rm(Remove),
    /// Give one a second name
    Tag(Tag),
    /// Show which was made from which
    Tree(Tree),
}

/// `aq snapshot create`
#[derive(Args, Debug)]
pub struct Create {
    /// Of which
    pub vm: String,
    /// Its name
    #[arg(value_name = "NAME")]
    pub tag: String,
}

/// `aq snapshot ls`
#[derive(Args, Debug)]
pub struct Ls {
    /// A JSON array
    #[arg(long)]
    pub json: bool,
}

/// `aq snapshot rm`
#[derive(Args, Debug)]
pub struct Remove {
    /// Which, or an alias
    pub tag: String,
    /// Accepted for old scripts; what a virtual machine needs is never removed
    #[arg(long, hide = true)]
    pub force: bool,
}

/// `aq snapshot tag`
#[derive(Args, Debug)]
pub struct Tag {
    /// Which
    pub tag: String,
    /// Its second name; one that is an alias already leads here from now on
    pub alias: String,
}

/// `aq snapshot tree`
#[derive(Args, Debug)]
pub struct Tree {
    /// Only this one and what was made from it
    pub tag: Option<String>,
}

/// `aq pull`
#[derive(Args, Debug)]
pub struct Pull {
    /// A distribution, with a release if it is not to be the newest, or an image: alpine, debian:12
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Look for a newer one, and keep the present one for the virtual machines that use it
    #[arg(long)]
    pub refresh: bool,
    /// Print the progress and the result as lines of JSON
    #[arg(long)]
    pub json: bool,
}

/// `aq images`
#[derive(Args, Debug)]
pub struct Images {
    /// Also those that can be pulled and are not there
    #[arg(short, long)]
    pub all: bool,
    /// Print all facts as JSON
    #[arg(long)]
    pub json: bool,
}

/// `aq export`
#[derive(Args, Debug)]
pub struct Export {
    /// An image, a virtual machine, or VM@SNAPSHOT of one that is off
    #[arg(value_name = "IMAGE")]
    pub what: String,
    /// The file that is written; one that is there is replaced when the new one is whole
    pub file: PathBuf,
    /// Its format
    #[arg(long, value_enum, default_value_t = ExportFormat::Qcow2)]
    pub format: ExportFormat,
}

/// A format of disks that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// QEMU's
    Qcow2,
    /// Plain bytes
    Raw,
    /// VMware's
    Vmdk,
    /// Hyper-V's
    Vhdx,
}

impl ExportFormat {
    /// Returns QEMU's name for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
        }
    }
}

/// `aq prune`
#[derive(Args, Debug)]
pub struct Prune {
    /// Also images that no virtual machine uses
    #[arg(long)]
    pub images: bool,
    /// Only say what would be erased
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}
