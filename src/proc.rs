//! `/proc`: what the kernel says about processes, and about the host.
//!
//! The only readers of `/proc`, but for `fuse/waiter.rs`, which keeps a file open between looks,
//! and for `fuse/mountpoint.rs`, which lists mounts and their users.

use std::fs;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// `R`, `S`, `Z` and others.
    pub state: char,
    /// Its parent's number.
    pub parent: u32,
    /// The number of its session.
    pub session: u32,
    /// Processor time in clock ticks.
    pub ticks: u64,
    /// When it started, in clock ticks since the host's boot. It distinguishes a process from a
    /// later one with the same number.
    pub start: u64,
    /// Resident memory in pages.
    pub resident: u64,
}

impl Stat {
    /// Reads it.
    ///
    /// # Errors
    /// `NotFound` if there is no such process.
    pub fn of(pid: u32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        Self::parse(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(text: &str) -> Option<Self> {
        // The program's name in parentheses may hold spaces and parentheses: fields count from its
        // end.
        let fields: Vec<&str> = text.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        let small = |field: usize| fields.get(field)?.parse::<u32>().ok();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: small(1)?,
            session: small(3)?,
            ticks: number(11)? + number(12)?,
            start: number(19)?,
            resident: number(21)?,
        })
    }

    /// Says whether it has ended: a zombie stays until its parent reaps it, which may be never.
    pub fn has_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// Says whether a process is about to end: it has no memory any more when it closes its files. `stat` says so
/// too, but reading that waits, since Linux 6.18, while the process executes a program; a file that it closes
/// by that would wait for its reader.
pub fn is_exiting(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|text| !text.contains("\nVmSize:"))
}

/// Reads when a process started, in clock ticks since the host's boot.
///
/// # Errors
/// `NotFound` if there is no such process, or it has ended and is not reaped yet.
pub fn start_time(pid: u32) -> io::Result<u64> {
    match Stat::of(pid)? {
        stat if stat.has_ended() => Err(io::ErrorKind::NotFound.into()),
        stat => Ok(stat.start),
    }
}

/// Returns when a process started by the clock on the wall, from its [`start_time`].
pub fn started_at(start: u64) -> SystemTime {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let uptime = Duration::from_secs(u64::try_from(uptime.tv_sec).unwrap_or(0));
    let age =
        uptime.saturating_sub(Duration::from_secs(start / rustix::param::clock_ticks_per_second()));
    SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH)
}

/// Says whether a process has ended, or never was.
pub fn is_gone(pid: u32) -> bool {
    start_time(pid).is_err()
}

/// Returns a process's command line; empty if there is no such process.
pub fn arguments_of(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = line.split(|b| *b == 0);
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Returns the argument after `option` on a process's command line.
pub fn argument_of(pid: u32, option: &str) -> Option<String> {
    let mut words = arguments_of(pid).into_iter();
    words.find(|word| word == option)?;
    words.next()
}

/// Returns the number of the process that a thread belongs to.
pub fn process_of(thread: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    field(&status, "Tgid").and_then(|leader| leader.parse().ok())
}

/// What a process has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time in milliseconds.
    pub cpu_ms: u64,
    /// Resident memory in bytes.
    pub rss: u64,
}

/// Returns what a process has used; nothing for one that is gone.
pub fn usage(pid: u32) -> Usage {
    let Ok(stat) = Stat::of(pid) else { return Usage::default() };
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    Usage { cpu_ms: stat.ticks * 1000 / per_second, rss: stat.resident * page }
}

/// Memory of a process in bytes, without files that are mapped: the kernel takes those back on
/// demand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Its own.
    pub own: u64,
    /// Shared with others.
    pub shared: u64,
}

/// Returns the memory of a process; nothing for one that is gone.
pub fn memory_of(pid: u32) -> Memory {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    Memory { own: kibibytes(&status, "RssAnon"), shared: kibibytes(&status, "RssShmem") }
}

