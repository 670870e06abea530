//! The server against a client of a few lines: what a guest's kernel would ask, and what none would.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::xdr::{Decoder, Encoder};
use super::{Export, LONGEST_IO, Server, calls, mount};

const KEY: super::Key = [3; 32];
const NUMBER: u64 = 77;
/// Calls have numbers of their own.
static LAST_ID: AtomicU32 = AtomicU32::new(1000);

mod bad_input;
mod changes;
mod repeated;

/// A server with one share, and who asks it.
struct Client {
    dir: TempDir,
    server: Arc<Server>,
    uid: u32,
}

type Handle = Vec<u8>;

/// What a procedure has answered: its result, or the number of an error.
type Answer = Result<Vec<u8>, u32>;

fn client() -> Client {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("share")).unwrap();
    let client = Client { server: server(dir.path(), false), dir, uid: 0 };
    client.server.set_guest_user(1000, 1000);
    client
}

/// A server as a new daemon starts it.
fn server(dir: &Path, read_only: bool) -> Arc<Server> {
    let server = Server::new(KEY);
    let source = dir.canonicalize().unwrap().join("share");
    server.add(Arc::new(Export::new(NUMBER, source, read_only)));
    Arc::new(server)
}

fn message(program: u32, procedure: u32, uid: u32, arguments: &[u8]) -> Vec<u8> {
    let mut call = Encoder::default();
    call.words(&[9, 0, 2, program, 3, procedure, 1, 20, 0, 0, uid, 0, 0, 0, 0]);
    call.fixed(arguments);
    call.0
}

impl Client {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("share").join(name)
    }

    fn raw(&self, program: u32, procedure: u32, arguments: &[u8]) -> Vec<u8> {
        let mut call = message(program, procedure, self.uid, arguments);
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed);
        call[..4].copy_from_slice(&id.to_be_bytes());
        let reply = self.server.answer(&call).unwrap();
        let mut rest = Decoder::new(&reply);
        let head: Vec<u32> = (0..6).map(|_| rest.word().unwrap()).collect();
        assert_eq!(head, [id, 1, 0, 0, 0, 0], "procedure {procedure}");
        reply[24..].to_vec()
    }

    fn call(&self, procedure: u32, write: impl FnOnce(&mut Encoder)) -> Answer {
        let mut arguments = Encoder::default();
        write(&mut arguments);
        let reply = self.raw(calls::PROGRAM, procedure, &arguments.0);
        let mut rest = Decoder::new(&reply);
        match rest.word().unwrap() {
            0 => Ok(reply[4..].to_vec()),
            error => Err(error),
        }
    }

    fn root(&self) -> Handle {
        let mut path = Encoder::default();
        path.opaque(Export::path(NUMBER).as_bytes());
        let reply = self.raw(mount::PROGRAM, 1, &path.0);
        let mut rest = Decoder::new(&reply);
        assert_eq!(rest.word(), Ok(0));
        rest.opaque(64).unwrap().to_vec()
    }

    fn lookup(&self, dir: &Handle, name: &str) -> Result<Handle, u32> {
        let found = self.call(3, |a| named(a, dir, name.as_bytes()))?;
        Ok(Decoder::new(&found).opaque(64).unwrap().to_vec())
    }

    fn find(&self, path: &str) -> Result<Handle, u32> {
        path.split('/').try_fold(self.root(), |dir, name| self.lookup(&dir, name))
    }

    /// GETATTR: kind, mode, links, owner, group, size.
    fn stat(&self, file: &Handle) -> Result<(u32, u32, u32, u32, u32, u64), u32> {
        let reply = self.call(1, |a| a.opaque(file))?;
        let mut rest = Decoder::new(&reply);
        let mut word = || rest.word().unwrap();
        let words = (word(), word(), word(), word(), word());
        let size = rest.long().unwrap();
        Ok((words.0, words.1, words.2, words.3, words.4, size))
    }

    fn read(&self, file: &Handle, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let reply = self.call(6, |a| {
            a.opaque(file);
            a.long(offset);
            a.word(count);
        })?;
        let mut rest = Decoder::new(&reply[4 + 84 + 8..]);
        Ok(rest.opaque(LONGEST_IO as usize).unwrap().to_vec())
    }

    fn write(&self, file: &Handle, offset: u64, bytes: &[u8]) -> Result<(), u32> {
        let write = |a: &mut Encoder| {
            a.opaque(file);
            a.long(offset);
            a.word(bytes.len().try_into().unwrap());
            a.word(2);
            a.opaque(bytes);
        };
        self.call(7, write).map(drop)
    }

    fn make(&self, procedure: u32, dir: &Handle, name: &str, mode: u32) -> Result<Handle, u32> {
        let reply = self.call(procedure, |a| {
            named(a, dir, name.as_bytes());
            if procedure == 8 {
                a.word(1);
            }
            changes(a, Some(mode), None, None);
        })?;
        Ok(Decoder::new(&reply[4..]).opaque(64).unwrap().to_vec())
    }

    fn create(&self, dir: &Handle, name: &str, mode: u32) -> Result<Handle, u32> {
        self.make(8, dir, name, mode)
    }

    fn rename(&self, from: (&Handle, &str), to: (&Handle, &str)) -> Result<(), u32> {
        let rename = |a: &mut Encoder| {
            named(a, from.0, from.1.as_bytes());
            named(a, to.0, to.1.as_bytes());
        };
        self.call(14, rename).map(drop)
    }

    fn set(
        &self,
        file: &Handle,
        mode: Option<u32>,
        uid: Option<u32>,
        size: Option<u64>,
    ) -> Result<(), u32> {
        let set = |a: &mut Encoder| {
            a.opaque(file);
            changes(a, mode, uid, size);
            a.flag(false);
        };
        self.call(2, set).map(drop)
    }

    /// Lists a directory: the names, and whether each has a handle.
    fn list(&self, dir: &Handle, plus: bool, count: u32) -> Result<Vec<(String, bool)>, u32> {
        let (mut all, mut at) = (Vec::new(), 0);
        loop {
            let reply = self.call(if plus { 17 } else { 16 }, |a| {
                a.opaque(dir);
                a.long(at);
                a.long(0);
                a.word(count);
                if plus {
                    a.word(count);
                }
            })?;
            assert!(reply.len() <= count as usize);
            let mut rest = Decoder::new(&reply[4 + 84 + 8..]);
            while rest.flag().unwrap() {
                rest.long().unwrap();
                let name = String::from_utf8(rest.opaque(255).unwrap().to_vec()).unwrap();
                at = rest.long().unwrap();
                let has_handle = plus && rest.flag().unwrap() && {
                    rest.fixed::<84>().unwrap();
                    rest.flag().unwrap() && rest.opaque(64).is_ok()
                };
                if plus && !has_handle {
                    rest.flag().unwrap();
                }
                all.push((name, has_handle));
            }
            if rest.flag().unwrap() {
                return Ok(all);
            }
        }
    }
}

