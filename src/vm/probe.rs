//! Probes: a single look at a service of a guest, from inside the guest. Each is a file of `probes/`:
//! what its name means, what is known of those that were looked up, and the line that a read gives.
//!
//! Not here: how a guest is asked (`guest::probe`).

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::VmError;
use super::backend::ProbeAnswer;
use super::exec::{Link, connected};
use super::notice::Notice;
use super::stream::{Bell, Stream};

/// How long a probe may take.
pub const TIMEOUT: Duration = Duration::from_secs(5);
/// Probes of a VM that keep their numbers: the names that were looked up last.
const KEPT: usize = 256;
/// The longest name of a unit that systemd takes.
const LONGEST_UNIT: usize = 255;

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Probe {
    /// Whether something listens on a port of the guest's 127.0.0.1.
    Tcp(u16),
    /// What a web server on such a port answers.
    Http {
        /// The port.
        port: u16,
        /// The name of the file: a path in which `/` is written as `%2F`.
        name: String,
    },
    /// Whether a service runs.
    Unit(String),
}

impl Probe {
    /// Reads the name of a file in `probes/tcp`.
    pub fn tcp(name: &str) -> Option<Self> {
        port(name).map(Self::Tcp)
    }

    /// Reads the name of a file in `probes/http/PORT`. Names with a dot first are what prompts and
    /// file managers look for everywhere.
    pub fn http(port: u16, name: &str) -> Option<Self> {
        (!name.is_empty() && !name.starts_with('.'))
            .then(|| Self::Http { port, name: name.to_owned() })
    }

    /// Reads the name of a file in `probes/unit`.
    pub fn unit(name: &str) -> Option<Self> {
        let good = |c: u8| c.is_ascii_alphanumeric() || b":-_.\\@".contains(&c);
        let begins = name.bytes().next().is_some_and(|c| c.is_ascii_alphanumeric());
        (begins && name.len() <= LONGEST_UNIT && name.bytes().all(good))
            .then(|| Self::Unit(name.to_owned()))
    }

    /// Returns the name of its file.
    pub fn name(&self) -> String {
        match self {
            Self::Tcp(port) => port.to_string(),
            Self::Http { name, .. } | Self::Unit(name) => name.clone(),
        }
    }
}

/// Its path in `probes/`.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp/{port}"),
            Self::Http { port, name } => write!(f, "http/{port}/{name}"),
            Self::Unit(name) => write!(f, "unit/{name}"),
        }
    }
}

/// Reads the number of a port, in the one form that it has.
pub fn port(name: &str) -> Option<u16> {
    name.parse().ok().filter(|port: &u16| *port > 0 && port.to_string() == name)
}

/// The probes of one VM.
#[derive(Debug)]
pub struct Probes {
    link: watch::Receiver<Link>,
    runtime: Handle,
    known: Mutex<Known>,
}

/// The probes that were looked up, the oldest first.
#[derive(Debug, Default)]
struct Known {
    probes: VecDeque<KnownProbe>,
    last_id: u64,
}

#[derive(Debug)]
struct KnownProbe {
    id: u64,
    probe: Probe,
    /// It was read: it is listed.
    has_run: bool,
}

impl Probes {
    /// Makes them for a VM whose guest is reached over `link`.
    pub fn new(link: watch::Receiver<Link>, runtime: Handle) -> Self {
        Self { link, runtime, known: Mutex::default() }
    }

    /// Returns the number of a probe, which it keeps while it is among the newest.
    pub fn id(&self, probe: Probe) -> u64 {
        let known = &mut *self.known.lock();
        let entry = match known.probes.iter().position(|entry| entry.probe == probe) {
            Some(at) => known.probes.remove(at),
            None => None,
        };
        let entry = entry.unwrap_or_else(|| {
            known.last_id += 1;
            KnownProbe { id: known.last_id, probe, has_run: false }
        });
        let id = entry.id;
        known.probes.push_back(entry);
        if known.probes.len() > KEPT {
            known.probes.pop_front();
        }
        id
    }

    /// Finds a probe by its number.
    pub fn by_id(&self, id: u64) -> Option<Probe> {
        self.known.lock().probes.iter().find(|entry| entry.id == id).map(|e| e.probe.clone())
    }

    /// Lists those that were read, in order.
    pub fn list(&self) -> Vec<Probe> {
        let known = self.known.lock();
        let read = known.probes.iter().filter(|entry| entry.has_run);
        let mut probes: Vec<Probe> = read.map(|entry| entry.probe.clone()).collect();
        probes.sort();
        probes
    }

