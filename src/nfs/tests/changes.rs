//! What the guest hears of changes by the host.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::super::export::FileId;
use super::super::marks::ASKED;
use super::{Client, Decoder, Handle, changes, client, named};

/// The end of a file's attributes: its time of change.
fn ctime(attributes: &[u8]) -> (u32, u32) {
    let mut rest = Decoder::new(&attributes[76..84]);
    (rest.word().unwrap(), rest.word().unwrap())
}

/// Asks for a directory's time of change, when it is looked at again.
fn asked(client: &Client, dir: &Handle) -> (u32, u32) {
    std::thread::sleep(ASKED + Duration::from_millis(10));
    ctime(&client.call(1, |a| a.opaque(dir)).unwrap())
}

#[test]
fn a_directory_changes_with_each_of_its_files() {
    let client = client();
    let root = client.root();
    fs::create_dir(client.path("d")).unwrap();
    for name in ["a", "b", "d/c"] {
        fs::write(client.path(name), "1").unwrap();
    }
    let mut last = asked(&client, &root);
    assert_eq!(asked(&client, &root), last);
    for name in ["a", "b", "a"] {
        fs::write(client.path(name), "2").unwrap();
        let now = asked(&client, &root);
        assert_ne!(now, last, "{name}");
        last = now;
    }
    let inner = client.find("d").unwrap();
    let before = asked(&client, &inner);
    fs::write(client.path("d/c"), "2").unwrap();
    assert_eq!(asked(&client, &root), last, "that is told by the directory that it is in");
    assert_ne!(asked(&client, &inner), before);
    let new = Client { server: super::server(client.dir.path(), false), ..client };
    assert_eq!(asked(&new, &root), last, "another daemon says the same");
}

#[test]
fn the_mark_is_in_all_that_is_said_of_a_directory() {
    let client = client();
    let root = client.root();
    fs::create_dir(client.path("d")).unwrap();
    fs::write(client.path("d/a"), "1").unwrap();
    let dir = client.find("d").unwrap();
    let known = asked(&client, &dir);
    let access = client.call(4, |a| {
        a.opaque(&dir);
        a.word(1);
    });
    assert_eq!(ctime(&access.unwrap()[4..]), known);
    let looked_up = client.call(3, |a| named(a, &root, b"d")).unwrap();
    let handle = Decoder::new(&looked_up).opaque(64).unwrap().len();
    assert_eq!(ctime(&looked_up[4 + handle.next_multiple_of(4) + 4..]), known);
    // What the guest makes by itself is no change by anybody else.
    let made = client.call(8, |a| {
        named(a, &dir, b"new");
        a.word(1);
        changes(a, Some(0o644), None, None);
    });
    let made = made.unwrap();
    let (before, after) = made[made.len() - 84 - 4 - 24..].split_at(24);
    let mut before = Decoder::new(&before[16..]);
    assert_eq!((before.word().unwrap(), before.word().unwrap()), known);
    let now = ctime(&client.call(1, |a| a.opaque(&dir)).unwrap());
    assert_eq!(ctime(&after[4..]), now);
    assert_ne!(now, known);
}

#[test]
fn a_directory_that_is_too_large_to_be_looked_at_always_counts_as_changed() {
    let client = client();
    let root = client.root();
    for number in 0..3 {
        fs::write(client.path(&number.to_string()), "").unwrap();
    }
    let export = client.server.export(super::NUMBER).unwrap();
    let place = export.find(&super::super::handle::Handle::root(super::NUMBER)).unwrap();
    let looked = |within| super::super::marks::sum(&place, within).unwrap();
    assert_eq!(looked(Duration::MAX), looked(Duration::MAX));
    assert_ne!(looked(Duration::ZERO), looked(Duration::ZERO));
    assert!(client.stat(&root).is_ok());
}

#[test]
fn what_the_guest_reads_and_the_host_changes_is_told_once() {
    let client = client();
    let told = || client.server.changed_files();
    for name in ["read", "not"] {
        fs::write(client.path(name), "1").unwrap();
    }
    let (read, not) = (client.find("read").unwrap(), client.find("not").unwrap());
    assert_eq!(client.read(&read, 0, 9).unwrap(), b"1");
    client.stat(&not).unwrap();
    assert_eq!(told(), []);
    for name in ["read", "not"] {
        fs::write(client.path(name), "two").unwrap();
    }
    assert_eq!(told(), [(super::NUMBER, "read".into())]);
    assert_eq!(told(), []);
    // The guest has asked by itself, and has written by itself.
    fs::write(client.path("read"), "three").unwrap();
    client.stat(&read).unwrap();
    client.write(&read, 0, b"four").unwrap();
    assert_eq!(told(), []);
    fs::remove_file(client.path("read")).unwrap();
    assert_eq!(told(), []);
    fs::write(client.path("read"), "another file").unwrap();
    assert_eq!(told(), [], "nobody has read that");
}

