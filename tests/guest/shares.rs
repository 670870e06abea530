//! `shares/`: directories of the host in the guest, in all that happens to a VM.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::common::registry::{Registry, layer_of};
use crate::common::{BOOT, Mounted, eventually};

/// A guest that answers, with the directory `src` of the test's own at /mnt/src.
fn shared() -> (Mounted, PathBuf) {
    let aq = Mounted::with_image();
    let source = aq.scratch().join("src");
    fs::create_dir(&source).expect("a directory");
    aq.sh("mkdir vm1 vm1/shares/src; echo \"$SCRATCH/src\" > vm1/shares/src/source").ok();
    assert_eq!(aq.read("vm1/shares/src/status"), "off: the VM does not run");
    aq.boot_existing("vm1");
    mounted(&aq, "vm1");
    (aq, source)
}

fn mounted(aq: &Mounted, vm: &str) {
    let status = || aq.read(&format!("{vm}/shares/src/status"));
    eventually("the share is mounted", BOOT, || status() == "mounted");
}

/// A process in the guest that adds a number to a file of the share, again and again, and has another one open.
const WRITER: &str = "exec 5>>/mnt/src/log 6</mnt/src/old; rm /mnt/src/old
    while :; do i=$((i+1)); echo $i >&5; sleep 0.1; done </dev/null >/dev/null 2>&1 &
    echo $! > /run/writer";

/// What the writer wrote last.
fn last(source: &std::path::Path) -> u64 {
    let log = fs::read_to_string(source.join("log")).unwrap_or_default();
    log.lines().last().and_then(|line| line.parse().ok()).unwrap_or_default()
}

#[track_caller]
fn goes_on(source: &std::path::Path) {
    let before = last(source);
    eventually("the writer goes on", BOOT, || last(source) > before + 2);
}

/// Every line follows the one before.
fn is_whole(source: &std::path::Path) -> bool {
    let log = fs::read_to_string(source.join("log")).expect("the log");
    log.lines().zip(1..).all(|(line, number)| line == number.to_string())
}

#[test]
fn both_sides_see_what_the_other_writes() {
    let (aq, source) = shared();
    fs::write(source.join("a"), "from the host\n").unwrap();
    assert_eq!(aq.exec("vm1", "cat /mnt/src/a"), "from the host");
    let script = "cd /mnt/src && echo guest > b && echo more >> b && mkdir d && mv b d/c && ln d/c hard \
        && ln -s d/c soft && chmod 640 d/c && truncate -s 8 d/c && cat soft && stat -c '%a %h %U' d/c";
    assert_eq!(aq.exec("vm1", script), "guest\nmo640 2 root");
    let file = fs::metadata(source.join("hard")).unwrap();
    assert_eq!((file.len(), file.mode() & 0o7777, file.nlink()), (8, 0o640, 2));
    assert_eq!(file.uid(), rustix::process::geteuid().as_raw());
    assert_eq!(fs::read_link(source.join("soft")).unwrap(), PathBuf::from("d/c"));
    // An open file that is removed, and one that is replaced.
    let script = "cd /mnt/src && echo kept > x && exec 3<x && rm x && cat <&3 && exec 3<&- && echo one > y \
        && exec 3<y && echo two > z && mv z y && cat <&3 && cat y && exec 3<&- && ls";
    assert_eq!(aq.exec("vm1", script), "kept\none\ntwo\na\nd\nhard\nsoft\ny");
    let script = "cd /mnt/src && mkdir many && cd many && i=0; while [ $i -lt 2000 ]; do : > f$i; \
        i=$((i+1)); done; ls | wc -l; cd ..; rm -r many; ls -d many 2>&1 | wc -l; chown 5:5 a; \
        mknod dev c 1 3 2>&1; mkfifo p; [ -p p ] && echo fifo";
    let said = aq.exec("vm1", script);
    assert_eq!(said, "2000\n1\nmknod: dev: Operation not permitted\nfifo");
    assert_eq!(fs::metadata(source.join("a")).unwrap().uid(), file.uid());
    what_the_host_changes_is_seen(&aq, &source);
    // 8 MiB both ways, through the guest's memory and past it.
    let script = "cd /mnt/src && dd if=/dev/urandom of=big bs=1M count=8 2>/dev/null && sha256sum < big \
        && dd if=big bs=64k iflag=direct 2>/dev/null | sha256sum && echo 3 > /proc/sys/vm/drop_caches \
        && sha256sum < big";
    let said = aq.exec("vm1", script);
    let ours = aq.sh("sha256sum < \"$SCRATCH/src/big\"").ok();
    assert!(said.lines().all(|line| line == ours), "{said}, {ours}");
}

