//! What needs guests: a cold start, a command over a warm connection, the daemon's memory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aqfs::store::layout::VmDir;

use crate::common::{BOOT, Mounted, eventually, free_port, median};
use crate::measure::{Row, timed};

const STARTS: usize = 5;
const COMMANDS: usize = 200;
pub(crate) const GUEST: &str = "root@127.0.0.1";

/// A cold start to the first command's end, by aq and by QEMU's bare command line with ssh.
pub(crate) fn cold_start() -> Vec<Row> {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    let bare = Bare::of(&aq, "vm1");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // Alternating, so that a change of the machine's mood meets both.
    for _ in 0..STARTS {
        let began = Instant::now();
        aq.sh("echo start > vm1/ctl && cat vm1/ready && echo true > vm1/exec && cat vm1/exec").ok();
        ours.push(began.elapsed());
        aq.sh("echo stop > vm1/ctl && cat vm1/wait").ok();
        theirs.push(bare.start_to_first_command());
    }
    vec![Row::ratio(
        "cold start to first exec / bare QEMU and ssh",
        median(ours),
        median(theirs),
        1.05,
    )]
}

/// QEMU's own command line for a VM, to be run without aq in a copy of the VM's directory.
struct Bare {
    arguments: Vec<String>,
    home: PathBuf,
    dir: PathBuf,
    key: PathBuf,
}

impl Bare {
    fn of(aq: &Mounted, vm: &str) -> Self {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", aq.info(vm, "pid")));
        let line = line.expect("QEMU's arguments");
        let home = aq.store().vm(aq.info(vm, "uuid").parse().expect("a UUID")).0;
        aq.sh(&format!("echo stop > {vm}/ctl && cat {vm}/wait")).ok();
        let dir = aq.scratch().join("bare");
        aq.sh(&format!("cp -a {} {} && rm -f {1}/run.json", home.display(), dir.display())).ok();
        Self {
            arguments: line.split_terminator('\0').map(str::to_owned).collect(),
            home,
            dir,
            key: aq.store().client_key(),
        }
    }

    fn start_to_first_command(&self) -> Duration {
        let port = free_port();
        let forward = format!("127.0.0.1:{port}-");
        let arguments = self.arguments.iter().map(|a| a.replace("127.0.0.1:0-", &forward));
        let arguments: Vec<String> = arguments.collect();
        let mut qemu = Command::new(&arguments[0]);
        qemu.args(&arguments[1..]).current_dir(&self.dir).process_group(0);
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // The last run's disk was not unmounted by its guest; ours always was.
        let disk = |dir: &Path| VmDir(dir.to_owned()).disk();
        fs::copy(disk(&self.home), disk(&self.dir)).expect("a copy of the disk");
        let began = Instant::now();
        let mut qemu = Killed(qemu.spawn().expect("QEMU starts"));
        until_ssh_speaks(port, &mut qemu.0);
        assert!(ssh(&self.key, port).args([GUEST, "true"]).status().expect("ssh runs").success());
        began.elapsed()
    }
}

pub(crate) struct Killed(pub(crate) Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Tries as tightly as a script could: user networking accepts before the guest listens, so only
/// the server's first bytes prove it.
pub(crate) fn until_ssh_speaks(port: u16, qemu: &mut Child) {
    eventually("sshd answers", BOOT, || {
        assert!(qemu.try_wait().expect("our child").is_none(), "the bare QEMU ended");
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
            return false;
        };
        let bound = Some(Duration::from_millis(200));
        stream.set_read_timeout(bound).is_ok() && stream.read_exact(&mut [0; 4]).is_ok()
    });
}

pub(crate) fn ssh(key: &Path, port: u16) -> Command {
    let mut ssh = Command::new("ssh");
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
    ssh.args(["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]);
    ssh.arg("-i").arg(key).args(["-p", &port.to_string()]);
    ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    ssh
}

/// `true` over a warm connection, in three ways, against ssh with a control master.
pub(crate) fn warm_exec() -> Vec<Row> {
    let aq = Mounted::with_image();
    aq.boot("vm1");
    let reference = over_control_master(&aq);
    let programs = |script: &str| in_one_shell(&aq, script);
    let rows = [
        ("exec of true: one descriptor", converse(&aq)),
        ("exec of true: 3<>exec, echo and cat", programs("echo true >&3; cat <&3")),
        ("exec of true: echo > exec; cat exec", programs("echo true > vm1/exec; cat vm1/exec")),
    ];
    let row = |(what, time)| Row::ratio(&format!("{what} / ssh -S"), time, reference, 0.8);
    rows.into_iter().map(row).collect()
}

fn over_control_master(aq: &Mounted) -> Duration {
    let port = aq.info("vm1", "ssh_port").parse().expect("a port");
    let (key, socket) = (aq.store().client_key(), aq.scratch().join("ssh"));
    let shared = || {
        let mut command = ssh(&key, port);
        command.arg("-S").arg(&socket);
        command
    };
    let master = shared().args(["-M", "-N", "-f", GUEST]).status();
    assert!(master.expect("ssh runs").success());
    let time = timed(COMMANDS, || {
        assert!(shared().args([GUEST, "true"]).status().expect("ssh runs").success());
    });
    let _ended = shared().args(["-O", "exit", GUEST]).status();
    time
}

/// The shell's loop is timed as a whole: to measure inside it would cost as much as what is measured.
fn in_one_shell(aq: &Mounted, body: &str) -> Duration {
    let rounds = 5;
    let each = COMMANDS / rounds;
    let script = format!("exec 3<>vm1/exec; for i in $(seq {each}); do {body}; done");
    let all = timed(rounds, || drop(aq.sh(&script).ok()));
    all / u32::try_from(each).expect("a small number")
}

fn converse(aq: &Mounted) -> Duration {
    let mut exec = File::options().read(true).write(true).open(aq.path("vm1/exec")).expect("exec");
    timed(COMMANDS, || {
        exec.write_all(b"true\n").expect("a command");
        let mut answer = Vec::new();
        exec.read_to_end(&mut answer).expect("its end");
    })
}

/// The daemon's resident memory without VMs and with eight that run.
pub(crate) fn memory() -> Vec<Row> {
    let aq = Mounted::with_image();
    let none = resident(aq.daemon());
    aq.boot("first");
    let one = resident(aq.daemon());
    let names: Vec<String> = (1..=8).map(|n| format!("vm{n}")).collect();
    aq.sh(&format!("for vm in {}; do mkdir $vm; echo start > $vm/ctl; done", names.join(" "))).ok();
    names.iter().for_each(|vm| aq.wait_for_ready(vm));
    let nine = resident(aq.daemon());
    let more = nine.saturating_sub(one) / 8;
    vec![
        Row::memory("daemon, resident, no VM", none, 30 << 10),
        Row::memory("daemon, resident, one VM that runs", one, 30 << 10),
        Row::memory("daemon, resident, more for each further VM that runs", more, 256),
    ]
}

pub(crate) fn resident(pid: u32) -> u64 {
    aqfs::proc::usage(pid).rss >> 10
}
