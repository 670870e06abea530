//! Making the guest's directory equal to the host's. Only what differs is sent; what is not on the host is
//! removed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use parking_lot::Mutex;
use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use super::super::Failure;
use super::super::text::note;
use super::super::transfer::dir::{Dir, Meta, printable, refused};
use super::super::transfer::put::Writer;
use super::compare::{Change, Tree, changes, is_changed};
use super::manifest::{FileRecord, LinkRecord, Manifest, Name, Record, What};
use super::scan::{Item, Items, hex, split, walk};
use super::{Pair, is_recent, refusal};

/// Files of one directory that are sent at once.
const AT_ONCE: usize = 8;
/// Names in a sentence.
const NAMED: usize = 3;

pub(super) fn run(pair: &Pair<'_>, writer: &Writer, force: bool) -> Result<(), Failure> {
    let (host, guest) = (pair.host_tree()?, pair.guest_tree()?);
    let known = if force { pair.manifest().ok().flatten() } else { pair.manifest()? };
    let guest = guest.map_or_else(|| made(pair), Ok)?;
    let (is_interrupted, is_known) =
        (known.as_ref().is_some_and(|known| !known.is_complete), known.is_some());
    let base = known.unwrap_or_default();
    let mut changed: BTreeSet<Vec<u8>> = BTreeSet::new();
    if is_interrupted {
        // It is carried out anew: what arrived of it is not known.
        changed.extend(guest.items.keys().cloned());
    } else {
        let found = changes(&base, &guest).map_err(refused(pair.to.shown()))?;
        if !force {
            expect_none(pair, is_known, &found)?;
        }
        changed.extend(found.iter().map(|change| change.path.to_vec()));
    }
    Sending { pair, writer, host, guest, base, changed }.carry_out()
}

fn made(pair: &Pair<'_>) -> Result<Tree, Failure> {
    let what = || pair.to.shown();
    let parent = pair.to.parent().map_err(refused(what()))?;
    let name = pair.to.name().unwrap_or_default();
    let (root, _) = parent.make_dir(name).map_err(refused(what()))?;
    Ok(Tree { root, items: Items::new(), link: LinkRecord::in_the_guest })
}

/// Refuses to overwrite what was not accepted.
fn expect_none(pair: &Pair<'_>, is_known: bool, found: &[Change<'_>]) -> Result<(), Failure> {
    // What is never taken is no reason to keep it.
    let found: Vec<_> = found.iter().filter(|change| change.is_plain()).collect();
    if found.is_empty() {
        return Ok(());
    }
    if !is_known {
        let sentence =
            "it is there already and was not sent by aq sync; `--force` replaces what is in it";
        return Err(refusal(pair.to.shown(), sentence));
    }
    let names: Vec<_> = found.iter().take(NAMED).map(|change| printable(change.path)).collect();
    let more = if found.len() > NAMED { ", …" } else { "" };
    let sentence = format!(
        "{} changes there have not been accepted ({}{more}); `--diff` shows them, `--accept` takes them, \
         `--force` overwrites them",
        found.len(),
        names.join(", ")
    );
    Err(refusal(pair.to.shown(), sentence))
}

struct Sending<'a> {
    pair: &'a Pair<'a>,
    writer: &'a Writer,
    host: Tree,
    guest: Tree,
    base: Manifest,
    /// Paths of the guest that are not as they were sent.
    changed: BTreeSet<Vec<u8>>,
}

/// A file to be sent, with its path.
type Sent<'a> = (&'a [u8], &'a Item);

