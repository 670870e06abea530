//! Warm images: starts that resume instead of booting, many at once, and what each costs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{BOOT, Mounted, eventually, free_port, median};
use crate::guest::{GUEST, Killed, ssh, until_ssh_speaks};
use crate::measure::Row;

const STARTS: usize = 7;
/// How many clones are started at once.
const CLONES: usize = 16;

pub(crate) fn warm(aq: &Mounted) {
    let script = "echo warm > .images/tiny/ctl; cat .images/tiny/wait; cat .images/tiny/warm";
    let said = aq.sh_within(script, BOOT * 4).ok();
    assert!(said.contains("yes: "), "{said}");
}

/// What a user types for a new VM, up to the end of its first command.
fn first_command(aq: &Mounted, vm: &str, prepare: &str) -> Duration {
    let began = Instant::now();
    let script = format!(
        "mkdir {vm} && {prepare} echo start > {vm}/ctl && cat {vm}/ready &&
         echo true > {vm}/exec && cat {vm}/exec"
    );
    aq.sh(&script).ok();
    began.elapsed()
}

fn remove(aq: &Mounted, vm: &str) {
    aq.sh(&format!("echo kill > {vm}/ctl; cat {vm}/wait; rmdir {vm}; rmdir .trash/*")).ok();
}

/// A first start from a warm image, beside a first start that boots, and beside a script that does
/// the least: QEMU, the state, ssh.
pub(crate) fn start() -> Vec<Row> {
    let aq = Mounted::with_image();
    warm(&aq);
    first_command(&aq, "model", "");
    let bare = Bare::of(&aq, "model");
    remove(&aq, "model");
    let (mut warm, mut cold, mut least) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        warm.push(first_command(&aq, "warm", ""));
        assert_eq!(aq.info("warm", "warm"), "yes");
        remove(&aq, "warm");
        cold.push(first_command(&aq, "cold", "echo quiet > cold/config/cmdline &&"));
        remove(&aq, "cold");
        least.push(bare.restore_to_first_command());
    }
    let (warm, cold, least) = (median(warm), median(cold), median(least));
    vec![
        Row::ratio("warm start to first exec / cold start", warm, cold, 0.2),
        Row::ratio("warm start to first exec / bare -incoming and ssh", warm, least, 1.2),
    ]
}

/// A clone's own command line, to be run without aq.
struct Bare {
    arguments: Vec<String>,
    template: PathBuf,
    dir: PathBuf,
    base: PathBuf,
    key: PathBuf,
}

impl Bare {
    fn of(aq: &Mounted, vm: &str) -> Self {
        let line = fs::read_to_string(format!("/proc/{}/cmdline", aq.info(vm, "pid")));
        let line = line.expect("QEMU's arguments");
        let templates = fs::read_dir(aq.store().templates("tiny")).expect("templates");
        let template = templates.flatten().next().expect("one").path();
        let ram = template.join("ram").display().to_string();
        let home = aq.store().vm(aq.info(vm, "uuid").parse().expect("a UUID")).0;
        let dir = aq.scratch().join("bare");
        aq.sh(&format!("cp -a {} {}", home.display(), dir.display())).ok();
        let own = |word: &str| match word.split_once("/proc/self/fd/") {
            Some((before, after)) => {
                format!("{before}{ram}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
            }
            None => word.to_owned(),
        };
        let arguments = line.split_terminator('\0').map(own).collect();
        let base = template.join("disk.qcow2");
        Self { arguments, template, dir, base, key: aq.store().client_key() }
    }

    fn restore_to_first_command(&self) -> Duration {
        let port = free_port();
        let forward = format!("127.0.0.1:{port}-");
        // A script hands the state over by `exec:`, which the sandbox forbids.
        let kept = self.arguments.iter().filter(|a| !a.starts_with("on,obsolete"));
        let kept = kept.filter(|a| *a != "-sandbox").map(|a| a.replace("127.0.0.1:0-", &forward));
        let arguments: Vec<String> = kept.collect();
        let _sockets = ["qmp", "serial", "identity"].map(|s| fs::remove_file(self.dir.join(s)));
        let began = Instant::now();
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(&self.base);
        create.arg(self.dir.join("disk.qcow2"));
        assert!(create.status().expect("qemu-img runs").success());
        let mut qemu = Command::new(&arguments[0]);
        qemu.args(&arguments[1..]).current_dir(&self.dir);
        let mut qemu = Killed(qemu.spawn().expect("QEMU starts"));
        self.resume();
        until_ssh_speaks(port, &mut qemu.0);
        assert!(ssh(&self.key, port).args([GUEST, "true"]).status().expect("ssh runs").success());
        began.elapsed()
    }

    fn resume(&self) {
        let mut socket = None;
        eventually("QEMU's socket", BOOT, || {
            socket = UnixStream::connect(self.dir.join("qmp")).ok();
            socket.is_some()
        });
        let mut qmp = BufReader::new(socket.expect("a connection"));
        let state = self.template.join("state").display().to_string();
        let capabilities = r#"{"capabilities": [{"capability": "x-ignore-shared", "state": true},
            {"capability": "events", "state": true}]}"#;
        let incoming = format!(r#"{{"uri": "exec:cat {state}"}}"#);
        until(&mut qmp, "QMP");
        execute(&mut qmp, "qmp_capabilities", "{}");
        execute(&mut qmp, "migrate-set-capabilities", &capabilities.replace('\n', " "));
        execute(&mut qmp, "migrate-incoming", &incoming);
        until(&mut qmp, "\"completed\"");
        execute(&mut qmp, "cont", "{}");
    }
}

