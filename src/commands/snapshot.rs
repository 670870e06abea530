//! `aq snapshot`: images made from VMs, and their second names.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::time::SystemTime;

use serde::Serialize;

use super::files::Tree;
use super::names;
use super::progress::Progress;
use super::text::{line, note, size};
use super::{Failure, Near};
use crate::cli::images::{Create, Remove, Snapshot, Tag};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Taken {
    tag: String,
    /// The image that the VM was made from.
    parent: String,
    refs: usize,
    size: u64,
    created: String,
    source: String,
}

pub(super) fn run(tree: &Tree, args: &Snapshot) -> Result<(), Failure> {
    match args {
        Snapshot::Create(args) => create(tree, args),
        Snapshot::Ls(args) if args.json => ls_json(tree),
        Snapshot::Ls(_) => ls(tree),
        Snapshot::Rm(args) => remove(tree, args),
        Snapshot::Tag(args) => tag(tree, args),
        Snapshot::Tree(args) => forest(tree, args.tag.as_deref()),
    }
}

// ----- create ----------------------------------------------------------------------------------

fn create(tree: &Tree, args: &Create) -> Result<(), Failure> {
    let (vm, tag) = (tree.vm(&args.vm)?, &args.tag);
    names::expect_one(tag)?;
    let dir = format!(".images/{tag}");
    tree.mkdir(&dir).map_err(|failure| match failure.errno() {
        libc::EEXIST => Failure::ImageExists(tag.clone()),
        _ => failure.about(format!("snapshot '{tag}'")),
    })?;
    let taken =
        tree.write(&format!("{dir}/source"), &vm.name).and_then(|()| until_ready(tree, tag));
    if let Err(failure) = taken {
        // It is there whole, or not at all.
        drop(tree.rmdir(&dir));
        return Err(failure.about(format!("snapshot '{tag}'")));
    }
    let taken = take(tree, tag);
    let memory = if tree.read_or_nothing(&format!("{dir}/warm")).starts_with("yes") {
        ", with memory"
    } else {
        ""
    };
    note(format!("Snapshot created: {tag} (parent: {}{memory})", taken.parent));
    Ok(())
}

/// Waits until an image is made, which continues by itself when this process ends.
pub(super) fn until_ready(tree: &Tree, tag: &str) -> Result<(), Failure> {
    let mut progress = Progress::new();
    let status = tree.awaited(&format!(".images/{tag}/wait"), || {
        progress.show(|| tree.read_or_nothing(&format!(".images/{tag}/progress")));
        true
    })?;
    match status.unwrap_or_default() {
        status if status == "ready" => Ok(()),
        sentence => Err(Failure::Refused { what: tag.to_owned(), sentence, errno: 0 }),
    }
}

// ----- ls, tree --------------------------------------------------------------------------------

fn ls(tree: &Tree) -> Result<(), Failure> {
    let row = |tag: &str, parent: &str, refs: &str, size: &str, created: &str, source: &str| {
        line(format!("{tag:<30} {parent:<20} {refs:<7} {size:<6} {created:<20} {source}"))
    };
    row("TAG", "PARENT", "REFS", "SIZE", "CREATED", "SOURCE_VM")?;
    for t in all(tree)? {
        row(&t.tag, &t.parent, &t.refs.to_string(), &size(t.size), &t.created, &t.source)?;
    }
    Ok(())
}

fn ls_json(tree: &Tree) -> Result<(), Failure> {
    line(serde_json::to_string_pretty(&all(tree)?).unwrap_or_default())
}

fn all(tree: &Tree) -> Result<Vec<Taken>, Failure> {
    let mut users = BTreeMap::<String, usize>::new();
    for vm in tree.vms()? {
        *users.entry(vm.read("config/image").unwrap_or_default()).or_default() += 1;
    }
    let names = tree.names(".images")?.into_iter();
    let is_taken = |tag: &String| tree.read_or_nothing(&format!(".images/{tag}/kind")) == "vm";
    let is_alias = |tag: &String| fs::read_link(tree.path(".images").join(tag)).is_ok();
    let tags = names.filter(|tag| !is_alias(tag) && is_taken(tag));
    let counted = |t: Taken| Taken { refs: users.get(&t.tag).copied().unwrap_or_default(), ..t };
    Ok(tags.map(|tag| counted(take(tree, &tag))).collect())
}

