//! Making, starting, stopping and looking at VMs.

use clap::Args;

/// `aq new`
#[derive(Args, Debug)]
pub struct New {
    /// Its name, or the beginning of the names when --count is given [default: two words]
    pub name: Option<String>,
    /// A port of the host that leads into the guest: HOST:GUEST, or one number for both; repeatable
    #[arg(short = 'p', long = "port", value_name = "HOST:GUEST")]
    pub ports: Vec<String>,
    /// A directory of this host for the guest: DIR:TARGET, or DIR:TARGET:ro to read only; repeatable
    #[arg(short = 'v', long = "volume", value_name = "DIR:TARGET[:ro]")]
    pub volumes: Vec<String>,
    /// Virtual size of the disk, such as 8G
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// The image to make it from, or an alias of one [default: .defaults/image]
    #[arg(long = "from-snapshot", visible_alias = "image", value_name = "IMAGE")]
    pub image: Option<String>,
    /// How many to make: NAME-0, NAME-1 …
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Accepted for old scripts; an image boots as it needs to
    #[arg(long, hide = true)]
    pub skip_fast_boot: bool,
}

/// `aq start`
#[derive(Args, Debug)]
pub struct Start {
    /// Which
    #[arg(value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// How long to wait for the guest's answer once QEMU runs, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    pub timeout: u64,
}

/// `aq stop`
#[derive(Args, Debug)]
pub struct Stop {
    /// Which
    #[arg(value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// After how many seconds a guest that has not shut down is ended by force
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
    /// End it now; what the guest has not written to its disk is lost
    #[arg(short, long)]
    pub force: bool,
}

/// `aq fork`
#[derive(Args, Debug)]
#[command(
    after_help = "Without names they are VM-0, VM-1 …, as far as those are free. Each has the \
processes, the memory and the disk of VM at this moment, and an identity of its own; VM runs on."
)]
pub struct Fork {
    /// Of which
    pub vm: String,
    /// Names of the copies
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// How many, with names that are made up
    #[arg(
        short = 'n',
        long,
        value_name = "N",
        conflicts_with = "names",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub count: Option<u32>,
    /// How long to wait for the answer of each, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    pub timeout: u64,
}

/// `aq rm`
#[derive(Args, Debug)]
pub struct Rm {
    /// Which
    #[arg(value_name = "VM", required = true)]
    pub vms: Vec<String>,
    /// Do not wait for the guest to shut down
    #[arg(short, long)]
    pub force: bool,
    /// Keep nothing in `.trash`
    #[arg(long)]
    pub erase: bool,
}

/// `aq ls`
#[derive(Args, Debug)]
pub struct Ls {
    /// Only these
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// A table with a head line and more columns
    #[arg(short, long)]
    pub long: bool,
    /// A JSON array with all that `aq info` knows
    #[arg(long, conflicts_with = "long")]
    pub json: bool,
}

/// `aq info`
#[derive(Args, Debug)]
pub struct Info {
    /// Which
    pub vm: String,
    /// Only the value of this key
    pub key: Option<String>,
    /// A JSON object
    #[arg(long, conflicts_with = "key")]
    pub json: bool,
}

/// `aq wait`
#[derive(Args, Debug)]
pub struct Wait {
    /// Which
    pub vm: String,
    /// The status to wait for, such as `ready` or `stopped` [default: none under way]
    #[arg(value_name = "STATUS", value_parser = ["stopped", "running", "ready", "paused", "failed"])]
    pub status: Option<String>,
    /// How long at the most, in seconds [default: no limit]
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
}

/// `aq logs`
#[derive(Args, Debug)]
pub struct Logs {
    /// Whose
    pub vm: String,
    /// Continue with what is added, until interrupted
    #[arg(short, long)]
    pub follow: bool,
    /// QEMU's messages and the daemon's notes instead of the serial line
    #[arg(long)]
    pub qemu: bool,
}

/// `aq events`
#[derive(Args, Debug)]
pub struct Events {
    /// Only of this one, also when it is renamed
    pub vm: Option<String>,
    /// A JSON object on each line: time, vm, event, text
    #[arg(long)]
    pub json: bool,
}

/// `aq edit`
#[derive(Args, Debug)]
#[command(after_help = "The editor is $VISUAL, else $EDITOR, else vi. Settings that are left as \
they are stay so; those that are taken out get their default values.")]
pub struct Edit {
    /// Whose
    pub vm: String,
}

/// `aq top`
#[derive(Args, Debug)]
pub struct Top {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0)]
    pub delay: f64,
}
