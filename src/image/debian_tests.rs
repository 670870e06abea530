use sha2::{Digest, Sha256};

use super::*;
use crate::fetch::mirror::Mirror;
use crate::fetch::signer::Signer;

const TOOLS: PackageQuery<'_> = PackageQuery { any_of: &["tools"], follow: &["lib"] };
const NONE: PackageQuery<'_> = PackageQuery { any_of: &["none"], follow: &[] };

/// An archive on 127.0.0.1 with two packages.
struct Debian {
    mirror: Mirror,
    signer: Signer,
    cache: tempfile::TempDir,
}

fn sum(bytes: impl AsRef<[u8]>) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

impl Debian {
    fn new() -> Self {
        let cache = tempfile::tempdir().unwrap();
        let debian = Self { mirror: Mirror::start(), signer: Signer::new(), cache };
        debian.publish("");
        debian
    }

    /// Publishes the release, with further lines.
    fn publish(&self, lines: &str) {
        let mut list = String::new();
        for (name, depends) in [("tools", "libc6 (>= 2)"), ("libc6", "")] {
            let (path, bytes) = (format!("pool/{name}_1_arm64.deb"), format!("the package {name}"));
            let sum = sum(&bytes);
            list += &format!(
                "Package: {name}\nDepends: {depends}\nFilename: {path}\nSHA256: {sum}\n\n"
            );
            self.mirror.put(&format!("debian/{path}"), bytes);
        }
        let (size, sum) = (list.len(), sum(&list));
        let dir = "main/binary-arm64";
        let text =
            format!("Suite: stable\n{lines}SHA256:\n {sum} {size} {dir}/Packages.xz\nEnd: yes\n");
        self.mirror.put(&format!("debian/dists/stable/{dir}/Packages.xz"), &list);
        self.mirror.put(&format!("debian/dists/stable/{dir}/by-hash/SHA256/{sum}"), &list);
        self.mirror.put("debian/dists/stable/InRelease", self.signer.inline(&text));
    }

    fn fetch(&self, query: PackageQuery<'_>) -> Result<Vec<String>, String> {
        let (progress, url) = (Progress::new(|_, _| {}), self.mirror.url("debian/"));
        let mut archive =
            Archive::new((&url, "stable"), Arch::Aarch64, self.cache.path(), &progress).unwrap();
        archive.keys = Keys::parse(self.signer.public().as_bytes()).unwrap();
        let fetched = archive.fetch(&[&[query]]).map_err(|e| e.to_string())?;
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        Ok(fetched.concat().into_iter().map(read).collect())
    }

    fn kept(&self) -> Vec<String> {
        let dir = fs::read_dir(self.cache.path().join("debian/arm64")).unwrap();
        let mut names: Vec<_> =
            dir.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn packages_are_fetched_once_and_are_there_without_a_network() {
    let debian = Debian::new();
    debian.publish("Acquire-By-Hash: yes\n");
    let expected = ["the package libc6", "the package tools"];
    assert_eq!(debian.fetch(TOOLS).unwrap(), expected);
    fs::write(debian.cache.path().join("debian/arm64/old_1_arm64.deb"), "").unwrap();
    assert_eq!(debian.fetch(TOOLS).unwrap(), expected);
    assert_eq!(debian.mirror.requests("debian/pool/tools_1_arm64.deb"), 1);
    assert_eq!(debian.mirror.requests("debian/dists/stable/main/binary-arm64/Packages.xz"), 0);
    let kept = ["InRelease", "Packages.xz", "libc6_1_arm64.deb", "tools_1_arm64.deb"];
    assert_eq!(debian.kept(), kept);
}

#[test]
fn what_was_fetched_serves_while_there_is_no_network() {
    let mut debian = Debian::new();
    debian.fetch(TOOLS).unwrap();
    let (progress, url) = (Progress::new(|_, _| {}), debian.mirror.url("debian"));
    debian.mirror = Mirror::start();
    let mut archive =
        Archive::new((&url, "stable"), Arch::Aarch64, debian.cache.path(), &progress).unwrap();
    archive.keys = Keys::parse(debian.signer.public().as_bytes()).unwrap();
    assert_eq!(archive.fetch(&[&[TOOLS]]).unwrap()[0].len(), 2);
    fs::remove_file(debian.cache.path().join("debian/arm64/InRelease")).unwrap();
    let error = archive.fetch(&[&[TOOLS]]).unwrap_err().to_string();
    assert!(error.starts_with("cannot fetch") && error.contains("another mirror"), "{error}");
}

#[test]
fn a_release_of_another_key_or_of_the_past_is_refused() {
    let mut debian = Debian::new();
    debian.publish("Valid-Until: Thu, 01 Jan 2026 00:00:00 UTC\n");
    let error = debian.fetch(TOOLS).unwrap_err();
    assert!(error.contains("valid until Thu, 01 Jan 2026"), "{error}");
    debian.publish("Valid-Until: Mon, 01 Jan 2125 00:00:00 UTC\n");
    debian.fetch(TOOLS).unwrap();
    debian.signer = Signer::new();
    let error = debian.fetch(TOOLS).unwrap_err();
    assert!(error.contains("trusted is only"), "{error}");
}

#[test]
fn a_changed_list_a_changed_package_and_one_that_is_gone_are_told_and_not_kept() {
    let debian = Debian::new();
    debian.mirror.put("debian/dists/stable/main/binary-arm64/Packages.xz", "Package: evil\n");
    assert!(debian.fetch(TOOLS).unwrap_err().contains("its checksum is"));
    debian.publish("");
    debian.mirror.put("debian/pool/tools_1_arm64.deb", "the package tooLs");
    let error = debian.fetch(TOOLS).unwrap_err();
    assert!(error.contains("its checksum is"), "{error}");
    assert_eq!(debian.kept(), ["InRelease", "Packages.xz", "libc6_1_arm64.deb"]);
    let error = debian.fetch(NONE).unwrap_err();
    assert!(error.contains("arm64: it has no none; try again later"), "{error}");
}

#[test]
fn the_keys_that_come_with_the_program_are_four() {
    assert_eq!(Keys::parse(KEYS).unwrap().fingerprints().len(), 4);
}
