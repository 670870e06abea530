//! A process that waits in one of our files dies of a signal at once, whoever runs the daemon:
//! `tools/test root` runs these as root, the others run them as an ordinary user.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::terminal::Terminal;
use crate::common::{Mounted, eventually, median, proc, shell};
use rustix::process::Signal;

/// The promise, and what a busy test machine may add to it.
const PROMISE: Duration = Duration::from_millis(100);
const NOISE: Duration = Duration::from_millis(100);
const ROUNDS: usize = 5;
const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::KILL];

#[test]
fn console() {
    let aq = Mounted::booted();
    dies_of_signals(&aq, "vm1/console");
}

#[test]
fn ready() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo 'start paused' > vm1/ctl").ok();
    dies_of_signals(&aq, "vm1/ready");
}

#[test]
fn wait() {
    let aq = Mounted::booted();
    aq.deafen("vm1");
    aq.sh("echo 'stop 300' > vm1/ctl").ok();
    dies_of_signals(&aq, "vm1/wait");
    assert_eq!(aq.read("vm1/status"), "stopping");
}

#[test]
fn exec() {
    let aq = Mounted::booted();
    // This process writes it and is the parent of the readers.
    aq.write("vm1/exec", "sleep 1000").expect("exec takes a command");
    dies_of_signals(&aq, "vm1/exec");
}

#[test]
fn ctrl_c_in_a_terminal() {
    let aq = Mounted::booted();
    let terminal = Terminal::open(aq.scratch().join("tmux"), &aq.dir());
    for command in ["cat vm1/console", "echo 'sleep 1000' > vm1/exec; cat vm1/exec"] {
        terminal.enter(command);
        terminal.until_foreground("cat");
        let began = Instant::now();
        terminal.press("C-c");
        terminal.until_foreground("bash");
        // tmux itself is asked twice, by processes of its own.
        assert!(began.elapsed() < PROMISE + NOISE + NOISE, "{command}: {:?}", began.elapsed());
    }
}

#[test]
fn a_reader_keeps_the_mount_and_returns_when_the_daemon_ends() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 && echo 'start paused' > vm1/ctl").ok();
    let cat = parked_cat(&aq, "vm1/ready");
    let said = aq.sh(r#"cd /; "$AQ" umount "$SCRATCH/mnt""#).failed();
    assert!(said.contains(&format!("cat (pid {})", cat.id())), "{said}");
    proc::kill(aq.daemon(), Signal::TERM);
    assert!(shell::wait(cat, Duration::from_secs(5)).is_some(), "cat still waits");
    eventually("unmounted", Duration::from_secs(10), || !proc::is_mounted(&aq.dir()));
}

fn dies_of_signals(aq: &Mounted, file: &str) {
    for signal in SIGNALS {
        let times: Vec<Duration> = (0..ROUNDS).map(|_| time_to_die(aq, file, signal)).collect();
        let middle = median(times.clone());
        assert!(middle <= PROMISE + NOISE, "{file}, {signal:?}: {times:?}");
    }
    dies_of_timeout(aq, file);
}

fn time_to_die(aq: &Mounted, file: &str, signal: Signal) -> Duration {
    let cat = parked_cat(aq, file);
    let pid = cat.id();
    let began = Instant::now();
    proc::kill(pid, signal);
    let end = shell::wait(cat, Duration::from_secs(10));
    let end = end.unwrap_or_else(|| panic!("{file}: {:?} after {signal:?}", proc::process(pid)));
    assert!(!end.success(), "{file}: cat ended by itself");
    began.elapsed()
}

/// Starts `cat FILE` and waits until it has been asleep for a while, which is in our read.
fn parked_cat(aq: &Mounted, file: &str) -> Child {
    let mut command = Command::new("cat");
    command.arg(aq.path(file)).stdin(Stdio::null()).stdout(Stdio::null());
    let mut cat = command.spawn().expect("cat starts");
    let mut asleep = 0;
    eventually(&format!("cat {file} parked"), Duration::from_secs(10), || {
        let now = proc::process(cat.id()).expect("our child, not reaped");
        asleep = if now.name == "cat" && "SD".contains(now.state) { asleep + 1 } else { 0 };
        asleep > 5
    });
    assert!(cat.try_wait().expect("our child").is_none(), "cat {file} did not wait");
    cat
}

fn dies_of_timeout(aq: &Mounted, file: &str) {
    for (options, code) in [("2", 124), ("-s KILL 2", 137)] {
        let began = Instant::now();
        let said = aq.sh(&format!("timeout {options} cat {file} > /dev/null"));
        let took = began.elapsed();
        assert_eq!(said.code, code, "timeout {options} cat {file}: {said:?}");
        assert!(took < Duration::from_secs(2) + PROMISE + NOISE + NOISE, "{file}: {took:?}");
    }
}
