//! Every test that `doc/SEMANTICS.md` and `SECURITY.md` name exists; every statement and every promise
//! there names one.
//!
//! A name is a path in backticks and brackets: [`PROGRAM::MODULE::TEST`] for the programs in `tests/`,
//! [`MODULE::tests::TEST`] for unit tests. Tests that a macro makes cannot be named.

use std::collections::BTreeSet;

use include_dir::{Dir, include_dir};

use crate::layers::{SRC, collect};

static TESTS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/tests");
static DOC: &str = include_str!("../../doc/SEMANTICS.md");
static SECURITY: &str = include_str!("../../SECURITY.md");

/// Lists the paths of all tests of the library and of the programs in `tests/`.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    collect(&SRC, &mut files);
    collect(&TESTS, &mut files);
    let renamed: Vec<_> = files.iter().flat_map(|(path, text)| renamed(path, text)).collect();
    let module = |path: &str| {
        let found = renamed.iter().find(|(file, _)| file == path);
        found.map_or_else(|| module_of(path), |(_, module)| module.clone())
    };
    files.iter().flat_map(|(path, text)| tests_in(&module(path), text)).collect()
}

/// Returns the path of the module that a file holds: `a/b.rs` and `a/b/mod.rs` hold `a::b`.
fn module_of(path: &str) -> String {
    let path = path.trim_end_matches(".rs");
    let root = ["mod", "main", "lib"].iter().find_map(|name| path.strip_suffix(name));
    let path = root.filter(|dir| dir.is_empty() || dir.ends_with('/')).unwrap_or(path);
    path.trim_end_matches('/').replace('/', "::")
}

/// Lists the files that `text`, at `path`, gives to its modules by `#[path]`, with their modules.
fn renamed(path: &str, text: &str) -> Vec<(String, String)> {
    let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
    let lines: Vec<&str> = text.lines().collect();
    let pair = |lines: &[&str]| {
        let file = lines[0].strip_prefix("#[path = \"")?.strip_suffix("\"]")?;
        let name = lines[1].rsplit_once("mod ")?.1.strip_suffix(';')?;
        Some((format!("{dir}/{file}"), format!("{}::{name}", module_of(path))))
    };
    lines.windows(2).filter_map(pair).collect()
}

/// Lists the tests in a file by their paths. Its indentation says which module a test is in.
fn tests_in(module: &str, text: &str) -> Vec<String> {
    let (mut modules, mut found) = (Vec::<(usize, &str)>::new(), Vec::new());
    let mut is_test = false;
    for line in text.lines() {
        let (indent, code) = (line.len() - line.trim_start().len(), line.trim_start());
        if let Some(name) = code.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(" {")) {
            modules.retain(|(outer, _)| *outer < indent);
            modules.push((indent, name));
        }
        is_test |= code.starts_with("#[test]") || code.starts_with("#[tokio::test");
        let function = code.strip_prefix("async ").unwrap_or(code).strip_prefix("fn ");
        if let Some(name) = function.and_then(|rest| rest.split('(').next()) {
            let outer = modules.iter().filter(|(outer, _)| *outer < indent).map(|(_, name)| *name);
            let path = std::iter::once(module).chain(outer).chain([name]);
            let path = path.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("::");
            found.extend(is_test.then_some(path));
            is_test = false;
        }
    }
    found
}

/// Lists the names of tests in a text.
fn named(text: &str) -> Vec<&str> {
    let pieces = text.split("[`").skip(1).filter_map(|rest| Some(rest.split_once("`]")?.0));
    pieces.filter(|name| name.contains("::")).collect()
}

/// Lists the statements: the items of lists, each with the lines that belong to it.
fn statements(text: &str) -> Vec<String> {
    let mut found = Vec::<String>::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("- ") {
            found.push(line.to_owned());
            inside = true;
        } else if let Some(last) = found.last_mut().filter(|_| inside && line.starts_with("  ")) {
            last.push_str(line);
        } else {
            inside = false;
        }
    }
    found
}

/// Keeps what a text promises: what stands between `Promised` and `Not promised`.
fn promises(text: &str) -> String {
    let mut is_promise = false;
    let promised = text.lines().filter(|line| {
        is_promise = (is_promise || line.starts_with("Promised"))
            && !(line.starts_with("Not promised") || line.starts_with("## "));
        is_promise
    });
    promised.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_test_that_is_named_exists() {
    let tests = tests();
    for (page, text) in [("doc/SEMANTICS.md", DOC), ("SECURITY.md", SECURITY)] {
        let missing: Vec<&str> = named(text).into_iter().filter(|n| !tests.contains(*n)).collect();
        assert!(missing.is_empty(), "{page} names tests that do not exist: {missing:#?}");
    }
}

#[test]
fn every_statement_and_every_promise_names_a_test() {
    let pages = [("doc/SEMANTICS.md", DOC.to_owned()), ("SECURITY.md", promises(SECURITY))];
    for (page, text) in pages {
        let all = statements(&text);
        assert!(all.len() > 10, "{page} says nothing");
        let bare: Vec<&String> = all.iter().filter(|s| named(s).is_empty()).collect();
        assert!(bare.is_empty(), "{page} says without a test: {bare:#?}");
    }
}

#[test]
fn names_are_found_in_sources_and_in_the_text() {
    assert_eq!(module_of("guest/poll.rs"), "guest::poll");
    assert_eq!(module_of("guest/main.rs"), "guest");
    assert_eq!(module_of("vm/domain.rs"), "vm::domain");
    assert_eq!(module_of("lib.rs"), "");
    let source = "#[test]\nfn a() {}\nmod b {\n    #[tokio::test]\n    #[ignore]\n    async fn c() {}\n    fn d() {}\n}\n#[test]\nfn e() {}";
    assert_eq!(tests_in("m", source), ["m::a", "m::b::c", "m::e"]);
    let declared = renamed("image/x.rs", "#[path = \"x_tests.rs\"]\nmod tests;");
    assert_eq!(declared, [("image/x_tests.rs".to_owned(), "image::x::tests".to_owned())]);
    let text = "- one\n  [`a::b`]\n- two [link]\n\nnone";
    assert_eq!(statements(text), ["- one  [`a::b`]", "- two [link]"]);
    assert_eq!(named(text), ["a::b"]);
    assert_eq!(promises("- a\nPromised:\n- b\nNot promised:\n- c\n## d\n- e"), "Promised:\n- b");
}
