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
    /// The image that they are made from
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
