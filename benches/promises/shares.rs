//! A directory of the host in a guest, through `shares/`, beside sshfs in the same guest.
//!
//! sshfs has the fairest way that there is: its requests go over an SSH connection of the host's to the same
//! server in the guest, by the same cipher, and the host's sftp-server answers them (sshfs(1), `passive`). So
//! the guest, whose processor is the slow one, runs no second SSH client.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::common::{BOOT, Mounted, median};
use crate::guest::{GUEST, Killed, resident, ssh};
use crate::measure::{LargeFile, ROUNDS, Row, TTL};

const SFTP_SERVER: &str = "/usr/lib/openssh/sftp-server";
/// Where the guest has the directory.
const OURS: &str = "/mnt/src";
const THEIRS: &str = "/mnt/sshfs";

/// Programs of the host go into the guest with their libraries, and have a wrapper in its `/bin`.
const COLLECT: &str = r#"mkdir -p "$SCRATCH/ext/lib" && cd "$SCRATCH/ext"
for program in "$(command -v sshfs)" "$(command -v git)" "$BENCH_PROGRAM"; do
    cp "$program" "${program##*/}"; ldd "$program" | grep -o '/[^ ]*' | xargs -I{} cp -Lu {} lib/
done; mv "${BENCH_PROGRAM##*/}" reads; tar -cf "$AQ_MOUNT/vm1/fs/root/ext.tar" ."#;
const INSTALL: &str = r#"mkdir -p /ext /mnt/sshfs; tar -C /ext -xf /root/ext.tar; rm /root/ext.tar; modprobe fuse
for program in sshfs git reads; do
    printf '#!/bin/sh\nexec /ext/lib/ld-linux-*.so.* --library-path /ext/lib /ext/%s "$@"\n' $program > /bin/$program
    chmod +x /bin/$program
done"#;

/// What the guest's kernel remembers of files is forgotten.
const FORGET: &str = "sync; echo 3 > /proc/sys/vm/drop_caches";

/// A guest that has a directory in two ways.
struct Both {
    aq: Mounted,
    source: PathBuf,
    _sshfs: [Killed; 2],
}

impl Both {
    fn new() -> Self {
        let aq = Mounted::with_image();
        let source = aq.scratch().join("src");
        fs::create_dir(&source).expect("a directory");
        aq.sh("mkdir vm1 vm1/shares/src; echo \"$SCRATCH/src\" > vm1/shares/src/source").ok();
        aq.boot_existing("vm1");
        let program = std::env::current_exe().expect("this program");
        aq.sh(&format!("BENCH_PROGRAM='{}'\n{COLLECT}", program.display())).ok();
        aq.exec("vm1", INSTALL);
        let _sshfs = Self::mount(&aq, &source);
        let both = Self { aq, source, _sshfs };
        both.guest("until grep -q fuse.sshfs /proc/mounts; do sleep 0.1; done");
        let mounts = both.guest("grep -c ' nfs ' /proc/mounts");
        assert_eq!(mounts, "1", "the share is mounted");
        both
    }

    /// Mounts sshfs, which is to remember names for as long as a share does.
    fn mount(aq: &Mounted, source: &std::path::Path) -> [Killed; 2] {
        let ends = UnixStream::pair().expect("a pair of sockets");
        let [ours, theirs] = [ends.0, ends.1].map(|end| {
            let [input, output] = [end.try_clone().expect("a socket"), end]
                .map(|end| Stdio::from(OwnedFd::from(end)));
            (input, output)
        });
        let mut server = Command::new(SFTP_SERVER);
        let server = server.stdin(ours.0).stdout(ours.1).spawn().expect("sftp-server runs");
        let port = aq.info("vm1", "ssh_port").parse().expect("a port");
        let mut sshfs = ssh(&aq.store().client_key(), port);
        sshfs.stdin(theirs.0).stdout(theirs.1).arg(GUEST);
        let sshfs = sshfs.arg(format!(
            "exec sshfs ':{}' {THEIRS} -o passive,dcache_timeout=1",
            source.display()
        ));
        [Killed(server), Killed(sshfs.spawn().expect("ssh runs"))]
    }

    #[track_caller]
    fn guest(&self, script: &str) -> String {
        let script = format!("cat > vm1/exec <<'END'\n{script}\nEND\ncat vm1/exec");
        self.aq.sh_within(&script, BOOT * 8).ok()
    }

    /// Measures the same in both, alternating; `script` runs in the guest, where `$at` is the directory.
    fn compare(&self, what: &str, before: &str, script: &str) -> Row {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (at, times) in [(OURS, &mut ours), (THEIRS, &mut theirs)] {
                self.guest(before);
                thread::sleep(TTL);
                let began = Instant::now();
                self.guest(&format!("at={at}; {script}"));
                times.push(began.elapsed());
            }
        }
        Row::ratio(&format!("shares: {what} / sshfs"), median(ours), median(theirs), 1.0)
    }
}

/// Large files in order and at random, many names, a repository.
pub(crate) fn shares() -> Vec<Row> {
    let both = Both::new();
    let before = resident(both.aq.daemon());
    let mut rows = large(&both);
    let more = resident(both.aq.daemon()).saturating_sub(before);
    let what = format!("shares: daemon, more after {} MiB files", LargeFile::mib());
    rows.push(Row::memory(&what, more, 16 << 10));
    rows.extend(many(&both));
    rows
}

fn large(both: &Both) -> Vec<Row> {
    let mib = LargeFile::mib();
    let write = format!("dd if=/dev/zero of=$at/large bs=1M count={mib} conv=fsync 2> /dev/null");
    let read = "dd if=$at/large of=/dev/null bs=1M 2> /dev/null";
    let (random, argument) = (LargeFile::READS, LargeFile::ARGUMENT);
    let reads = format!("reads {argument} $at/large");
    vec![
        both.compare(&format!("write {mib} MiB, fsync"), FORGET, &write),
        both.compare(&format!("read {mib} MiB"), FORGET, read),
        both.compare(&format!("{random} reads of 4 KiB at random"), FORGET, &reads),
    ]
}

fn many(both: &Both) -> Vec<Row> {
    // Each has a repository of its own: git knows files by numbers, which each has its own of.
    let make = "mkdir many && seq 1000 | sed s,^,many/, | xargs touch
        for d in $(seq 50); do mkdir -p ours/$d; for f in $(seq 100); do echo $f > ours/$d/$f; done; done
        cd ours && git init -q && git add . && git -c user.name=a -c user.email=a@b commit -qm a
        cd .. && cp -a ours theirs";
    both.aq.sh_within(&format!("cd '{}' && {make}", both.source.display()), BOOT).ok();
    let status = format!(
        "repo=ours; [ $at = {OURS} ] || repo=theirs
         HOME=/root git -c 'safe.directory=*' -C $at/$repo status -s"
    );
    // It notes what it has found.
    for at in [OURS, THEIRS] {
        both.guest(&format!("sleep 2; at={at}; {status}"));
    }
    let small = "mkdir $at/new; for f in $(seq 100); do echo $f > $at/new/$f; done; rm -r $at/new";
    vec![
        both.compare("ls -l of 1,000", FORGET, "ls -l $at/many > /dev/null"),
        // The kernel's client knows the names and asks for the attributes of each; sshfs lists anew.
        both.compare("ls -l of 1,000, again", "true", "ls -l $at/many > /dev/null"),
        both.compare("git status of 5,000", "true", &status),
        both.compare("100 small files made and removed", "true", small),
    ]
}