impl Sending<'_> {
    fn carry_out(&self) -> Result<(), Failure> {
        let wanted: Vec<Sent<'_>> = self.wanted()?;
        let gone: Vec<Sent<'_>> = self.gone();
        let left_out = self.host.items.iter().filter(|(_, item)| !item.is_plain());
        left_out.for_each(|(path, _)| note(format!("aq: {}: left out", printable(path))));
        if wanted.is_empty() && gone.is_empty() && self.base.is_complete {
            note(format!("{}: nothing to send", self.pair.to.shown()));
            return Ok(());
        }
        let mut manifest = Manifest { is_complete: false, ..self.base.clone() };
        self.pair.record(&manifest, self.writer)?;
        for (path, item) in &gone {
            self.remove(path, item)?;
            manifest.files.remove(*path);
        }
        manifest.files.extend(self.send(&wanted)?);
        manifest.files.retain(|path, _| self.host.items.contains_key(path));
        manifest.is_complete = true;
        self.pair.record(&manifest, self.writer)?;
        let (sent, removed) = (wanted.len(), gone.len());
        note(format!("{}: {sent} sent, {removed} removed", self.pair.to.shown()));
        Ok(())
    }

    /// Lists what is to be sent, directories before what is in them.
    fn wanted(&self) -> Result<Vec<Sent<'_>>, Failure> {
        let mut wanted = Vec::new();
        for (path, item) in self.host.items.iter().filter(|(_, item)| item.is_plain()) {
            let change = Change { path, was: self.base.files.get(path), is: Some(item) };
            let is_there = !self.changed.contains(path) && self.guest.items.contains_key(path);
            let what = || self.host.root.shown(OsStr::new(&printable(path)));
            if !is_there || is_changed(&change, &self.host).map_err(refused(what()))? {
                wanted.push((path.as_slice(), item));
            }
        }
        Ok(wanted)
    }

    /// Lists what is to be removed, what is in a directory before it: it is not on the host, or is of
    /// another kind there, or below what is.
    fn gone(&self) -> Vec<Sent<'_>> {
        let mut replaced: Option<&[u8]> = None;
        let mut gone = Vec::new();
        for (path, item) in &self.guest.items {
            let is_below = |dir: &[u8]| path.strip_prefix(dir).is_some_and(|p| p.starts_with(b"/"));
            let ours = self.host.items.get(path);
            let is_other = ours.is_none_or(|ours| ours.meta.kind != item.meta.kind);
            if is_other || replaced.is_some_and(is_below) {
                gone.push((path.as_slice(), item));
            }
            if is_other && item.meta.is_dir() && !replaced.is_some_and(is_below) {
                replaced = Some(path);
            }
        }
        gone.reverse();
        gone
    }

    fn remove(&self, path: &[u8], item: &Item) -> Result<(), Failure> {
        let (directory, name) = split(path);
        let removed =
            walk(&self.guest.root, directory).and_then(|dir| dir.remove(name, &item.meta));
        removed.map_err(refused(self.guest.root.shown(OsStr::new(&printable(path)))))
    }

    fn send(&self, wanted: &[Sent<'_>]) -> Result<Vec<(Vec<u8>, Record)>, Failure> {
        let mut by_directory: BTreeMap<&[u8], Vec<Sent<'_>>> = BTreeMap::new();
        for (path, item) in wanted {
            by_directory.entry(split(path).0).or_default().push((path, item));
        }
        let mut records = Vec::new();
        for (directory, sent) in by_directory {
            let what = || self.guest.root.shown(OsStr::new(&printable(directory)));
            let from = walk(&self.host.root, directory).map_err(refused(what()))?;
            let to = walk(&self.guest.root, directory).map_err(refused(what()))?;
            records.extend(self.send_some(&from, &to, &sent)?);
        }
        Ok(records)
    }

    /// Sends what is in one directory, several files at once.
    fn send_some(
        &self,
        from: &Dir,
        to: &Dir,
        sent: &[Sent<'_>],
    ) -> Result<Vec<(Vec<u8>, Record)>, Failure> {
        let (next, records) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let failed = Mutex::new(None);
        let work = || {
            while let Some((path, item)) = sent.get(next.fetch_add(1, Ordering::Relaxed))
                && failed.lock().is_none()
            {
                let name = split(path).1;
                match self.send_one(from, to, name, item) {
                    Ok(record) => records.lock().push((path.to_vec(), record)),
                    Err(failure) => *failed.lock() = Some(failure),
                }
            }
        };
        thread::scope(|scope| {
            (1..sent.len().min(AT_ONCE)).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        failed.into_inner().map_or(Ok(records.into_inner()), Err)
    }

    fn send_one(&self, from: &Dir, to: &Dir, name: &OsStr, item: &Item) -> Result<Record, Failure> {
        let (kind, mode) = (item.meta.kind, item.meta.mode);
        if kind == FileType::Directory {
            let made = to.make_dir(name).and_then(|(dir, _)| dir.set_mode(mode));
            made.map_err(refused(to.shown(name)))?;
            return Ok(Record { mode, what: What::Directory });
        }
        if kind == FileType::Symlink {
            let made = self.writer.link(&item.target, item.meta.mtime, (to, name));
            let shown = made.and_then(|()| to.target(name)).map_err(refused(to.shown(name)))?;
            let link = LinkRecord { target: Name::of(&item.target), shown: Name::of(&shown) };
            return Ok(Record { mode, what: What::Link(link) });
        }
        let (file, meta) = from.file(name).map_err(refused(from.shown(name)))?;
        let (mut digest, mut size) = (Sha256::new(), 0);
        let see = |bytes: &[u8]| {
            digest.update(bytes);
            size += bytes.len() as u64;
        };
        let sent = self.writer.file((file, &meta), (to, name), see);
        sent.map_err(refused(to.shown(name)))?;
        Ok(Record { mode: meta.mode, what: What::File(recorded(&meta, size, digest)) })
    }
}

/// What is recorded of a file whose bytes were seen.
pub(super) fn recorded(meta: &Meta, size: u64, digest: Sha256) -> FileRecord {
    let mtime = meta.mtime.0;
    FileRecord { size, mtime, digest: hex(digest), is_recent: is_recent(mtime) }
}