    /// Runs a probe. Its line comes within [`TIMEOUT`]; dropping the stream calls it off.
    pub(super) fn open(&self, probe: &Probe) -> Arc<dyn Stream> {
        let mut known = self.known.lock();
        known.probes.iter_mut().filter(|e| e.probe == *probe).for_each(|e| e.has_run = true);
        drop(known);
        let (said, bell) = (Arc::new(Mutex::new(None)), Arc::new(Bell::default()));
        let listener = bell.listen();
        let (link, probe, slot) = (self.link.clone(), probe.clone(), Arc::clone(&said));
        let task = self.runtime.spawn(async move {
            let line = look(link, &probe).await;
            *slot.lock() = Some(line);
            bell.ring();
        });
        let task = CallOff(task.abort_handle());
        Arc::new(Notice::when(listener, move || {
            let _until_dropped = &task;
            said.lock().clone()
        }))
    }
}

/// Ends a task when it is dropped.
struct CallOff(AbortHandle);

impl Drop for CallOff {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks, and puts the answer into a line.
async fn look(mut link: watch::Receiver<Link>, probe: &Probe) -> Result<String, VmError> {
    let asked = async {
        let session = connected(&mut link).await?;
        let begun = Instant::now();
        // A connection that is lost is an answer too, so that a loop over a probe does not end.
        let answer = session.probe(probe).await.unwrap_or_else(|e| ProbeAnswer::No(e.to_string()));
        Ok((answer, begun.elapsed()))
    };
    let asked = timeout(TIMEOUT, asked).await;
    match asked {
        Ok(answered) => answered.map(|(answer, took)| line(answer, took)),
        Err(_) if matches!(*link.borrow(), Link::Coming) => {
            Ok("not ready: the guest has not answered over SSH; `cat ready` waits for it"
                .to_owned())
        }
        Err(_) => Ok(format!("no answer within {}s", TIMEOUT.as_secs())),
    }
}

/// What the guest says of itself may be anything: no escape sequence of it reaches a terminal.
fn line(answer: ProbeAnswer, took: Duration) -> String {
    let milliseconds = took.as_millis();
    let line = match answer {
        ProbeAnswer::Yes(words) if words.is_empty() => format!("ok {milliseconds}ms"),
        ProbeAnswer::Yes(words) => format!("ok {words} {milliseconds}ms"),
        ProbeAnswer::No(reason) => super::one_line(&reason),
    };
    line.replace(char::is_control, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::stream;

    #[test]
    fn a_name_has_one_form_or_is_none() {
        assert_eq!(Probe::tcp("80"), Some(Probe::Tcp(80)));
        for name in ["0", "080", "+80", "65536", "80 ", "", "x"] {
            assert_eq!(Probe::tcp(name), None, "{name}");
        }
        for name in ["ssh", "getty@ttyS0.service", "dev-vda.swap", "a:b", "x\\x2d"] {
            assert!(Probe::unit(name).is_some(), "{name}");
        }
        for name in ["", "-x", ".git", "a b", "a;b", "é", &"x".repeat(256)] {
            assert_eq!(Probe::unit(name), None, "{name}");
        }
        assert_eq!(Probe::http(80, ".git"), None);
        let probe = Probe::http(80, "api%2Fhealth?full=1").unwrap();
        assert_eq!(
            (probe.to_string().as_str(), probe.name().as_str()),
            ("http/80/api%2Fhealth?full=1", "api%2Fhealth?full=1")
        );
    }

    fn probes(link: Link) -> (watch::Sender<Link>, Probes) {
        let (sender, link) = watch::channel(link);
        (sender, Probes::new(link, Handle::current()))
    }

    #[tokio::test]
    async fn the_newest_keep_their_numbers_and_those_that_ran_are_listed() {
        let (_link, probes) = probes(Link::Off);
        let first = probes.id(Probe::Tcp(1));
        assert_eq!((probes.id(Probe::Tcp(1)), probes.by_id(first)), (first, Some(Probe::Tcp(1))));
        drop(probes.open(&Probe::Tcp(1)));
        assert_eq!(probes.list(), [Probe::Tcp(1)]);
        for port in 2..1000 {
            probes.id(Probe::Tcp(port));
        }
        assert_eq!((probes.by_id(first), probes.list().len()), (None, 0));
        assert!(probes.known.lock().probes.len() == KEPT);
        assert_ne!(probes.id(Probe::Tcp(1)), first, "a number is never given twice");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_come_is_not_waited_for() {
        let (_link, probes) = probes(Link::Coming);
        let begun = Instant::now();
        let line = stream::read(probes.open(&Probe::Tcp(80)), 4096).await.unwrap();
        assert!(line.starts_with(b"not ready: ") && line.ends_with(b"\n"));
        assert_eq!(begun.elapsed(), TIMEOUT);
    }

    #[test]
    fn an_answer_is_one_line() {
        let took = Duration::from_micros(12_900);
        assert_eq!(line(ProbeAnswer::Yes("200".into()), took), "ok 200 12ms");
        assert_eq!(line(ProbeAnswer::Yes(String::new()), took), "ok 12ms");
        assert_eq!(line(ProbeAnswer::No("a\nb\x1b[2J".into()), took), "a; b[2J");
    }
}
