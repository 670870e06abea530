//! Memory: what a QEMU takes beside its guest's, and what the host could give.
//!
//! Not here: what has been promised to which VM, and which start is refused (`vm::memory`).

use std::fs;
use std::path::Path;

use super::cmdline;
use crate::proc;
use crate::vm::backend::AccelKind;

/// What a QEMU of this command line has for itself, measured at 26 MiB after a boot and 31 MiB
/// after minutes of load on four processors and a snapshot, those processors included.
const QEMU: u64 = 32 << 20;
/// What each processor adds: a thread, and under TCG its table of translated addresses.
const PROCESSOR: u64 = 2 << 20;
/// A page table entry of 8 bytes for each page of 4 KiB.
const PAGE_TABLES: u64 = 512;
/// What TCG keeps beside each piece of translated code was an eighth of it.
const BOOKS: u64 = 8;

/// Returns the bytes that a QEMU may come to take beside the guest's memory.
pub fn overhead(memory: u64, cpus: u32, kind: AccelKind) -> u64 {
    let common = QEMU + PROCESSOR * u64::from(cpus) + memory / PAGE_TABLES;
    let cache = cmdline::translation_cache(memory) << 20;
    match kind {
        AccelKind::Kvm => common,
        AccelKind::Tcg => common + cache + cache / BOOKS,
    }
}

/// Returns the bytes of memory that could be taken now: the host's, within the limits of the
/// control groups that we and the machines are in.
pub fn available() -> u64 {
    let groups = proc::own_cgroups();
    let limits = groups.lines().filter_map(|line| room_in(line, Path::new("/sys/fs/cgroup")));
    limits.fold(proc::host_memory("MemAvailable"), u64::min)
}

/// Where a version of cgroups has the numbers.
struct CgroupFiles {
    /// The directory of its hierarchy.
    root: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// In `memory.stat`: the part of the usage that is given back on demand.
    cache: &'static str,
}

const VERSION_1: CgroupFiles = CgroupFiles {
    root: "memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};
const VERSION_2: CgroupFiles =
    CgroupFiles { root: "", limit: "memory.max", usage: "memory.current", cache: "inactive_file" };

/// Reads what a line of `/proc/PID/cgroup` (`0::/user.slice`, `4:memory:/x`) leaves: in the group
/// itself and in all above it. `None` where nothing limits memory.
fn room_in(line: &str, mount: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (_number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let files = match controllers {
        "" => VERSION_2,
        list if list.split(',').any(|c| c == "memory") => VERSION_1,
        _ => return None,
    };
    let root = mount.join(files.root);
    let group = root.join(path.trim_start_matches('/'));
    let above = group.ancestors().take_while(|dir| dir.starts_with(&root));
    above.filter_map(|dir| room(dir, &files)).min()
}

fn room(dir: &Path, files: &CgroupFiles) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(dir.join(name)).ok();
    // `max`, as no number, is no limit.
    let limit: u64 = read(files.limit)?.trim().parse().ok()?;
    let usage: u64 = read(files.usage)?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let cache = stat.lines().find_map(|l| l.strip_prefix(files.cache)?.trim().parse().ok());
    Some(limit.saturating_sub(usage.saturating_sub(cache.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(dir: &Path, files: &CgroupFiles, limit: &str, usage: u64, cache: u64) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(files.limit), format!("{limit}\n")).unwrap();
        fs::write(dir.join(files.usage), format!("{usage}\n")).unwrap();
        fs::write(dir.join("memory.stat"), format!("anon 7\n{} {cache}\n", files.cache)).unwrap();
    }

    #[test]
    fn a_qemu_takes_more_for_more() {
        let mebi = |memory: u64, cpus, kind| overhead(memory << 20, cpus, kind) >> 20;
        let table = [
            (256, 1, AccelKind::Kvm, 34),
            (256, 1, AccelKind::Tcg, 34 + 72),
            (8192, 8, AccelKind::Kvm, 64),
            (8192, 8, AccelKind::Tcg, 64 + 576),
        ];
        for (memory, cpus, kind, expected) in table {
            assert_eq!(mebi(memory, cpus, kind), expected, "{memory} {cpus} {kind:?}");
        }
    }

    #[test]
    fn the_tightest_group_counts_and_its_cache_does_not() {
        let mount = tempfile::tempdir().unwrap();
        let at = |path: &str| mount.path().join(path);
        group(&at("a"), &VERSION_2, "1000", 900, 300);
        group(&at("a/b"), &VERSION_2, "max", 100, 0);
        group(&at("c"), &VERSION_2, "100", 900, 0);
        group(&at("memory"), &VERSION_1, "9223372036854771712", 5, 0);
        group(&at("memory/x"), &VERSION_1, "500", 100, 50);
        let table = [
            ("0::/a/b", Some(400)),
            ("0::/c/gone", Some(0)),
            ("0::/", None),
            ("4:memory:/x", Some(450)),
            ("4:cpu,memory:/", Some(9_223_372_036_854_771_707)),
            ("3:cpuset:/x", None),
            ("0::/../../c", None),
            ("", None),
        ];
        for (line, expected) in table {
            assert_eq!(room_in(line, mount.path()), expected, "{line}");
        }
    }

    #[test]
    fn this_host_has_some() {
        assert!(available() > 0);
    }
}
