//! Releases are found on mirrors that are laid out as the distributions' own.

use std::fs;

use pgp::crypto::hash::HashAlgorithm;

use super::super::distribution::Distributions;
use super::*;
use crate::fetch::Cancel;
use crate::fetch::mirror::Mirror;
use crate::fetch::signer::Signer;

/// A distribution whose mirror is `mirror`, which trusts `signer`.
fn row(name: &str, mirror: &Mirror, key: Option<&std::path::Path>) -> Distribution {
    let mut row = Distributions::built_in().find(name).unwrap().clone();
    row.mirror = mirror.url(name);
    if let Some(key) = key {
        row.keys = vec![key.display().to_string()];
    }
    row
}

fn resolve(row: &Distribution, version: Option<&str>) -> Result<Release, String> {
    let client = Client::new(Cancel::default()).unwrap();
    let wanted = Wanted { row, version, arch: "x86_64" };
    wanted.resolve(&client).map_err(|e| e.to_string())
}

fn sums(names: &[&str]) -> String {
    names.iter().map(|name| format!("{}  {name}\n", "5".repeat(64))).collect()
}

#[test]
fn alpines_newest_release_is_what_its_mirror_says() {
    let mirror = Mirror::start();
    let put = |branch: &str, version: &str| {
        let disk = format!("nocloud_alpine-{version}-x86_64-bios-cloudinit-r0.qcow2");
        let dir = format!("alpine/{branch}/releases/cloud");
        mirror.put(&format!("{dir}/{disk}"), "disk");
        mirror.put(&format!("{dir}/nocloud_alpine-{version}-x86_64-uefi-tiny-r0.qcow2"), "other");
        mirror.put(&format!("{dir}/{disk}.sha512"), "7".repeat(128));
    };
    for version in ["3.9.0", "3.22.9", "3.22.10"] {
        put("latest-stable", version);
    }
    put("v3.21", "3.21.4");
    put("v3.21", "3.21.3");
    let row = row("alpine", &mirror, None);
    let newest = resolve(&row, None).unwrap();
    assert_eq!(newest.file, "nocloud_alpine-3.22.10-x86_64-bios-cloudinit-r0.qcow2");
    assert_eq!(newest.checksum.to_string(), format!("sha512:{}", "7".repeat(128)));
    assert!(newest.url.contains("/alpine/latest-stable/releases/cloud/nocloud_alpine-3.22.10"));
    assert!(newest.trust.ends_with(".sha512, not signed"), "{}", newest.trust);
    let named = |version: &str| resolve(&row, Some(version)).unwrap().file;
    assert!(named("3.21").contains("-3.21.4-"));
    assert!(named("3.21.3").contains("-3.21.3-"));
    let error = resolve(&row, Some("3.20")).unwrap_err();
    assert!(error.contains("404"), "{error}");
    let error = resolve(&row, Some("3.21.9")).unwrap_err();
    assert!(error.contains("has nothing like"), "{error}");
}

#[test]
fn debians_disk_is_the_one_in_its_list_whatever_the_release_is_called() {
    let mirror = Mirror::start();
    let list = sums(&["debian-12-generic-amd64.qcow2", "debian-12-genericcloud-amd64.qcow2"]);
    mirror.put("debian/bookworm/latest/SHA512SUMS", list);
    let row = row("debian", &mirror, None);
    for version in ["12", "bookworm"] {
        let release = resolve(&row, Some(version)).unwrap();
        assert_eq!(release.file, "debian-12-genericcloud-amd64.qcow2");
    }
    mirror.put("debian/bookworm/latest/SHA512SUMS", sums(&["debian-12-nocloud-amd64.qcow2"]));
    assert!(resolve(&row, Some("12")).unwrap_err().contains("has nothing like"));
}

#[test]
fn a_signature_beside_ubuntus_list_has_to_be_a_trusted_keys() {
    let (mirror, signer, dir) = (Mirror::start(), Signer::new(), tempfile::tempdir().unwrap());
    let key = dir.path().join("key.asc");
    fs::write(&key, signer.public()).unwrap();
    for version in ["24.04", "25.10", "26.04"] {
        let list = sums(&[&format!("ubuntu-{version}-server-cloudimg-amd64.img")]);
        let signature = signer.detached(list.as_bytes(), HashAlgorithm::Sha512);
        mirror.put(&format!("ubuntu/{version}/release/SHA256SUMS"), list);
        mirror.put(&format!("ubuntu/{version}/release/SHA256SUMS.gpg"), signature);
    }
    let trusting = row("ubuntu", &mirror, Some(&key));
    let newest = resolve(&trusting, None).unwrap();
    assert_eq!(newest.file, "ubuntu-26.04-server-cloudimg-amd64.img");
    assert!(newest.trust.starts_with("SHA256SUMS signed by "), "{}", newest.trust);
    let foreign = resolve(&row("ubuntu", &mirror, None), Some("24.04")).unwrap_err();
    assert!(foreign.contains("D2EB44626FDDC30B513D5BB71A5D6C4C7DB87C81"), "{foreign}");
    mirror.put(
        "ubuntu/24.04/release/SHA256SUMS",
        sums(&["ubuntu-24.04-server-cloudimg-amd64.img", "x"]),
    );
    assert!(resolve(&trusting, Some("24.04")).unwrap_err().contains("changed after it was signed"));
}

#[test]
fn fedoras_list_is_signed_within_itself() {
    let (mirror, signer, dir) = (Mirror::start(), Signer::new(), tempfile::tempdir().unwrap());
    let key = dir.path().join("key.asc");
    fs::write(&key, signer.public()).unwrap();
    let list = format!(
        "# Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2: 5 bytes\nSHA256 (Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2) = {}\n",
        "5".repeat(64)
    );
    let at = |version: u32| {
        format!(
            "fedora/releases/{version}/Cloud/x86_64/images/Fedora-Cloud-{version}-1.6-x86_64-CHECKSUM"
        )
    };
    mirror.put(&at(42), "older");
    mirror.put(&at(43), signer.inline(&list));
    let row = row("fedora", &mirror, Some(&key));
    assert_eq!(resolve(&row, None).unwrap().file, "Fedora-Cloud-Base-Generic-43-1.6.x86_64.qcow2");
    mirror.put(&at(43), list);
    assert!(resolve(&row, None).unwrap_err().contains("it is not signed"));
}

#[test]
fn pages_of_directories_are_read_as_servers_write_them() {
    let page = r#"<a href="?C=N;O=D">Name</a> <a href="/pub/">Up</a><a href='../'>..</a>
        <a href="v3.22/">v3.22/</a><a href="./a.qcow2">a</a><a href="https://x/y/b.qcow2?x=1">b</a>"#;
    assert_eq!(links(page), ["pub/", "v3.22/", "a.qcow2", "b.qcow2"]);
}