fn execute(qmp: &mut BufReader<UnixStream>, command: &str, arguments: &str) {
    let line = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}\n");
    qmp.get_mut().write_all(line.as_bytes()).expect("sent");
    until(qmp, "\"return\"");
}

fn until(qmp: &mut BufReader<UnixStream>, wanted: &str) {
    let mut line = String::new();
    while !line.contains(wanted) {
        line.clear();
        assert!(qmp.read_line(&mut line).expect("a line") > 0, "QEMU has ended");
        assert!(!line.contains("\"error\""), "{line}");
    }
}

/// Sixteen clones at once, beside sixteen boots; and the memory that is each clone's own.
pub(crate) fn clones() -> Vec<Row> {
    let aq = Mounted::with_image();
    aq.boot("source");
    let resident = aq.info("source", "rss").parse::<u64>().expect("a number") >> 10;
    remove(&aq, "source");
    let cold = at_once(&aq, CLONES, |vm| format!("echo quiet > {vm}/config/cmdline"));
    remove_all(&aq);
    warm(&aq);
    let warm = at_once(&aq, CLONES, |_| "true".to_owned());
    let private: Vec<u64> = aq.qemus().iter().map(|pid| own_kib(*pid)).collect();
    let mean = private.iter().sum::<u64>() / private.len() as u64;
    remove_all(&aq);
    let promise = resident / 10 + (32 << 10);
    vec![
        Row::ratio("16 clones at once, all answering / 16 boots", warm, cold, 0.2),
        Row::memory("private memory of a clone, mean of 16", mean, promise),
    ]
}

/// Starts so many VMs at once, and returns when a command has run in each.
pub(crate) fn at_once(aq: &Mounted, count: usize, prepare: impl Fn(&str) -> String) -> Duration {
    let names: Vec<String> = (1..=count).map(|n| format!("vm{n}")).collect();
    for vm in &names {
        aq.sh(&format!("mkdir {vm} && {}", prepare(vm))).ok();
    }
    let one = "echo start > $vm/ctl && cat $vm/ready && echo true > $vm/exec && cat $vm/exec";
    let all = format!("for vm in {}; do ({one}) & done; wait", names.join(" "));
    let began = Instant::now();
    aq.sh_within(&all, BOOT * 8).ok();
    let took = began.elapsed();
    names.iter().for_each(|vm| assert_eq!(aq.read(&format!("{vm}/status")), "ready"));
    took
}

pub(crate) fn remove_all(aq: &Mounted) {
    let script = "for vm in vm*; do echo kill > $vm/ctl; done; for vm in vm*; do cat $vm/wait; \
        rmdir $vm; done; rmdir .trash/*";
    aq.sh_within(script, BOOT).ok();
}

pub(crate) fn own_kib(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it runs");
    let own =
        rollup.lines().filter(|l| l.starts_with("Private_Clean") || l.starts_with("Private_Dirty"));
    own.filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// A first start of a large guest beside that of a small one.
pub(crate) fn size() -> Vec<Row> {
    let [small, large] = ["256M", "2G"].map(|memory| {
        let aq = Mounted::with_image();
        aq.sh(&format!("echo {memory} > .defaults/memory")).ok();
        warm(&aq);
        let starts = (0..STARTS).map(|_| {
            let took = first_command(&aq, "vm", "");
            assert_eq!(aq.info("vm", "warm"), "yes");
            remove(&aq, "vm");
            took
        });
        median(starts.collect())
    });
    vec![Row::ratio("warm start of 2 GiB / of 256 MiB", large, small, 1.5)]
}
