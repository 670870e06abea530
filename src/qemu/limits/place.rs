//! Where groups of VMs can be made: below the daemon's own group where that is delegated to it, else by systemd.
//!
//! A group that distributes to groups below it may have no process itself. So whoever is in the delegated group, the
//! daemon and perhaps the shell that started it, moves to a group below it, and back when no VM needs one any more.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock, getxattr};
use uuid::Uuid;

use super::group::{Group, PROCESSES};
use super::scope::Manager;
use crate::proc;

const CONTROLLERS: [&str; 2] = ["cpu", "memory"];
const AVAILABLE: &str = "cgroup.controllers";
const ENABLED: &str = "cgroup.subtree_control";
const TYPE: &str = "cgroup.type";
/// The group of the processes that were in the delegated group before.
const REST: &str = "aqfs-rest";
/// How often processes are moved before it is given up: others start while some are moved.
const ROUNDS: usize = 10;

/// The hierarchy of cgroup v2 as it is mounted here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    mount: PathBuf,
    /// The group that is mounted there.
    root: PathBuf,
}

impl Hierarchy {
    /// Finds it; `None` if it is not mounted.
    pub fn here() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").ok()?)
    }

    fn parse(table: &str) -> Option<Self> {
        let mount = |line: &str| {
            let (mount, file_system) = line.split_once(" - ")?;
            file_system.starts_with("cgroup2 ").then_some(())?;
            let mut fields = mount.split(' ').skip(3);
            Some(Self { root: fields.next()?.into(), mount: fields.next()?.into() })
        };
        table.lines().find_map(mount)
    }

    /// Returns the directory of the group that a text of `/proc/PID/cgroup` names.
    pub fn dir_of(&self, cgroups: &str) -> Option<PathBuf> {
        let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"))?;
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        Some(if below.as_os_str().is_empty() { self.mount.clone() } else { self.mount.join(below) })
    }
}

/// Where groups can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Below this group.
    Delegated(PathBuf),
    /// In scopes of this systemd.
    Systemd(Manager),
}

/// Finds where groups can be made.
///
/// # Errors
/// Why nowhere, and the next step.
pub fn find() -> Result<Place, String> {
    let none = "this host has no cgroup v2 with the controllers cpu and memory; boot it with systemd.unified_cgroup_hierarchy=1";
    let hierarchy = Hierarchy::here().ok_or(none)?;
    if controllers(&hierarchy.mount).is_empty() {
        return Err(none.to_owned());
    }
    let own = hierarchy.dir_of(&proc::cgroups_of(std::process::id())).ok_or(none)?;
    if let Some(base) = delegated(&own) {
        return Ok(Place::Delegated(base));
    }
    Manager::find().map(Place::Systemd).ok_or_else(|| {
        "no cgroup is delegated to the daemon and no systemd session is there; log in so that \
         $XDG_RUNTIME_DIR/bus is there (`loginctl enable-linger`), or mount in a cgroup that this user may write"
            .to_owned()
    })
}

/// Returns the group below which groups can be made, for a process in `own`.
fn delegated(own: &Path) -> Option<PathBuf> {
    let base = if own.ends_with(REST) { own.parent()? } else { own };
    let is_ours = !controllers(base).is_empty()
        && [base, &base.join(PROCESSES), &base.join(ENABLED)].into_iter().all(is_writable)
        && (!is_unit(base) || is_marked(base));
    is_ours.then(|| base.to_owned())
}

