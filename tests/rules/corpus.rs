//! The fuzz targets' corpus, without a fuzzer: each file, and the same mutations of it in every run.

#[path = "../../fuzz/properties.rs"]
mod properties;

use include_dir::{Dir, include_dir};

static CORPUS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/fuzz/corpus");

/// How many mutations of each file are tried.
const MUTATIONS: usize = 200;

fn each(target: &str, property: fn(&[u8])) {
    let corpus = CORPUS.get_dir(target).unwrap_or_else(|| panic!("no corpus for {target}"));
    assert!(corpus.files().count() > 3, "{target}: the corpus is embedded");
    let mut random = fastrand::Rng::with_seed(1);
    for file in corpus.files() {
        property(file.contents());
        (0..MUTATIONS).for_each(|_| property(&mutated(file.contents(), &mut random)));
    }
}

/// Changes up to 4 bytes, each to any value or to an extreme one; or cuts the end off.
fn mutated(bytes: &[u8], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.is_empty() || random.u8(..8) == 0 {
        bytes.truncate(random.usize(..=bytes.len()));
        return bytes;
    }
    for _ in 0..random.usize(1..=4) {
        // Most of what decides is at the start.
        let end = if random.bool() { bytes.len().min(128) } else { bytes.len() };
        let value = [random.u8(..), 0, 1, 0x7f, 0x80, 0xff][random.usize(..6)];
        bytes[random.usize(..end)] = value;
    }
    bytes
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
fn nfs() {
    each("nfs", properties::nfs);
}

#[test]
fn qcow2() {
    each("qcow2", properties::qcow2);
}

#[test]
fn qmp() {
    each("qmp", properties::qmp);
}

#[test]
fn sftp() {
    each("sftp", properties::sftp);
}