fn named(arguments: &mut Encoder, dir: &Handle, name: &[u8]) {
    arguments.opaque(dir);
    arguments.opaque(name);
}

fn changes(arguments: &mut Encoder, mode: Option<u32>, uid: Option<u32>, size: Option<u64>) {
    for value in [mode, uid, None] {
        arguments.flag(value.is_some());
        value.into_iter().for_each(|word| arguments.word(word));
    }
    arguments.flag(size.is_some());
    size.into_iter().for_each(|size| arguments.long(size));
    arguments.words(&[0, 0]);
}

const NO_ENTRY: u32 = 2;
const ACCESS: u32 = 13;
const NOT_OWNER: u32 = 1;
const STALE: u32 = 70;

#[test]
fn what_the_guest_writes_is_in_the_file_and_the_reverse() {
    let client = client();
    let root = client.root();
    let file = client.create(&root, "a", 0o640).unwrap();
    client.write(&file, 3, b"lo\n").unwrap();
    client.write(&file, 0, b"hel").unwrap();
    assert_eq!(fs::read(client.path("a")).unwrap(), b"hello\n");
    assert_eq!(fs::metadata(client.path("a")).unwrap().mode() & 0o7777, 0o640);
    assert_eq!(client.stat(&file).unwrap(), (1, 0o640, 1, 1000, 1000, 6));
    fs::write(client.path("a"), "from the host").unwrap();
    assert_eq!(client.read(&file, 5, 100).unwrap(), b"the host");
    assert_eq!(client.read(&file, u64::MAX, 100).unwrap(), b"");
    client.set(&file, None, None, Some(4)).unwrap();
    assert_eq!(fs::read(client.path("a")).unwrap(), b"from");
    assert_eq!(client.find("nowhere"), Err(NO_ENTRY));
}

#[test]
fn a_file_that_is_read_only_is_written_by_who_has_made_it() {
    let client = client();
    let file = client.create(&client.root(), "object", 0o444).unwrap();
    client.write(&file, 0, b"one").unwrap();
    // Also when the daemon that has made it is gone.
    let again = Client { server: server(client.dir.path(), false), ..client };
    again.write(&file, 3, b"two").unwrap();
    let path = again.path("object");
    assert_eq!(fs::read(&path).unwrap(), b"onetwo");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o444);
}

