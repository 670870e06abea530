//! `aq sync`: a directory of the host in a guest, what has changed there, and taking it.
//!
//! [`manifest`]: what was sent, kept in the guest. [`mod@scan`]: what is there. [`mod@compare`]: what has changed.
//! [`send`], [`diff`], [`accept`]: the three things to do.
//!
//! Not here: opening and writing (`transfer`).

mod accept;
mod compare;
mod diff;
mod manifest;
mod scan;
mod send;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use self::compare::Tree;
use self::manifest::{LinkRecord, Manifest};
use self::scan::{Item, hex, scan, split};
use super::Failure;
use super::text::complain;
use super::transfer::dir::{Dir, printable, refused};
use super::transfer::place::{Guest, Place, Side};
use super::transfer::put::Writer;
use super::transfer::work::{self, Partials};
use crate::cli::guest::Sync;

/// Where manifests are, below the home of the guest's user.
const STATE: [&str; 4] = [".local", "state", "aqfs", "sync"];
/// How close to its time a file is recorded where a change may have the same time.
const RECENT: i64 = 2;
/// The exit status of diff(1) for trouble.
const TROUBLE: u8 = 2;

pub(super) fn run(tree: &super::files::Tree, args: &Sync) -> Result<u8, Failure> {
    match carry_out(tree, args) {
        Err(failure) if args.diff && !failure.is_reported() => {
            complain(&failure);
            Err(Failure::Reported(TROUBLE))
        }
        done => done,
    }
}

fn carry_out(tree: &super::files::Tree, args: &Sync) -> Result<u8, Failure> {
    let (from, Place::Guest { vm, path }) = (Place::of(&args.dir)?, Place::of(&args.to)?) else {
        return Err(usage("the second directory is one of a guest: `aq sync DIR VM:DIR`"));
    };
    let Place::Host(dir) = from else {
        return Err(usage("the first directory is one of the host: `aq sync DIR VM:DIR`"));
    };
    let (tree, action) = (tree.clone(), Action::of(args));
    work::interruptible(move |partials| {
        let guest = Guest::reach(&tree, &vm)?;
        let to = Side::guest(&guest, &path)?;
        let pair = Pair::open(&Side::host(&dir), &to, &guest)?;
        action.carry_out(&pair, partials)
    })
}

fn usage(sentence: &str) -> Failure {
    Failure::Usage(sentence.to_owned())
}

/// Refuses something with its reason.
fn refusal(what: impl Into<String>, sentence: impl Into<String>) -> Failure {
    Failure::Refused { what: what.into(), sentence: sentence.into(), errno: 0 }
}

enum Action {
    Send { force: bool },
    Diff,
    Accept { paths: Vec<OsString> },
}

impl Action {
    fn of(args: &Sync) -> Self {
        match (args.accept, args.diff) {
            (true, _) => Self::Accept { paths: args.paths.clone() },
            (false, true) => Self::Diff,
            (false, false) => Self::Send { force: args.force },
        }
    }

    fn carry_out(&self, pair: &Pair<'_>, partials: &Arc<Partials>) -> Result<u8, Failure> {
        match self {
            Self::Send { force } => send::run(pair, &Writer::new(partials), *force).map(|()| 0),
            Self::Diff => diff::run(pair).map(u8::from),
            Self::Accept { paths } => {
                accept::run(pair, &Writer::new(partials), paths).map(u8::from)
            }
        }
    }
}

/// The two directories.
struct Pair<'a> {
    guest: &'a Guest,
    host: Dir,
    /// The guest's, as the user calls it.
    to: &'a Side<'a>,
    /// Where the manifest is.
    state: Dir,
    _lock: OwnedFd,
    /// What it is called there.
    name: OsString,
}

impl<'a> Pair<'a> {
    fn open(from: &Side<'_>, to: &'a Side<'a>, guest: &'a Guest) -> Result<Self, Failure> {
        let host = from.dir().map_err(refused(from.shown()))?;
        let home = guest.home()?.to_owned();
        if to.name().is_none() || home.starts_with(&to.path) {
            let sentence = "that is the user's home, or contains it; name a directory in it";
            return Err(refusal(to.shown(), sentence));
        }
        if to.path.components().any(|part| part == Component::ParentDir) {
            return Err(refusal(
                to.shown(),
                "a path with `..` is not taken; name the directory itself",
            ));
        }
        let state = state_dir(guest, &home)?;
        // Another one at the same time would record what this one changes.
        let lock = state.lock().map_err(|_| {
            refusal(to.shown(), "another aq sync is at work in this guest; try again after it")
        })?;
        Ok(Self { guest, host, to, state, _lock: lock, name: file_name(&to.path) })
    }

