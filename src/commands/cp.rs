//! `aq cp`: files and directories into guests, out of them and between them, through `VM/fs`.
//!
//! Not here: opening and writing (`transfer`).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use rustix::fs::FileType;

use super::Failure;
use super::files::Tree;
use super::text::complain;
use super::transfer::dir::{DEEPEST, Dir, Meta, Opened, refused};
use super::transfer::place::{Guest, Place, Side};
use super::transfer::put::Writer;
use super::transfer::work::{self, Partials};
use crate::cli::guest::Cp;

/// Files of one directory that are copied at once: most of the time is waiting for the guest.
const AT_ONCE: usize = 8;
/// Links whose targets a guest is asked for at once.
const LINKS_AT_ONCE: usize = 128;

pub(super) fn run(tree: &Tree, args: &Cp) -> Result<u8, Failure> {
    let plan = Plan::of(&args.paths)?;
    let tree = tree.clone();
    work::interruptible(move |partials| plan.carry_out(&tree, partials))
}

#[derive(Debug, PartialEq, Eq)]
struct Plan {
    sources: Vec<Place>,
    to: Place,
}

impl Plan {
    fn of(words: &[OsString]) -> Result<Self, Failure> {
        if words.iter().any(|word| word == "-") {
            let sentence = "`-` is not offered; `cat FILE > VM/fs/PATH` in the mount does it";
            return Err(Failure::Usage(sentence.to_owned()));
        }
        let mut places = words.iter().map(|w| Place::of(w)).collect::<Result<Vec<_>, _>>()?;
        let is_guest = |place: &Place| matches!(place, Place::Guest { .. });
        let are_all_here = !places.iter().any(is_guest);
        match places.pop() {
            Some(to) if !places.is_empty() && !are_all_here => Ok(Self { sources: places, to }),
            _ => {
                let sentence = "no VM is named: `aq cp FILE… VM:PATH` or `aq cp VM:PATH… FILE`";
                Err(Failure::Usage(sentence.to_owned()))
            }
        }
    }

    fn carry_out(&self, tree: &Tree, partials: &Arc<Partials>) -> Result<u8, Failure> {
        let mut guests = HashMap::new();
        for place in self.sources.iter().chain([&self.to]) {
            if let Place::Guest { vm, .. } = place
                && !guests.contains_key(vm)
            {
                guests.insert(vm.clone(), Guest::reach(tree, vm)?);
            }
        }
        let side = |place: &Place| match place {
            Place::Host(path) => Ok(Side::host(path)),
            Place::Guest { vm, path } => match guests.get(vm) {
                Some(guest) => Side::guest(guest, path),
                None => Err(Failure::NoVm(vm.clone(), super::Near::default())),
            },
        };
        let to = side(&self.to)?;
        let into = self.existing(&to)?;
        let copy = Copy::new(partials);
        for place in &self.sources {
            let target = Target { side: &to, is_marked: self.to.is_marked(), into: into.as_ref() };
            let copied = side(place).and_then(|from| copy.source(&from, &target));
            copied.unwrap_or_else(|failure| copy.failed(&failure));
        }
        Ok(u8::from(copy.failures.into_inner() > 0))
    }

    /// Opens the destination if it is a directory. If it is not, it is a name for the one source.
    fn existing(&self, to: &Side<'_>) -> Result<Option<Dir>, Failure> {
        match to.dir() {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if self.sources.len() > 1 || to.name().is_none() => {
                Err(refused(to.shown())(error))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory && !self.to.is_marked() => {
                Ok(None)
            }
            Err(error) => Err(refused(to.shown())(error)),
        }
    }
}

/// Where sources go.
struct Target<'a> {
    side: &'a Side<'a>,
    /// With a slash at its end: a directory.
    is_marked: bool,
    /// It, if it is a directory that exists.
    into: Option<&'a Dir>,
}

struct Copy {
    writer: Writer,
    failures: AtomicU64,
}

