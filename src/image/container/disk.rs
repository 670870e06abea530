//! Writes a [`RootTree`] as an ext4 file system, as an ordinary user: a script for `debugfs`, as for
//! `tiny` (`ext4`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::root_tree::{Body, Inode, Metadata, ROOT, RootTree};
use crate::image::ext4::{self, Shape};
use crate::image::source::BuildError;

const BLOCK: u64 = 4096;
/// The journal, the file system's tables, and room for a guest that starts before it has grown.
const SPARE: u64 = 64 << 20;
/// Bytes of an inode.
const INODE: u64 = 256;
/// The longest command: debugfs reads lines into a buffer of this length at the least (that of musl),
/// and would run the rest of a longer one, which the image decides, as a command.
const LONGEST_LINE: usize = 1000;
/// The longest script: it is made in memory.
const LONGEST_SCRIPT: usize = 1 << 30;
/// As many names of a file as ext4 takes.
const MOST_LINKS: u32 = 65_000;

/// Makes `disk` from a tree and returns its size in bytes. `time` is that of what has none.
pub(super) fn make(
    tree: &RootTree,
    disk: &Path,
    time: u32,
    scratch: &Path,
) -> Result<u64, BuildError> {
    let script = Script::of(tree)?;
    let inodes = (script.inodes.len() as u64) * 9 / 8 + 4096;
    let bytes = script.blocks * BLOCK + inodes * INODE;
    let size = (bytes + bytes / 16 + SPARE).next_multiple_of(1 << 20);
    let shape = Shape { size, inodes: inodes.max(size / ext4::BYTES_PER_INODE) };
    let path = scratch.join(ext4::SCRIPT);
    fs::write(&path, &script.text).map_err(BuildError::at(&path))?;
    ext4::make_by_script(disk, shape, time, scratch)?;
    Ok(size)
}

/// The commands, and what they take.
#[derive(Debug, Default)]
struct Script {
    text: Vec<u8>,
    blocks: u64,
    /// The first path of each file so far.
    inodes: BTreeMap<usize, Vec<u8>>,
    /// How many names each file has.
    links: BTreeMap<usize, u32>,
    /// A command that is too long, as far as people read it.
    overlong: Option<String>,
}

impl Script {
    fn of(tree: &RootTree) -> Result<Self, BuildError> {
        let mut script = Self { links: links(tree)?, ..Self::default() };
        script.own(b".", tree.inode(ROOT), tree)?;
        script.directory(tree, ROOT, b"")?;
        let shared = script.links.clone().into_iter().filter(|(_, links)| *links > 1);
        for (inode, links) in shared {
            let path = quoted(&script.inodes[&inode]);
            script.line(&[b"sif ", &*path, format!(" links_count {links}").as_bytes()]);
        }
        match script.overlong {
            Some(command) => Err(overlong(&command)),
            None => Ok(script),
        }
    }

