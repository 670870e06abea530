//! poll, select, epoll, O_NONBLOCK and O_NOFOLLOW on a real mount: what event loops and crawlers
//! meet.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Mounted, assert_errno};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// What an event that is on its way may take.
const SOON: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
/// How long nothing must happen.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

fn open(aq: &Mounted, name: &str) -> File {
    File::open(aq.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn talk(aq: &Mounted, name: &str) -> File {
    let file = OpenOptions::new().read(true).write(true).open(aq.path(name));
    file.unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn poll_for(file: &File, wanted: PollFlags, timeout: Timespec) -> PollFlags {
    let mut fds = [PollFd::new(file, wanted)];
    poll(&mut fds, Some(&timeout)).expect("poll");
    fds[0].revents()
}

fn set_nonblocking(file: &File, on: bool) {
    let mut flags = fcntl_getfl(file).expect("flags");
    flags.set(OFlags::NONBLOCK, on);
    fcntl_setfl(file, flags).expect("flags");
}

/// A VM that waits for `resume`. `start` may answer while QEMU is still on its way.
fn held() -> Mounted {
    let aq = Mounted::with_image();
    aq.sh("mkdir off held && echo 'start paused' > held/ctl && cat held/wait").ok();
    aq
}

#[test]
fn poll_says_what_a_read_would_do() {
    let aq = held();
    for name in ["off/status", "off/config/cpus", "off/ctl", "off/wait", "held/wait"] {
        let events = poll_for(&open(&aq, name), PollFlags::IN, NOW);
        assert_eq!(events, PollFlags::IN, "{name}");
    }
    let mut ready = open(&aq, "held/ready");
    assert_eq!(poll_for(&ready, PollFlags::IN | PollFlags::OUT, QUIET), PollFlags::empty());
    aq.sh("echo resume > held/ctl").ok();
    assert_eq!(poll_for(&ready, PollFlags::IN, SOON), PollFlags::IN);
    let mut line = String::new();
    ready.read_to_string(&mut line).expect("a line");
    assert!(line.starts_with("ready "), "{line}");
    let end = poll_for(&ready, PollFlags::IN, NOW);
    assert_eq!(end, PollFlags::IN | PollFlags::HUP, "at the end");
}

#[test]
fn select_returns_when_a_stream_has_something() {
    let aq = held();
    let program = "import select, subprocess as s
f = open('held/ready')
print(select.select([f], [], [], 0.3)[0] == [])
s.run('echo resume > held/ctl', shell=True)
print(select.select([f], [], [], 60)[0] == [f], f.read().split()[0])";
    let said = aq.sh(&format!("python3 - <<'END'\n{program}\nEND")).ok();
    assert_eq!(said, "True\nTrue ready");
}

#[test]
fn every_waiter_of_one_open_file_is_woken() {
    let aq = held();
    let ready = open(&aq, "held/ready");
    let wait = |file: File| thread::spawn(move || poll_for(&file, PollFlags::IN, SOON));
    let waiters: Vec<_> = (0..5).map(|_| wait(ready.try_clone().expect("dup"))).collect();
    // Those that come before and those that come after the change.
    thread::sleep(Duration::from_millis(100));
    aq.sh("echo resume > held/ctl && cat held/ready").ok();
    for waiter in waiters {
        assert_eq!(waiter.join().expect("no panic"), PollFlags::IN);
    }
}

#[test]
fn the_end_of_a_machine_hangs_up() {
    let aq = held();
    let console = open(&aq, "held/console");
    let ready = open(&aq, "held/ready");
    assert!(!poll_for(&console, PollFlags::IN, QUIET).contains(PollFlags::HUP));
    aq.sh("echo kill > held/ctl && cat held/wait").ok();
    assert!(poll_for(&console, PollFlags::IN, SOON).contains(PollFlags::HUP));
    // An error is something to read, too.
    assert!(poll_for(&ready, PollFlags::IN, SOON).contains(PollFlags::IN));
    assert_errno((&ready).read(&mut [0; 10]), libc::EHOSTDOWN);
}

/// An epoll instance that watches one file at its edges.
struct Edges {
    epoll: std::os::fd::OwnedFd,
}

impl Edges {
    fn of(file: &File, events: EventFlags) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("epoll");
        let events = events | EventFlags::ET;
        epoll::add(&epoll, file.as_fd(), EventData::new_u64(1), events).expect("epoll takes it");
        Self { epoll }
    }

    fn next(&self, timeout: Timespec) -> Option<EventFlags> {
        let mut found: Vec<epoll::Event> = Vec::with_capacity(4);
        let space = rustix::buffer::spare_capacity(&mut found);
        epoll::wait(&self.epoll, space, Some(&timeout)).expect("epoll");
        found.first().map(|event| event.flags)
    }
}

#[test]
fn an_edge_comes_for_each_new_output_and_none_without() {
    let aq = Mounted::booted();
    let mut exec = talk(&aq, "vm1/exec");
    set_nonblocking(&exec, true);
    let edges = Edges::of(&exec, EventFlags::IN);
    // Nothing has been asked: a read is at the end at once or has to wait, and then it is reported.
    while edges.next(QUIET).is_some() {}
    for round in 0..5 {
        let command = format!("echo answer {round}\n");
        exec.write_all(command.as_bytes()).expect("a command");
        let answer = drain(&mut exec, &edges);
        assert_eq!(answer, format!("answer {round}\n"));
        while edges.next(NOW).is_some() {}
        assert_eq!(edges.next(QUIET), None, "an edge without news in round {round}");
    }
}

/// Reads as an event loop does: until it would have to wait, then until the next edge.
fn drain(file: &mut File, edges: &Edges) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 100]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return text,
            Ok(n) => text.push_str(std::str::from_utf8(&buffer[..n]).expect("text")),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                assert!(edges.next(SOON).is_some(), "no edge after {text:?}");
            }
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn the_console_reports_its_edges() {
    let aq = Mounted::booted();
    let mut console = talk(&aq, "vm1/console");
    set_nonblocking(&console, true);
    let edges = Edges::of(&console, EventFlags::IN);
    for round in 0..3 {
        let marker = format!("{}", 7000 + round);
        console.write_all(format!("echo $((6999 + {} ))\r", round + 1).as_bytes()).expect("typed");
        let (mut seen, deadline) = (String::new(), Instant::now() + Duration::from_secs(30));
        while !seen.contains(&marker) {
            assert!(Instant::now() < deadline, "round {round}: {seen:?}");
            let mut buffer = [0; 4096];
            match console.read(&mut buffer) {
                Ok(n) => seen.push_str(&String::from_utf8_lossy(&buffer[..n])),
                Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => {
                    assert!(edges.next(SOON).is_some(), "round {round}: {seen:?}");
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}

#[test]
fn waiting_or_not_is_decided_at_each_read() {
    let aq = held();
    let ready = open(&aq, "held/ready");
    let mut byte = [0];
    for _ in 0..3 {
        set_nonblocking(&ready, true);
        assert_errno((&ready).read(&mut byte), libc::EAGAIN);
        set_nonblocking(&ready, false);
        let file = ready.try_clone().expect("dup");
        let reader = thread::spawn(move || (&file).read(&mut [0; 5]));
        thread::sleep(Duration::from_millis(100));
        assert!(!reader.is_finished(), "a read that may wait did not");
        aq.sh("echo kill > held/ctl && cat held/wait").ok();
        assert_errno(reader.join().expect("no panic"), libc::EHOSTDOWN);
        aq.sh("echo 'start paused' > held/ctl").ok();
    }
}

#[test]
fn no_crawler_waits_anywhere_or_leaves_a_trace() {
    let aq = held();
    aq.boot("on");
    aq.sh("echo 'sleep 1000' > on/exec").ok();
    let before = aq.sh("cat */error").ok();
    let began = Instant::now();
    let files = walk(&aq.dir());
    assert!(files.len() > 60, "{files:?}");
    for file in &files {
        let mut options = OpenOptions::new();
        let mut file_ = options.read(true).custom_flags(libc::O_NOFOLLOW).open(file);
        let file_ = file_.as_mut().unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert_eq!(poll_for(file_, PollFlags::IN, NOW) & PollFlags::IN, PollFlags::IN, "{file:?}");
        let mut bytes = Vec::new();
        let read = file_.read_to_end(&mut bytes);
        read.unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert_eq!(aq.sh("cat */error").ok(), before);
}

/// Lists all regular files below a directory.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("a type") {
            kind if kind.is_dir() => files.extend(walk(&entry.path())),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}