#[test]
fn a_handle_leads_to_its_file_wherever_it_is() {
    let client = client();
    fs::create_dir_all(client.path("a/b/c")).unwrap();
    fs::create_dir_all(client.path("d")).unwrap();
    fs::write(client.path("a/b/c/file"), "1").unwrap();
    let (file, dir) = (client.find("a/b/c/file").unwrap(), client.find("a/b").unwrap());
    // Moved by the guest, then on the host.
    client.rename((&client.find("a").unwrap(), "b"), (&client.root(), "x")).unwrap();
    assert_eq!(client.read(&file, 0, 9).unwrap(), b"1");
    fs::rename(client.path("x"), client.path("d/y")).unwrap();
    assert_eq!(client.read(&file, 0, 9).unwrap(), b"1");
    assert!(client.lookup(&dir, "c").is_ok());
    // A new daemon has never heard of it.
    for (from, to) in [("d/y", "a/b"), ("a", "e"), ("e/b/c/file", "e/b/c/other"), ("e/b", "f")] {
        fs::rename(client.path(from), client.path(to)).unwrap();
        let new = Client {
            server: server(client.dir.path(), false),
            dir: tempfile::tempdir().unwrap(),
            uid: 0,
        };
        assert_eq!(new.read(&file, 0, 9).unwrap(), b"1", "{from} is {to}");
        assert_eq!(new.stat(&dir).unwrap().0, 2);
    }
    fs::remove_file(client.path("f/c/other")).unwrap();
    let new = Client { server: server(client.dir.path(), false), ..client };
    assert_eq!(new.stat(&file), Err(STALE));
}

#[test]
fn a_file_has_one_handle_also_after_it_was_renamed() {
    let client = client();
    let root = client.root();
    client.make(9, &root, "d", 0o755).unwrap();
    let file = client.create(&root, "a", 0o644).unwrap();
    let dir = client.find("d").unwrap();
    client.rename((&root, "a"), (&dir, "b")).unwrap();
    assert_eq!(client.find("d/b").unwrap(), file);
    assert_eq!(client.lookup(&dir, "..").unwrap(), root);
    assert_eq!(client.lookup(&dir, ".").unwrap(), dir);
}

#[test]
fn deep_directories_are_found_again() {
    let client = client();
    let path = vec!["d"; 40].join("/");
    fs::create_dir_all(client.path(&path)).unwrap();
    fs::write(client.path(&path).join("file"), "deep").unwrap();
    let file = client.find(&format!("{path}/file")).unwrap();
    let new = Client { server: server(client.dir.path(), false), ..client };
    assert_eq!(new.read(&file, 0, 9).unwrap(), b"deep");
}

#[test]
fn another_file_with_the_same_inode_is_another_file() {
    let client = client();
    let root = client.root();
    let file = client.create(&root, "a", 0o644).unwrap();
    let inode = fs::metadata(client.path("a")).unwrap().ino();
    client.call(12, |a| named(a, &root, b"a")).unwrap();
    assert_eq!(client.read(&file, 0, 1), Err(STALE));
    std::thread::sleep(Duration::from_millis(20));
    for number in 0..64 {
        fs::write(client.path(&number.to_string()), "other").unwrap();
    }
    let reused = (0..64).any(|n| fs::metadata(client.path(&n.to_string())).unwrap().ino() == inode);
    let new = Client { server: server(client.dir.path(), false), ..client };
    assert_eq!(new.read(&file, 0, 1), Err(STALE), "its inode is in use again: {reused}");
}

#[test]
fn names_are_made_and_removed() {
    let client = client();
    let root = client.root();
    let dir = client.make(9, &root, "d", 0o2775).unwrap();
    assert_eq!(fs::metadata(client.path("d")).unwrap().mode() & 0o7777, 0o2775);
    client
        .call(10, |a| {
            named(a, &dir, b"link");
            changes(a, Some(0o777), None, None);
            a.opaque(b"../somewhere");
        })
        .unwrap();
    assert_eq!(fs::read_link(client.path("d/link")).unwrap(), Path::new("../somewhere"));
    let text = client.call(5, |a| a.opaque(&client.find("d/link").unwrap())).unwrap();
    assert_eq!(Decoder::new(&text[88..]).opaque(99).unwrap(), b"../somewhere");
    client
        .call(11, |a| {
            named(a, &dir, b"fifo");
            a.word(7);
            changes(a, Some(0o600), None, None);
        })
        .unwrap();
    // A FIFO is not opened here.
    assert_eq!(client.read(&client.find("d/fifo").unwrap(), 0, 1), Err(22));
    let file = client.create(&dir, "f", 0o644).unwrap();
    let link = |name: &str| {
        client.call(15, |a| {
            a.opaque(&file);
            named(a, &root, name.as_bytes());
        })
    };
    link("hard").unwrap();
    assert_eq!(link("hard"), Err(17));
    assert_eq!(client.stat(&file).unwrap().2, 2);
    client.call(12, |a| named(a, &dir, b"f")).unwrap();
    client.write(&file, 0, b"still").unwrap();
    assert_eq!(fs::read(client.path("hard")).unwrap(), b"still");
    assert_eq!(client.call(13, |a| named(a, &root, b"d")), Err(66));
    assert_eq!(client.create(&root, "hard", 0o644), Err(17));
}

