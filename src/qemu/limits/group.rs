//! One control group (cgroup v2): its limits, what it has used, and who is in it. A group is a directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::place::Hierarchy;
use crate::proc;
use crate::vm::spec::{CpuLimit, HostLimits};

/// The processes in a group, a number a line; a number that is written moves that process into it.
pub const PROCESSES: &str = "cgroup.procs";
/// What counts memory that was refused, and processes that were ended for it.
pub const MEMORY_EVENTS: &str = "memory.events";
const CPU_MAX: &str = "cpu.max";
const MEMORY_HIGH: &str = "memory.high";
const MEMORY_MAX: &str = "memory.max";
/// The microseconds in which processor time is given out, the kernel's own default.
const PERIOD: u64 = 100_000;
const NO_LIMIT: &str = "max";

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group(pub PathBuf);

impl Group {
    /// Finds the group of a VM's QEMU; `None` if it has none of its own.
    pub fn of(pid: u32, vm: Uuid) -> Option<Self> {
        let dir = Hierarchy::here()?.dir_of(&proc::cgroups_of(pid))?;
        (dir.file_name()?.to_str()? == vm.to_string()).then_some(Self(dir))
    }

    /// Sets its limits, as far as the group has what holds them.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set(&self, limits: &HostLimits) -> io::Result<()> {
        let size = |size: Option<u64>| size.map_or_else(|| NO_LIMIT.to_owned(), |n| n.to_string());
        self.put(MEMORY_HIGH, &size(limits.memory_high))?;
        self.put(MEMORY_MAX, &size(limits.memory_max))?;
        self.set_cpu(limits.cpu)
    }

    /// Sets what all processes in it together get of the host's processors.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_cpu(&self, limit: Option<CpuLimit>) -> io::Result<()> {
        self.put(CPU_MAX, &cpu_max(limit))
    }

    fn put(&self, name: &str, text: &str) -> io::Result<()> {
        match self.0.join(name) {
            path if path.exists() => fs::write(path, text),
            _ => Ok(()),
        }
    }

    /// Says whether it holds processor time.
    pub fn holds_cpu(&self) -> bool {
        self.0.join(CPU_MAX).exists()
    }

    /// Says whether it holds memory.
    pub fn holds_memory(&self) -> bool {
        self.0.join(MEMORY_MAX).exists()
    }

    /// Returns the bytes that it has, and the most that it has had where the kernel counts that.
    pub fn memory(&self) -> (u64, Option<u64>) {
        let number = |name: &str| fs::read_to_string(self.0.join(name)).ok()?.trim().parse().ok();
        (number("memory.current").unwrap_or_default(), number("memory.peak"))
    }

    /// Moves a process into it.
    ///
    /// # Errors
    /// What the kernel answers; `ESRCH` for one that has ended.
    pub fn take_in(&self, pid: u32) -> io::Result<()> {
        fs::write(self.0.join(PROCESSES), pid.to_string())
    }

    /// Lists the processes in it, without those that this namespace has no number for.
    pub fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.0.join(PROCESSES)).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid != 0).collect()
    }

    /// Returns what has happened to its memory.
    pub fn events(&self) -> MemoryEvents {
        MemoryEvents::read(&self.0)
    }
}

fn cpu_max(limit: Option<CpuLimit>) -> String {
    match limit {
        Some(limit) => format!("{} {PERIOD}", limit.thousandths() * PERIOD / 1000),
        None => format!("{NO_LIMIT} {PERIOD}"),
    }
}

/// How often a group's memory has met its limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEvents {
    /// More than `memory.high` was asked for.
    pub high: u64,
    /// More than `memory.max` was asked for.
    pub max: u64,
    /// A process was ended because nothing could be given back.
    pub killed: u64,
}

impl MemoryEvents {
    fn read(dir: &Path) -> Self {
        Self::parse(&fs::read_to_string(dir.join(MEMORY_EVENTS)).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let count = |name: &str| {
            let line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
            text.lines().find_map(line).unwrap_or_default()
        };
        Self { high: count("high"), max: count("max"), killed: count("oom_kill") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_written_as_the_kernel_reads_them() {
        let dir = tempfile::tempdir().unwrap();
        let group = Group(dir.path().to_owned());
        for name in [CPU_MAX, MEMORY_HIGH, MEMORY_MAX] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let read = || {
            [CPU_MAX, MEMORY_HIGH, MEMORY_MAX]
                .map(|name| fs::read_to_string(dir.path().join(name)).unwrap())
        };
        let cpu = CpuLimit::parse("cpu_limit", "1.5").unwrap();
        let limits = HostLimits { cpu, memory_high: Some(64 << 20), memory_max: None };
        group.set(&limits).unwrap();
        assert_eq!(read(), ["150000 100000", "67108864", "max"]);
        group.set(&HostLimits::default()).unwrap();
        assert_eq!(read(), ["max 100000", "max", "max"]);
        fs::remove_file(dir.path().join(CPU_MAX)).unwrap();
        group.set(&limits).unwrap();
        assert!(!group.holds_cpu() && group.holds_memory());
    }

    #[test]
    fn events_are_counted_by_their_whole_name() {
        let text = "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n";
        assert_eq!(MemoryEvents::parse(text), MemoryEvents { high: 2, max: 3, killed: 5 });
        assert_eq!(MemoryEvents::parse(""), MemoryEvents::default());
    }
}
