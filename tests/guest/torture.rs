//! Kills at random moments: the daemon, QEMU and `qemu-img`, in the middle of all that changes disks
//! and images. Whatever was hit, nothing is lost, nothing is left behind, and all of it starts again.
//!
//! `tools/torture [MOMENTS [SEED]]` runs more of them; the operation, the victim and the moment
//! follow from the seed.
#![allow(clippy::print_stdout, reason = "reports what is done as it is done")]

mod operations;

use std::time::{Duration, Instant};

use crate::common::{BOOT, Mounted, audit, eventually, proc};
use fastrand::Rng;
use operations::{OPERATIONS, Operation, Past, Power, Victim};
use rustix::process::Signal;

/// How many moments where nothing else is said: a minute on two processors.
const MOMENTS: usize = 10;
/// How long a process may take to do something that is killed only then.
const AFTER_START: Duration = Duration::from_millis(20);

#[test]
fn kills_at_random_moments() {
    let moments = number("AQFS_TORTURE_MOMENTS").unwrap_or(MOMENTS as u64);
    let seed = number("AQFS_TORTURE_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("{moments} moments, seed {seed}");
    let mut torture = Torture::begin(seed);
    for n in 0..moments {
        torture.moment(n);
    }
    assert!(torture.findings.is_empty(), "seed {seed}:\n{}", torture.findings.join("\n"));
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

struct Torture {
    aq: Mounted,
    random: Rng,
    /// The operations that may come.
    among: Vec<usize>,
    /// The number that the guest must remember.
    count: u64,
    /// How long each operation takes when nothing happens to it, as far as that is known.
    usual: Vec<Duration>,
    findings: Vec<String>,
}

impl Torture {
    fn begin(seed: u64) -> Self {
        let aq = Mounted::with_image();
        aq.sh("mkdir vm && echo 128M > vm/config/memory").ok();
        aq.boot_existing("vm");
        aq.exec("vm", "head -c 4000000 /dev/urandom > /root/data; cd /root; sha256sum data > sum; echo 0 > count; sync");
        aq.sh("echo stop > vm/ctl; cat vm/wait; mkdir vm/snapshots/base .images/image").ok();
        aq.sh("echo vm > .images/image/source; cat vm/wait").ok();
        eventually("the image", BOOT, || aq.read(".images/image/status") == "ready");
        let usual = OPERATIONS.iter().map(|_| Duration::from_millis(100)).collect();
        let only = std::env::var("AQFS_TORTURE_ONLY").unwrap_or_default();
        let wanted = |n: &usize| OPERATIONS[*n].name.contains(&only);
        let among = (0..OPERATIONS.len()).filter(wanted).collect();
        Self { aq, random: Rng::with_seed(seed), among, count: 0, usual, findings: Vec::new() }
    }

    /// Does something, kills something in the middle of it, and looks at what is left.
    fn moment(&mut self, n: u64) {
        let which = self.among[self.random.usize(..self.among.len())];
        let operation = &OPERATIONS[which];
        let victim = operation.victims[self.random.usize(..operation.victims.len())];
        let share = self.random.f64() * 1.1;
        self.prepare(operation, n);
        let delay = match victim {
            Victim::QemuImg => AFTER_START.mul_f64(share),
            Victim::Daemon | Victim::Qemu => self.usual[which].mul_f64(share),
        };
        let took = self.strike(operation, n, victim, delay);
        println!("{n}: {}: {victim:?} after {delay:?}: {took:?}", operation.name);
        self.usual[which] = took.unwrap_or(self.usual[which].mul_f64(1.25));
        let found = self.verify(operation);
        for finding in found {
            let reported =
                format!("{n}: {}, {victim:?} after {delay:?}: {finding}", operation.name);
            println!("FOUND {reported}");
            self.findings.push(reported);
        }
    }

    fn prepare(&self, operation: &Operation, n: u64) {
        let aq = &self.aq;
        // A machine of another shape cannot be brought back.
        aq.sh("[ -d vm/snapshots/base ] || mkdir vm/snapshots/base; echo 1 > vm/config/cpus").ok();
        if operation.from == Power::Ready {
            aq.boot_existing("vm");
            // Another memory, or another QEMU's, cannot be gone back to.
            aq.sh("[ -d vm/snapshots/live ] || { mkdir vm/snapshots/live; cat vm/wait; }").ok();
        }
        if !operation.prepare.is_empty() {
            aq.sh(&format!("set -e; N={n}; {}", operation.prepare)).ok();
        }
    }

    /// Returns how long the operation took if it was over before.
    fn strike(
        &self,
        operation: &Operation,
        n: u64,
        victim: Victim,
        delay: Duration,
    ) -> Option<Duration> {
        let aq = &self.aq;
        let script = format!("N={n}; {}", operation.script);
        let began = Instant::now();
        std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                let said = aq.sh(&script);
                (began.elapsed(), said)
            });
            if victim == Victim::QemuImg {
                while aq.qemu_imgs().is_empty() && !run.is_finished() {
                    std::hint::spin_loop();
                }
            }
            // This is the moment.
            std::thread::sleep(delay);
            let over = run.is_finished();
            kill(aq, victim);
            let (took, said) = run.join().expect("the script");
            if over && said.code != 0 {
                println!("undisturbed, and yet: {said:?}");
            }
            over.then_some(took)
        })
    }

    fn verify(&mut self, operation: &Operation) -> Vec<String> {
        let mut found = Vec::new();
        if !proc::alive(self.aq.daemon()) {
            self.aq.mount();
        }
        let vms = self.vms();
        vms.iter().for_each(|vm| self.bring_down(vm, operation.past, &mut found));
        audit::processes(&self.aq, &mut found);
        audit::images(&self.aq, &mut found);
        audit::disks(&self.aq, audit::Leaks::Tolerated, &mut found);
        self.aq.sh("echo 0 > vm/config/ephemeral").ok();
        vms.iter().for_each(|vm| self.bring_up(vm, operation, &mut found));
        vms.iter().for_each(|vm| self.bring_down(vm, Past::Kept, &mut found));
        self.tidy();
        audit::disks(&self.aq, audit::Leaks::Found, &mut found);
        audit::files(&self.aq, &mut found);
        found
    }

    /// Lists the VMs, those that have been removed brought back.
    fn vms(&self) -> Vec<String> {
        self.aq
            .sh("for vm in .trash/*@*; do [ ! -e $vm ] || mv $vm vm; done; [ ! -e v ] || mv v vm")
            .ok();
        self.aq.sh("ls").ok().lines().map(str::to_owned).collect()
    }

    /// Ends a VM, in whatever state it was found. One that runs is resumed, and remembers the
    /// next number from now on.
    fn bring_down(&mut self, vm: &str, past: Past, found: &mut Vec<String>) {
        let look = format!("cat {vm}/wait > /dev/null; cat {vm}/status");
        let mut status = self.aq.sh(&look).ok();
        // It may write a snapshot for an earlier daemon.
        for _ in 0..60 {
            if !status.starts_with("unreachable") {
                break;
            }
            status = self.aq.sh(&format!("sleep 1; {look}")).ok();
        }
        if status == "paused" {
            found.push(format!("{vm} is paused, and no user has paused it"));
        }
        if status == "running" || status == "ready" {
            let ready = self.aq.sh(&format!("timeout 60 cat {vm}/ready"));
            if ready.code == 0 && past != Past::Thrown {
                self.remember(vm);
            } else if ready.code != 0
                && !self.aq.read(&format!("{vm}/status")).starts_with("failed")
            {
                let seen = self.aq.sh(&format!("tail -n 4 {vm}/log; tail -c 200 {vm}/console.log"));
                found.push(format!("{vm}, {status}, is not ready: {ready:?}, {}", seen.stdout));
            }
        }
        let script = format!(
            "case $(cat {vm}/status) in stopped|failed*) ;; *) echo stop > {vm}/ctl ;; esac; cat {vm}/wait"
        );
        let status = self.aq.sh(&script).ok();
        if !(status.starts_with("stopped") || status.starts_with("failed")) {
            found.push(format!("{vm} ends as {status}"));
        }
    }

    fn remember(&mut self, vm: &str) {
        if vm != "vm" {
            return;
        }
        let next = self.count + 1;
        let script = format!(
            "echo 'echo {next} > /root/count; sync; cat /root/count' > vm/exec; cat vm/exec"
        );
        // A QEMU that was killed a moment ago may not be seen to be gone yet.
        if self.aq.sh(&script).stdout.trim() == next.to_string() {
            self.count = next;
        }
    }

    /// Starts a VM, and looks whether its guest has what it had.
    fn bring_up(&mut self, vm: &str, operation: &Operation, found: &mut Vec<String>) {
        let aq = &self.aq;
        let script = format!(
            "echo start > {vm}/ctl && cat {vm}/ready || {{ cat {vm}/error {vm}/status; false; }}"
        );
        let started = aq.sh(&script);
        if started.code != 0 {
            return found.push(format!("{vm} does not start: {started:?}"));
        }
        let said = aq.exec(vm, "cd /root && sha256sum -c -s sum && cat count");
        let Ok(count) = said.trim().parse::<u64>() else {
            return found.push(format!("the guest of {vm} has lost its data: {said:?}"));
        };
        if vm == "vm" && count != self.count && operation.past != Past::MayReturn {
            found.push(format!("{vm} is back at {count}, and was at {}", self.count));
        }
        self.remember(vm);
    }

    /// Removes what the operation has made.
    fn tidy(&self) {
        let script = "rm -rf .images/p*; echo cold > .images/image/ctl
            for vm in clone*; do [ ! -e $vm ] || rmdir $vm; done
            for vm in .trash/*@*; do [ ! -e $vm ] || rmdir $vm; done
            for tag in vm/snapshots/*; do
                case $tag in */base|*/live) ;; *) rmdir $tag; cat vm/wait ;; esac
            done; true";
        self.aq.sh(script).ok();
    }
}

fn kill(aq: &Mounted, victim: Victim) {
    match victim {
        Victim::Daemon => aq.kill_daemon(),
        Victim::Qemu => aq.qemus().iter().for_each(|&pid| proc::kill(pid, Signal::KILL)),
        Victim::QemuImg => aq.qemu_imgs().iter().for_each(|&pid| proc::kill(pid, Signal::KILL)),
    }
}