#[test]
fn an_exclusive_creation_is_known_by_its_mark() {
    let client = client();
    let root = client.root();
    let create = |mark: u64| {
        client.call(8, |a| {
            named(a, &root, b"x");
            a.word(2);
            a.long(mark);
        })
    };
    let handle = |reply: &Vec<u8>| Decoder::new(&reply[4..]).opaque(64).unwrap().to_vec();
    let first = create(0x1234_5678_9abc_def0).unwrap();
    assert_eq!(handle(&create(0x1234_5678_9abc_def0).unwrap()), handle(&first));
    assert_eq!(create(0x1234_5678_9abc_def1), Err(17));
}

#[test]
fn no_symbolic_link_is_followed() {
    let client = client();
    fs::write(client.dir.path().join("secret"), "x").unwrap();
    symlink("../secret", client.path("out")).unwrap();
    symlink("..", client.path("up")).unwrap();
    let (out, up) = (client.find("out").unwrap(), client.find("up").unwrap());
    assert_eq!(client.stat(&out).unwrap().0, 5);
    assert_eq!(client.read(&out, 0, 9), Err(22));
    assert_eq!(client.write(&out, 0, b"y"), Err(22));
    assert_eq!(client.lookup(&up, "secret"), Err(20));
    assert_eq!(client.list(&up, false, 4096), Err(20));
    client.set(&out, Some(0o777), None, None).unwrap();
    assert_eq!(client.lookup(&client.root(), "..").unwrap(), client.root());
    // A directory that became a link: its handle leads nowhere.
    fs::create_dir(client.path("d")).unwrap();
    let dir = client.find("d").unwrap();
    fs::remove_dir(client.path("d")).unwrap();
    symlink("..", client.path("d")).unwrap();
    assert_eq!(client.lookup(&dir, "secret"), Err(STALE));
}

