//! Images made from VMs, and clearing away.

use clap::{Args, Subcommand};

/// `aq snapshot`
#[derive(Debug, Subcommand)]
pub enum Snapshot {
    /// Make an image of a virtual machine, which outlives it
    Create(Create),
    /// List the images made from virtual machines
    Ls,
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