/// A directory that is copied.
struct Source<'a> {
    dir: Dir,
    /// A guest's, and where it is there.
    guest: Option<(&'a Guest, PathBuf)>,
}

impl Source<'_> {
    fn dir(&self, name: &OsStr) -> io::Result<Self> {
        let guest = self.guest.as_ref().map(|(guest, at)| (*guest, at.join(name)));
        Ok(Self { dir: self.dir.dir(name)?, guest })
    }
}

impl Copy {
    fn new(partials: &Arc<Partials>) -> Self {
        Self { writer: Writer::new(partials), failures: AtomicU64::new(0) }
    }

    /// Reports what is left out.
    fn failed(&self, failure: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if !self.writer.is_ending() {
            complain(failure);
        }
    }

    /// Copies what the user has named; a link is followed.
    fn source(&self, from: &Side<'_>, to: &Target<'_>) -> Result<(), Failure> {
        let opened = from.opened().map_err(refused(from.shown()))?;
        if let Some(into) = to.into {
            return self.opened(opened, from, (into, from.name()));
        }
        if to.is_marked && !matches!(opened, Opened::Directory(..)) {
            let absent = io::Error::from_raw_os_error(libc::ENOENT);
            return Err(refused(to.side.shown())(absent));
        }
        let parent = to.side.parent().map_err(refused(to.side.shown()))?;
        self.opened(opened, from, (&parent, to.side.name()))
    }

    fn opened(
        &self,
        opened: Opened,
        from: &Side<'_>,
        (to, name): (&Dir, Option<&OsStr>),
    ) -> Result<(), Failure> {
        match (opened, name) {
            (Opened::File(file, meta), Some(name)) => {
                let meta = Meta { is_sparse: meta.is_sparse || from.guest.is_some(), ..meta };
                let copied = self.writer.file((file, &meta), (to, name), |_| {});
                copied.map_err(refused(to.shown(name)))
            }
            (Opened::Directory(dir, meta), name) => {
                let guest = from.guest.map(|guest| (guest, from.path.clone()));
                self.directory(&Source { dir, guest }, &meta, (to, name))
            }
            (Opened::File(..) | Opened::Other, _) => Err(no_file(from.shown())),
        }
    }

    /// Copies a directory; without a name its contents alone.
    fn directory(
        &self,
        from: &Source<'_>,
        meta: &Meta,
        (to, name): (&Dir, Option<&OsStr>),
    ) -> Result<(), Failure> {
        let Some(name) = name else {
            let id = to.meta().map_err(refused(to.shown_itself()))?.id;
            if id == meta.id {
                let sentence = "it would be copied to itself".to_owned();
                return Err(Failure::Refused {
                    what: to.shown_itself().to_owned(),
                    sentence,
                    errno: 0,
                });
            }
            self.contents(from, to, &Way { top: id, depth: 0 });
            return Ok(());
        };
        let to = to.make_dir(name).map_err(refused(to.shown(name)))?.0;
        let top = to.meta().map_err(refused(to.shown_itself()))?.id;
        self.contents(from, &to, &Way { top, depth: 0 });
        to.finish(meta).map_err(refused(to.shown_itself()))
    }

