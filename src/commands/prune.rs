//! `aq prune`: what may be erased.

use super::Failure;
use super::files::Tree;
use super::progress::Progress;
use super::text::{line, note, size};
use crate::cli::images::Prune;

struct Erasable {
    /// `.trash/vm1@1795182212`
    path: String,
    bytes: u64,
}

pub(super) fn run(tree: &Tree, args: &Prune) -> Result<(), Failure> {
    let mut erasable = trash(tree)?;
    let (mut progress, mut freed) = (Progress::new(), 0);
    let of = |list: &[Erasable]| list.iter().map(|e| e.bytes).sum::<u64>();
    if args.dry_run {
        if args.images {
            erasable.extend(images(tree)?);
        }
        erasable.iter().try_for_each(|e| line(format!("{:<6} {}", size(e.bytes), e.path)))?;
        note(format!("{} would be freed", size(of(&erasable))));
        return Ok(());
    }
    let mut erase = |list: Vec<Erasable>| -> Result<(), Failure> {
        for e in list {
            progress.show(|| format!("erasing {}", e.path));
            tree.rmdir(&e.path)?;
            line(&e.path)?;
            freed += e.bytes;
        }
        Ok(())
    };
    erase(erasable)?;
    if args.images {
        // What only the trash has used is unused now.
        erase(images(tree)?)?;
    }
    drop(progress);
    note(format!("{} freed", size(freed)));
    Ok(())
}

fn trash(tree: &Tree) -> Result<Vec<Erasable>, Failure> {
    let names = tree.names(".trash")?.into_iter();
    let erasable = |name: String| {
        let path = format!(".trash/{name}");
        let bytes = tree.read_or_nothing(&format!("{path}/disk_bytes")).parse().unwrap_or_default();
        Erasable { path, bytes }
    };
    Ok(names.map(erasable).collect())
}

/// Lists images that take space, that no VM uses, and that new VMs are not made from by default.
/// One that removed VMs alone use is unused as soon as they are erased.
fn images(tree: &Tree) -> Result<Vec<Erasable>, Failure> {
    let default = tree.read_or_nothing(".defaults/image");
    let mut unused = Vec::new();
    for name in tree.names(".images")?.into_iter().filter(|name| *name != default) {
        let (path, read) = (format!(".images/{name}"), |file: &str| {
            tree.read_or_nothing(&format!(".images/{name}/{file}"))
        });
        let is_alias = std::fs::read_link(tree.path(&path)).is_ok();
        let used = tree.vms()?.iter().any(|vm| vm.read("config/image").is_ok_and(|i| i == name));
        let busy = matches!(read("status").as_str(), "fetching" | "building");
        if !is_alias && !used && !busy && read("status") != "absent" {
            unused.push(Erasable { bytes: read("size").parse().unwrap_or_default(), path });
        }
    }
    Ok(unused)
}
