//! What an image is to be made from, as `.images/NAME/source` says it.
//!
//! Words only: whether there is such a file or VM is for others to see.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::spec::{is_object_name, is_vm_name};
use crate::arch::Arch;

/// The name of the one image that is built in.
const TINY: &str = "builtin:tiny";
/// The word for the newest release.
const NEWEST: &str = "latest";
/// What stands before a colon and is no distribution.
const RESERVED: &[&str] = &["builtin", "oci", "oci-archive"];
/// The name of the empty disk.
const BLANK: &str = "builtin:blank";
/// The endings of files that are disks, and those that may follow.
const DISKS: &[&str] = &["qcow2", "raw", "img", "iso", "vmdk", "vhdx", "vdi", "box"];
const PACKED: &[&str] = &["gz", "xz", "zst", "bz2"];

/// Says whether a file is a disk by its name.
fn is_disk(path: &Path) -> bool {
    let ending =
        |path: &Path| path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_owned();
    let outer = ending(path);
    if !PACKED.contains(&outer.as_str()) {
        return DISKS.contains(&outer.as_str());
    }
    path.file_stem().is_some_and(|stem| DISKS.contains(&ending(Path::new(stem)).as_str()))
}

/// The endings of files that are archives of root file systems.
pub const ARCHIVES: &[&str] = &[".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst"];
/// The prefixes of a container image in a registry, and of one in a file.
const REGISTRY: &str = "oci:";
const ARCHIVE: &str = "oci-archive:";

/// A source that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "a source says what its fields are")]
pub enum Origin {
    /// `builtin:tiny`, of the host's architecture, or `builtin:tiny-aarch64`.
    Tiny(Arch),
    /// `builtin:blank`
    Blank,
    /// A disk image on this host, by its absolute path.
    File(PathBuf),
    /// A distribution's disk: `alpine:3.22`, or `alpine:latest`.
    Distribution {
        /// Its name.
        name: String,
        /// The release; `None`: the newest.
        version: Option<String>,
    },
    /// A disk at an address, with its checksum: `https://…#sha256=…`.
    Url {
        /// The address.
        url: String,
        /// `sha256=…`, not yet looked at.
        checksum: String,
    },
    /// A container image in a registry, by its name there.
    Registry(String),
    /// A container image in a file, by its absolute path.
    Archive(PathBuf),
    /// An archive of a root file system, by its absolute path.
    RootFs(PathBuf),
    /// A VM's disk, as it is or at a snapshot.
    Vm { vm: String, tag: Option<String> },
}

/// A source that is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "source {0:?}: not supported; use `builtin:tiny`, `builtin:blank`, a distribution such as `alpine` or \
     `debian:12`, a disk's absolute path ending in .qcow2, .raw, .img, .iso, .vmdk, .vhdx, .vdi or .box, also with \
     .gz, .xz, .zst or .bz2 (not .box), a root file system's ending in .tar, .tar.gz, .tar.xz or .tar.zst, \
     https://…#sha256=…, `oci:REF`, `oci-archive:/PATH`, a VM's name, or VM@SNAPSHOT"
)]
pub struct OriginError(pub String);

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let refused = || OriginError(text.to_owned());
        if let Some(rest) = text.strip_prefix(TINY) {
            let named = rest.strip_prefix('-').and_then(|arch| arch.parse().ok());
            let arch = if rest.is_empty() { Some(Arch::HOST) } else { named };
            return arch.map(Self::Tiny).ok_or_else(refused);
        }
        if text == BLANK {
            return Ok(Self::Blank);
        }
        if let Some(reference) = text.strip_prefix(REGISTRY) {
            let fits = !reference.is_empty() && !reference.contains(char::is_whitespace);
            return fits.then(|| Self::Registry(reference.to_owned())).ok_or_else(refused);
        }
        if let Some(path) = text.strip_prefix(ARCHIVE) {
            return path.starts_with('/').then(|| Self::Archive(path.into())).ok_or_else(refused);
        }
        if text.starts_with('/') {
            let path = Path::new(text);
            if ARCHIVES.iter().any(|ending| text.ends_with(ending)) {
                return Ok(Self::RootFs(path.into()));
            }
            return is_disk(path).then(|| Self::File(path.into())).ok_or_else(refused);
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            let (url, checksum) = text.split_once('#').ok_or_else(refused)?;
            return Ok(Self::Url { url: url.to_owned(), checksum: checksum.to_owned() });
        }
        if let Some((name, version)) = text.split_once(':') {
            let fits = !RESERVED.contains(&name) && is_object_name(name) && is_object_name(version);
            let version = Some(version).filter(|v| *v != NEWEST).map(str::to_owned);
            let name = name.to_owned();
            return fits.then_some(Self::Distribution { name, version }).ok_or_else(refused);
        }
        let (vm, tag) = text.split_once('@').map_or((text, None), |(vm, tag)| (vm, Some(tag)));
        let fits = is_vm_name(vm) && tag.is_none_or(is_object_name);
        let tag = tag.map(str::to_owned);
        fits.then(|| Self::Vm { vm: vm.to_owned(), tag }).ok_or_else(refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_their_form() {
        let vm = |vm: &str, tag: Option<&str>| Origin::Vm {
            vm: vm.to_owned(),
            tag: tag.map(str::to_owned),
        };
        let distribution = |name: &str, version: Option<&str>| Origin::Distribution {
            name: name.to_owned(),
            version: version.map(str::to_owned),
        };
        let (url, checksum) = ("https://x/y.qcow2".to_owned(), "sha256=0".to_owned());
        let url = Origin::Url { url, checksum };
        let table = [
            ("builtin:tiny", Origin::Tiny(Arch::HOST)),
            ("builtin:tiny-aarch64", Origin::Tiny(Arch::Aarch64)),
            ("builtin:blank", Origin::Blank),
            ("/x.iso", Origin::File("/x.iso".into())),
            ("/x.vmdk.gz", Origin::File("/x.vmdk.gz".into())),
            ("/a b/x.qcow2", Origin::File("/a b/x.qcow2".into())),
            ("/x.img", Origin::File("/x.img".into())),
            ("alpine:3.22", distribution("alpine", Some("3.22"))),
            ("debian:latest", distribution("debian", None)),
            ("https://x/y.qcow2#sha256=0", url),
            ("oci:127.0.0.1:5000/x:1", Origin::Registry("127.0.0.1:5000/x:1".into())),
            ("oci-archive:/a/x.tar", Origin::Archive("/a/x.tar".into())),
            ("/a/x.tar.zst", Origin::RootFs("/a/x.tar.zst".into())),
            ("vm1", vm("vm1", None)),
            ("vm1@clean", vm("vm1", Some("clean"))),
        ];
        for (text, origin) in table {
            assert_eq!(text.parse(), Ok(origin), "{text}");
        }
    }

    #[test]
    fn what_is_not_supported_is_told_what_is() {
        let bad = [
            "alpine:",
            "alpine:3 22",
            "oci:",
            "oci-archive:x",
            "oci:a b",
            "https://x/y.qcow2",
            "x.raw",
            "/x",
            "/x.gz",
            "/x.txt",
            "vm1@",
            "builtin:tiny-vax",
            "",
        ];
        for text in bad {
            let error = text.parse::<Origin>().unwrap_err().to_string();
            assert!(error.contains("VM@SNAPSHOT"), "{text}: {error}");
        }
    }
}
