//! Other users of the host: they reach neither a guest's files nor a share's server.
//!
//! Not here: other users of the guest (`shares`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{BOOT, Mounted, Output, eventually, shell};

/// The user and the group that own nothing.
const OTHER: &str = "65534";

/// A guest with a file `secret` in `fs`, and one in a share.
fn guest_with_files() -> Mounted {
    let aq = Mounted::with_image();
    fs::create_dir(aq.scratch().join("src")).expect("a directory");
    aq.sh("mkdir vm1 vm1/shares/src; echo \"$SCRATCH/src\" > vm1/shares/src/source").ok();
    aq.boot_existing("vm1");
    let status = || aq.read("vm1/shares/src/status");
    eventually("the share is mounted", BOOT, || status() == "mounted");
    aq.exec(
        "vm1",
        "echo hidden > /root/secret; chmod 644 /root/secret; echo hidden > /mnt/src/secret",
    );
    assert_eq!(aq.sh("cat vm1/fs/root/secret").ok(), "hidden");
    aq
}

/// The sockets that a process has: what /proc/PID/fd calls `socket:[NUMBER]`.
fn sockets(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("its files").flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let number = |target: PathBuf| {
        Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    targets.filter_map(number).collect()
}

/// Lists the lines of a table of sockets that are of a process, and in a state. `column` has the number.
fn listening(pid: u32, table: &str, (state, is): (usize, &str), column: usize) -> Vec<String> {
    let (sockets, table) = (sockets(pid), format!("/proc/{pid}/net/{table}"));
    let text = fs::read_to_string(table).unwrap_or_default();
    let is_wanted = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = fields.get(column).copied().unwrap_or_default();
        fields.get(state) == Some(&is) && sockets.iter().any(|socket| socket == number)
    };
    text.lines().filter(is_wanted).map(str::to_owned).collect()
}

#[test]
fn the_daemon_listens_on_no_port_and_on_no_open_socket() {
    let aq = guest_with_files();
    let daemon = aq.daemon();
    assert!(!sockets(daemon).is_empty());
    for table in ["tcp", "tcp6"] {
        let found = listening(daemon, table, (3, "0A"), 9);
        assert!(found.is_empty(), "{table}: {found:?}");
    }
    for table in ["udp", "udp6"] {
        let found = listening(daemon, table, (3, "07"), 9);
        assert!(found.is_empty(), "{table}: {found:?}");
    }
    // Of sockets in the file system, the flags say which are listened on. An abstract one has no permissions.
    for line in listening(daemon, "unix", (3, "00010000"), 6) {
        let path = line.split_whitespace().nth(7).unwrap_or("@").to_owned();
        let is_closed =
            |at: &Path| fs::metadata(at).is_ok_and(|found| found.permissions().mode() & 0o077 == 0);
        assert!(Path::new(&path).ancestors().any(is_closed), "open to others: {line}");
    }
}

/// Directories that others may enter until this is dropped.
struct Opened(Vec<PathBuf>);

impl Opened {
    fn new(aq: &Mounted) -> Self {
        let mode = |dir: &Path| fs::metadata(dir).expect("a directory").permissions().mode();
        let closed = aq.store().root().ancestors().filter(|dir| mode(dir) & 0o005 == 0);
        let closed = Self(closed.map(Path::to_owned).collect());
        closed.set(0o755);
        closed
    }

    fn set(&self, mode: u32) {
        for dir in &self.0 {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).expect("chmod");
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.set(0o700);
    }
}

/// Runs a script as another user.
fn as_other(aq: &Mounted, script: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", OTHER, "--regid", OTHER, "--clear-groups", "sh", "-c", script]);
    command.env("AQ_MOUNT", aq.dir()).env("STORE", aq.store().root()).current_dir("/");
    command.env("DAEMON", aq.daemon().to_string()).env("PORT", aq.info("vm1", "ssh_port"));
    shell::finish(&mut command, BOOT)
}

#[test]
#[ignore = "needs root: run by tools/test root"]
fn another_user_reaches_neither_the_files_nor_the_server_of_a_share() {
    let aq = guest_with_files();
    // The store's directory, and those above it, are closed to others: that is not what is tested here.
    let _opened = Opened::new(&aq);
    assert_eq!(as_other(&aq, "cat $STORE/lock > /dev/null && id -u").ok(), OTHER);
    let uuid = aq.info("vm1", "uuid");
    for attempt in [
        "ls $AQ_MOUNT/",
        "cat $AQ_MOUNT/vm1/fs/root/secret",
        "ls $STORE/fs/",
        "ls $STORE/fs/vm1/",
        "cat $STORE/fs/vm1/root/secret",
        "cat $STORE/ssh/id_ed25519",
        &format!("cat $STORE/vms/{uuid}/shares.json"),
        "ls /proc/$DAEMON/fd",
        "ls /proc/$DAEMON/root/",
        "ssh -F none -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
            -p $PORT root@127.0.0.1 cat /mnt/src/secret",
    ] {
        let said = as_other(&aq, attempt);
        assert!(said.code != 0 && !said.stdout.contains("hidden"), "{attempt}: {said:?}");
        assert!(said.stderr.contains("ermission denied"), "{attempt}: {said:?}");
    }
}
