//! The rows, the user's file, and the page that is made from them.

use std::fmt::Write;
use std::fs;

use super::*;

#[test]
fn every_row_is_in_order_and_its_keys_are_those_that_it_names() {
    let file: File = toml::from_str(BUILT_IN).unwrap();
    for row in &file.distribution {
        row.check().unwrap_or_else(|e| panic!("{}: {e}", row.name));
        assert!(row.disk.contains_key("x86_64"), "{}", row.name);
        assert_ne!(row.signature.is_some(), row.signature_note.is_some(), "{}", row.name);
        assert!(row.mirror.starts_with("https://"), "{}", row.name);
        let keys = row.trusted().unwrap();
        assert_eq!(keys.is_some(), row.signature.is_some(), "{}", row.name);
        for (name, _) in row.offers() {
            assert!(is_object_name(&name), "{name}");
        }
    }
    for (name, text) in KEYS {
        let keys = Keys::parse(text.as_bytes()).unwrap();
        assert!(keys.fingerprints().iter().all(|f| f.len() == 40), "{name}");
    }
}

#[test]
fn the_users_rows_replace_and_are_replaced_by_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("images.toml");
    let text = r#"
        mirror = "https://mirror.example/all/"
        mirrors = { debian = "https://debian.example/cloud" }
        insecure_registries = ["10.0.0.5:5000"]
        [[distribution]]
        name = "alpine"
        mirror = "https://own.example"
        directory = "{version}"
        newest = { version = "1" }
        checksums = "SUMS"
        disk = { x86_64 = "alpine.qcow2" }
        [[distribution]]
        name = "mine"
        mirror = "https://mine.example"
        directory = ""
        newest = { version = "1" }
        checksums = "SUMS"
        disk = { x86_64 = 'mine-(\d+).qcow2' }
    "#;
    fs::write(&path, text).unwrap();
    let (all, problem) = Distributions::load(Some(&path));
    assert_eq!(problem, None);
    let mirror = |name: &str| all.find(name).unwrap().mirror.clone();
    assert_eq!(all.find("alpine").unwrap().checksums, "SUMS");
    assert_eq!(mirror("debian"), "https://debian.example/cloud");
    assert_eq!(mirror("almalinux"), "https://mirror.example/all/alma");
    assert_eq!(mirror("mine"), "https://mirror.example/all/mine");
    assert_eq!(all.insecure_registries(), ["10.0.0.5:5000"]);
}

#[test]
fn a_mistake_in_the_users_file_is_told_and_the_others_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("images.toml");
    for (text, said) in [
        ("[[distribution]]\nname = 1", "images.toml"),
        ("mirorr = \"x\"", "mirorr"),
        (
            "[[distribution]]\nname='x'\nmirror=''\ndirectory=''\nnewest={version='1'}\nchecksums='S'\nsignature='S.asc'\ndisk={}",
            "signature",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let (all, problem) = Distributions::load(Some(&path));
        assert!(problem.unwrap().contains(said), "{text}");
        assert!(all.find("debian").is_some());
    }
    assert_eq!(Distributions::load(Some(&dir.path().join("none"))).1, None);
}

const BEGIN: &str = "<!-- made from src/image/distributions.toml -->\n";
const END: &str = "<!-- end -->";

fn table() -> String {
    let mut text = String::from(BEGIN);
    text += "\n| source | images | checksums, over HTTPS | signature | trusted keys |\n|---|---|---|---|---|\n";
    for row in Distributions::built_in().iter() {
        let names: Vec<String> = row.offers().map(|(name, _)| format!("`{name}`")).collect();
        let signature = match (&row.signature, &row.signature_note) {
            (Some(inline), _) if inline == "inline" => "in the list".to_owned(),
            (Some(file), _) => format!("`{}`", file.replace("{file}", "DISK")),
            (None, note) => format!("no: {}", note.clone().unwrap_or_default()),
        };
        let keys = row.trusted().unwrap().unwrap_or_default().fingerprints();
        let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
        let sums = row.checksums.replace("{file}", "DISK");
        let (name, names, keys) = (&row.name, names.join(" "), keys.join(" "));
        writeln!(text, "| `{name}[:RELEASE]` | {names} | `{sums}` | {signature} | {keys} |")
            .unwrap();
    }
    text + "\n" + END
}

#[test]
fn the_page_says_what_is_verified() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/mountpoint-docs/distributions.md");
    let page = include_str!("../../mountpoint-docs/distributions.md");
    let (head, rest) = page.split_once(BEGIN).unwrap();
    let (_, tail) = rest.split_once(END).unwrap();
    let made = format!("{head}{}{tail}", table());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, &made).unwrap();
        return;
    }
    assert!(page == made, "UPDATE_DOCS=1 cargo test --lib the_page_says_what_is_verified");
}
