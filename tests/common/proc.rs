//! Looks at `/proc`: processes, their states and groups, mounts. Nothing here changes anything,
//! except [`kill`].

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};

/// A line of `/proc/PID/stat`, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// `R`, `S`, `D`, `Z`, `T` …
    pub(crate) state: char,
    pub(crate) group: u32,
}

/// Reads one process; `None` when it is gone.
pub(crate) fn process(pid: u32) -> Option<Process> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Parses `/proc/PID/stat`. The name may itself hold blanks and brackets.
pub(crate) fn parse_stat(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(") ")?;
    let (pid, name) = head.split_once(" (")?;
    let mut fields = tail.split(' ');
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        state: fields.next()?.chars().next()?,
        group: fields.nth(1)?.parse().ok()?,
    })
}

/// Lists the numbers of all processes.
pub(crate) fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.flatten().map(|e| e.file_name());
    names.filter_map(|n| n.to_str()?.parse().ok()).collect()
}

/// Lists the processes of a group.
pub(crate) fn group(group: u32) -> Vec<Process> {
    all().into_iter().filter_map(process).filter(|p| p.group == group).collect()
}

/// Says whether a process lives (a zombie does not).
pub(crate) fn alive(pid: u32) -> bool {
    process(pid).is_some_and(|p| p.state != 'Z')
}

/// Lists the QEMU processes that serve a VM of the store below `root`.
pub(crate) fn qemus(root: &Path) -> Vec<u32> {
    of_store(root, "qemu-system")
}

/// Lists the processes of a program, by the beginning of its name, that work on the store below
/// `root`: those that run in one of its directories or name it in their arguments.
pub(crate) fn of_store(root: &Path, program: &str) -> Vec<u32> {
    all().into_iter().filter(|&pid| is_of_store(pid, root, program)).collect()
}

fn is_of_store(pid: u32, root: &Path, program: &str) -> bool {
    let Some(process) = process(pid).filter(|p| p.state != 'Z') else {
        return false;
    };
    let below = |p: PathBuf| p.starts_with(root);
    let names_root = || {
        let root = root.as_os_str().as_encoded_bytes();
        let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        args.windows(root.len()).any(|w| w == root)
    };
    process.name.starts_with(program)
        && (fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(below) || names_root())
}

/// Says whether `dir` is the mount point of something.
pub(crate) fn is_mounted(dir: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mount_points(&table).any(|point| point == dir)
}

/// Lists the mount points in a `mountinfo` table, without its octal escapes.
pub(crate) fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    let point = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    table.lines().filter_map(point).map(|p| p.replace("\\040", " ").into())
}

/// Sends a signal; a process that is gone is fine.
pub(crate) fn kill(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = rustix::process::kill_process(pid, signal);
    }
}

/// Sends SIGKILL to a process group; one that is gone is fine.
pub(crate) fn kill_group(group: u32) {
    if let Some(pid) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        let _gone = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}
