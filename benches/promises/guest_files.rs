//! A guest's files through `fs`, beside sshfs into the same guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use crate::common::{BOOT, Mounted, median};
use crate::guest::{GUEST, resident};
use crate::measure::{LargeFile, ROUNDS, Row, TTL};

/// A guest, and its files in two ways.
struct Both {
    aq: Mounted,
    sshfs: PathBuf,
}

impl Both {
    fn new() -> Self {
        let aq = Mounted::with_image();
        aq.boot("vm1");
        let sshfs = aq.scratch().join("sshfs");
        fs::create_dir(&sshfs).expect("a directory");
        let both = Self { aq, sshfs };
        both.mount();
        both
    }

    /// Mounts sshfs, which is to remember names for as long as `fs` does.
    fn mount(&self) {
        let key = self.aq.store().client_key();
        let mounted = Command::new("sshfs")
            .args(["-o", "ssh_command=ssh -F none,BatchMode=yes,StrictHostKeyChecking=no"])
            .args(["-o", "UserKnownHostsFile=/dev/null,LogLevel=ERROR"])
            .arg("-o")
            .arg(format!("dcache_timeout=1,IdentityFile={}", key.display()))
            .args(["-p", &self.aq.info("vm1", "ssh_port")])
            .arg(format!("{GUEST}:/"))
            .arg(&self.sshfs)
            .status();
        assert!(mounted.expect("sshfs runs").success());
    }

    fn ours(&self) -> PathBuf {
        self.aq.path("vm1/fs")
    }

    /// Measures the same in both, alternating. `work` gets the guest's root.
    fn compare(&self, what: &str, rounds: usize, mut work: impl FnMut(&Path)) -> Row {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        let mut timed = |root: &Path| {
            // What was remembered is forgotten.
            thread::sleep(TTL);
            let began = Instant::now();
            work(root);
            began.elapsed()
        };
        for _ in 0..rounds {
            ours.push(timed(&self.ours()));
            theirs.push(timed(&self.sshfs));
        }
        Row::ratio(&format!("fs: {what} / sshfs"), median(ours), median(theirs), 1.0)
    }

    fn sh(&self, root: &Path, script: &str) {
        let script = format!("cd {}/root && {{ {script}; }}", root.display());
        self.aq.sh_within(&script, BOOT * 8).ok();
    }
}

impl Drop for Both {
    fn drop(&mut self) {
        let _none = Command::new("fusermount3").arg("-uq").arg(&self.sshfs).status();
    }
}

/// Large files in order and at random, many names, a repository.
pub(crate) fn files() -> Vec<Row> {
    let both = Both::new();
    let before = resident(both.aq.daemon());
    let mut rows = large(&both);
    let more = resident(both.aq.daemon()).saturating_sub(before);
    let what = format!("fs: daemon, more after {} MiB files", LargeFile::mib());
    rows.push(Row::memory(&what, more, 16 << 10));
    rows.extend(many(&both));
    rows
}

fn large(both: &Both) -> Vec<Row> {
    let (mib, random) = (LargeFile::mib(), LargeFile::READS);
    let write = format!("dd if=/dev/zero of=large bs=1M count={mib} conv=fsync status=none");
    let read = "dd if=large of=/dev/null bs=1M status=none";
    vec![
        both.compare(&format!("write {mib} MiB, fsync"), ROUNDS, |root| both.sh(root, &write)),
        both.compare(&format!("read {mib} MiB"), ROUNDS, |root| both.sh(root, read)),
        both.compare(&format!("{random} reads of 4 KiB at random"), ROUNDS, |root| {
            LargeFile::read_at_random(&root.join("root/large"));
        }),
    ]
}

fn many(both: &Both) -> Vec<Row> {
    let make = "cd /root && mkdir many && seq 1000 | sed s,^,many/, | xargs touch";
    both.aq.exec("vm1", make);
    // Each has a repository of its own: git knows files by numbers, which each has its own of.
    for (root, repo) in [(both.ours(), "ours"), (both.sshfs.clone(), "theirs")] {
        let make =
            "for d in $(seq 50); do mkdir $d; for f in $(seq 100); do echo $f > $d/$f; done; done";
        both.aq.exec("vm1", &format!("mkdir /root/{repo} && cd /root/{repo} && {make}"));
        // sshfs shows the files as the guest's root's.
        let git =
            "git() { command git -c 'safe.directory=*' -c user.name=a -c user.email=a@b \"$@\"; }
            git init -q && git add . && git commit -qm a";
        both.sh(&root, &format!("cd {repo} && {git}; sleep 2; git status -s"));
    }
    let small = "mkdir new && for f in $(seq 100); do echo $f > new/$f; done; rm -r new";
    vec![
        both.compare("ls -l of 1,000", ROUNDS, |root| both.sh(root, "ls -l many > /dev/null")),
        both.compare("stat of 1,000", ROUNDS, |root| both.sh(root, "stat many/* > /dev/null")),
        both.compare("git status of 5,000", ROUNDS, |root| {
            let repo = if root == both.sshfs { "theirs" } else { "ours" };
            both.sh(root, &format!("git -c 'safe.directory=*' -C {repo} status -s"));
        }),
        both.compare("100 small files made and removed", ROUNDS, |root| both.sh(root, small)),
    ]
}
