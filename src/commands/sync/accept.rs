//! Taking what has changed in the guest. What has changed on the host too is left as it is.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::FileType;
use sha2::{Digest, Sha256};

use super::super::Failure;
use super::super::text::{complain, note};
use super::super::transfer::dir::{Dir, printable, refused};
use super::super::transfer::put::Writer;
use super::compare::{Change, Tree, changes, is_changed};
use super::diff::left_out;
use super::manifest::{LinkRecord, Manifest, Name, Record, What};
use super::scan::{Item, digest, split, walk};
use super::send::recorded;
use super::{Pair, refusal};

/// Takes the changes below `paths`, or all. Returns whether some were refused.
pub(super) fn run(pair: &Pair<'_>, writer: &Writer, paths: &[OsString]) -> Result<bool, Failure> {
    let (manifest, guest) = (pair.complete_manifest()?, pair.expect_guest()?);
    let found = changes(&manifest, &guest).map_err(refused(pair.to.shown()))?;
    let selection = Selection::of(paths);
    let chosen: Vec<_> = found.iter().filter(|change| selection.has(change.path)).collect();
    let (chosen, others): (Vec<&Change<'_>>, Vec<_>) =
        chosen.into_iter().partition(|c| c.is_plain());
    others.iter().for_each(|change| note(left_out(change.path)));
    let unknown = selection.without(&chosen);
    unknown.iter().for_each(|path| {
        complain(&refusal(
            printable(path),
            "nothing has changed there; `aq sync --diff` lists what has",
        ));
    });
    let host = pair.host_tree()?;
    let accepting = Accepting { pair, writer, guest: &guest, host: &host };
    let (records, refused) = accepting.all(&chosen);
    let taken = records.len();
    pair.record(&applied(&manifest, records), writer)?;
    note(format!("{}: {taken} taken, {refused} refused", pair.to.shown()));
    Ok(refused > 0 || !unknown.is_empty())
}

/// What is recorded of paths from now on; `None`: they are gone.
type Records = BTreeMap<Vec<u8>, Option<Record>>;

fn applied(manifest: &Manifest, records: Records) -> Manifest {
    let mut files = manifest.files.clone();
    for (path, record) in records {
        match record {
            Some(record) => drop(files.insert(path, record)),
            None => drop(files.remove(&path)),
        }
    }
    Manifest { is_complete: true, files }
}

/// The paths that the user has named; none: all.
struct Selection(Vec<Vec<u8>>);

impl Selection {
    fn of(paths: &[OsString]) -> Self {
        let plain = |path: &OsString| {
            let path = path.as_bytes();
            let path = path.strip_prefix(b"./").unwrap_or(path);
            path.strip_suffix(b"/").unwrap_or(path).to_vec()
        };
        Self(paths.iter().map(plain).collect())
    }

    fn has(&self, path: &[u8]) -> bool {
        self.0.is_empty() || self.0.iter().any(|chosen| is_at_or_below(path, chosen))
    }

    /// Lists those that none of these is at or below.
    fn without(&self, chosen: &[&Change<'_>]) -> Vec<Vec<u8>> {
        let is_unknown = |wanted: &&Vec<u8>| !chosen.iter().any(|c| is_at_or_below(c.path, wanted));
        self.0.iter().filter(is_unknown).cloned().collect()
    }
}

fn is_at_or_below(path: &[u8], directory: &[u8]) -> bool {
    directory == b"."
        || path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

struct Accepting<'a> {
    pair: &'a Pair<'a>,
    writer: &'a Writer,
    guest: &'a Tree,
    host: &'a Tree,
}

impl Accepting<'_> {
    /// What is gone goes first, what is in a directory before it: something else may have its name.
    fn all(&self, changes: &[&Change<'_>]) -> (Records, usize) {
        let (mut records, mut refused) = (Records::new(), 0);
        let is_replaced = |change: &Change<'_>| match (change.was, change.is) {
            (Some(was), Some(is)) => kind(was) != is.meta.kind,
            (was, is) => was.is_some() && is.is_none(),
        };
        let removals = changes.iter().rev().filter(|change| is_replaced(change));
        let removals = removals.map(|change| (*change, true));
        let others = changes.iter().filter(|change| change.is.is_some());
        for (change, is_removal) in removals.chain(others.map(|change| (*change, false))) {
            let done = match is_removal {
                true => self.remove(change).map(|()| None),
                false => self.take(change),
            };
            match done {
                Ok(record) => drop(records.insert(change.path.to_vec(), record)),
                Err(failure) => {
                    refused += 1;
                    complain(&failure);
                }
            }
        }
        (records, refused)
    }

    fn remove(&self, change: &Change<'_>) -> Result<(), Failure> {
        let Some(item) = self.host.items.get(change.path) else { return Ok(()) };
        let here = Change { is: Some(item), ..*change };
        if is_changed(&here, self.host).map_err(refused(self.shown(change)))? {
            return Err(self.conflict(change));
        }
        let (directory, name) = split(change.path);
        let removed = walk(&self.host.root, directory).and_then(|dir| dir.remove(name, &item.meta));
        removed.map_err(refused(self.shown(change)))
    }

    fn take(&self, change: &Change<'_>) -> Result<Option<Record>, Failure> {
        let Some(item) = change.is else { return Ok(None) };
        self.expect_unchanged(change, item)?;
        let (directory, name) = split(change.path);
        let to = self.directory(directory).map_err(refused(self.shown(change)))?;
        let taken = self.write(change.path, item, (&to, name));
        taken.map(Some).map_err(refused(self.shown(change)))
    }

    /// The host has what was sent, or what the guest has now.
    fn expect_unchanged(&self, change: &Change<'_>, item: &Item) -> Result<(), Failure> {
        let here = self.host.items.get(change.path);
        let is_as_sent = match (here, change.was) {
            (None, None) => true,
            (Some(here), Some(_)) => {
                let here = Change { is: Some(here), ..*change };
                !is_changed(&here, self.host).map_err(refused(self.shown(change)))?
            }
            // It had another kind, and is removed by now.
            (None, Some(was)) => kind(was) != item.meta.kind,
            (Some(_), None) => false,
        };
        let is_the_same = here.is_some_and(|here| self.is_same(change.path, here, item));
        let was_replaced = change.was.is_some_and(|was| kind(was) != item.meta.kind);
        if is_as_sent || is_the_same || (was_replaced && !self.is_there(change.path)) {
            return Ok(());
        }
        Err(self.conflict(change))
    }

    fn is_there(&self, path: &[u8]) -> bool {
        let (directory, name) = split(path);
        walk(&self.host.root, directory).is_ok_and(|dir| dir.look(name).ok().flatten().is_some())
    }

    fn is_same(&self, path: &[u8], here: &Item, there: &Item) -> bool {
        if here.meta.kind != there.meta.kind {
            return false;
        }
        if here.meta.kind == FileType::Symlink {
            return here.target == self.pair.target(path, there);
        }
        let of = |tree: &Tree| digest(&tree.root, path).ok();
        here.meta.is_dir()
            || (here.meta.size == there.meta.size
                && of(self.host) == of(self.guest)
                && of(self.host).is_some())
    }

    fn conflict(&self, change: &Change<'_>) -> Failure {
        let sentence = "it has changed here too since the sync; move it away or make it as the guest has it, \
                        then `--accept` again, or `aq sync --force` sends it";
        refusal(self.shown(change), sentence)
    }

    fn shown(&self, change: &Change<'_>) -> String {
        self.host.root.shown(OsStr::new(&printable(change.path)))
    }

    /// Opens a directory of the host, and makes it where it is not.
    fn directory(&self, path: &[u8]) -> io::Result<Dir> {
        let names = path.split(|b| *b == b'/').filter(|name| !name.is_empty());
        let root = self.host.root.try_clone()?;
        names.map(OsStr::from_bytes).try_fold(root, |dir, name| match dir.make_dir(name)? {
            (made, true) => made.set_mode(0o755).map(|()| made),
            (found, false) => Ok(found),
        })
    }

    fn write(&self, path: &[u8], item: &Item, (to, name): (&Dir, &OsStr)) -> io::Result<Record> {
        let mode = item.meta.mode;
        if item.meta.is_dir() {
            to.make_dir(name)?.0.set_mode(mode)?;
            return Ok(Record { mode, what: What::Directory });
        }
        if item.meta.kind == FileType::Symlink {
            let target = self.pair.target(path, item);
            self.writer.link(&target, item.meta.mtime, (to, name))?;
            let link = LinkRecord { target: Name::of(&target), shown: Name::of(&item.target) };
            return Ok(Record { mode, what: What::Link(link) });
        }
        let (directory, _) = split(path);
        let (file, meta) = walk(&self.guest.root, directory)?.file(name)?;
        let (mut digest, mut size) = (Sha256::new(), 0);
        let see = |bytes: &[u8]| {
            digest.update(bytes);
            size += bytes.len() as u64;
        };
        self.writer.file((file, &meta), (to, name), see)?;
        Ok(Record { mode: meta.mode, what: What::File(recorded(&meta, size, digest)) })
    }
}

fn kind(record: &Record) -> FileType {
    match record.what {
        What::Directory => FileType::Directory,
        What::File(_) => FileType::RegularFile,
        What::Link(_) => FileType::Symlink,
    }
}
