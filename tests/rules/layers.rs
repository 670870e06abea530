//! The dependency rules between the layers, held over the sources.
//!
//! The sources are embedded: the user who runs the tests may not be able to read the checkout.
//! Test modules are exempt, and so is what comments and string literals say.

use std::collections::BTreeSet;

use include_dir::{Dir, include_dir};

pub(crate) static SRC: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/src");

/// Which layer may name which others. At the bottom are `store` (names and atomic files), `disk`, `proc`
/// (what the kernel says of processes) and `sys` (system calls).
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["cli", "commands", "run"]),
    ("lib", &[]),
    (
        "run",
        &[
            "arch", "cli", "commands", "config", "daemon", "doctor", "files", "fuse", "guest",
            "image", "man", "qemu", "registry", "store", "sys", "tree", "vm",
        ],
    ),
    ("cli", &["config", "fuse", "run", "store"]),
    // They have the mount's files, as any other program.
    ("commands", &["cli", "config", "daemon", "disk", "sys"]),
    ("daemon", &["config", "fuse", "store", "sys"]),
    ("doctor", &["arch", "daemon", "fuse", "image", "qemu", "programs", "store", "sys", "vm"]),
    ("man", &["cli", "commands", "tree"]),
    ("config", &["store"]),
    ("fuse", &["files", "proc", "programs", "registry", "sys", "tree", "vm"]),
    // The guests' files as a file system: neither the kernel's words nor a guest's protocol.
    ("files", &["registry", "vm"]),
    ("tree", &["proc", "registry", "store", "sys", "vm"]),
    ("registry", &["store", "vm"]),
    ("proxy", &[]),
    ("vm", &["arch", "disk", "nfs", "programs", "proxy", "store"]),
    ("qemu", &["arch", "disk", "proc", "programs", "store", "sys", "vm"]),
    ("guest", &["store", "sys", "vm"]),
    ("image", &["arch", "disk", "fetch", "programs", "store", "sys", "vm"]),
    // A log loses its older part by a hole.
    ("store", &["disk", "proc"]),
    // Disks and files of memory: nothing of VMs, machines or images.
    ("disk", &["programs", "sys"]),
    // The network: nothing of images, machines or distributions.
    ("fetch", &["store"]),
    // Files for a guest: nothing of VMs.
    ("nfs", &[]),
    ("proc", &[]),
    ("arch", &["programs"]),
    ("programs", &[]),
    ("sys", &[]),
];

/// Words that only some files may hold, and why.
const CONFINED: &[(&[&str], &[&str], &str)] = &[
    (&["fuser::", "use fuser"], &["fuse/"], "the kernel's protocol stays in one layer"),
    (&["russh::", "use russh"], &["guest/"], "SSH stays in one layer"),
    (&["reqwest::", "use reqwest"], &["fetch/"], "HTTP stays in one layer"),
    (
        // daemon.rs and touch.rs start aq itself again; mountpoint.rs runs fusermount3, as fuser does; sys.rs only prepares a command that it is given; `aq console`, `scp` and
        // `edit` are the user's own programs.
        &["process::Command", "process::Child", "process::{", "tokio::process"],
        &[
            "qemu/",
            "image/",
            "disk/img.rs",
            "sys.rs",
            "daemon.rs",
            "fuse/mountpoint.rs",
            "fuse/touch.rs",
            "commands/ssh.rs",
            "commands/edit.rs",
        ],
        "programs are started by qemu, image and disk only",
    ),
    (&["unsafe "], &["sys.rs"], "unsafe code stays in one file"),
];

/// Files that neither wait nor read a clock, and the words by which they would.
const PURE: &[&str] = &[
    "tree/",
    "vm/state.rs",
    "vm/state/",
    "vm/driver/phase.rs",
    "vm/driver/requested.rs",
    "vm/driver/reported.rs",
    "vm/driver/running.rs",
];
const IMPURE: &[&str] = &[".await", "async ", "Instant::now", "SystemTime::now", "block_on"];

/// A source file: its path below `src` and its code without comments, strings and tests.
struct Source {
    path: String,
    code: String,
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    collect(&SRC, &mut found);
    assert!(found.len() > 10, "the sources are embedded");
    let tests: Vec<String> =
        found.iter().flat_map(|s: &(String, String)| test_files(&s.0, &s.1)).collect();
    // A module for tests may have files of its own.
    let below = |path: &str, file: &str| path.starts_with(&file.replace(".rs", "/"));
    let is_test = |path: &str| tests.iter().any(|t| path == t || below(path, t));
    let kept = found.into_iter().filter(|(path, _)| !is_test(path));
    kept.map(|(path, text)| Source { code: code_of(&text), path }).collect()
}

pub(crate) fn collect(dir: &Dir<'_>, found: &mut Vec<(String, String)>) {
    for file in dir.files().filter(|f| f.path().extension().is_some_and(|e| e == "rs")) {
        let text = file.contents_utf8().expect("Rust is UTF-8");
        found.push((file.path().display().to_string(), text.to_owned()));
    }
    dir.dirs().for_each(|d| collect(d, found));
}

