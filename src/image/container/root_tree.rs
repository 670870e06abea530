//! The root file system of a container while its layers are applied: names, owners and modes in
//! memory, contents as numbered files in a directory of ours. Nothing of a layer becomes a name on
//! the host, so no path, link or device in it can lead anywhere there.
//!
//! Not here: reading layers (`layer`), writing the file system (`disk`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// As many links as Linux follows in a path.
const LINKS: usize = 40;
/// As many directories as may lie in each other: walks over the tree take a frame for each.
const DEPTH: usize = 512;
/// The longest name of a directory's entry.
const LONGEST_NAME: usize = 255;
/// The longest path, and the longest target of a link.
const LONGEST_PATH: usize = 4095;
/// A block of zeros becomes a hole.
const BLOCK: usize = 4096;
/// The root directory's number.
pub(super) const ROOT: usize = 0;

/// Why an entry of a layer is refused. The sentence goes after the layer's name.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryError {
    #[error("it holds the path {0:?}, which leads out of the image")]
    Escapes(String),
    #[error("it holds the path {0:?}, which leads through a file that is no directory")]
    ThroughFile(String),
    #[error("it holds the path {0:?}, which leads through too many symbolic links or directories")]
    Loop(String),
    #[error("it holds a link {0:?} to {1:?}, which is not there")]
    NoTarget(String, String),
    #[error("it holds the name {0:?}, which no ext4 file system can have here")]
    Name(String),
    #[error("it holds more than {0} files")]
    TooMany(usize),
    #[error("it unpacks to more than {0} bytes, which is what the disk of the store has room for")]
    TooLarge(u64),
    #[error("it unpacks to more than {0} times its size")]
    Bomb(u64),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// How much layers may unpack to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Entries of all layers.
    pub(super) entries: usize,
    /// Bytes of all files.
    pub(super) bytes: u64,
}

/// Owner, permissions and time of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Permission bits, without the type.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: u32,
    /// Extended attributes by their full names.
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Names and what they lead to.
    Directory(BTreeMap<Vec<u8>, DirEntry>),
    /// A regular file: the number of its content, and its length.
    File(usize, u64),
    Symlink(Vec<u8>),
    /// A device: `c` or `b`, and its numbers.
    Device(char, u32, u32),
    Fifo,
}

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirEntry {
    pub(super) inode: usize,
    /// The layer that has given the name: whiteouts remove what lower layers have.
    layer: usize,
}

/// A file; hard links share it.
#[derive(Clone, Debug)]
pub(super) struct Inode {
    pub(super) metadata: Metadata,
    pub(super) body: Body,
}

/// The tree.
#[derive(Debug)]
pub(super) struct RootTree {
    inodes: Vec<Inode>,
    contents: PathBuf,
    layer: usize,
    limits: Limits,
    entries: usize,
    bytes: u64,
}

impl RootTree {
    /// Makes an empty one, whose files' contents go to the directory `contents`.
    pub(super) fn new(contents: PathBuf, limits: Limits) -> Self {
        let root = Inode { metadata: directory_metadata(), body: Body::Directory(BTreeMap::new()) };
        Self { inodes: vec![root], contents, layer: 0, limits, entries: 0, bytes: 0 }
    }

    /// Begins the next layer.
    pub(super) fn next_layer(&mut self) {
        self.layer += 1;
    }

    pub(super) fn inode(&self, number: usize) -> &Inode {
        &self.inodes[number]
    }

    /// Says whether there is no file.
    pub(super) fn is_empty(&self) -> bool {
        self.entries_of(ROOT).is_empty()
    }

    /// Returns the host's file with a content.
    pub(super) fn content(&self, number: usize) -> PathBuf {
        self.contents.join(number.to_string())
    }

    pub(super) fn contents(&self) -> &Path {
        &self.contents
    }

