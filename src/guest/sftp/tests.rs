//! A server that answers what a test has it answer: it may lie.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;

use super::client::REPLY_TIMEOUT;
use super::*;

/// The other end of a conversation.
struct Server(DuplexStream);

impl Server {
    async fn greet(&mut self, extensions: &[&str]) {
        assert_eq!(self.hear().await, [&[kind::INIT][..], &[0, 0, 0, 3]].concat());
        let mut version = [&[kind::VERSION][..], &[0, 0, 0, 3]].concat();
        for name in extensions {
            version.extend(string(name.as_bytes()));
            version.extend(string(b"1"));
        }
        self.say(&version).await;
    }

    async fn hear(&mut self) -> Vec<u8> {
        let length = self.0.read_u32().await.unwrap();
        let mut packet = vec![0; length as usize];
        self.0.read_exact(&mut packet).await.unwrap();
        packet
    }

    async fn say(&mut self, packet: &[u8]) {
        let length = u32::try_from(packet.len()).unwrap().to_be_bytes();
        self.0.write_all(&[&length, packet].concat()).await.unwrap();
    }

    /// Hears a request of a kind and answers it.
    async fn answer(&mut self, wanted: u8, kind: u8, rest: &[u8]) {
        let packet = self.hear().await;
        assert_eq!(packet[0], wanted);
        self.say(&[&[kind], &packet[1..5], rest].concat()).await;
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn entry(name: &[u8]) -> Vec<u8> {
    [string(name), string(b"-rw-r--r-- long"), vec![0; 4]].concat()
}

fn listing(names: &[&[u8]]) -> Vec<u8> {
    let count = u32::try_from(names.len()).unwrap().to_be_bytes();
    [count.to_vec(), names.iter().flat_map(|name| entry(name)).collect()].concat()
}

async fn connected() -> (Sftp, Server) {
    connected_with(&[]).await
}

async fn connected_with(extensions: &[&str]) -> (Sftp, Server) {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let mut server = Server(theirs);
    let (sftp, ()) = tokio::join!(Sftp::begin(ours, (), (0, 0)), server.greet(extensions));
    (sftp.unwrap(), server)
}

#[tokio::test]
async fn replies_find_who_asked_in_any_order() {
    let (sftp, mut server) = connected().await;
    let (first, second) = (sftp.attr(b"/a"), sftp.attr(b"/b"));
    let (one, two) = (server.hear().await, server.hear().await);
    assert!(one.ends_with(b"/a") && two.ends_with(b"/b"), "in the order of the calls");
    let size = |size: u8| [&[0, 0, 0, 1][..], &[0, 0, 0, 0, 0, 0, 0, size]].concat();
    server.say(&[&[kind::ATTRS], &two[1..5], &size(2)].concat()).await;
    server.say(&[&[kind::ATTRS], &one[1..5], &size(1)].concat()).await;
    assert_eq!((first.await.unwrap().size, second.await.unwrap().size), (1, 2));
}

#[tokio::test]
async fn a_reply_to_nobody_ends_it() {
    let (sftp, mut server) = connected().await;
    let asked = sftp.attr(b"/a");
    let id = server.hear().await[4];
    server.say(&[kind::STATUS, 0, 0, 0, id.wrapping_add(1), 0, 0, 0, 0]).await;
    let wrong = FileError::Protocol("a reply is to no request");
    assert_eq!(asked.await, Err(wrong.clone()));
    assert!(sftp.is_lost());
    assert_eq!(sftp.attr(b"/a").await, Err(wrong));
}

#[tokio::test]
async fn a_packet_that_is_too_long_is_not_waited_for() {
    let (sftp, mut server) = connected().await;
    let asked = sftp.attr(b"/a");
    server.hear().await;
    server.0.write_u32(u32::MAX).await.unwrap();
    assert!(matches!(asked.await, Err(FileError::Protocol(_))));
    assert!(sftp.is_lost());
}

#[tokio::test]
async fn names_that_lead_elsewhere_are_left_out() {
    let (sftp, mut server) = connected().await;
    let serve = async {
        server.answer(kind::OPENDIR, kind::HANDLE, &string(b"h")).await;
        let names: &[&[u8]] = &[b".", b"..", b"good", b"../../etc", b"a\0b", b"", b"/abs"];
        server.answer(kind::READDIR, kind::NAME, &listing(names)).await;
        for _ in 0..LISTING_AHEAD {
            server.answer(kind::READDIR, kind::STATUS, &[0, 0, 0, 1]).await;
        }
        server.answer(kind::CLOSE, kind::STATUS, &[0, 0, 0, 0]).await;
    };
    let (listed, ()) = tokio::join!(sftp.list(b"/", 100_000), serve);
    let names: Vec<Vec<u8>> = listed.unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, [b"good"]);
}

#[tokio::test]
async fn a_listing_without_end_is_given_up() {
    let (sftp, mut server) = connected().await;
    let many: Vec<Vec<u8>> = (0..2000).map(|n| format!("n{n}").into_bytes()).collect();
    let many = listing(&many.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let serve = async {
        server.answer(kind::OPENDIR, kind::HANDLE, &string(b"h")).await;
        loop {
            let packet = server.hear().await;
            if packet[0] == kind::CLOSE {
                return;
            }
            server.say(&[&[kind::NAME], &packet[1..5], &many].concat()).await;
        }
    };
    let (listed, ()) = tokio::join!(sftp.list(b"/", 100_000), serve);
    assert_eq!(listed, Err(FileError::TooMany(100_000)));
}

#[tokio::test]
async fn an_empty_part_of_a_listing_ends_it() {
    let (sftp, mut server) = connected().await;
    let serve = async {
        server.answer(kind::OPENDIR, kind::HANDLE, &string(b"h")).await;
        server.answer(kind::READDIR, kind::NAME, &[0, 0, 0, 0]).await;
    };
    let (listed, ()) = tokio::join!(sftp.list(b"/", 100_000), serve);
    assert!(matches!(listed, Err(FileError::Protocol(_))));
}

#[tokio::test]
async fn more_bytes_than_were_asked_for_are_refused() {
    let (sftp, mut server) = connected().await;
    let how = OpenFile { read: true, ..OpenFile::default() };
    let name = string(b"h");
    let opening = server.answer(kind::OPEN, kind::HANDLE, &name);
    let (file, ()) = tokio::join!(sftp.open(b"/a", &how), opening);
    let file = file.unwrap();
    let many = string(&[1; 100]);
    let reading = server.answer(kind::READ, kind::DATA, &many);
    let (read, ()) = tokio::join!(file.read(0, 10), reading);
    assert!(matches!(read, Err(FileError::Protocol(_))));
    let reading = server.answer(kind::READ, kind::ATTRS, &[0; 4]);
    let (read, ()) = tokio::join!(file.read(0, 10), reading);
    assert!(matches!(read, Err(FileError::Protocol(_))));
}

#[tokio::test]
async fn a_file_that_nobody_waits_for_is_closed() {
    let (sftp, mut server) = connected().await;
    let how = OpenFile { read: true, ..OpenFile::default() };
    drop(sftp.open(b"/a", &how));
    server.answer(kind::OPEN, kind::HANDLE, &string(b"h7")).await;
    let closed = server.hear().await;
    assert!(closed[0] == kind::CLOSE && closed.ends_with(b"h7"));
}

#[tokio::test(start_paused = true)]
async fn a_silent_guest_is_waited_for_once_and_heard_again() {
    let (sftp, mut server) = connected().await;
    let late = || Err(FileError::Timeout(REPLY_TIMEOUT.as_secs()));
    assert_eq!(sftp.attr(b"/a").await, late());
    let at_once = timeout(Duration::from_millis(1), sftp.attr(b"/b")).await;
    assert_eq!(at_once.unwrap(), late());
    // What was asked first is answered at last.
    server.answer(kind::LSTAT, kind::ATTRS, &[0; 4]).await;
    tokio::task::yield_now().await;
    let serving = server.answer(kind::LSTAT, kind::ATTRS, &[0; 4]);
    let (heard, ()) = tokio::join!(sftp.attr(b"/c"), serving);
    assert!(heard.is_ok() || heard == late());
    let serving = server.answer(kind::LSTAT, kind::ATTRS, &[0; 4]);
    let (heard, ()) = tokio::join!(sftp.attr(b"/d"), serving);
    assert!(heard.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_slow_is_waited_for_as_long_as_it_says_something() {
    let (sftp, mut server) = connected().await;
    let (late, begun) = (sftp.attr(b"/late"), tokio::time::Instant::now());
    let id = server.hear().await[1..5].to_vec();
    let serve = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let asked = sftp.attr(b"/other");
            server.answer(kind::LSTAT, kind::ATTRS, &[0; 4]).await;
            assert!(asked.await.is_ok());
        }
        server.say(&[&[kind::ATTRS][..], &id, &[0; 4]].concat()).await;
    };
    let (late, ()) = tokio::join!(late, serve);
    assert!(late.is_ok() && begun.elapsed() > Duration::from_secs(29), "{late:?}");
    // Not for ever.
    let (late, begun) = (sftp.attr(b"/never"), tokio::time::Instant::now());
    server.hear().await;
    let serve = async {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let asked = sftp.attr(b"/other");
            server.answer(kind::LSTAT, kind::ATTRS, &[0; 4]).await;
            assert!(asked.await.is_ok());
        }
    };
    let late = tokio::select! { late = late => late, () = serve => unreachable!() };
    assert!(matches!(late, Err(FileError::Timeout(60..=75))), "{late:?}");
    assert!(begun.elapsed() <= Duration::from_secs(75));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_greets_with_nothing_is_given_up() {
    let (ours, _theirs) = tokio::io::duplex(1024);
    let begun = Sftp::begin(ours, (), (0, 0)).await;
    assert!(matches!(begun, Err(FileError::Timeout(_))));
}

#[tokio::test]
async fn a_server_that_is_none_says_so() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    theirs.write_all(b"sh: sftp-server: not found\n").await.unwrap();
    assert!(matches!(Sftp::begin(ours, (), (0, 0)).await, Err(FileError::Protocol(_))));
    let (ours, theirs) = tokio::io::duplex(1024);
    drop(theirs);
    assert!(matches!(Sftp::begin(ours, (), (0, 0)).await, Err(FileError::Lost(_))));
}

#[tokio::test]
async fn a_copy_names_both_files_and_stays_in_the_guest() {
    let (sftp, mut server) = connected_with(&["copy-data"]).await;
    let how = OpenFile { read: true, ..OpenFile::default() };
    let mut files = Vec::new();
    for handle in [b"from", b"into"] {
        let open = sftp.open(b"/file", &how);
        server.answer(kind::OPEN, kind::HANDLE, &string(handle)).await;
        files.push(open.await.unwrap());
    }
    let copied = files[0].copy(3, 5, &*files[1], 7);
    let asked = server.hear().await;
    let numbers = |number: u8| [0, 0, 0, 0, 0, 0, 0, number];
    let wanted = [string(b"copy-data"), string(b"from"), numbers(3).into(), numbers(5).into()];
    let wanted = [wanted.concat(), string(b"into"), numbers(7).into()].concat();
    assert_eq!(asked[5..], wanted);
    server.say(&[&[kind::STATUS], &asked[1..5], &[0, 0, 0, 0]].concat()).await;
    assert_eq!(copied.await, Ok(()));
    // The whole rest of a file is never meant.
    assert_eq!(files[0].copy(3, 0, &*files[1], 7).await, Err(FileError::Unsupported));
}
