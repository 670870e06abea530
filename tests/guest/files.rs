//! `fs`: ordinary programs on a guest's files, and guests that are off, deaf, killed and back.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::{BOOT, Mounted, proc};

/// Programs that work on files: each line's output is what comes after `=>`.
const PROGRAMS: &str = r#"
    cd $SCRATCH; mkdir -p src/d/e; for i in 1 2 3 4 5; do echo file $i > src/d/f$i; done
    ln -s d/f1 src/link; chmod 600 src/d/f2; chmod 775 src/d/f3; touch -d 2020-01-02 src/d/f4; : > src/empty
    F=$AQ_MOUNT/vm1/fs/root
    cp -a src $F/cp; diff -r src $F/cp && stat -c %a:%Y $F/cp/d/f2 $F/cp/d/f3 $F/cp/d/f4 | sed 's/:1[6-9]......../ now/'
    tar -C src -cf - . | (mkdir $F/tar; tar -C $F/tar -xpf -); tar -C $F/tar -cf - . | tar -C src -df - && echo tar
    echo a > $F/sed; sed -i s/a/b/ $F/sed; echo c >> $F/sed; cat $F/sed
    head -c 3000000 /dev/urandom > big; cp big $F/big; cmp big $F/big; dd if=$F/big bs=1M status=none | cmp - big
    dd if=big of=$F/synced bs=64k conv=fsync status=none; dd if=$F/synced iflag=direct bs=64k status=none | cmp - big
    (cd $F; git init -q repo; cd repo; git config user.email a@b; git config user.name a
        cp -r ../cp/d .; git add .; git commit -qm one; git status --short; cd ..
        git clone -q repo clone; cd clone; git fsck 2>&1; git status --short; git log --format=%s)
    vim -es -c 'normal ix' -c wq $F/vim; cat $F/vim
    find $F/cp -type f | wc -l; du -s $F/cp >/dev/null && readlink $F/cp/link
    ln $F/sed $F/hard; [ $F/sed -ef $F/hard ] && rm $F/sed && cat $F/hard
    df --output=fstype $F | tail -1; rm -r $F/cp $F/tar $F/repo $F/clone; ls $F
"#;
const SAID: &str = "600 now\n775 now\n644:1577923200\ntar\nb\nc\none\nx\n6\nd/f1\nb\nc\nfuse.aqfs\nbig\nhard\nsynced\nvim";

/// What one program sees of errors, at the end of a Python program, a line each.
const ERRORS: &str = r#"
import errno, mmap, os, sys
F = sys.argv[1]
os.chdir(F + "/root")
os.mkdir("full"); open("full/x", "w").close(); open("file", "w").close(); os.mkdir("empty")
table = [
    (lambda: os.mkdir("full"), "EEXIST"), (lambda: os.rmdir("full"), "ENOTEMPTY"),
    (lambda: os.rename("empty", "full"), "ENOTEMPTY"), (lambda: os.link("file", "full/x"), "EEXIST"),
    (lambda: os.symlink("x", "file"), "EEXIST"), (lambda: open("full", "w"), "EISDIR"),
    (lambda: open("nope"), "ENOENT"), (lambda: os.listdir("file"), "ENOTDIR"),
    (lambda: os.open("file", os.O_CREAT | os.O_EXCL | os.O_WRONLY), "EEXIST"),
    (lambda: os.mkfifo("fifo"), "EPERM"), (lambda: os.mkdir(F + "/../vm9"), "EPERM"),
    (lambda: os.rename("file", F + "/../vm9"), "EPERM"), (lambda: os.rename("file", "../run/file"), "EXDEV"),
    (lambda: os.getxattr("file", "user.x"), "EOPNOTSUPP"), (lambda: open("x" * 256, "w"), "ENAMETOOLONG"),
]
for number, (call, expected) in enumerate(table):
    try: call(); print(number, "no error")
    except OSError as e:
        if e.errno != getattr(errno, expected): print(number, e, expected)