/// By who has the file open, and by who asks for it by its name; much sooner than what the guest's kernel knows
/// expires.
fn what_the_host_changes_is_seen(aq: &Mounted, source: &Path) {
    let at = source.to_owned();
    for name in ["open", "named"] {
        fs::write(at.join(name), "one\n").expect("the file");
    }
    let host = std::thread::spawn(move || {
        eventually("the guest knows both", BOOT, || at.join("go").exists());
        for name in ["open", "named"] {
            let mut file = File::options().append(true).open(at.join(name)).expect("the file");
            file.write_all(b"two\n").expect("the file");
        }
    });
    let script = "cd /mnt/src; exec 3<open; read -r line <&3; stat -c %s named; : > go
        read -r began _ < /proc/uptime; until read -r line <&3; do sleep 0.2; done
        until [ $(stat -c %s named) = 8 ]; do sleep 0.2; done; read -r now _ < /proc/uptime
        echo $line $((${now%.*} - ${began%.*} < 20)); rm open named go";
    assert_eq!(aq.exec("vm1", script), "4\ntwo 1");
    host.join().expect("the host");
}

#[test]
fn a_restored_guest_sees_what_it_has_written_since() {
    let (aq, source) = shared();
    fs::write(source.join("file"), "1\n").expect("the file");
    assert_eq!(aq.exec("vm1", "cd /mnt/src; cat file; stat -c %s file"), "1\n2");
    aq.sh("mkdir vm1/snapshots/s; cat vm1/wait; until grep -q ok vm1/snapshots/s/status; do sleep 0.1; done")
        .ok();
    aq.exec("vm1", "echo more >> /mnt/src/file");
    aq.sh("echo 'restore s' > vm1/ctl; cat vm1/wait").ok();
    mounted(&aq, "vm1");
    let script = "read -r began _ < /proc/uptime; until [ $(stat -c %s /mnt/src/file) = 7 ]; do sleep 0.2; done
        read -r now _ < /proc/uptime; echo $((${now%.*} - ${began%.*} < 15))";
    assert_eq!(aq.exec("vm1", script), "1");
}

#[test]
fn nothing_leads_out_of_the_source() {
    let (aq, source) = shared();
    fs::write(aq.scratch().join("secret"), "secret").unwrap();
    symlink("../secret", source.join("out")).unwrap();
    symlink(aq.scratch(), source.join("up")).unwrap();
    let script = "cd /mnt/src; cat out; cat up/secret; cat ../src/../../secret; ls -la .. ";
    assert!(!aq.exec("vm1", &format!("({script}) 2>&1")).contains("\nsecret"));
    aq.exec("vm1", "ln -s /etc/hostname /mnt/src/mine; cat /mnt/src/mine");
    // Other users of the guest: neither over the mount nor by a connection of their own.
    fs::write(source.join("open"), "open").unwrap();
    let other = "printf 'u:x:1001:1001::/:/bin/sh\\n' >> /etc/passwd; umask 077; echo mine > /mnt/src/secret2; chmod 600 /mnt/src/secret2; chmod 644 /mnt/src/open
        su u -c 'cat /mnt/src/open; cat /mnt/src/secret2; touch /mnt/src/new; rm /mnt/src/open; \
        printf x | nc 127.0.0.1 649 | wc -c' 2>&1";
    let said = aq.exec("vm1", other);
    let lines: Vec<&str> = said.lines().collect();
    assert!(said.contains("open") && !said.contains("mine"), "{said}");
    assert_eq!(said.matches("Permission denied").count(), 3, "{said}");
    assert_eq!(lines.last(), Some(&"0"), "the server says nothing: {said}");
    assert!(source.join("open").exists() && !source.join("new").exists());
}