fn take(tree: &Tree, tag: &str) -> Taken {
    let read = |name: &str| tree.read_or_nothing(&format!(".images/{tag}/{name}"));
    let changed = fs::metadata(tree.path(".images").join(tag)).and_then(|m| m.modified());
    let changed = changed.unwrap_or(SystemTime::UNIX_EPOCH);
    Taken {
        tag: tag.to_owned(),
        parent: read("parent"),
        refs: 0,
        size: read("size").parse().unwrap_or_default(),
        created: humantime::format_rfc3339_seconds(changed).to_string(),
        source: read("source"),
    }
}

fn forest(tree: &Tree, root: Option<&str>) -> Result<(), Failure> {
    let all = all(tree)?;
    if let Some(root) = root {
        let root = tree.image(root)?;
        let found = all.iter().find(|t| t.tag == root);
        let images = tree.path(".images").display().to_string();
        let found = found.ok_or_else(|| Failure::NoImage(root.clone(), Near::default(), images))?;
        return branch(&all, found, 0);
    }
    let is_root = |t: &&Taken| !all.iter().any(|other| other.tag == t.parent);
    let mut bases: Vec<&str> = all.iter().filter(is_root).map(|t| t.parent.as_str()).collect();
    bases.sort_unstable();
    bases.dedup();
    for base in bases {
        line(format!("base ({base})"))?;
        let children = all.iter().filter(is_root).filter(|t| t.parent == base);
        children.clone().try_for_each(|t| branch(&all, t, 1))?;
    }
    Ok(())
}

fn branch(all: &[Taken], of: &Taken, depth: usize) -> Result<(), Failure> {
    let indent = "    ".repeat(depth);
    let day = of.created.split('T').next().unwrap_or_default();
    line(format!("{indent}└── {}   [refs: {}, {}, {day}]", of.tag, of.refs, size(of.size)))?;
    // A tag that was removed and taken again from its own descendant would go round.
    let children = all.iter().filter(|t| t.parent == of.tag && t.tag != of.tag);
    if depth > all.len() {
        Ok(())
    } else {
        children.clone().try_for_each(|t| branch(all, t, depth + 1))
    }
}

// ----- rm, tag ---------------------------------------------------------------------------------

fn remove(tree: &Tree, args: &Remove) -> Result<(), Failure> {
    let tag = tree.image(&args.tag)?;
    let users = users(tree, &tag)?;
    if !users.is_empty() {
        let sentence =
            format!("has {} reference(s): {}. Remove those first", users.len(), users.join(", "));
        return Err(Failure::Refused { what: format!("snapshot '{tag}'"), sentence, errno: 0 });
    }
    for kept in kept(tree, &tag)? {
        note(format!("Erasing .trash/{kept}, which was made from it"));
        tree.rmdir(&format!(".trash/{kept}"))?;
    }
    // Its aliases go with it.
    tree.rmdir(&format!(".images/{tag}"))?;
    note(format!("Snapshot removed: {tag}"));
    Ok(())
}

fn users(tree: &Tree, tag: &str) -> Result<Vec<String>, Failure> {
    let vms = tree.vms()?.into_iter();
    let uses = vms.filter(|vm| vm.read("config/image").is_ok_and(|image| image == tag));
    Ok(uses.map(|vm| vm.name).collect())
}

pub(super) fn kept(tree: &Tree, tag: &str) -> Result<Vec<String>, Failure> {
    let uses = |kept: &String| tree.read_or_nothing(&format!(".trash/{kept}/image")) == tag;
    Ok(tree.names(".trash")?.into_iter().filter(uses).collect())
}

fn tag(tree: &Tree, args: &Tag) -> Result<(), Failure> {
    names::expect_one(&args.alias)?;
    let (tag, images) = (tree.image(&args.tag)?, tree.path(".images"));
    let alias = images.join(&args.alias);
    if fs::read_link(&alias).is_ok() {
        // There is no moment at which the alias is not there.
        let new = images.join(format!("aq-{}", std::process::id()));
        tree.explained(&*args.alias, symlink(&tag, &new).and_then(|()| fs::rename(&new, &alias)))?;
    } else {
        tree.explained(&*args.alias, symlink(&tag, &alias))?;
    }
    note(format!("Tag '{}' -> snapshot '{tag}'", args.alias));
    Ok(())
}