fd = os.open("gone", os.O_CREAT | os.O_RDWR); os.unlink("gone"); os.write(fd, b"hello")
assert os.pread(fd, 10, 0) == b"hello" and os.fstat(fd).st_size == 5
with open("map", "wb") as f: f.write(bytes(100000))
with open("map", "r+b") as f:
    m = mmap.mmap(f.fileno(), 0); m[5000:5004] = b"abcd"; m.flush(); m.close()
assert open("map", "rb").read()[5000:5004] == b"abcd"
os.rename("map", "file"); assert os.stat("file").st_size == 100000
os.truncate("file", 3); assert open("file", "rb").read() == bytes(3)
assert os.stat("/proc/self/exe") and os.stat("..").st_uid == os.getuid()
"#;

#[test]
fn ordinary_programs_work_on_a_guests_files() {
    let aq = Mounted::booted();
    assert_eq!(aq.sh_within(PROGRAMS, Duration::from_secs(300)).ok(), SAID);
    assert_eq!(aq.exec("vm1", "cat /root/hard; wc -c </root/big"), "b\nc\n3000000");
    std::fs::write(aq.scratch().join("errors.py"), ERRORS).expect("a file");
    assert_eq!(aq.sh("python3 $SCRATCH/errors.py $PWD/vm1/fs").ok(), "");
    // A link leads to the guest's file.
    aq.exec("vm1", "echo guest >/root/seen; ln -s /root/seen /root/absolute; ln -s ../../../../root/seen /root/up");
    let links = "cd vm1/fs/root; cat absolute up; readlink absolute up";
    assert_eq!(aq.sh(links).ok(), "guest\nguest\n../root/seen\n../root/seen");
    let tail = "echo a > $L; timeout 8 tail -n +1 -f $L > $SCRATCH/tail & sleep 1; \
        echo b >> $L; echo 'echo c >>/root/log' > vm1/exec; cat vm1/exec; wait; cat $SCRATCH/tail";
    assert_eq!(aq.sh(&format!("L=vm1/fs/root/log; {tail}")).ok(), "a\nb\nc");
    // Neither a walk over VMs nor the removal of one leads into a guest.
    assert!(!aq.sh("find . ; du -s . ; grep -r . vm1/config >/dev/null").ok().contains("synced"));
    aq.sh("echo kill > vm1/ctl; cat vm1/wait; rm -r vm1").ok();
    assert_eq!(aq.sh("mv .trash/vm1@* vm1; ls .").ok(), "vm1");
    aq.boot_existing("vm1");
    assert_eq!(aq.sh("ls vm1/fs/root/synced").ok(), "vm1/fs/root/synced");
}

/// Looks at names, attributes and contents right before and right after a command changes them.
const IN_TURN: &str = r#"
    F=vm1/fs/root; at() { echo "$1" > vm1/exec; cat vm1/exec; }
    mkdir $F/t; echo one > $F/t/a; mkdir $F/t/d; echo x > $F/t/d/x; : > $F/t/other
    look() { (cd $F/t; ls -A | xargs; stat -c '%n %s %a %F' a b d n 2>&1 | sed 's/.*statx/no/'; cat a d/x 2>&1); }
    look >/dev/null; tail -n +1 $F/t/a; exec 3< $F/t/a; cat <&3
    at 'cd /root/t; echo three > a; chmod 600 a; mv other b; rm -r d; echo file > d; mkdir n'
    look; echo four >> $F/t/a; mkdir $F/t/n/m; [ ! -e $F/t/new ]
    at 'cd /root/t; cat a; rm -r n; echo new > new; mv d e'
    mkdir $F/t/n; echo mine > $F/t/d; cat $F/t/new $F/t/d; (cd $F/t/n; pwd | sed 's/.*fs//')
    mkdir vm1/jobs/j; echo 'rm -r /root/t' > vm1/jobs/j/cmd; cat vm1/jobs/j/wait; rmdir vm1/jobs/j; ls $F/t 2>&1 | sed 's/.*: //'
