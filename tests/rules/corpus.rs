//! The fuzz targets' corpus, without a fuzzer: every input that was kept is tried in every run.

#[path = "../../fuzz/properties.rs"]
mod properties;

use include_dir::{Dir, include_dir};

static CORPUS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/fuzz/corpus");

fn each(target: &str, property: fn(&[u8])) {
    let corpus = CORPUS.get_dir(target).unwrap_or_else(|| panic!("no corpus for {target}"));
    assert!(corpus.files().count() > 3, "{target}: the corpus is embedded");
    corpus.files().for_each(|file| property(file.contents()));
}

#[test]
fn ctl() {
    each("ctl", properties::ctl);
}

#[test]
fn config() {
    each("config", properties::config);
}

#[test]
fn names() {
    each("names", properties::names);
}

#[test]
fn qcow2() {
    each("qcow2", properties::qcow2);
}

#[test]
fn qmp() {
    each("qmp", properties::qmp);
}
