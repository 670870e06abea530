//! The documentation leads somewhere: what it links to and the sources that it names exist.
//!
//! Not here: what it says (`semantics` and the tests of what it describes).

use include_dir::{Dir, include_dir};

/// The directories that documentation leads to.
static DIRECTORIES: [(&str, Dir<'_>); 5] = [
    ("src", include_dir!("$CARGO_MANIFEST_DIR/src")),
    ("tests", include_dir!("$CARGO_MANIFEST_DIR/tests")),
    ("doc", include_dir!("$CARGO_MANIFEST_DIR/doc")),
    ("mountpoint-docs", include_dir!("$CARGO_MANIFEST_DIR/mountpoint-docs")),
    ("tools", include_dir!("$CARGO_MANIFEST_DIR/tools")),
];

/// The files beside them.
const ROOT: &[(&str, &str)] = &[
    ("README.md", include_str!("../../README.md")),
    ("CONTRIBUTING.md", include_str!("../../CONTRIBUTING.md")),
    ("SECURITY.md", include_str!("../../SECURITY.md")),
    ("CHANGELOG.md", include_str!("../../CHANGELOG.md")),
    ("LICENSE-MIT", include_str!("../../LICENSE-MIT")),
    ("LICENSE-APACHE", include_str!("../../LICENSE-APACHE")),
];

/// Files of worked examples in the documentation.
const EXAMPLES: &[&str] = &["mountpoint-docs/age.md", "tree/directories/shares.rs"];

/// Lists the pages with their paths.
fn pages() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let root = ROOT.iter().filter(|(path, _)| path.ends_with(".md"));
    found.extend(root.map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
    for (name, dir) in &DIRECTORIES {
        collect(name, dir, &mut found);
    }
    found
}

fn collect(name: &str, dir: &Dir<'_>, found: &mut Vec<(String, String)>) {
    for file in dir.files().filter(|f| f.path().extension().is_some_and(|e| e == "md")) {
        let text = file.contents_utf8().expect("a page is UTF-8");
        found.push((format!("{name}/{}", file.path().display()), text.to_owned()));
    }
    dir.dirs().for_each(|below| collect(name, below, found));
}

fn exists(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let dir = DIRECTORIES.iter().find(|(name, _)| *name == first);
    ROOT.iter().any(|(name, _)| *name == path)
        || dir.is_some_and(|(_, dir)| rest.is_empty() || dir.get_entry(rest).is_some())
}

/// Lists where a page's links lead, from the root; those into the web are left out.
fn links(page: &str, text: &str) -> Vec<String> {
    let dir = page.rsplit_once('/').map_or("", |(dir, _)| dir);
    let targets = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    local
        .map(|target| {
            let mut path: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
            for part in target.split('#').next().unwrap_or_default().split('/') {
                match part {
                    ".." => drop(path.pop()),
                    "." | "" => {}
                    name => path.push(name),
                }
            }
            path.join("/")
        })
        .collect()
}

/// Lists the paths of sources in a text: words in backticks that look like one.
fn sources(text: &str) -> Vec<&str> {
    let words = text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    let is_path = |word: &&str| {
        let plain = word.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(&b));
        let named = DIRECTORIES.iter().any(|(name, _)| word.starts_with(&format!("{name}/")));
        let placeholder = word.contains("NAME") || word.contains("NNN");
        plain && !placeholder && word.contains('/') && (named || word.ends_with(".rs"))
    };
    words.filter(is_path).collect()
}

#[test]
fn every_link_leads_to_a_file() {
    let mut dead = Vec::new();
    for (page, text) in pages() {
        let of = links(&page, &text).into_iter().filter(|target| !exists(target));
        dead.extend(of.map(|target| format!("{page}: {target}")));
    }
    assert!(dead.is_empty(), "links that lead nowhere: {dead:#?}");
}

#[test]
fn every_source_that_is_named_exists() {
    let mut gone = Vec::new();
    for (page, text) in pages() {
        let is_there =
            |path: &str| ["", "src/", "tests/"].iter().any(|root| exists(&format!("{root}{path}")));
        let real = sources(&text).into_iter().filter(|path| !EXAMPLES.contains(path));
        let of = real.filter(|path| !is_there(path));
        gone.extend(of.map(|path| format!("{page}: {path}")));
    }
    assert!(gone.is_empty(), "sources that do not exist: {gone:#?}");
}

#[test]
fn links_and_sources_are_found_in_a_text() {
    let text = "[a](../README.md#x), [b](http://c), `tree/table.rs` and `src/`\n```\n`src/gone.rs`\n```\n`jobs/last`";
    assert_eq!(links("doc/X.md", text), ["README.md"]);
    assert_eq!(sources(text), ["tree/table.rs", "src/"]);
    assert!(exists("doc/adr/") && exists("src/lib.rs") && !exists("src/gone.rs"));
}