#[test]
fn it_is_changed_and_taken_away_while_the_guest_runs() {
    let (aq, source) = shared();
    fs::write(source.join("a"), "a").unwrap();
    aq.sh("echo ro > vm1/shares/src/mode").ok();
    let read_only = || aq.exec("vm1", "touch /mnt/src/x 2>&1 || true").contains("Read-only");
    eventually("read-only", BOOT, read_only);
    // The server refuses at once; the mount follows.
    let said = || aq.exec("vm1", "cat /mnt/src/a; grep -c ' nfs ro,' /proc/mounts || true");
    eventually("mounted so", BOOT, || said() == "a1");
    aq.sh("echo rw > vm1/shares/src/mode; echo '/srv/a b' > vm1/shares/src/target").ok();
    let moved = || aq.exec("vm1", "cat '/srv/a b/a' 2>&1 || true") == "a";
    eventually("it is elsewhere", BOOT, moved);
    assert_eq!(aq.exec("vm1", "touch '/srv/a b/x'; ls /mnt"), "");
    aq.sh("mv vm1 vm2; echo default > vm2/shares/src/target; mv vm2/shares/src vm2/shares/web")
        .ok();
    eventually("it has another name", BOOT, || {
        aq.exec("vm2", "cat /mnt/web/a 2>&1 || true") == "a"
    });
    // A directory that goes and comes back.
    aq.sh("mv \"$SCRATCH/src\" \"$SCRATCH/gone\"").ok();
    assert!(aq.read("vm2/shares/web/status").starts_with("failed: "));
    eventually("the guest is told", BOOT, || {
        aq.exec("vm2", "ls /mnt/web 2>&1 || true").contains("Stale")
    });
    aq.sh("mv \"$SCRATCH/gone\" \"$SCRATCH/src\"").ok();
    eventually("it is back", BOOT, || aq.exec("vm2", "cat /mnt/web/a 2>&1 || true") == "a");
    // Taken away while a process has a file of it open.
    aq.exec("vm2", "sleep 1000 < /mnt/web/a > /dev/null 2>&1 &");
    aq.sh("rmdir vm2/shares/web").ok();
    let mounts = || aq.exec("vm2", "grep -c ' nfs ' /proc/mounts || true");
    eventually("the guest has it no more", BOOT, || mounts() == "0");
    assert_eq!(fs::read(source.join("a")).unwrap(), b"a");
    assert_eq!(aq.sh("ls vm2/shares").ok(), "");
    assert!(aq.exec("vm2", "netstat -ltn").lines().all(|line| !line.contains(":649 ")));
}

#[test]
fn a_program_goes_on_with_its_files_whatever_happens_to_the_vm_and_to_the_daemon() {
    let (aq, source) = shared();
    fs::write(source.join("old"), "old").unwrap();
    aq.exec("vm1", WRITER);
    goes_on(&source);
    aq.kill_daemon();
    std::thread::sleep(Duration::from_secs(2));
    aq.mount();
    aq.wait_for_ready("vm1");
    mounted(&aq, "vm1");
    goes_on(&source);
    aq.sh("echo suspend > vm1/ctl; cat vm1/wait; mv vm1 vm2; echo start > vm2/ctl").ok();
    aq.wait_for_ready("vm2");
    goes_on(&source);
    assert!(is_whole(&source), "{}", fs::read_to_string(source.join("log")).unwrap());
    assert_eq!(aq.exec("vm2", "cat /proc/$(cat /run/writer)/fd/6"), "old");
    // Back in time: what the guest has written since stays, and the program of then goes on.
    aq.sh("mkdir vm2/snapshots/s; cat vm2/wait; until grep -q ok vm2/snapshots/s/status; do sleep 0.1; done")
        .ok();
    goes_on(&source);
    let before = last(&source);
    aq.sh("echo 'restore s' > vm2/ctl; cat vm2/wait").ok();
    aq.wait_for_ready("vm2");
    mounted(&aq, "vm2");
    assert!(last(&source) >= before, "the host's files are the host's");
    eventually("the writer of the past writes", BOOT, || last(&source) < before);
    goes_on(&source);
    aq.sh("echo reset > vm2/ctl").ok();
    aq.wait_for_ready("vm2");
    mounted(&aq, "vm2");
    assert_eq!(aq.exec("vm2", "ls /mnt/src/log"), "/mnt/src/log");
}

#[test]
fn a_clone_has_the_shares_that_are_made_for_it() {
    let (aq, source) = shared();
    fs::write(source.join("a"), "a").unwrap();
    aq.exec("vm1", "sleep 1000 < /mnt/src/a > /dev/null 2>&1 & echo $! > /run/sleeper");
    aq.sh_within("mkdir .images/warm; echo vm1 > .images/warm/source; cat .images/warm/wait", BOOT)
        .ok();
    aq.sh("mkdir vm2; echo warm > vm2/config/image; echo start > vm2/ctl").ok();
    aq.wait_for_ready("vm2");
    assert_eq!(aq.info("vm2", "warm"), "yes");
    let script =
        "kill -0 $(cat /run/sleeper) && ls /mnt/src 2>&1; grep -c ' nfs ' /proc/mounts || true";
    assert_eq!(aq.exec("vm2", script).lines().last(), Some("0"));
    assert_eq!(aq.sh("ls vm2/shares").ok(), "");
    aq.sh("mkdir vm2/shares/src; echo \"$SCRATCH/src\" > vm2/shares/src/source").ok();
    mounted(&aq, "vm2");
    assert_eq!(aq.exec("vm2", "cat /mnt/src/a; echo two > /mnt/src/b"), "a");
    assert_eq!(aq.exec("vm1", "cat /mnt/src/b"), "two");
    // Neither removing the clone nor undoing that touches the source.
    aq.sh("echo kill > vm2/ctl; cat vm2/wait; rm -r vm2; mv .trash/vm2@* vm3").ok();
    assert_eq!(aq.sh("ls vm3/shares; cat vm3/shares/src/source").ok().lines().next(), Some("src"));
    assert_eq!(fs::read(source.join("a")).unwrap(), b"a");
    aq.boot_existing("vm3");
    mounted(&aq, "vm3");
    assert_eq!(aq.exec("vm3", "cat /mnt/src/a"), "a");
}