fn is_writable(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// The group of a unit belongs to systemd, also where its user may write to it.
fn is_unit(dir: &Path) -> bool {
    let suffix = dir.extension().and_then(|suffix| suffix.to_str());
    suffix.is_some_and(|suffix| ["scope", "service", "slice"].contains(&suffix))
}

/// Says whether systemd has marked a unit's group as delegated (`Delegate=`).
fn is_marked(dir: &Path) -> bool {
    let mark = |name: &str| {
        let mut value = [0; 8];
        getxattr(dir, name, &mut value).is_ok_and(|length| value.get(..length) == Some(b"1"))
    };
    mark("user.delegate") || mark("trusted.delegate")
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Lists the controllers of ours that a group has.
fn controllers(dir: &Path) -> Vec<&'static str> {
    let there = words(&dir.join(AVAILABLE));
    CONTROLLERS.into_iter().filter(|name| there.iter().any(|word| word == name)).collect()
}

/// Makes the group of a VM, in that of its mount, below `base`.
///
/// # Errors
/// What the kernel answers.
pub fn make(base: &Path, mount: &str, vm: Uuid) -> io::Result<Group> {
    let _turn = turn(base)?;
    enable(base)?;
    let mount = base.join(mount);
    make_dir(&mount)?;
    enable(&mount)?;
    make_in(&mount, vm)
}

/// Makes the group of a VM in `dir`, which may have processes.
///
/// # Errors
/// What the kernel answers.
pub fn make_in(dir: &Path, vm: Uuid) -> io::Result<Group> {
    let dir = dir.join(vm.to_string());
    make_dir(&dir)?;
    Ok(Group(dir))
}

/// Another daemon may do the same in the same group.
fn turn(base: &Path) -> io::Result<File> {
    let dir = File::open(base)?;
    flock(&dir, FlockOperation::LockExclusive)?;
    Ok(dir)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Has a group distribute to those below it. With processes in it, it would become one for threads.
///
/// # Errors
/// What the kernel answers.
pub fn enable(dir: &Path) -> io::Result<()> {
    let enabled = words(&dir.join(ENABLED));
    let missing = controllers(dir).into_iter().filter(|c| !enabled.iter().any(|e| e == c));
    let missing: Vec<_> = missing.map(|controller| format!("+{controller}")).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let group = Group(dir.to_owned());
    // The hierarchy's own root has no type, and may have processes.
    if dir.join(TYPE).exists() && !group.processes().is_empty() {
        make_dir(&dir.join(REST))?;
        move_all(&group, &Group(dir.join(REST)));
    }
    fs::write(dir.join(ENABLED), missing.join(" "))
}

fn move_all(from: &Group, to: &Group) {
    for _ in 0..ROUNDS {
        let processes = from.processes();
        if processes.is_empty() {
            return;
        }
        for pid in processes {
            // It may have ended; of any other the next step fails.
            drop(to.take_in(pid));
        }
    }
}

/// Removes the groups below `base` that nobody is in, and puts everything back if none is left.
///
/// # Errors
/// What the kernel answers.
pub fn clear(base: &Path, mount: &str) -> io::Result<()> {
    let _turn = turn(base)?;
    for group in groups_in(&base.join(mount)) {
        // One that is in use stays.
        drop(fs::remove_dir(group));
    }
    drop(fs::remove_dir(base.join(mount)));
    let rest = base.join(REST);
    let is_last = groups_in(base).iter().all(|group| *group == rest);
    if is_last && rest.exists() {
        let words: Vec<_> = CONTROLLERS.iter().map(|name| format!("-{name}")).collect();
        fs::write(base.join(ENABLED), words.join(" "))?;
        move_all(&Group(rest.clone()), &Group(base.to_owned()));
        fs::remove_dir(rest)?;
    }
    Ok(())
}

/// Lists the groups in a group.
pub fn groups_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_of_a_process_is_found_where_the_hierarchy_is_mounted() {
        let table = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        let hierarchy = Hierarchy::parse(table).unwrap();
        let dir = hierarchy.dir_of("4:memory:/x\n0::/user.slice/a b\n").unwrap();
        assert_eq!(dir, Path::new("/sys/fs/cgroup/unified/user.slice/a b"));
        assert_eq!(hierarchy.dir_of("0::/\n").unwrap(), Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(hierarchy.dir_of("4:memory:/x\n"), None);
        let part = Hierarchy { root: "/box".into(), mount: "/c".into() };
        assert_eq!(part.dir_of("0::/box/a\n").unwrap(), Path::new("/c/a"));
        assert_eq!(part.dir_of("0::/elsewhere\n"), None);
    }

    /// A directory that looks like a group.
    fn group(dir: &Path) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in [(AVAILABLE, "cpuset cpu memory"), (ENABLED, ""), (PROCESSES, "")] {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn a_group_is_used_that_may_be_written_and_is_not_systemds() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["box", "box/aqfs-rest", "a.scope"] {
            group(&at(name));
        }
        assert_eq!(delegated(&at("box")), Some(at("box")));
        assert_eq!(delegated(&at("box/aqfs-rest")), Some(at("box")));
        assert_eq!(delegated(&at("a.scope")), None);
        fs::write(at("box").join(AVAILABLE), "hugetlb").unwrap();
        assert_eq!(delegated(&at("box")), None);
    }
}