    /// Counts an entry of a layer, `size` bytes long.
    pub(super) fn count(&mut self, size: u64) -> Result<(), EntryError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.entries > self.limits.entries {
            return Err(EntryError::TooMany(self.limits.entries));
        }
        if self.bytes > self.limits.bytes {
            return Err(EntryError::TooLarge(self.limits.bytes));
        }
        Ok(())
    }

    /// Adds a directory, or changes the metadata of one that is there.
    pub(super) fn directory(&mut self, path: &[u8], metadata: Metadata) -> Result<(), EntryError> {
        let Some((parent, name)) = self.place(path)? else {
            self.inodes[ROOT].metadata = metadata;
            return Ok(());
        };
        let there = self.lookup(parent, name).filter(|inode| self.is_directory(*inode));
        match there {
            Some(inode) => {
                self.inodes[inode].metadata = metadata;
                self.enter(parent, name, inode);
            }
            None => self.add(parent, name, metadata, Body::Directory(BTreeMap::new())),
        }
        Ok(())
    }

    /// Adds a regular file.
    pub(super) fn file(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        content: &mut dyn Read,
    ) -> Result<(), EntryError> {
        let (parent, name) = self.named(path)?;
        let number = self.inodes.len();
        let size = write_sparse(&self.content(number), content)?;
        self.add(parent, name, metadata, Body::File(number, size));
        Ok(())
    }

    /// Adds what has no content.
    pub(super) fn special(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        body: Body,
    ) -> Result<(), EntryError> {
        if let Body::Symlink(target) = &body
            && (target.is_empty() || target.len() > LONGEST_PATH || target.contains(&b'\n'))
        {
            return Err(EntryError::Name(text(target)));
        }
        let (parent, name) = self.named(path)?;
        self.add(parent, name, metadata, body);
        Ok(())
    }

    /// Gives a file one more name.
    pub(super) fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), EntryError> {
        let absent = || EntryError::NoTarget(text(path), text(target));
        let (there, name) = self.place(target)?.ok_or_else(absent)?;
        let inode = self.lookup(there, name).filter(|inode| !self.is_directory(*inode));
        let inode = inode.ok_or_else(absent)?;
        let (parent, name) = self.named(path)?;
        self.enter(parent, name, inode);
        Ok(())
    }

    /// Removes what lower layers have under a name.
    pub(super) fn whiteout(&mut self, path: &[u8]) -> Result<(), EntryError> {
        let (parent, name) = self.named(path)?;
        let Some(entry) = self.entries_of(parent).get(name).copied() else { return Ok(()) };
        if !self.keep_present(entry)
            && let Some(entries) = self.entries_mut(parent)
        {
            entries.remove(name);
        }
        Ok(())
    }

    /// Removes what lower layers have in a directory.
    pub(super) fn opaque(&mut self, path: &[u8]) -> Result<(), EntryError> {
        let inode = match self.place(path)? {
            None => Some(ROOT),
            Some((parent, name)) => self.lookup(parent, name),
        };
        if let Some(inode) = inode.filter(|inode| self.is_directory(*inode)) {
            self.clear_lower(inode);
        }
        Ok(())
    }

    /// Removes from a directory, and those below it, what lower layers have; says whether the
    /// present layer has anything there.
    fn clear_lower(&mut self, inode: usize) -> bool {
        let Some(entries) = self.entries_mut(inode).map(std::mem::take) else { return false };
        let kept: BTreeMap<_, _> =
            entries.into_iter().filter(|(_, entry)| self.keep_present(*entry)).collect();
        let has_any = !kept.is_empty();
        if let Some(entries) = self.entries_mut(inode) {
            *entries = kept;
        }
        has_any
    }

    fn keep_present(&mut self, entry: DirEntry) -> bool {
        let below = self.is_directory(entry.inode) && self.clear_lower(entry.inode);
        below || entry.layer == self.layer
    }

    fn is_directory(&self, inode: usize) -> bool {
        matches!(self.inodes[inode].body, Body::Directory(_))
    }

    /// The names in a directory; none of what is no directory.
    fn entries_of(&self, inode: usize) -> &BTreeMap<Vec<u8>, DirEntry> {
        static NONE: BTreeMap<Vec<u8>, DirEntry> = BTreeMap::new();
        match &self.inodes[inode].body {
            Body::Directory(entries) => entries,
            Body::File(..) | Body::Symlink(_) | Body::Device(..) | Body::Fifo => &NONE,
        }
    }

    fn entries_mut(&mut self, inode: usize) -> Option<&mut BTreeMap<Vec<u8>, DirEntry>> {
        match &mut self.inodes[inode].body {
            Body::Directory(entries) => Some(entries),
            Body::File(..) | Body::Symlink(_) | Body::Device(..) | Body::Fifo => None,
        }
    }

    fn lookup(&self, directory: usize, name: &[u8]) -> Option<usize> {
        self.entries_of(directory).get(name).map(|entry| entry.inode)
    }

    fn enter(&mut self, parent: usize, name: &[u8], inode: usize) {
        let entry = DirEntry { inode, layer: self.layer };
        if let Some(entries) = self.entries_mut(parent) {
            entries.insert(name.to_owned(), entry);
        }
    }

    fn add(&mut self, parent: usize, name: &[u8], metadata: Metadata, body: Body) {
        self.inodes.push(Inode { metadata, body });
        self.enter(parent, name, self.inodes.len() - 1);
    }

    /// Returns the directory and the last name of a path that is not the root.
    fn named<'a>(&mut self, path: &'a [u8]) -> Result<(usize, &'a [u8]), EntryError> {
        self.place(path)?.ok_or_else(|| EntryError::Name(text(path)))
    }

    /// Returns the directory that a path's last name is in, and that name; `None` for the root.
    /// Directories that are not there are made; links in the path lead within the root.
    fn place<'a>(&mut self, path: &'a [u8]) -> Result<Option<(usize, &'a [u8])>, EntryError> {
        let mut names = split(path)?;
        let Some(name) = names.pop() else { return Ok(None) };
        let mut rest: Vec<Vec<u8>> = names.iter().rev().map(|name| (*name).to_owned()).collect();
        let (mut stack, mut links) = (vec![ROOT], 0);
        while let Some(next) = rest.pop() {
            if next == b".." {
                stack.truncate((stack.len() - 1).max(1));
                continue;
            }
            let directory = stack.last().copied().unwrap_or(ROOT);
            if stack.len() >= DEPTH {
                return Err(EntryError::Loop(text(path)));
            }
            let inode = self.lookup_or_make(directory, &next)?;
            match &self.inodes[inode].body {
                Body::Directory(_) => stack.push(inode),
                Body::Symlink(target) => {
                    links += 1;
                    if links > LINKS {
                        return Err(EntryError::Loop(text(path)));
                    }
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let parts = target.split(|b| *b == b'/').rev();
                    rest.extend(parts.filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec));
                }
                Body::File(..) | Body::Device(..) | Body::Fifo => {
                    return Err(EntryError::ThroughFile(text(path)));
                }
            }
        }
        Ok(Some((stack.last().copied().unwrap_or(ROOT), name)))
    }

    /// A directory that no layer names counts as one that is named: it takes as much memory.
    fn lookup_or_make(&mut self, directory: usize, name: &[u8]) -> Result<usize, EntryError> {
        if let Some(inode) = self.lookup(directory, name) {
            return Ok(inode);
        }
        self.count(0)?;
        self.add(directory, name, directory_metadata(), Body::Directory(BTreeMap::new()));
        Ok(self.inodes.len() - 1)
    }
}