    fn contents(&self, from: &Source<'_>, to: &Dir, way: &Way) {
        let names = from.dir.names().map_err(refused(from.dir.shown_itself()));
        let names = names.unwrap_or_else(|failure| {
            self.failed(&failure);
            Vec::new()
        });
        let (mut directories, mut links, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for name in names {
            match from.dir.look(&name) {
                Ok(Some(meta)) if meta.is_dir() => directories.push((name, meta)),
                Ok(Some(meta)) if meta.kind == FileType::Symlink => links.push((name, meta)),
                Ok(Some(meta)) => files.push((name, meta)),
                // It has gone meanwhile.
                Ok(None) => {}
                Err(error) => self.failed(&refused(from.dir.shown(&name))(error)),
            }
        }
        self.files(from, to, &files);
        self.links(from, to, &links);
        for (name, meta) in directories {
            let copied = self.subdirectory(from, to, (&name, &meta), way);
            copied.unwrap_or_else(|failure| self.failed(&failure));
        }
    }

    fn subdirectory(
        &self,
        from: &Source<'_>,
        to: &Dir,
        (name, meta): (&OsStr, &Meta),
        way: &Way,
    ) -> Result<(), Failure> {
        let left_out = |sentence: &str| {
            let (what, sentence) = (from.dir.shown(name), sentence.to_owned());
            Err(Failure::Refused { what, sentence, errno: 0 })
        };
        if meta.id == way.top {
            return left_out("a directory is not copied into itself");
        }
        if way.depth >= DEEPEST {
            return left_out("left out: it is deeper than 256 directories");
        }
        let inner = from.dir(name).map_err(refused(from.dir.shown(name)))?;
        let to = to.make_dir(name).map_err(refused(to.shown(name)))?.0;
        self.contents(&inner, &to, &Way { top: way.top, depth: way.depth + 1 });
        to.finish(meta).map_err(refused(to.shown_itself()))
    }

    /// Copies files of one directory, several at once.
    fn files(&self, from: &Source<'_>, to: &Dir, files: &[(OsString, Meta)]) {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((name, meta)) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let copied = self.file(from, to, name, meta);
                copied.unwrap_or_else(|failure| self.failed(&failure));
            }
        };
        thread::scope(|scope| {
            (1..files.len().min(AT_ONCE)).for_each(|_| drop(scope.spawn(work)));
            work();
        });
    }

    fn file(&self, from: &Source<'_>, to: &Dir, name: &OsStr, meta: &Meta) -> Result<(), Failure> {
        if meta.kind != FileType::RegularFile {
            return Err(no_file(from.dir.shown(name)));
        }
        let (file, meta) = from.dir.file(name).map_err(refused(from.dir.shown(name)))?;
        let meta = Meta { is_sparse: meta.is_sparse || from.guest.is_some(), ..meta };
        let copied = self.writer.file((file, &meta), (to, name), |_| {});
        copied.map_err(refused(to.shown(name)))
    }

    fn links(&self, from: &Source<'_>, to: &Dir, links: &[(OsString, Meta)]) {
        for some in links.chunks(LINKS_AT_ONCE) {
            let names: Vec<_> = some.iter().map(|(name, _)| name.as_os_str()).collect();
            let original = from.guest.as_ref().map(|(guest, at)| guest.targets(at, &names));
            let original = original.unwrap_or_default();
            for (number, (name, meta)) in some.iter().enumerate() {
                let target = match original.get(number).filter(|target| !target.is_empty()) {
                    Some(target) => Ok(target.clone()),
                    None => from.dir.target(name),
                };
                let made = target.and_then(|t| self.writer.link(&t, meta.mtime, (to, name)));
                made.unwrap_or_else(|error| self.failed(&refused(to.shown(name))(error)));
            }
        }
    }
}

/// How a directory that is copied was come to.
struct Way {
    /// The number of the directory that all of it goes to.
    top: (u64, u64),
    depth: usize,
}

fn no_file(what: String) -> Failure {
    let sentence = "left out: it is neither a file nor a directory nor a link".to_owned();
    Failure::Refused { what, sentence, errno: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &[&str]) -> Result<Plan, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Plan::of(&words).map_err(|failure| failure.to_string())
    }

    #[test]
    fn one_side_at_least_is_a_vm() {
        assert!(plan(&["a", "vm1:"]).is_ok() && plan(&["vm1:a", "vm2:b"]).is_ok());
        for (words, said) in [
            (["a", "b"], "no VM is named"),
            (["-", "vm1:"], "not offered"),
            ([":a", "b"], "names no VM"),
        ] {
            assert!(plan(&words).unwrap_err().contains(said), "{words:?}");
        }
    }
}