    fn directory(&mut self, tree: &RootTree, inode: usize, path: &[u8]) -> Result<(), BuildError> {
        let Body::Directory(entries) = &tree.inode(inode).body else { return Ok(()) };
        let bytes: u64 = entries.keys().map(|name| name.len() as u64 + 12).sum();
        self.blocks += bytes / (BLOCK / 2) + 1;
        let here = quoted(if path.is_empty() { b"/" } else { path });
        self.line(&[b"cd ", &*here]);
        // `ln` does not make a directory larger, as the other commands do.
        if entries.values().any(|entry| self.links.get(&entry.inode).is_some_and(|n| *n > 1)) {
            for _ in 0..bytes / (BLOCK / 2) {
                self.line(&[b"expand_dir ", &*here]);
            }
        }
        for (name, entry) in entries {
            self.entry(tree, (path, name), entry.inode)?;
        }
        for (name, entry) in entries {
            let below = [path, b"/", name].concat();
            self.directory(tree, entry.inode, &below)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        tree: &RootTree,
        (dir, name): (&[u8], &[u8]),
        number: usize,
    ) -> Result<(), BuildError> {
        let path = [dir, b"/", name].concat();
        if let Some(first) = self.inodes.get(&number) {
            let first = quoted(first);
            self.line(&[b"ln ", &*first, b" ", &*quoted(name)]);
            return Ok(());
        }
        let inode = tree.inode(number);
        self.inodes.insert(number, path);
        self.create(tree, inode, name);
        self.own(name, inode, tree)
    }

    fn create(&mut self, tree: &RootTree, inode: &Inode, name: &[u8]) {
        let name = quoted(name);
        match &inode.body {
            Body::Directory(_) => self.line(&[b"mkdir ", &*name]),
            Body::File(content, size) => {
                let path = tree.content(*content);
                let content = path.file_name().unwrap_or_default().as_encoded_bytes();
                self.blocks += size.div_ceil(BLOCK) + size / (BLOCK * 256);
                self.line(&[b"write ", content, b" ", &*name]);
            }
            Body::Symlink(target) => {
                self.blocks += 1;
                self.line(&[b"symlink ", &*name, b" ", &*quoted(target)]);
            }
            Body::Device(kind, major, minor) => {
                let numbers = format!(" {kind} {major} {minor}");
                self.line(&[b"mknod ", &*name, numbers.as_bytes()]);
            }
            Body::Fifo => self.line(&[b"mknod ", &*name, b" p"]),
        }
    }

    /// Gives a file in the present directory its owner, mode, times and attributes.
    fn own(&mut self, name: &[u8], inode: &Inode, tree: &RootTree) -> Result<(), BuildError> {
        // `<5>` alone would be the file with that number.
        let (path, mut fields) = (quoted(&[b"./", name].concat()), String::new());
        let Metadata { mode, uid, gid, mtime, xattrs } = &inode.metadata;
        let _infallible = write!(fields, "mode 0{:o}|uid {uid}|gid {gid}", kind(inode) | mode);
        for field in ["atime", "ctime", "mtime", "crtime"] {
            let _infallible = write!(fields, "|{field} @{mtime}");
        }
        for field in fields.split('|') {
            self.line(&[b"sif ", &*path, b" ", field.as_bytes()]);
        }
        for (name, value) in xattrs {
            self.blocks += 1;
            let content = format!("x{}", self.text.len());
            let file = tree.contents().join(&content);
            fs::write(&file, value).map_err(BuildError::at(&file))?;
            let set = format!("ea_set -f {content} ");
            self.line(&[set.as_bytes(), &*path, b" ", name.as_bytes()]);
        }
        Ok(())
    }

    /// Adds a command, unless it or the script became too long: then nothing is run at all.
    fn line(&mut self, parts: &[&[u8]]) {
        let command = parts.concat();
        if command.len() > LONGEST_LINE || self.text.len() > LONGEST_SCRIPT {
            self.overlong.get_or_insert_with(|| {
                String::from_utf8_lossy(&command[..command.len().min(60)]).into_owned()
            });
            return;
        }
        self.text.extend(command);
        self.text.push(b'\n');
    }
}

fn overlong(command: &str) -> BuildError {
    let reason = "its paths are longer, or more, than debugfs takes; name another image";
    BuildError::malformed(format!("{command}…"), reason)
}

fn kind(inode: &Inode) -> u32 {
    match inode.body {
        Body::Directory(_) => 0o040_000,
        Body::File(..) => 0o100_000,
        Body::Symlink(_) => 0o120_000,
        Body::Device('b', ..) => 0o060_000,
        Body::Device(..) => 0o020_000,
        Body::Fifo => 0o010_000,
    }
}

/// Counts the names of each file that is no directory.
fn links(tree: &RootTree) -> Result<BTreeMap<usize, u32>, BuildError> {
    let (mut links, mut directories) = (BTreeMap::new(), vec![ROOT]);
    while let Some(directory) = directories.pop() {
        let Body::Directory(entries) = &tree.inode(directory).body else { continue };
        for (name, entry) in entries {
            if matches!(tree.inode(entry.inode).body, Body::Directory(_)) {
                directories.push(entry.inode);
                continue;
            }
            let count = links.entry(entry.inode).or_insert(0);
            *count += 1;
            if *count > MOST_LINKS {
                let name = String::from_utf8_lossy(name).into_owned();
                return Err(BuildError::malformed(
                    name,
                    "it has more names than ext4 gives a file",
                ));
            }
        }
    }
    Ok(links)
}

/// Quotes a word as debugfs reads it. No name has a line's end (`root_tree`).
fn quoted(word: &[u8]) -> Vec<u8> {
    let mut text = vec![b'"'];
    for byte in word {
        if *byte == b'"' {
            text.push(b'"');
        }
        text.push(*byte);
    }
    text.push(b'"');
    text
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::super::root_tree::Limits;
    use super::*;

    fn debugfs(disk: &Path, request: &str) -> String {
        let mut command = Command::new("debugfs");
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        let output = command.env("PATH", path).args(["-R", request]).arg(disk).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[test]
    fn names_owners_links_devices_and_attributes_are_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { entries: 10_000, bytes: 1 << 30 };
        let mut tree = RootTree::new(dir.path().to_owned(), limits);
        tree.next_layer();
        let metadata = Metadata {
            mode: 0o4755,
            uid: 1000,
            gid: 70_000,
            mtime: 42,
            xattrs: vec![("user.x".into(), b"va\nl".to_vec())],
        };
        tree.file(b"a \"b\"/<5>", metadata, &mut &[1; 9000][..]).unwrap();
        for number in 0..3000 {
            tree.hard_link(format!("links/{number}").as_bytes(), b"a \"b\"/<5>").unwrap();
        }
        tree.special(b"null", Metadata::default(), Body::Device('c', 1, 3)).unwrap();
        let far = Body::Symlink(b"/x y/".repeat(30));
        tree.special("ü".as_bytes(), Metadata::default(), far).unwrap();
        let disk = dir.path().join("disk");
        let size = make(&tree, &disk, 1_700_000_000, dir.path()).unwrap();
        assert_eq!(fs::metadata(&disk).unwrap().len(), size);
        let stat = debugfs(&disk, "stat \"/a \"\"b\"\"/<5>\"");
        for wanted in ["Mode:  04755", "User:  1000   Group: 70000", "Links: 3001", "user.x"] {
            assert!(stat.contains(wanted), "{wanted}: {stat}");
        }
        assert!(debugfs(&disk, "stat /null").contains("character special"));
        assert!(debugfs(&disk, "ls -p /").contains("/ü/"));
    }

    #[test]
    fn a_command_that_debugfs_would_cut_is_refused_and_nothing_is_run() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { entries: 100, bytes: 1 << 30 };
        let far = Body::Symlink(vec![b'"'; 600]);
        let deep = [&b"\"".repeat(200)[..], b"/"].concat().repeat(4);
        let mut link = RootTree::new(dir.path().to_owned(), limits);
        link.special(b"a", Metadata::default(), far).unwrap();
        let mut path = RootTree::new(dir.path().to_owned(), limits);
        path.directory(&deep, Metadata::default()).unwrap();
        for tree in [link, path] {
            let refused = make(&tree, &dir.path().join("disk"), 0, dir.path()).unwrap_err();
            assert!(refused.to_string().contains("than debugfs takes"), "{refused}");
            assert!(!dir.path().join("disk").exists());
        }
    }
}
