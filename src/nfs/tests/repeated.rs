//! Calls that a guest repeats, as it has got no reply.

use std::fs;

use super::{Client, Handle, changes, client, message, named};
use crate::nfs::calls;

const MKDIR: u32 = 9;
const SYMLINK: u32 = 10;
const REMOVE: u32 = 12;
const RENAME: u32 = 14;
const EXISTS: u32 = 17;
const NO_ENTRY: u32 = 2;

/// Sends a call with a number; returns the status and the reply.
fn ask(client: &Client, number: u32, procedure: u32, arguments: &[u8]) -> (u32, Vec<u8>) {
    let mut call = message(calls::PROGRAM, procedure, 0, arguments);
    call[..4].copy_from_slice(&number.to_be_bytes());
    let reply = client.server.answer(&call).unwrap();
    (u32::from_be_bytes(reply[24..28].try_into().unwrap()), reply)
}

fn arguments(dir: &Handle, name: &str) -> super::Encoder {
    let mut arguments = super::Encoder::default();
    named(&mut arguments, dir, name.as_bytes());
    arguments
}

fn mkdir(client: &Client, number: u32, name: &str) -> (u32, Vec<u8>) {
    let mut arguments = arguments(&client.root(), name);
    changes(&mut arguments, Some(0o755), None, None);
    ask(client, number, MKDIR, &arguments.0)
}

#[test]
fn what_a_repeated_call_has_done_before_is_no_error() {
    let client = client();
    let root = client.root();
    let first = mkdir(&client, 1, "d");
    assert_eq!((first.0, mkdir(&client, 1, "d")), (0, first.clone()));
    assert_eq!(mkdir(&client, 2, "d").0, EXISTS, "another call");
    let mut link = arguments(&root, "l");
    changes(&mut link, None, None, None);
    link.opaque(b"target");
    assert_eq!([3, 3, 4].map(|n| ask(&client, n, SYMLINK, &link.0).0), [0, 0, EXISTS]);
    let mut rename = arguments(&root, "l");
    named(&mut rename, &root, b"m");
    assert_eq!([5, 5, 6].map(|n| ask(&client, n, RENAME, &rename.0).0), [0, 0, NO_ENTRY]);
    let remove = arguments(&root, "m");
    assert_eq!([7, 7, 8].map(|n| ask(&client, n, REMOVE, &remove.0).0), [0, 0, NO_ENTRY]);
}

#[test]
fn an_error_is_repeated_as_it_was() {
    let client = client();
    fs::create_dir(client.path("lock")).unwrap();
    assert_eq!([1, 1].map(|n| mkdir(&client, n, "lock").0), [EXISTS; 2]);
    // The name was there, is not any more, and is made now.
    fs::remove_dir(client.path("lock")).unwrap();
    assert_eq!(mkdir(&client, 1, "lock").0, 0);
}

#[test]
fn a_name_that_is_gone_is_made_again() {
    let client = client();
    assert_eq!(mkdir(&client, 1, "d").0, 0);
    fs::remove_dir(client.path("d")).unwrap();
    assert_eq!(mkdir(&client, 1, "d").0, 0);
    assert!(client.path("d").is_dir());
}

#[test]
fn calls_are_not_remembered_without_end() {
    let client = client();
    assert_eq!(mkdir(&client, 0, "first").0, 0);
    for number in 1..=512 {
        assert_eq!(mkdir(&client, number, "first").0, EXISTS);
    }
    assert_eq!(mkdir(&client, 0, "first").0, EXISTS);
}

#[test]
fn the_same_call_twice_at_once_is_done_once() {
    let client = client();
    let root = client.root();
    let mut arguments = arguments(&root, "d");
    changes(&mut arguments, Some(0o755), None, None);
    let call = message(calls::PROGRAM, MKDIR, 0, &arguments.0);
    let replies = std::thread::scope(|scope| {
        let threads = [0; 8].map(|_| scope.spawn(|| client.server.answer(&call).unwrap()));
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(replies.iter().all(|reply| reply[24..28] == [0; 4] && *reply == replies[0]));
}