"#;
const SEEN: &str = "one\none\na b d n\na 6 600 regular file\nb 0 644 regular empty file\nd 5 644 regular file\n\
    n 4096 755 directory\nthree\ncat: d/x: Not a directory\nthree\nfour\nnew\nmine\n/root/t/n\nexit 0\n\
    No such file or directory";

#[test]
fn what_a_command_has_changed_is_seen_when_it_has_ended() {
    let aq = Mounted::booted();
    // Much faster than the second for which the kernel remembers.
    for _ in 0..3 {
        assert_eq!(aq.sh(IN_TURN).ok(), SEEN);
    }
    // A guest that is restored has other files, at once.
    aq.sh("echo old > vm1/fs/root/f; echo 'sync' > vm1/exec; cat vm1/exec; mkdir vm1/snapshots/s; cat vm1/wait").ok();
    let restore = "echo newer > vm1/fs/root/f; cat vm1/fs/root/f; \
        echo 'restore s' > vm1/ctl && cut -d' ' -f1 vm1/ready && cat vm1/fs/root/f";
    assert_eq!(aq.sh(restore).ok(), "newer\nready\nold");
}

#[test]
fn a_guest_that_is_off_or_deaf_hangs_nobody() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1").ok();
    let at_once = Instant::now();
    for call in ["ls vm1/fs/", "cat vm1/fs/etc/hosts", "touch vm1/fs/x"] {
        assert!(aq.sh(call).failed().contains("Host is down"), "{call}");
    }
    assert!(at_once.elapsed() < Duration::from_secs(5));
    aq.boot_existing("vm1");
    aq.sh("echo before > vm1/fs/root/x; sync vm1/fs/root/x").ok();
    aq.sh(": > vm1/fs/root/open").ok();
    aq.deafen("vm1");
    let killed = Instant::now();
    for call in [
        "cat vm1/fs/etc/passwd",
        "ls vm1/fs/usr/",
        "mkdir vm1/fs/root/dir",
        "stat vm1/fs/etc/rc",
        "dd if=/dev/zero of=vm1/fs/root/open bs=1M conv=notrunc status=none",
    ] {
        assert_eq!(aq.sh(&format!("timeout -s KILL 1 {call}")).code, 137, "{call}");
    }
    assert!(killed.elapsed() < Duration::from_secs(8), "{:?}", killed.elapsed());
    // Looking at the VM itself waits for no guest.
    let looked = Instant::now();
    aq.sh("ls -lL vm1/fs -d; ls --color=always -l vm1 >/dev/null").ok();
    assert!(looked.elapsed() < Duration::from_secs(2));
    let begun = Instant::now();
    assert!(aq.sh_within("cat vm1/fs/etc/group", Duration::from_secs(60)).code != 0);
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // It comes back, and serves the same paths.
    aq.sh("echo kill > vm1/ctl; cat vm1/wait").ok();
    aq.boot_existing("vm1");
    assert_eq!(aq.sh("cat vm1/fs/root/x").ok(), "before");
}

#[test]
fn a_program_that_another_takes_the_place_of_closes_its_files() {
    let aq = Mounted::booted();
    // Python opens files so that they are closed when another program is executed.
    let script = r#"echo 'import os, sys; f = open(sys.argv[1], "w"); f.write("x" * 9000); f.flush(); os.execvp("true", ["true"])' > $SCRATCH/e.py
        for n in 1 2 3 4 5; do timeout 20 python3 $SCRATCH/e.py vm1/fs/root/$n || echo hangs; done; wc -c < vm1/fs/root/5
        timeout 5 ps -e > /dev/null || echo ps hangs"#;
    assert_eq!(aq.sh(script).ok(), "9000");
}