/// Says whether another process has a connection to one of these ports of the host, by TCP over IPv4.
pub fn has_connections(ports: &[u16]) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let (sockets, all) = (own_sockets(), established(&table));
    let own: Vec<&str> =
        all.iter().filter(|c| sockets.contains(c.inode)).map(|c| c.local).collect();
    all.iter().any(|c| c.port().is_some_and(|p| ports.contains(&p)) && !own.contains(&c.remote))
}

/// An end of a connection, as `/proc/net/tcp` has it.
#[derive(Debug, PartialEq, Eq)]
struct Connection<'a> {
    local: &'a str,
    remote: &'a str,
    inode: &'a str,
}

impl<'a> Connection<'a> {
    /// Reads a row of one that is established.
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, local, remote, "01", _, _, _, _, _, inode, ..] = fields[..] else { return None };
        Some(Self { local, remote, inode })
    }

    fn port(&self) -> Option<u16> {
        u16::from_str_radix(self.local.split(':').nth(1)?, 16).ok()
    }
}

fn established(table: &str) -> Vec<Connection<'_>> {
    table.lines().filter_map(Connection::parse).collect()
}

/// Lists the inodes of this process's sockets.
fn own_sockets() -> std::collections::HashSet<String> {
    let open = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let target =
        |entry: fs::DirEntry| fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok();
    let inode =
        |target: String| Some(target.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    open.filter_map(target).filter_map(inode).collect()
}

/// Returns a value of `/proc/meminfo` in bytes; 0 if there is none.
pub fn host_memory(key: &str) -> u64 {
    kibibytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), key)
}

/// Returns the text of `/proc/cpuinfo`; empty if it cannot be read.
pub fn cpuinfo() -> String {
    fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// Returns the control groups that this process is in, one a line.
pub fn own_cgroups() -> String {
    fs::read_to_string("/proc/self/cgroup").unwrap_or_default()
}

/// Returns the control groups that a process is in, one a line.
pub fn cgroups_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default()
}

/// Reads the identity of the host's current boot.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Finds `KEY:  VALUE` in one of the kernel's tables.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// Finds `KEY:  NUMBER kB` and returns it in bytes.
fn kibibytes(text: &str, key: &str) -> u64 {
    let kib = field(text, key).and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let text = "7 (a) Z (b) S 1 7 9 0 -1 4194560 1 2 3 4 50 60 0 0 20 0 1 0 4711 8192 99 1";
        let stat = Stat::parse(text).unwrap();
        let wanted =
            Stat { state: 'S', parent: 1, session: 9, ticks: 110, start: 4711, resident: 99 };
        assert_eq!(stat, wanted);
        assert_eq!(Stat::parse("7 (cut"), None);
    }

    #[test]
    fn connections_of_our_own_do_not_count() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:9C56 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0
   1: 0100007F:9C56 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 22 1 0 20 4 30 10 -1";
        let found = established(table);
        let expected = Connection { local: "0100007F:9C56", remote: "0100007F:C350", inode: "22" };
        assert_eq!((found[0].port(), &found[..]), (Some(40022), &[expected][..]));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _ours = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(!has_connections(&[port]));
    }

    #[test]
    fn a_thread_is_known_by_its_process() {
        let own = std::process::id();
        let thread = std::thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().get());
        let thread = u32::try_from(thread.join().unwrap()).unwrap();
        // The thread may have ended: then only the process itself is still there.
        assert!(process_of(thread).is_none_or(|pid| pid == own));
        assert_eq!(process_of(own), Some(own));
    }

    #[test]
    fn we_run_and_nobody_has_the_largest_number() {
        let own = std::process::id();
        assert!(!is_gone(own) && is_gone(u32::MAX));
        assert!(usage(own).rss > 0 && memory_of(own).own > 0 && host_memory("MemTotal") > 0);
        assert_eq!((usage(u32::MAX), memory_of(u32::MAX)), <(Usage, Memory)>::default());
    }
}