#[test]
fn no_more_files_are_followed_than_a_guest_may_cost() {
    let client = client();
    for number in 0..300 {
        fs::write(client.path(&number.to_string()), "1").unwrap();
        let file = client.find(&number.to_string()).unwrap();
        client.read(&file, 0, 9).unwrap();
    }
    for number in 0..300 {
        fs::write(client.path(&number.to_string()), "22").unwrap();
    }
    let mut changed = client.server.changed_files();
    assert_eq!(changed.len(), 256);
    changed.retain(|(_, path)| ["0", "299"].map(Path::new).contains(&path.as_path()));
    assert_eq!(changed, [(super::NUMBER, "299".into())], "those that were read last");
}

#[test]
fn an_open_file_is_read_at_once_if_it_is_in_memory() {
    let client = client();
    fs::write(client.path("a"), [7; 5000]).unwrap();
    let file = client.find("a").unwrap();
    let at = |offset: u64, count: u32| {
        let mut call = super::Encoder::default();
        call.opaque(&file);
        call.long(offset);
        call.word(count);
        super::message(super::calls::PROGRAM, 6, 0, &call.0)
    };
    let both = |message: Vec<u8>| {
        let at_once = client.server.answer_at_once(&message);
        (at_once.clone(), at_once.is_none_or(|reply| Some(reply) == client.server.answer(&message)))
    };
    assert_eq!(both(at(0, 4096)), (None, true), "it is not open");
    client.read(&file, 0, 1).unwrap();
    // A file system of another kind hands it on, and so does the kernel where the page is not there.
    if let (Some(reply), same) = both(at(0, 4096)) {
        assert!(same && reply.len() > 4096);
        assert_eq!(both(at(4096, 4096)), (None, true), "there may be more on the disk");
        assert_eq!(both(at(0, 1 << 20)), (None, true), "that takes too long");
    }
    let other =
        Client { uid: 4711, dir: tempfile::tempdir().unwrap(), server: client.server.clone() };
    let message = super::message(super::calls::PROGRAM, 1, other.uid, &[]);
    assert_eq!(other.server.answer_at_once(&message), None);
}

#[test]
fn what_the_guest_changes_is_no_change_of_its_directory() {
    let client = client();
    let root = client.root();
    for name in ["kept", "old"] {
        fs::write(client.path(name), "1").unwrap();
    }
    let kept = client.find("kept").unwrap();
    asked(&client, &root);
    let known = || client.server.export(super::NUMBER).unwrap().marks.known(FileId::ROOT);
    let mark = known();
    // Nothing of that changes the mark, though the directory itself has changed.
    client.write(&kept, 0, b"22").unwrap();
    client.set(&kept, Some(0o600), None, Some(1)).unwrap();
    let file = client.create(&root, "new", 0o640).unwrap();
    client.write(&file, 0, b"hello").unwrap();
    client.rename((&root, "new"), (&root, "newer")).unwrap();
    client.rename((&root, "newer"), (&root, "old")).unwrap();
    client
        .call(15, |a| {
            a.opaque(&kept);
            named(a, &root, b"link");
        })
        .unwrap();
    client
        .call(10, |a| {
            named(a, &root, b"soft");
            changes(a, None, None, None);
            a.opaque(b"kept");
        })
        .unwrap();
    client.call(12, |a| named(a, &root, b"soft")).unwrap();
    client.make(9, &root, "dir", 0o755).unwrap();
    asked(&client, &root);
    // The other name of a file has changed with it.
    let after_link = known();
    client.call(12, |a| named(a, &root, b"old")).unwrap();
    client.create(&root, "another", 0o644).unwrap();
    asked(&client, &root);
    assert_eq!((known(), after_link), (mark, mark));
    fs::write(client.path("kept"), "host").unwrap();
    asked(&client, &root);
    assert_ne!(known(), mark);
}

#[test]
fn a_guest_of_the_past_hears_of_what_it_does_not_know() {
    let client = client();
    let root = client.root();
    for number in 0..40 {
        fs::write(client.path(&number.to_string()), "1").unwrap();
        let file = client.find(&number.to_string()).unwrap();
        client.read(&file, 0, 9).unwrap();
    }
    let known = asked(&client, &root);
    let file = client.find("0").unwrap();
    client.write(&file, 0, b"22").unwrap();
    assert_eq!(asked(&client, &root), known);
    // It is restored to what it was before it wrote.
    client.server.close_files();
    assert_ne!(asked(&client, &root), known);
    let mut told = client.server.changed_files();
    assert_eq!(told.len(), 32);
    told.retain(|(_, path)| path.as_path() == Path::new("39"));
    assert_eq!(told.len(), 1, "what was read last");
    assert_eq!(client.server.changed_files(), []);
}