/// Kills programs that wait for a guest whose QEMU is stopped, and says how long each has lived on. The
/// process number of QEMU is the second argument.
const KILLED: &str = r#"
import os, signal, subprocess, sys, time
directory, qemu = sys.argv[1], int(sys.argv[2])
map = "import mmap, os; m = mmap.mmap(os.open('big', 0), 0, prot=mmap.PROT_READ); m[2000000]"
programs = [
    ["stat", "other"], ["ls", "."], ["touch", "new"], ["cat", "big"], ["mv", "small", "moved"], ["rm", "small"],
    ["mkdir", "made"], ["ln", "-s", "x", "link"], ["chmod", "600", "big"], ["python3", "-c", map], ["sync", "big"],
    ["dd", "if=/dev/zero", "of=big", "conv=notrunc", "bs=1M", "count=30", "status=none"], ["df", "."],
]
os.chdir(directory)
open("small", "w").close()
with open("big", "wb") as f: f.write(bytes(3000000)); f.flush(); os.fsync(f.fileno())
time.sleep(1.5)
os.kill(qemu, signal.SIGSTOP)
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
waiting = [(subprocess.Popen(program, **quiet), program) for program in programs]
time.sleep(1)
for process, program in waiting:
    if process.poll() is not None: print("has not waited:", program)
begun = time.time()
for process, program in waiting: process.kill()
for process, program in waiting:
    try: process.wait(5)
    except subprocess.TimeoutExpired: print("lives on:", program)
if time.time() - begun > 1: print("late: %.1f s" % (time.time() - begun))
os.kill(qemu, signal.SIGCONT)
"#;

#[test]
fn whoever_waits_for_a_guest_that_is_stopped_can_be_killed() {
    let aq = Mounted::booted();
    std::fs::write(aq.scratch().join("killed.py"), KILLED).expect("a file");
    let script =
        format!("mkdir vm1/fs/root/d; python3 $SCRATCH/killed.py vm1/fs/root/d {}", aq.qemus()[0]);
    assert_eq!(aq.sh_within(&script, Duration::from_secs(120)).ok(), "");
    aq.sh("for n in $(seq 50); do ls vm1/fs/root/d > /dev/null && exit; sleep 0.2; done; exit 1")
        .ok();
}

#[test]
fn clones_and_restored_guests_show_their_own_files() {
    let aq = Mounted::booted();
    let script = r#"
        clone() { mkdir .images/$2; echo $1 > .images/$2/source; cat .images/$2/wait > /dev/null
            mkdir $3; echo $2 > $3/config/image; echo start > $3/ctl; cat $3/ready > /dev/null; }
        F=vm1/fs/root; seq 1000 > $F/numbers; echo one > $F/who; sync $F/who; exec 3<$F/numbers; head -c 10 <&3 > /dev/null
        clone vm1 i vm2; cat vm2/fs/root/who; echo two > vm2/fs/root/who; sync vm2/fs/root/who
        clone vm2 j vm3; cat vm3/fs/root/who; cat $F/who
        mkdir vm1/snapshots/s; until grep -q ok vm1/snapshots/s/status; do sleep 0.1; done
        echo later > $F/who; sync $F/who; echo 'restore s' > vm1/ctl; cat vm1/wait vm1/ready > /dev/null
        sleep 1.1; cat $F/who; cat <&3 | tail -n 1; echo after > $F/who; cat $F/who"#;
    let said = aq.sh_within(script, Duration::from_secs(240)).ok();
    assert_eq!(said, "one\ntwo\none\none\n1000\nafter");
}

