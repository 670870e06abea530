//! A file tree in memory: what goes into a root file system or an initramfs. Everything in it
//! belongs to root; it is sorted, so that the same input gives the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A file, with its permission bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileNode {
    /// Permission bits, without the type.
    pub(super) mode: u16,
    pub(super) body: FileBody,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum FileBody {
    Directory,
    File(Arc<[u8]>),
    Symlink(String),
}

/// Files by path, relative to the root, without `.` and `..`; parents come before children.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FileTree(BTreeMap<String, FileNode>);

impl FileTree {
    pub(super) fn directory(&mut self, path: &str, mode: u16) {
        self.insert(path, mode, FileBody::Directory);
    }

    pub(super) fn file(&mut self, path: &str, mode: u16, bytes: impl Into<Arc<[u8]>>) {
        self.insert(path, mode, FileBody::File(bytes.into()));
    }

    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.insert(path, 0o777, FileBody::Symlink(target.to_owned()));
    }

    /// Adds whatever it is, and the directories above it. What is there already is replaced,
    /// except a directory by a directory's default.
    fn insert(&mut self, path: &str, mode: u16, body: FileBody) {
        for (at, _) in path.match_indices('/') {
            let parent = || FileNode { mode: 0o755, body: FileBody::Directory };
            self.0.entry(path[..at].to_owned()).or_insert_with(parent);
        }
        self.0.insert(path.to_owned(), FileNode { mode, body });
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// Goes through all files, every directory before what is in it.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &FileNode)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// Returns the content at `path`, following symbolic links.
    pub(super) fn read(&self, path: &str) -> Option<Arc<[u8]>> {
        let mut path = path.to_owned();
        for _ in 0..8 {
            match &self.0.get(&path)?.body {
                FileBody::File(bytes) => return Some(Arc::clone(bytes)),
                FileBody::Symlink(target) => path = join(&path, target),
                FileBody::Directory => return None,
            }
        }
        None
    }
}

/// Resolves a link's target against the link's own path, within the root.
fn join(link: &str, target: &str) -> String {
    let from =
        if target.starts_with('/') { "" } else { link.rsplit_once('/').map_or("", |(dir, _)| dir) };
    let mut parts: Vec<&str> = Vec::new();
    for part in from.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_links_are_followed_within_the_root() {
        let mut tree = FileTree::default();
        tree.file("usr/lib/x/libc.so", 0o644, *b"elf");
        tree.symlink("usr/lib64/ld.so", "../lib/x/libc.so");
        tree.symlink("abs", "/usr/lib64/ld.so");
        tree.symlink("out", "../../etc/passwd");
        tree.symlink("loop", "loop");
        let paths: Vec<_> = tree.iter().map(|(p, _)| p).collect();
        assert_eq!(paths[3..6], ["usr", "usr/lib", "usr/lib/x"]);
        assert_eq!(&*tree.read("abs").unwrap(), b"elf");
        assert_eq!(tree.read("out"), None);
        assert_eq!(tree.read("loop"), None);
    }
}
