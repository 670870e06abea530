//! Which image a VM is made from: one that is there, or one that is made of a source for it.

use std::path::Path;

use crate::commands::Failure;
use crate::commands::files::Tree;

/// The longest name that is made of a source; there is room for a number behind it.
const LONGEST: usize = 48;
/// How many images of one name, each of another source, there may be.
const TRIES: u32 = 100;
/// Endings that are no part of a name.
const ENDINGS: &[&str] =
    &[".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".qcow2", ".raw", ".img"];

/// An image that a VM can be made from.
#[derive(Debug)]
pub(in crate::commands) struct Chosen {
    pub(in crate::commands) name: String,
    /// It was made for this run.
    pub(super) is_new: bool,
    /// It was neither ready nor being made.
    pub(super) is_begun_here: bool,
}

impl Chosen {
    /// Finds an image by its name, an alias or its source, or makes one of that source.
    pub(in crate::commands) fn find_or_make(tree: &Tree, text: &str) -> Result<Self, Failure> {
        let unknown = match tree.image(text) {
            Ok(name) => return Ok(Self::found(tree, name)),
            Err(unknown) => unknown,
        };
        let Some(source) = source_of(text)? else { return Err(nowhere(unknown)) };
        let has_it =
            |name: &String| tree.read_or_nothing(&format!(".images/{name}/source")) == source;
        if let Some(name) = tree.names(".images")?.into_iter().find(has_it) {
            return Ok(Self::found(tree, name));
        }
        Self::make(tree, &source)
    }

    fn found(tree: &Tree, name: String) -> Self {
        let status = tree.read_or_nothing(&format!(".images/{name}/status"));
        let is_begun_here = status == "absent" || status.starts_with("failed");
        Self { name, is_new: false, is_begun_here }
    }

    /// Makes an image of a source.
    pub(in crate::commands) fn make(tree: &Tree, source: &str) -> Result<Self, Failure> {
        let name = create(tree, &name_of(source))?;
        let written = tree.write(&format!(".images/{name}/source"), source);
        if let Err(failure) = written {
            drop(tree.rmdir(&format!(".images/{name}")));
            return Err(failure.about(source.to_owned()));
        }
        Ok(Self { name, is_new: true, is_begun_here: true })
    }
}

/// Says what is missing in the words of commands that take images only.
pub(in crate::commands) fn nowhere(unknown: Failure) -> Failure {
    if let Failure::NoImage(name, near, _) = unknown {
        return Failure::NoSuchImage(name, near);
    }
    unknown
}

/// Makes an image without a source, under a name that is free.
fn create(tree: &Tree, wanted: &str) -> Result<String, Failure> {
    for number in 1..TRIES {
        let name = if number == 1 { wanted.to_owned() } else { format!("{wanted}-{number}") };
        match tree.mkdir(&format!(".images/{name}")) {
            Err(failure) if failure.errno() == libc::EEXIST => {}
            made => return made.map(|()| name),
        }
    }
    tree.mkdir(&format!(".images/{wanted}")).map(|()| wanted.to_owned())
}

/// Returns the source that a word names; `None` for what can only be a name.
fn source_of(text: &str) -> Result<Option<String>, Failure> {
    if let Some(path) = text.strip_prefix("oci-archive:") {
        return Ok(Some(format!("oci-archive:{}", absolute(path)?)));
    }
    let is_path = text.starts_with(['/', '.']) || ENDINGS.iter().any(|e| text.ends_with(e));
    if is_path {
        return absolute(text).map(Some);
    }
    Ok(text.contains(':').then(|| text.to_owned()))
}

fn absolute(path: &str) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).map_err(super::super::local(path))?;
    Ok(absolute.display().to_string())
}

/// Makes a name of a source: of `oci:docker.io/library/alpine:3.22` it is `alpine-3.22`.
fn name_of(source: &str) -> String {
    let last = Path::new(source).file_name().and_then(|name| name.to_str()).unwrap_or(source);
    let last = last.split(['@', '#']).next().unwrap_or(last);
    let last = ENDINGS.iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last);
    let last = last.strip_suffix(":latest").unwrap_or(last);
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = last.chars().map(plain).take(LONGEST).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
    if name.is_empty() { "image".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_of_what_tells_images_apart() {
        let table = [
            ("oci:docker.io/library/alpine:3.22", "alpine-3.22"),
            ("oci:127.0.0.1:5000/x", "x"),
            ("oci:127.0.0.1:5000/team/x:latest", "x"),
            ("oci:x@sha256:0123", "oci-x"),
            ("oci-archive:/a/b.tar", "b"),
            ("https://x.org/y.qcow2#sha256=01", "y"),
            ("/a/alpine-minirootfs-3.22.0-x86_64.tar.gz", "alpine-minirootfs-3.22.0-x86_64"),
            ("/a/.tar", "image"),
        ];
        for (source, name) in table {
            assert_eq!(name_of(source), name, "{source}");
        }
    }

    #[test]
    fn a_word_is_a_source_or_can_only_be_a_name() {
        let of = |text: &str| source_of(text).unwrap();
        assert_eq!(of("oci:x/y:1").as_deref(), Some("oci:x/y:1"));
        assert_eq!(of("/a/b.tar.gz").as_deref(), Some("/a/b.tar.gz"));
        assert!(of("./b.tar").unwrap().ends_with("/b.tar"));
        assert!(of("oci-archive:b.tar").unwrap().starts_with("oci-archive:/"));
        assert_eq!(of("tiny"), None);
    }
}