/// Lists the files that `text`, at `path`, declares as modules for tests only.
fn test_files(path: &str, text: &str) -> Vec<String> {
    let parent = path.strip_suffix("mod.rs").or_else(|| path.strip_suffix("lib.rs"));
    let dir = parent.map_or_else(|| format!("{}/", path.trim_end_matches(".rs")), str::to_owned);
    let (mut names, mut for_tests) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            for_tests |= line.starts_with("#[cfg(") && line.contains("test");
            continue;
        }
        let module = line.strip_suffix(';').and_then(|l| l.rsplit_once("mod "));
        names.extend(module.filter(|_| for_tests).map(|(_, name)| format!("{dir}{name}.rs")));
        for_tests = false;
    }
    names
}

/// Drops comments, string literals and the test module, which is the last item of a file.
fn code_of(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let line = |l: &str| {
        let l = l.split("//").next().unwrap_or_default();
        l.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// Lists the layers that `code` names as `crate::LAYER`, `crate::{LAYER…, …}` or `aqfs::…`.
fn layers_named(code: &str) -> BTreeSet<String> {
    let roots = ["crate::", "aqfs::"].iter().flat_map(|root| code.split(root).skip(1));
    roots.flat_map(first_segments).collect()
}

/// Lists the first path segments at the start of `text`: one, or those of a group in braces.
fn first_segments(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else {
        return vec![identifier(text)];
    };
    let (mut depth, mut names, mut item) = (1, Vec::new(), String::new());
    for c in group.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 || (depth == 1 && c == ',') {
            names.push(identifier(item.trim()));
            item.clear();
        } else {
            item.push(c);
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|n| !n.is_empty());
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

fn layer_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

fn is_within(path: &str, places: &[&str]) -> bool {
    places.iter().any(|p| path == *p || (p.ends_with('/') && path.starts_with(p)))
}

fn offences_against_layers(source: &Source) -> Vec<String> {
    let layer = layer_of(&source.path);
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == layer) else {
        return vec![format!("{}: the layer {layer} is not in the table", source.path)];
    };
    let named = layers_named(&source.code);
    let is_layer = |n: &&String| ALLOWED.iter().any(|(name, _)| name == n);
    let foreign = named.iter().filter(is_layer).filter(|n| *n != layer);
    let bad = foreign.filter(|n| !allowed.contains(&n.as_str()));
    bad.map(|n| format!("{} names {n}", source.path)).collect()
}

fn offences_against_confinement(source: &Source) -> Vec<String> {
    let holds = |words: &[&str]| words.iter().any(|w| source.code.contains(w));
    let broken = CONFINED
        .iter()
        .filter(|(words, places, _)| holds(words) && !is_within(&source.path, places));
    broken.map(|(words, _, why)| format!("{} holds {}: {why}", source.path, words[0])).collect()
}

#[test]
fn a_layer_names_only_those_that_it_may() {
    let offences: Vec<String> = sources().iter().flat_map(offences_against_layers).collect();
    assert!(offences.is_empty(), "{offences:#?}");
}

#[test]
fn fuser_russh_processes_and_unsafe_code_stay_where_they_belong() {
    let offences: Vec<String> = sources().iter().flat_map(offences_against_confinement).collect();
    assert!(offences.is_empty(), "{offences:#?}");
}

#[test]
fn the_tree_and_the_policy_neither_wait_nor_read_a_clock() {
    for source in sources().iter().filter(|s| is_within(&s.path, PURE)) {
        for word in IMPURE {
            assert!(!source.code.contains(word), "{} holds {word}", source.path);
        }
    }
}

/// Files whose matches name every case, also where clippy does not look: in tuples.
const EXHAUSTIVE: &[&str] = &["vm/state.rs", "vm/state/", "vm/driver/"];

#[test]
fn the_policy_and_the_driver_name_every_case() {
    for source in sources().iter().filter(|s| is_within(&s.path, EXHAUSTIVE)) {
        for words in ["_ =>", "_ if "] {
            assert!(!source.code.contains(words), "{} holds `{words}`", source.path);
        }
    }
}

#[test]
fn offences_are_found() {
    let source = |path: &str, code: &str| Source { path: path.to_owned(), code: code_of(code) };
    let bad = source("vm/x.rs", "use crate::{qemu::img, vm::spec};\nfn f() { crate::fuse::g() }");
    assert_eq!(offences_against_layers(&bad), ["vm/x.rs names fuse", "vm/x.rs names qemu"]);
    let started = source("guest/x.rs", "use tokio::process::Command;");
    assert_eq!(offences_against_confinement(&started).len(), 1);
    let innocent =
        "// unsafe fuser::x\nlet s = \"fuser::x\";\n#[cfg(test)]\nmod tests { use crate::fuse; }";
    let innocent = source("vm/x.rs", innocent);
    assert!(offences_against_layers(&innocent).is_empty());
    assert!(offences_against_confinement(&innocent).is_empty());
    let modules = "mod a;\n#[cfg(test)]\n#[allow(x)]\nmod fakes;\npub mod b;";
    assert_eq!(test_files("vm/mod.rs", modules), ["vm/fakes.rs"]);
}
