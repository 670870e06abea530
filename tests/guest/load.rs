//! Many VMs, many readers, many commands, many bytes, and a reader that never reads: nothing holds up anything
//! else, and the daemon stays small. Limits are generous; what was measured is printed.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{BOOT, Mounted, eventually, median, proc};
use aqfs::proc::usage;

const MIB: u64 = 1 << 20;
/// What an operation that answers at once may take on a busy machine, in the middle of many.
const QUICK: Duration = Duration::from_millis(20);

#[test]
fn a_thousand_vms() {
    let aq = Mounted::new();
    let empty = usage(aq.daemon()).rss;
    let began = Instant::now();
    for n in 0..1000 {
        fs::create_dir(aq.path(&format!("vm{n}"))).expect("mkdir");
    }
    let made = began.elapsed();
    let full = usage(aq.daemon()).rss;
    let listed = timed(|| assert_eq!(aq.sh("ls | wc -l").ok(), "1000"));
    let long = timed(|| assert_eq!(aq.sh("ls -l | wc -l").ok(), "1001"));
    let found = timed(|| assert_eq!(aq.sh("find vm* -name status | wc -l").ok(), "1000"));
    let read = timed(|| assert_eq!(aq.sh("cat */status | sort -u").ok(), "stopped"));
    let used = usage(aq.daemon()).rss;
    println!(
        "1,000 VMs: mkdir {:?} each, ls {listed:?}, ls -l {long:?}, find {found:?}, \
         cat */status {read:?}; daemon {} KiB empty, {} KiB more a VM, {} KiB after all that",
        made / 1000,
        empty >> 10,
        (full.saturating_sub(empty) / 1000) >> 10,
        used >> 10
    );
    assert!(made < Duration::from_secs(60), "{made:?}");
    assert!(found < Duration::from_secs(10) && long < Duration::from_secs(2), "{found:?}");
    assert!(used < empty + 64 * MIB, "{used}");
    let again = timed(|| {
        aq.sh(r#"cd /; "$AQ" umount "$SCRATCH/mnt""#).ok();
        aq.mount();
    });
    println!("1,000 VMs: umount and mount again {again:?}");
    assert_eq!(aq.sh("ls | wc -l").ok(), "1000");
    assert!(again < Duration::from_secs(10), "{again:?}");
}

#[test]
fn a_hundred_parked_readers() {
    let aq = Mounted::with_image();
    aq.sh("mkdir held && echo 'start paused' > held/ctl").ok();
    let alone = latency(&aq);
    let files = ["held/ready", "held/console"];
    let mut cats: Vec<Child> = (0..100).map(|n| cat(&aq, files[n % 2])).collect();
    thread::sleep(Duration::from_millis(500));
    assert!(cats.iter_mut().all(|c| c.try_wait().expect("our child").is_none()), "all wait");
    let beside = latency(&aq);
    let before = usage(aq.daemon());
    thread::sleep(Duration::from_secs(5));
    let after = usage(aq.daemon());
    let share = (after.cpu_ms - before.cpu_ms) as f64 / 50.0;
    println!(
        "100 parked readers: cat status {beside:?} (alone {alone:?}), daemon {share:.1} % of a \
         core, {} KiB",
        after.rss >> 10
    );
    cats.iter_mut().for_each(|cat| drop(cat.kill()));
    let began = Instant::now();
    cats.iter_mut().for_each(|cat| drop(cat.wait()));
    println!("100 parked readers: all dead {:?} after SIGKILL", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(beside < alone * 3 + QUICK, "{beside:?}");
    assert!(share < 10.0, "{share} %");
    thread::sleep(Duration::from_millis(200));
    let idle = usage(aq.daemon()).cpu_ms;
    thread::sleep(Duration::from_secs(2));
    let idle = usage(aq.daemon()).cpu_ms - idle;
    assert!(idle <= 20, "{idle} ms in 2 s with no reader waiting");
}

#[test]
fn fifty_commands_in_one_guest_at_once() {
    let aq = Mounted::booted();
    let script = "
        for n in $(seq 50); do
            (echo \"sleep 1; echo answer $n\" > vm1/exec
             got=$(cat vm1/exec 2>&1) || got=\"$got: $(cat vm1/error)\"
             [ \"$got\" = \"answer $n\" ] || echo \"$n got: $got\") &
        done
        wait";
    let took = timed(|| assert_eq!(aq.sh(script).ok(), ""));
    println!("50 commands of 1 s at once: {took:?}");
    assert_eq!(aq.exec("vm1", "echo still"), "still");
}

#[test]
fn a_console_reader_that_never_reads() {
    let aq = Mounted::booted();
    let before = usage(aq.daemon()).rss;
    let mut lazy: Vec<File> =
        (0..10).map(|_| File::open(aq.path("vm1/console")).expect("console")).collect();
    let mut eager = cat(&aq, "vm1/console");
    // 2 MiB through the serial line.
    let print = "yes 0123456789abcdefghijklmnopqrstuvwxyz | head -c 2097152 > /dev/console";
    let done = AtomicBool::new(false);
    let (took, beside) = thread::scope(|scope| {
        let printing = scope.spawn(|| {
            let took = timed(|| drop(aq.exec("vm1", print)));
            done.store(true, Ordering::Relaxed);
            took
        });
        let mut times = Vec::new();
        while !done.load(Ordering::Relaxed) {
            times.push(timed(|| drop(aq.read("vm1/status"))));
            thread::sleep(Duration::from_millis(20));
        }
        (printing.join().expect("no panic"), times)
    });
    let (worst, beside) = (beside.iter().max().copied().unwrap_or_default(), median(beside));
    let used = usage(aq.daemon()).rss;
    println!(
        "2 MiB on the console in {took:?}: status {beside:?}, at worst {worst:?}; daemon {} KiB, \
         before {} KiB; console_lost {}",
        used >> 10,
        before >> 10,
        aq.info("vm1", "console_lost")
    );
    assert!(beside < QUICK && worst < Duration::from_secs(1), "{beside:?}, {worst:?}");
    assert!(used < before + 24 * MIB, "{used}");
    assert!(eager.try_wait().expect("our child").is_none(), "the reader that reads is not ended");
    drop((eager.kill(), eager.wait()));
    // A late reader gets the newest bytes there are.
    let mut last = vec![0; 2 << 20];
    let read = lazy[0].read(&mut last).expect("bytes");
    assert!(read > 0);
    drop(lazy);
    eventually("the backlog given back", Duration::from_secs(10), || {
        usage(aq.daemon()).rss < before + 24 * MIB
    });
}

/// The time of `cat status`, in the middle of many.
fn latency(aq: &Mounted) -> Duration {
    let once = |_| {
        timed(|| {
            let cat = Command::new("cat").arg(aq.path("held/status")).output().expect("cat");
            assert_eq!(cat.stdout, b"paused\n");
        })
    };
    median((0..50).map(once).collect())
}

fn cat(aq: &Mounted, file: &str) -> Child {
    let mut command = Command::new("cat");
    command.arg(aq.path(file)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let cat = command.spawn().expect("cat starts");
    eventually("cat is cat", Duration::from_secs(10), || {
        proc::process(cat.id()).is_some_and(|p| p.name == "cat")
    });
    cat
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Runs a script in the VM's directory.
#[track_caller]
fn in_vm(aq: &Mounted, script: &str) -> String {
    aq.sh(&format!("cd vm1; {script}")).ok()
}

fn resident(pid: u32) -> u64 {
    aqfs::proc::usage(pid).rss >> 10
}

/// Returns the most KiB that a process has had in memory.
fn peak(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the daemon");
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a line VmHWM");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A shell that prints the byte which announces a job's process group, and 64 MiB after it without the
/// end of a line, before it runs a command in which `flood` occurs.
const FLOODING_SHELL: &str = r#"real=$(readlink -f /bin/sh); cat > /bin/flooding <<EOF
#!$real sh
[ "\$FLOODED" ] || case "\$*" in *flood*) export FLOODED=1; printf '\036'; head -c 67108864 /dev/zero;; esac
exec $real sh "\$@"
EOF
chmod 755 /bin/flooding; ln -sf flooding /bin/sh"#;

#[test]
fn a_shell_that_floods_after_the_mark_of_ours_fills_no_memory() {
    let aq = Mounted::booted();
    aq.exec("vm1", FLOODING_SHELL);
    let sum = in_vm(&aq, "{ printf '\\036'; head -c 67108864 /dev/zero; echo flood; } | sha256sum");
    let before = peak(aq.daemon());
    let script = "mkdir jobs/f; echo 'echo flood' > jobs/f/cmd; cat jobs/f/stdout | sha256sum; cat jobs/f/wait";
    let said = aq.sh_within(&format!("cd vm1; {script}"), BOOT * 4).ok();
    assert_eq!(said, format!("{sum}\nexit 0"));
    let most = peak(aq.daemon());
    assert!(most < before + (32 << 10), "{before} -> {most} KiB");
}

#[test]
fn bulk_goes_through_whole_and_without_memory() {
    let aq = Mounted::booted();
    in_vm(&aq, "echo true > exec; cat exec; head -c 64M /dev/urandom > $SCRATCH/big");
    let sum = in_vm(&aq, "sha256sum < $SCRATCH/big");
    let before = resident(aq.daemon());
    let timed = |what: &str, script: &str, wanted: &str| {
        let began = Instant::now();
        let said = aq.sh_within(&format!("cd vm1; {script}"), BOOT * 4).ok();
        let (took, now) = (began.elapsed().as_secs_f64(), resident(aq.daemon()));
        assert_eq!(said, wanted, "{what}");
        println!("{what}: 64 MiB in {took:.1} s, daemon {before} -> {now} KiB");
        assert!(now < before + (32 << 10), "{what}: {before} -> {now} KiB");
    };
    let script = "mkdir jobs/i; exec 3>jobs/i/stdin; echo sha256sum > jobs/i/cmd
            cat $SCRATCH/big >&3; exec 3>&-; cat jobs/i/stdout";
    timed("stdin", script, &sum);
    let make = "mkdir jobs/m; echo 'head -c 67108864 /dev/urandom > /big; sha256sum < /big' > jobs/m/cmd; cat jobs/m/stdout";
    let sum = aq.sh_within(&format!("cd vm1; {make}"), BOOT * 4).ok();
    let script = "mkdir jobs/o; echo 'cat /big' > jobs/o/cmd; cat jobs/o/stdout | sha256sum";
    timed("stdout", script, &sum);
    timed("exec", "echo 'cat /big' > exec; cat exec | sha256sum", &sum);
}
