//! Commands, terminals and files in guests.

use std::ffi::OsString;

use clap::Args;

/// `aq exec`
#[derive(Args, Debug)]
#[command(after_help = "One argument is shell text, as for ssh: aq exec vm1 'echo a; echo b'. \
Several are the words of one command and are kept as they are: aq exec vm1 sh -c 'echo \"a b\"'. \
Without any, standard input is a shell script. The exit status is that of the command; 128 and the \
signal's number if a signal ended it; 255 if it was lost with the guest.")]
pub struct Exec {
    /// Where
    pub vm: String,
    /// What
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// `aq console`
#[derive(Args, Debug)]
pub struct Console {
    /// Where
    pub vm: String,
}

/// `aq cp`
#[derive(Args, Debug)]
#[command(
    override_usage = "aq cp FILE… VM:PATH\n       aq cp VM:PATH… FILE\n       aq cp VM:PATH… VM:PATH",
    after_help = "Directories are copied whole, with links, permissions and times. Into a directory that \
exists, and there under their own names; the contents alone of what ends in `/.`. `VM:` is the login user's \
home, and a relative path is below it. A source that is a link is followed. What cannot be copied is left \
out with a message, and the exit status is 1."
)]
pub struct Cp {
    /// Sources and the destination
    #[arg(value_name = "FILE|VM:PATH", required = true, num_args = 2..)]
    pub paths: Vec<OsString>,
    /// For fingers that type `cp -r`: directories are copied whole in any case
    #[arg(short, visible_short_alias = 'R', long, hide = true)]
    pub recursive: bool,
    /// For fingers that type `cp -a`
    #[arg(short, long, hide = true)]
    pub archive: bool,
    /// For fingers that type `cp -p`
    #[arg(short, long, hide = true)]
    pub preserve: bool,
}

/// `aq sync`
#[derive(Args, Debug)]
#[command(
    override_usage = "aq sync DIR VM:DIR [--force]\n       aq sync DIR VM:DIR --diff\n       aq sync DIR VM:DIR \
--accept [PATH…]",
    after_help = "Without an option it makes VM:DIR equal to DIR: what differs is sent, what is not in DIR is \
removed there. What was sent is recorded in the guest, so that it goes along with snapshots and clones. \
--diff exits with 1 if something has changed there, and with 2 for trouble. --accept leaves what has changed \
on both sides as it is, says so, and exits with 1."
)]
pub struct Sync {
    /// The directory on the host
    #[arg(value_name = "DIR")]
    pub dir: OsString,
    /// The directory in the guest
    #[arg(value_name = "VM:DIR")]
    pub to: OsString,
    /// With --accept: take what has changed at these paths, which begin below DIR
    #[arg(value_name = "PATH", requires = "accept")]
    pub paths: Vec<OsString>,
    /// Print what has changed in the guest since it was sent, as `git diff` does
    #[arg(short, long, conflicts_with_all = ["accept", "force"])]
    pub diff: bool,
    /// Take what has changed in the guest
    #[arg(short, long, conflicts_with = "force")]
    pub accept: bool,
    /// Overwrite what has changed in the guest
    #[arg(short, long)]
    pub force: bool,
}

/// `aq scp`
#[derive(Args, Debug)]
#[command(
    override_usage = "aq scp [-r] [-p] FILE… VM:PATH\n       aq scp [-r] [-p] VM:PATH… FILE",
    after_help = "Options go to scp as they are. Among several sources `:PATH` is in the VM of the \
first one."
)]
pub struct Scp {
    /// Options of scp, sources and the destination
    #[arg(value_name = "FILE|VM:PATH", required = true, trailing_var_arg = true)]
    #[arg(allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// `aq attach`
#[derive(Args, Debug)]
#[command(after_help = "Ctrl-] leaves; the guest does not notice.")]
pub struct Attach {
    /// Whose
    pub vm: String,
}

/// `aq fanout`
#[derive(Args, Debug)]
#[command(
    after_help = "Each shard is a virtual machine of its own, PREFIX-0 to PREFIX-(N-1), and \
finds AQ_SHARD_INDEX and AQ_SHARD_TOTAL in its environment. Its output is printed line by line \
behind its name. The exit status is the largest of the shards'. Ctrl-C removes them all."
)]
pub struct Fanout {
    /// The image that they are made from, or a virtual machine that runs, whose copies they are
    pub image: String,
    /// How many
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: u32,
    /// Leave the virtual machines running
    #[arg(long)]
    pub keep: bool,
    /// What their names begin with [default: shard-PID]
    #[arg(long, value_name = "NAME")]
    pub prefix: Option<String>,
    /// How many at once at the most [default: all]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    /// Shell text, or the words of a command
    #[arg(value_name = "COMMAND", trailing_var_arg = true, required = true)]
    pub command: Vec<OsString>,
}

/// `aq run`
#[derive(Args, Debug)]
#[command(after_help = "IMAGE is a name in .images, `oci:REF` (a container image in a registry), \
`oci-archive:FILE`, a root file system's archive or a disk on this host. Without COMMAND, what the \
image says. The exit status is that of the command. cat ~/aq/.docs/images.md has more.")]
pub struct Run {
    /// Remove the virtual machine when the command has ended
    #[arg(long)]
    pub rm: bool,
    /// Give the command standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short, long, conflicts_with = "detach")]
    pub tty: bool,
    /// Print the virtual machine's name and leave the command running
    #[arg(short, long, conflicts_with = "interactive")]
    pub detach: bool,
    /// The virtual machine's name [default: two words]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A port of the host that leads into the guest: HOST:GUEST, or one number for both; repeatable
    #[arg(short = 'p', long = "publish", value_name = "HOST:GUEST")]
    pub ports: Vec<String>,
    /// A directory of this host for the guest: DIR:TARGET, or DIR:TARGET:ro to read only; repeatable
    #[arg(short = 'v', long = "volume", value_name = "DIR:TARGET[:ro]")]
    pub volumes: Vec<String>,
    /// What the guest reaches: user or offline [default: .defaults/net]
    #[arg(long, value_name = "NET")]
    pub net: Option<String>,
    /// A variable of the command; a NAME alone takes the value that it has here; repeatable
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// The directory that the command starts in
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// The user that the command runs as: a name or a number of the guest, with :GROUP if need be
    #[arg(short, long, value_name = "USER")]
    pub user: Option<String>,
    /// The program to run instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Virtual size of the disk, such as 8G
    #[arg(long, value_name = "SIZE")]
    pub size: Option<String>,
    /// What the virtual machine is made from
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The words of the command
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}