#[test]
fn a_container_has_it_in_its_own_root_and_so_has_its_clone() {
    let (aq, registry) = (Mounted::with_image(), Registry::start());
    fs::create_dir(aq.scratch().join("src")).expect("a directory");
    let layer = layer_of(&aq.scratch().join("root"), "mkdir etc; echo empty > etc/x");
    registry.image("empty", &json!({}), vec![layer]);
    let make = format!(
        "mkdir .images/c; echo {} > .images/c/source; echo pull > .images/c/ctl; cat .images/c/wait
        mkdir vm1 vm1/shares/src; echo c > vm1/config/image; echo \"$SCRATCH/src\" > vm1/shares/src/source",
        registry.source("empty")
    );
    aq.sh_within(&make, BOOT).ok();
    aq.boot_existing("vm1");
    mounted(&aq, "vm1");
    let programs = "PATH=$PATH:/dev/aqfs/bin";
    aq.exec("vm1", "cd /mnt/src && echo contained > a");
    assert_eq!(aq.sh("cat \"$SCRATCH/src/a\"").ok(), "contained");
    // Its clone has what is made for it.
    aq.sh_within("mkdir .images/w; echo vm1 > .images/w/source; cat .images/w/wait", BOOT).ok();
    aq.sh("mkdir vm2; echo w > vm2/config/image; echo start > vm2/ctl").ok();
    aq.wait_for_ready("vm2");
    let mounts = format!("{programs}; grep -c ' nfs ' /proc/mounts || true");
    assert_eq!((aq.info("vm2", "warm").as_str(), &*aq.exec("vm2", &mounts)), ("yes", "0"));
    assert_eq!(aq.exec("vm1", &mounts), "1");
    aq.sh("rmdir vm1/shares/src").ok();
    eventually("it is gone", BOOT, || aq.exec("vm1", &mounts) == "0");
}

#[test]
fn what_cannot_be_shared_is_refused() {
    let aq = Mounted::with_image();
    aq.sh("mkdir vm1 vm1/shares/src").ok();
    let refused = |text: &str, said: &str| {
        let script = format!("echo \"{text}\" > vm1/shares/src/source");
        assert!(aq.sh(&script).failed().contains("Invalid argument"), "{text}");
        let error = aq.read("vm1/error");
        assert!(error.contains(said), "{text}: {error}");
    };
    refused("src", "$PWD");
    refused("/", "all files");
    refused("$SCRATCH/mnt", "lies in");
    refused("$PWD/vm1/config", "lies in");
    refused("$SCRATCH/store/vms", "lies in");
    refused("$SCRATCH", "contains");
    refused("/etc/passwd", "not a directory");
    assert!(aq.sh("echo /nowhere > vm1/shares/src/source").failed().contains("No such file"));
    assert!(aq.sh("mkdir vm1/shares/src").failed().contains("File exists"));
    assert!(aq.sh("mkdir vm1/shares/.git").failed().contains("Invalid argument"));
    assert!(aq.sh("rmdir vm1/shares/none").failed().contains("No such file"));
    let closed = "mkdir \"$SCRATCH/closed\"; chmod 0 \"$SCRATCH/closed\"; \
        echo \"$SCRATCH/closed\" > vm1/shares/src/source";
    if !rustix::process::geteuid().is_root() {
        assert!(aq.sh(closed).failed().contains("Permission denied"));
        aq.sh("rmdir \"$SCRATCH/closed\"").ok();
    }
}

#[test]
fn a_run_has_the_directories_that_it_is_given_or_does_not_begin() {
    let aq = Mounted::with_image();
    aq.cli("mkdir a b; echo one > a/file; echo two > b/file").ok();
    let command = "cat /srv/a/file /opt/b/file; echo three > /srv/a/new; echo four > /opt/b/new";
    let said = aq.cli_within(
        &format!("aq run --rm -v a:/srv/a -v $PWD/b:/opt/b:ro tiny sh -c '{command}'"),
        BOOT,
    );
    assert_eq!((said.stdout.as_str(), said.code), ("one\ntwo\n", 1), "{said:?}");
    assert_eq!(aq.cli("cat a/new; ls b").ok(), "three\nfile");
    for (volume, why) in
        [("c:/x", "c: No such file"), ("a:x", "DIR:TARGET"), ("a/file:/x", "not a directory")]
    {
        let refused = aq.cli(&format!("aq run --rm -v {volume} tiny true")).failed();
        assert!(refused.contains(why), "{volume}: {refused}");
    }
    assert_eq!(aq.sh("ls").ok(), "");
}