#[test]
fn files_outlast_pauses_restarts_renames_and_daemons() {
    let aq = Mounted::booted();
    let script = r#"
        F=vm1/fs/root; seq 1000 > $F/numbers; exec 3<$F/numbers; head -c 100 <&3 >/dev/null
        echo pause > vm1/ctl; (sleep 1; echo resume > vm1/ctl) & wc -l < $F/numbers; wait
        echo suspend > vm1/ctl; cat vm1/wait >/dev/null; ls $F/ 2>&1 | grep -o 'Host is down'
        echo start > vm1/ctl; cat vm1/ready >/dev/null
        # Opened before: it is opened again.
        cat <&3 | tail -1; wc -l < $F/numbers
        mv vm1 vm2; wc -l < vm2/fs/root/numbers; ls vm1 2>&1 | grep -o 'No such file'"#;
    let said = "1000\nHost is down\n1000\n1000\n1000\nNo such file";
    assert_eq!(aq.sh_within(script, Duration::from_secs(180)).ok(), said);
    let guest_files = aq.store().guest_files();
    aq.kill_daemon();
    assert!(proc::is_mounted(&guest_files), "a killed daemon leaves its mount");
    assert!(std::fs::read_dir(&guest_files).is_err());
    aq.mount();
    aq.wait_for_ready("vm2");
    assert_eq!(aq.sh("wc -l < vm2/fs/root/numbers; ls $PWD/vm2/fs | head -1").ok(), "1000\nbin");
    // A write that a program has ended without an error is in the guest.
    aq.sh("cp vm2/fs/root/numbers vm2/fs/root/copy").ok();
    assert_eq!(aq.exec("vm2", "cmp /root/numbers /root/copy && echo same"), "same");
    proc::kill(aq.qemus()[0], Signal::KILL);
    aq.wait_for_status("vm2", "failed");
    assert!(aq.sh("ls vm2/fs/").failed().contains("Host is down"));
}

#[test]
fn copies_within_a_guest_are_whole() {
    let aq = Mounted::booted();
    // What is on its way is in it; a range within one file, and a copy to another VM, go by the host.
    let script = "F=vm1/fs/root; head -c 40000001 /dev/urandom > $SCRATCH/big; cp $SCRATCH/big $F/a
        cp $F/a $F/b; cmp $F/b $SCRATCH/big; : > $F/none; cp $F/none $F/none2; stat -c %s $F/none2
        printf 12345678 > $F/c; exec 3<> $F/c; python3 -c '
import os; f = os.open(\"/proc/self/fd/3\", os.O_RDWR)
print(os.copy_file_range(f, f, 3, 0, 5))
g = os.open(os.environ[\"AQ_MOUNT\"] + \"/vm1/fs/root/d\", os.O_RDWR | os.O_CREAT)
os.write(g, b\"abc\")
print(os.copy_file_range(g, f, 3, 0, 5), os.copy_file_range(f, g, 99, 6, 3))
'; cat $F/c; echo; cat $F/d; echo; mkdir vm2; echo start > vm2/ctl; cat vm2/ready > /dev/null
        cp $F/b vm2/fs/root/b; cmp vm2/fs/root/b $SCRATCH/big";
    let said = aq.sh_within(script, BOOT * 4).ok();
    assert_eq!(said, "0\n3\n3 2\n12345abc\nabcbc");
    // The command line offers the guest's names.
    let request = "COMPLETE=bash _CLAP_IFS=' ' _CLAP_COMPLETE_INDEX=2 aq -- aq cp";
    for (typed, offered) in [("vm1:/roo", "vm1:/root/"), ("vm1:none", "vm1:none vm1:none2")] {
        assert_eq!(aq.cli(&format!("{request} {typed}")).ok(), offered);
    }
    let sums = aq.exec("vm1", "cd /root; cat a | cmp - b && echo same");
    assert_eq!(sums, "same");
}

#[test]
fn a_guest_without_a_server_says_so() {
    let aq = Mounted::booted();
    aq.exec("vm1", "mv /usr/lib/sftp-server /usr/lib/hidden");
    assert!(aq.sh("ls vm1/fs/").failed().contains("not supported"));
    let error = aq.read("vm1/error");
    assert!(error.contains("no sftp-server") && error.contains("openssh-sftp-server"), "{error}");
    aq.exec("vm1", "mv /usr/lib/hidden /usr/lib/sftp-server");
    assert_eq!(aq.sh("sleep 2.1; cat vm1/fs/etc/hostname").ok(), "tiny");
}

#[test]
fn a_full_disk_is_told() {
    let aq = Mounted::booted();
    aq.exec("vm1", "mkdir /root/small && mount -t tmpfs -o size=1m none /root/small");
    let fill = "dd if=/dev/zero of=vm1/fs/root/small/x bs=64k count=64 status=none";
    let said = aq.sh(fill).failed();
    assert!(said.contains("No space left on device"), "{said}");
}
