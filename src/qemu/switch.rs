//! Switches of VDE: a `vde_switch` for each net, in a session of its own, which outlives the daemon and is found
//! again by pid and start time, as QEMU is.
//!
//! In its directory are `s`, with its sockets, `switch.json`, the record of the process, and `log`.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustix::event::{EventfdFlags, eventfd};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

use super::install::not_started;
use super::machine::{Ended, end_of, watch_end};
use super::process::{Process, boot_id};
use crate::programs::VDE_SWITCH;
use crate::store::file;
use crate::sys;
use crate::vm::backend::{BackendError, Result, Switch, Switches};
use crate::vm::driver::off_thread;

/// How long one may take until it has its socket: some milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(2);
/// How long one may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Members of a net whose devices can be connected at once.
const PORTS: &str = "1024";
/// The directory of the sockets, and the socket by which a port is asked for.
const SOCKETS: &str = "s";
const CONTROL: &str = "ctl";
const RECORD: &str = "switch.json";
const LOG: &str = "log";
/// The bytes of the address of a socket, with room for the longest name that a QEMU gives its own.
const LONGEST_PATH: usize = 107 - "/.4294967-00000".len();

/// The switches of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct VdeSwitches;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    boot_id: String,
    pid: u32,
    start: u64,
}

#[derive(Debug)]
struct VdeSwitch {
    dir: PathBuf,
    sockets: PathBuf,
    process: Arc<Process>,
    ended: Ended,
}

#[async_trait]
impl Switches for VdeSwitches {
    async fn start(&self, dir: &Path) -> Result<Arc<dyn Switch>> {
        let at = dir.to_owned();
        let start = move || Ok(start(&at));
        let process = off_thread(start, "the switch of a net").await??;
        let switch = VdeSwitch::new(dir, process);
        switch.listening().await?;
        Ok(Arc::new(switch))
    }

    async fn adopt(&self, dir: &Path) -> Option<Arc<dyn Switch>> {
        let record: Record = file::read_json(&dir.join(RECORD)).ok()?;
        let process = Process::of(record.pid).ok()?;
        let is_it = process.start == record.start && boot_id().ok()? == record.boot_id;
        is_it.then(|| Arc::new(VdeSwitch::new(dir, process)) as _)
    }

    fn host_networks(&self) -> Vec<(Ipv4Addr, u8)> {
        networks(&fs::read_to_string("/proc/net/route").unwrap_or_default())
    }
}

/// Reads the kernel's table of routes, without the default route.
fn networks(table: &str) -> Vec<(Ipv4Addr, u8)> {
    let number = |hex: &str| u32::from_str_radix(hex, 16).ok().map(u32::from_be);
    let network = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let destination = number(words.next()?)?;
        let mask = number(words.nth(5)?)?;
        Some((Ipv4Addr::from_bits(destination), u8::try_from(mask.leading_ones()).ok()?))
    };
    let routes = table.lines().skip(1).filter_map(network);
    routes.filter(|(_, prefix)| *prefix > 0).collect()
}

fn start(dir: &Path) -> Result<Process> {
    let what = || format!("the switch in {}", dir.display());
    let sockets = dir.join(SOCKETS);
    if sockets.as_os_str().as_bytes().len() > LONGEST_PATH {
        let why =
            "the path is too long for the address of a socket; keep the store at a shorter one";
        return Err(BackendError::fact(what(), why, libc::ENAMETOOLONG));
    }
    let log = prepare(dir).map_err(BackendError::at(what()))?;
    let process = spawn(&sockets, log).map_err(|e| not_started(&VDE_SWITCH, &e))?;
    record(dir, &process).map_err(|error| {
        // What a later daemon could not find must not run.
        process.signal(Signal::KILL).ok();
        BackendError::io(what(), &error)
    })?;
    Ok(process)
}