#[test]
fn the_guests_root_and_its_login_user_are_the_user_and_others_only_look() {
    let client = client();
    let root = client.root();
    let file = client.create(&root, "f", 0o604).unwrap();
    let secret = client.create(&root, "s", 0o600).unwrap();
    client.write(&file, 0, b"text").unwrap();
    let login =
        Client { uid: 1000, server: Arc::clone(&client.server), dir: tempfile::tempdir().unwrap() };
    let other =
        Client { uid: 1001, server: Arc::clone(&client.server), dir: tempfile::tempdir().unwrap() };
    login.write(&secret, 0, b"mine").unwrap();
    assert_eq!(other.read(&file, 0, 9).unwrap(), b"text");
    assert_eq!(other.read(&secret, 0, 9), Err(ACCESS));
    assert_eq!(other.write(&file, 0, b"x"), Err(ACCESS));
    assert_eq!(other.create(&root, "x", 0o644), Err(ACCESS));
    assert_eq!(other.set(&file, Some(0o666), None, None), Err(NOT_OWNER));
    assert_eq!(other.set(&file, None, None, Some(0)), Err(ACCESS));
    assert_eq!(other.rename((&root, "f"), (&root, "g")), Err(ACCESS));
    // Root gives files away without effect, as tar does; the login user must not.
    client.set(&file, None, Some(5), None).unwrap();
    assert_eq!(login.set(&file, None, Some(5), None), Err(1));
    login.set(&file, None, Some(1000), None).unwrap();
    // No program of the guest becomes the user's for others on the host.
    client.set(&file, Some(0o4755), None, None).unwrap();
    assert_eq!(fs::metadata(client.path("f")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn a_share_for_reading_changes_nothing() {
    let client = client();
    let file = client.create(&client.root(), "f", 0o644).unwrap();
    let only = Client { server: server(client.dir.path(), true), ..client };
    let root = only.root();
    let refused = [
        only.write(&file, 0, b"x"),
        only.create(&root, "g", 0o644).map(drop),
        only.set(&file, Some(0o600), None, None),
        only.rename((&root, "f"), (&root, "g")),
        only.call(12, |a| named(a, &root, b"f")).map(drop),
    ];
    assert_eq!(refused, [Err(30); 5]);
    assert_eq!(only.read(&file, 0, 9).unwrap(), b"");
    let granted = |client: &Client| {
        let reply = client.call(4, |a| {
            a.opaque(&file);
            a.word(0x3f);
        });
        Decoder::new(&reply.unwrap()[88..]).word().unwrap()
    };
    assert_eq!(granted(&only), 0x01);
    only.server.export(NUMBER).unwrap().set_read_only(false);
    assert_eq!(granted(&only), 0x1d);
}

#[test]
fn long_directories_are_listed_whole_also_while_they_are_emptied() {
    let client = client();
    let root = client.root();
    let names: Vec<String> = (0..2000).map(|n| format!("file-{n:04}")).collect();
    names.iter().for_each(|name| fs::write(client.path(name), "").unwrap());
    for (plus, count) in [(true, 4096), (true, 65536), (false, 4096), (false, 1 << 20)] {
        let mut listed = client.list(&root, plus, count).unwrap();
        listed.retain(|(name, _)| name != "." && name != "..");
        assert!(listed.iter().all(|(_, has_handle)| *has_handle == plus));
        let mut listed: Vec<String> = listed.into_iter().map(|(name, _)| name).collect();
        listed.sort();
        assert_eq!(listed, names);
    }
    assert_eq!(client.list(&root, true, 100), Err(10005));
    // As `rm -r` does it: list, remove, list on.
    loop {
        let reply = client.call(16, |a| {
            a.opaque(&root);
            a.long(0);
            a.long(0);
            a.word(4096);
        });
        let reply = reply.unwrap();
        let mut rest = Decoder::new(&reply[96..]);
        let mut removed = 0;
        while rest.flag().unwrap() {
            rest.long().unwrap();
            let name = rest.opaque(255).unwrap().to_vec();
            rest.long().unwrap();
            if !name.starts_with(b".") {
                client.call(12, |a| named(a, &root, &name)).unwrap();
                removed += 1;
            }
        }
        if removed == 0 {
            break;
        }
    }
    assert_eq!(fs::read_dir(client.path("")).unwrap().count(), 0);
}

#[test]
fn a_source_that_vanishes_is_stale_and_comes_back() {
    let client = client();
    let root = client.root();
    let (path, moved) = (client.path(""), client.dir.path().join("moved"));
    fs::rename(&path, &moved).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(client.stat(&root), Err(STALE));
    assert!(client.server.export(NUMBER).unwrap().check().is_err());
    fs::create_dir(&path).unwrap();
    fs::write(client.path("new"), "here").unwrap();
    let (before, file) = (client.stat(&root).unwrap().0, client.find("new").unwrap());
    assert_eq!((before, client.read(&file, 0, 9).unwrap()), (2, b"here".to_vec()));
    // A link in its place is not followed, whoever has made it.
    fs::remove_dir_all(&path).unwrap();
    symlink(&moved, client.dir.path().join("share")).unwrap();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(client.stat(&root), Err(STALE));
}

#[test]
fn a_share_that_is_taken_away_is_stale() {
    let client = client();
    let root = client.root();
    client.server.remove(NUMBER);
    assert_eq!(client.stat(&root), Err(STALE));
}

#[tokio::test]
async fn only_root_of_the_guest_is_served() {
    let client = client();
    let (_guest, ours) = tokio::io::duplex(4096);
    let refused = Arc::clone(&client.server).serve(ours, 1024).await;
    assert!(refused.unwrap_err().to_string().contains("not root's"));
}

#[tokio::test]
async fn many_calls_are_at_work_at_once_and_each_is_answered() {
    let client = client();
    let (mut guest, ours) = tokio::io::duplex(1 << 16);
    let serving = tokio::spawn(Arc::clone(&client.server).serve(ours, 700));
    let call = message(calls::PROGRAM, 0, 0, &[]);
    for _ in 0..100 {
        // In two pieces.
        let (one, two) = call.split_at(8);
        for (piece, last) in [(one, 0), (two, 1u32 << 31)] {
            guest.write_u32(u32::try_from(piece.len()).unwrap() | last).await.unwrap();
            guest.write_all(piece).await.unwrap();
        }
    }
    for _ in 0..100 {
        assert_eq!(guest.read_u32().await.unwrap(), 24 | 1 << 31);
        guest.read_exact(&mut [0; 24]).await.unwrap();
    }
    drop(guest);
    serving.await.unwrap().unwrap();
}