    /// Opens the guest's directory, which must be there.
    fn expect_guest(&self) -> Result<Tree, Failure> {
        let absent =
            || refusal(self.to.shown(), "it is not there any more; `aq sync` sends it again");
        self.guest_tree()?.ok_or_else(absent)
    }

    /// Returns where a link of the guest leads, in the guest's own words.
    fn target(&self, path: &[u8], item: &Item) -> Vec<u8> {
        let (directory, name) = split(path);
        let directory = self.to.path.join(OsStr::from_bytes(directory));
        let said = self.guest.targets(&directory, &[name]).pop();
        said.filter(|target| !target.is_empty()).unwrap_or_else(|| item.target.clone())
    }

    /// Reads what was sent; `None` if nothing was.
    fn manifest(&self) -> Result<Option<Manifest>, Failure> {
        let shown = self.state.shown(&self.name);
        if self.state.look(&self.name).map_err(refused(shown.clone()))?.is_none() {
            return Ok(None);
        }
        let (file, _) = self.state.file(&self.name).map_err(refused(shown.clone()))?;
        let again =
            format!("{shown}: what was sent is not known any more; `aq sync --force` sends all");
        Manifest::read(file).map(Some).map_err(|why| refusal(again, why))
    }

    /// Reads what was sent, which must have arrived.
    fn complete_manifest(&self) -> Result<Manifest, Failure> {
        match self.manifest()? {
            Some(manifest) if manifest.is_complete => Ok(manifest),
            Some(_) => {
                Err(refusal(self.to.shown(), "the last aq sync was interrupted; run it again"))
            }
            None => Err(refusal(
                self.to.shown(),
                "it was not sent by aq sync; `aq sync DIR VM:DIR` first",
            )),
        }
    }

    fn record(&self, manifest: &Manifest, writer: &Writer) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let written = manifest
            .write(&mut bytes)
            .and_then(|()| writer.bytes(&bytes, (&self.state, &self.name)));
        written.map_err(refused(self.state.shown(&self.name)))
    }

    fn host_tree(&self) -> Result<Tree, Failure> {
        let root = self.host.try_clone().map_err(refused(self.host.shown_itself()))?;
        Ok(Tree { items: scan(&root)?, root, link: LinkRecord::on_the_host })
    }

    /// Opens the guest's directory; `None` if it is not there.
    fn guest_tree(&self) -> Result<Option<Tree>, Failure> {
        let root = match self.to.dir() {
            Ok(root) => root,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(refused(self.to.shown())(error)),
        };
        Ok(Some(Tree { items: scan(&root)?, root, link: LinkRecord::in_the_guest }))
    }
}

/// Opens the directory of manifests in the guest, and makes it where it is not.
fn state_dir(guest: &Guest, home: &Path) -> Result<Dir, Failure> {
    let shown =
        |path: &Path| format!("{}:{}", guest.vm.name, printable(path.as_os_str().as_bytes()));
    let path = STATE.iter().fold(home.to_owned(), |path, name| path.join(name));
    if let Ok(dir) = guest.root.open_below(&path, shown(&path)) {
        return Ok(dir);
    }
    let home = guest.root.open_below(home, shown(home)).map_err(refused(shown(home)))?;
    STATE.iter().map(OsStr::new).try_fold(home, |dir, name| {
        dir.make_dir(name).map(|(dir, _)| dir).map_err(refused(dir.shown(name)))
    })
}

/// Names a manifest after its directory: two of one name differ in the digest of their paths.
fn file_name(directory: &Path) -> OsString {
    let directory: PathBuf = directory.components().collect();
    let digest = hex(Sha256::new().chain_update(directory.as_os_str().as_bytes()));
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().take(40).collect();
    format!("{name}-{}.jsonl", &digest[..16]).into()
}

fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Says whether a change may have the time that a file has.
fn is_recent(mtime: i64) -> bool {
    mtime >= now() - RECENT
}