/// Makes the directory, and clears away what an earlier switch has left. Returns the log.
fn prepare(dir: &Path) -> io::Result<File> {
    file::private_dir(dir.parent().unwrap_or(dir))?;
    file::private_dir(dir)?;
    file::if_there(fs::remove_dir_all(dir.join(SOCKETS)))?;
    file::remove(&dir.join(LOG))?;
    file::open_log(&dir.join(LOG))
}

/// Starts the program. It ends when its standard input does, and reads commands from it; so that is a
/// descriptor from which nothing ever comes.
fn spawn(sockets: &Path, log: File) -> io::Result<Process> {
    let silence = eventfd(0, EventfdFlags::empty())?;
    let mut command = Command::new(VDE_SWITCH.name);
    command.arg("-s").arg(sockets).args(["-n", PORTS, "-m", "0600", "--dirmode", "0700"]);
    // Without it, it reads what the user has set for other switches.
    command.args(["-f", "/dev/null"]);
    command.stdin(silence).stdout(Stdio::from(log.try_clone()?)).stderr(log);
    command.current_dir("/");
    sys::in_own_session(sys::keeping_secrets(&mut command));
    let mut child = command.spawn()?;
    Process::of(child.id()).inspect_err(|_| {
        // What cannot be watched must not run; an error means that it has ended by itself.
        child.kill().and_then(|()| child.wait()).ok();
    })
}

fn record(dir: &Path, process: &Process) -> io::Result<()> {
    let (pid, start) = (process.pid, process.start);
    file::replace_json(&dir.join(RECORD), &Record { boot_id: boot_id()?, pid, start })
}

impl VdeSwitch {
    fn new(dir: &Path, process: Process) -> Self {
        let process = Arc::new(process);
        let ended = watch_end(Arc::clone(&process));
        Self { dir: dir.to_owned(), sockets: dir.join(SOCKETS), process, ended }
    }

    /// Waits until machines can be connected.
    async fn listening(&self) -> Result<()> {
        let control = self.sockets.join(CONTROL);
        let there = async {
            while !control.exists() {
                // It appears without an event.
                sleep(RETRY).await;
            }
        };
        let failed = |why: String| {
            BackendError::fact(format!("{} has not started", VDE_SWITCH.name), why, libc::EIO)
        };
        tokio::select! {
            there = timeout(START_TIMEOUT, there) => match there {
                Ok(()) => Ok(()),
                Err(_) => {
                    self.end().await;
                    Err(failed(format!("it has no socket within {} s", START_TIMEOUT.as_secs())))
                }
            },
            how = end_of(&self.ended) => Err(failed(format!("{how}: {}", self.last_words()))),
        }
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.join(LOG)).unwrap_or_default();
        log.lines().last().unwrap_or("it left no message").to_owned()
    }
}

#[async_trait]
impl Switch for VdeSwitch {
    fn sockets(&self) -> &Path {
        &self.sockets
    }

    async fn ended(&self) -> String {
        end_of(&self.ended).await
    }

    async fn end(&self) {
        for signal in [Signal::TERM, Signal::KILL] {
            if let Err(error) = self.process.signal(signal) {
                tracing::warn!(pid = self.process.pid, %error, "cannot end a switch");
            }
            if timeout(END_TIMEOUT, end_of(&self.ended)).await.is_ok() {
                break;
            }
        }
        let dir = self.dir.clone();
        let cleared = off_thread(move || file::if_there(fs::remove_dir_all(dir)), "a switch").await;
        if let Err(error) = cleared {
            tracing::warn!(%error, "a part of a switch is left");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_the_host_are_read_but_for_the_default() {
        let table = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\n\
            eth0\t00034D0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n\
            bad\n";
        assert_eq!(networks(table), [(Ipv4Addr::new(10, 77, 3, 0), 24)]);
    }

    #[tokio::test]
    async fn a_path_that_no_socket_can_have_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(100));
        let error = VdeSwitches.start(&long).await.unwrap_err();
        assert!(matches!(error, BackendError::Io { errno: libc::ENAMETOOLONG, .. }), "{error}");
    }
}