fn directory_metadata() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}

/// Splits a path of a layer; one that goes up is refused, whatever it would lead to.
fn split(path: &[u8]) -> Result<Vec<&[u8]>, EntryError> {
    let names: Vec<&[u8]> =
        path.split(|b| *b == b'/').filter(|name| !name.is_empty() && *name != b".").collect();
    if names.contains(&&b".."[..]) {
        return Err(EntryError::Escapes(text(path)));
    }
    let bad =
        |name: &&[u8]| name.len() > LONGEST_NAME || name.iter().any(|b| *b == b'\n' || *b == 0);
    if path.len() > LONGEST_PATH || names.iter().any(bad) {
        return Err(EntryError::Name(text(path)));
    }
    Ok(names)
}

fn text(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Writes a content without its blocks of zeros, and returns its length.
fn write_sparse(path: &Path, content: &mut dyn Read) -> io::Result<u64> {
    let (file, mut at, mut block) = (File::create(path)?, 0, vec![0; 16 * BLOCK]);
    loop {
        let length = read_full(content, &mut block)?;
        for (part, offset) in block[..length].chunks(BLOCK).zip((0..).step_by(BLOCK)) {
            if part.iter().any(|byte| *byte != 0) {
                file.write_all_at(part, at + offset)?;
            }
        }
        at += length as u64;
        if length < block.len() {
            file.set_len(at)?;
            return Ok(at);
        }
    }
}

fn read_full(from: &mut dyn Read, block: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < block.len() {
        match from.read(&mut block[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

#[cfg(test)]
#[path = "root_tree_tests.rs"]
mod tests;
