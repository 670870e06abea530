//! What happens to VMs, as lines for programs: the `events` files.
//!
//! One [`Feed`] takes the events of all VMs; a reader of one VM's file sees that VM's alone. Nothing
//! is replayed: a reader sees what comes after its open.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::spec::span;
use super::stream::{Bell, Listener, Readiness, Stream};
use super::{VmError, VmId, one_line};

/// Events kept for readers that are behind; one that is further behind reads how many it missed.
const KEPT: usize = 1024;

/// What can happen to a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made, or came back from the trash.
    Created,
    /// It was found on disk when the tree was mounted, in this state.
    Found(String),
    /// It was removed.
    Removed,
    /// It has another name.
    Renamed(String),
    /// Its status changed to this line.
    Status(String),
    /// A setting was written.
    Config(&'static str),
    /// Something asked of it failed, with this sentence.
    Failed(String),
    /// The guest, or somebody, reset the machine.
    Reset,
    /// Running copies of it were made, with these names; its processors were stopped for so long.
    Forked {
        /// The copies.
        names: Vec<String>,
        /// How long.
        pause: Duration,
    },
    /// Its guest wanted to go there, and `config/allow` has it not.
    Refused(String),
    /// It came to a net, or left one, in words.
    Net(String),
    /// A data disk came to its machine or went, in words.
    Disk(String),
    /// It boots although its image is warm, for this reason.
    Boots(String),
    /// It is removed after so long, or is not any more.
    Expires(Option<Duration>),
    /// The time after which it is removed is over.
    Expired,
    /// It is suspended after so long if nobody uses it.
    Suspends(Duration),
    /// It was suspended because nobody used it.
    Suspended,
    /// Its QEMU wanted more memory than this setting has.
    LimitReached(&'static str),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created => f.write_str("created"),
            Self::Found(status) => write!(f, "found {status}"),
            Self::Removed => f.write_str("removed"),
            Self::Renamed(name) => write!(f, "renamed {name}"),
            Self::Status(line) => write!(f, "status {line}"),
            Self::Config(key) => write!(f, "config {key}"),
            Self::Failed(sentence) => write!(f, "error {sentence}"),
            Self::Reset => f.write_str("reset"),
            Self::Forked { names, pause } => {
                write!(f, "forked {} pause {}ms", names.join(" "), pause.as_millis())
            }
            Self::Refused(target) => write!(f, "refused {target}"),
            Self::Net(words) => write!(f, "net {words}"),
            Self::Disk(words) => write!(f, "disk {words}"),
            Self::Boots(reason) => write!(f, "warm no: {reason}"),
            Self::Expires(Some(time)) => write!(f, "expires in {}", span::render_about(*time)),
            Self::Expires(None) => write!(f, "expires {}", span::NEVER),
            Self::Expired => f.write_str("expired"),
            Self::Suspends(time) => write!(f, "suspends in {}", span::render_about(*time)),
            Self::Suspended => f.write_str("suspended"),
            Self::LimitReached(key) => write!(f, "reached {key}"),
        }
    }
}

/// The events of all VMs.
#[derive(Debug, Default)]
pub struct Feed {
    log: Mutex<Log>,
    bell: Bell,
}

#[derive(Debug, Default)]
struct Log {
    /// The number of the next event.
    next: u64,
    /// The newest events, the last one with number `next - 1`.
    newest: VecDeque<Line>,
}

#[derive(Clone, Debug)]
struct Line {
    vm: VmId,
    /// `TIME EVENT WORDS…`, with the VM's name between for the file of all VMs.
    name: String,
    time: u64,
    text: String,
}

impl Feed {
    /// Adds an event of the VM with this name at this moment.
    pub fn add(&self, vm: VmId, name: &str, event: &Event) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let line = Line { vm, name: name.to_owned(), time, text: one_line(&event.to_string()) };
        let mut log = self.log.lock();
        if log.newest.len() == KEPT {
            log.newest.pop_front();
        }
        log.newest.push_back(line);
        log.next += 1;
        drop(log);
        self.bell.ring();
    }

    /// Opens a stream of the events from now on: of one VM, or of all.
    pub fn open(self: &Arc<Self>, of: Option<VmId>) -> Arc<dyn Stream> {
        let at = Mutex::new(Cursor { next: self.log.lock().next, rest: Vec::new() });
        Arc::new(Events { feed: Arc::clone(self), of, at })
    }

    /// Returns a listener that hears every event.
    pub fn listen(&self) -> Listener {
        self.bell.listen()
    }

    /// Returns the names of VMs whose status changed since event number `from`, and the number to
    /// ask from next.
    pub fn status_changes(&self, from: u64) -> (Vec<String>, u64) {
        let log = self.log.lock();
        let changed = |l: &&Line| l.text.starts_with("status ");
        let names = log.since(from).filter(changed).map(|l| l.name.clone()).collect();
        (names, log.next)
    }
}

impl Log {
    /// Returns the events from number `from` on that are still kept.
    fn since(&self, from: u64) -> impl Iterator<Item = &Line> {
        let first = self.next - self.newest.len() as u64;
        let skip = usize::try_from(from.saturating_sub(first)).unwrap_or(usize::MAX);
        self.newest.iter().skip(skip)
    }

    /// Says how many events from number `from` on are not kept any more.
    fn missed(&self, from: u64) -> u64 {
        (self.next - self.newest.len() as u64).saturating_sub(from)
    }
}

#[derive(Debug)]
struct Events {
    feed: Arc<Feed>,
    of: Option<VmId>,
    at: Mutex<Cursor>,
}

#[derive(Debug)]
struct Cursor {
    next: u64,
    /// What a reader with a small buffer has not taken of the lines it was given.
    rest: Vec<u8>,
}

impl Events {
    fn concerns(&self, line: &Line) -> bool {
        self.of.is_none_or(|vm| vm == line.vm)
    }

    fn print(&self, line: &Line) -> String {
        match self.of {
            Some(_) => format!("{} {}\n", line.time, line.text),
            None => format!("{} {} {}\n", line.time, line.name, line.text),
        }
    }

    fn fetch(&self, cursor: &mut Cursor) {
        let log = self.feed.log.lock();
        if let missed @ 1.. = log.missed(cursor.next) {
            let time = log.newest.front().map_or(0, |l| l.time);
            cursor.rest.extend(format!("{time} - missed {missed}\n").bytes());
        }
        for line in log.since(cursor.next).filter(|l| self.concerns(l)) {
            cursor.rest.extend(self.print(line).bytes());
        }
        cursor.next = log.next;
    }
}

impl Stream for Events {
    fn try_read(&self, max: usize) -> Option<Result<Vec<u8>, VmError>> {
        let mut cursor = self.at.lock();
        if cursor.rest.is_empty() {
            self.fetch(&mut cursor);
        }
        let taken = cursor.rest.len().min(max);
        (taken > 0).then(|| Ok(cursor.rest.drain(..taken).collect()))
    }

    fn readiness(&self) -> Readiness {
        let cursor = self.at.lock();
        let log = self.feed.log.lock();
        let waiting = log.since(cursor.next).any(|l| self.concerns(l));
        let readable = waiting || !cursor.rest.is_empty() || log.missed(cursor.next) > 0;
        Readiness { readable, writable: false, hung_up: false }
    }

    fn listen(&self) -> Listener {
        self.feed.listen()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(stream: &dyn Stream) -> Vec<String> {
        let bytes = stream.try_read(1 << 20).map_or(Vec::new(), |r| r.unwrap());
        let text = String::from_utf8(bytes).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn a_reader_sees_what_comes_after_its_open_and_only_its_vm() {
        let feed = Arc::<Feed>::default();
        feed.add(VmId(1), "a", &Event::Created);
        let (all, one) = (feed.open(None), feed.open(Some(VmId(2))));
        assert!(!all.readiness().readable);
        feed.add(VmId(1), "a", &Event::Status("ready".into()));
        feed.add(VmId(2), "b", &Event::Failed("two\nlines".into()));
        assert_eq!(words(&*all), ["a status ready", "b error two; lines"]);
        assert_eq!(words(&*one), ["error two; lines"]);
        assert!(all.try_read(10).is_none() && !one.readiness().readable);
    }

    #[test]
    fn a_small_buffer_loses_nothing() {
        let feed = Arc::<Feed>::default();
        let reader = feed.open(Some(VmId(1)));
        feed.add(VmId(1), "a", &Event::Reset);
        let mut bytes = Vec::new();
        while let Some(byte) = reader.try_read(1) {
            bytes.extend(byte.unwrap());
        }
        assert!(bytes.ends_with(b" reset\n"));
    }

    #[test]
    fn who_is_too_far_behind_is_told() {
        let feed = Arc::<Feed>::default();
        let reader = feed.open(None);
        (0..KEPT + 7).for_each(|_| feed.add(VmId(1), "a", &Event::Reset));
        let words = words(&*reader);
        assert_eq!(words[0], "- missed 7");
        assert_eq!(words.len(), KEPT + 1);
    }

    #[test]
    fn status_changes_are_found_from_where_one_left_off() {
        let feed = Feed::default();
        feed.add(VmId(1), "a", &Event::Status("ready".into()));
        let (names, next) = feed.status_changes(0);
        assert_eq!(names, ["a"]);
        feed.add(VmId(1), "a", &Event::Reset);
        assert_eq!(feed.status_changes(next), (vec![], 2));
    }
}
