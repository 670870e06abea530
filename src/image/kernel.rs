//! A kernel with the modules that a virtual machine needs: from the host if it has a suitable one
//! that we may read, else from the distribution's package. `doc/adr/0003-tiny-image.md` says why
//! the generic kernel and why uncompressed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::elf;
use super::file_tree::FileTree;
use super::source::{BuildError, Result};
use super::unpack::{self, decompress};
use crate::arch::Arch;

/// Loaded at every boot, in this order. A kernel may have any of them built in.
pub(super) const BOOT: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "ext4",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "qemu_fw_cfg",
    "button",
    "evdev",
];
/// ext4 asks for its checksum by name, which `depends` does not list; gone from newer kernels.
const BY_NAME: &[&str] = &["crc32c_generic"];
/// For directories of the host that the guest has.
const FOR_SHARES: &[&str] = &["nfs", "nfsv3"];
/// For the user to load; not every kernel has all of them.
const ON_DEMAND: &[&str] = &[
    "9p",
    "9pnet_virtio",
    "efivarfs",
    "fuse",
    "isofs",
    "loop",
    "overlay",
    "tun",
    "virtiofs",
    "vmw_vsock_virtio_transport",
];

/// A kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// `6.1.0-56-amd64`: its modules' directory.
    pub(super) version: String,
    /// What QEMU loads.
    pub(super) image: KernelImage,
    modules: Modules,
}

/// A kernel's image.
#[derive(Debug)]
pub(super) enum KernelImage {
    /// An ELF file with a PVH entry point: nothing to unpack at boot.
    Vmlinux {
        /// That file.
        elf: Vec<u8>,
        /// The bzImage that it comes from, which UEFI starts.
        bz_image: Arc<[u8]>,
    },
    /// As the distribution ships it: a bzImage, or an uncompressed image of another architecture.
    Compressed(Arc<[u8]>),
}

/// Modules and what they need.
#[derive(Debug, Default)]
struct Modules {
    loadable: BTreeMap<String, Module>,
    builtin: BTreeSet<String>,
}

#[derive(Debug)]
struct Module {
    bytes: Vec<u8>,
    depends: Vec<String>,
}

impl Kernel {
    /// Reads the kernel in packages already fetched; the second value is the newest file's time.
    pub(super) fn from_packages(debs: &[PathBuf]) -> Result<(Self, u32)> {
        let mut wanted: BTreeSet<String> = [BOOT, BY_NAME, FOR_SHARES, ON_DEMAND, USUAL]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        loop {
            let mut tree = FileTree::default();
            let mut newest = 0;
            for deb in debs {
                newest = newest.max(unpack::package(deb, &mut tree, |p| is_wanted(p, &wanted))?);
            }
            let (kernel, unknown) = Self::from_tree(&tree)?;
            // A dependency that is not in the list: once more, with it. It ends, as `wanted` grows.
            let before = wanted.len();
            wanted.extend(unknown);
            if wanted.len() == before {
                kernel.check()?;
                return Ok((kernel, newest));
            }
        }
    }

    /// Reads the newest suitable kernel of this architecture installed on the host, if there is one.
    pub(super) fn from_host(root: &Path, arch: Arch) -> Option<(Self, u32)> {
        if !arch.is_native() || !arch.platform().has_vmgenid {
            return None;
        }
        let mut versions: Vec<String> = std::fs::read_dir(root.join("boot"))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
            .collect();
        versions.sort_by_key(|v| std::cmp::Reverse(version_key(v)));
        versions.iter().find_map(|v| host_kernel(root, v))
    }

    /// Puts the pieces together; also returns the modules that are needed and not in the tree.
    fn from_tree(tree: &FileTree) -> Result<(Self, BTreeSet<String>)> {
        let broken = |what: &str| BuildError::malformed("the kernel's package", what);
        let (version, bz_image) = tree
            .iter()
            .find_map(|(path, _)| {
                let version = path.strip_prefix("boot/vmlinuz-")?;
                Some((version.to_owned(), tree.read(path)?))
            })
            .ok_or_else(|| broken("it holds no boot/vmlinuz-VERSION"))?;
        let modules = Modules::from_tree(tree)?;
        let unknown = modules.unknown();
        let image = match vmlinux(&bz_image) {
            Some(elf) => KernelImage::Vmlinux { elf, bz_image },
            None => KernelImage::Compressed(bz_image),
        };
        let kernel = Self { version, image, modules };
        Ok((kernel, unknown))
    }

    /// Says what of the modules for booting is neither there nor built in.
    fn check(&self) -> Result<()> {
        let absent: Vec<_> = BOOT.iter().filter(|m| !self.modules.has(m)).collect();
        if absent.is_empty() {
            return Ok(());
        }
        Err(BuildError::malformed(
            format!("kernel {}", self.version),
            format_args!("it has no driver {absent:?}; name an image of your own in config/image"),
        ))
    }

    /// Returns the modules to load at boot, dependencies apart: what is built in needs no loading.
    pub(super) fn boot_modules(&self) -> Vec<&'static str> {
        let all = BY_NAME.iter().chain(BOOT).copied();
        all.filter(|name| self.modules.loadable.contains_key(*name)).collect()
    }

    /// Adds the modules for booting, with `modules.dep`.
    pub(super) fn add_boot_modules(&self, tree: &mut FileTree, base: &str) {
        self.add_modules(tree, base, &self.boot_modules());
    }

    /// Adds the modules of a guest that has no others, with `modules.dep`.
    pub(super) fn add_modules_of_containers(&self, tree: &mut FileTree, base: &str) {
        self.add_modules(tree, base, &[&self.boot_modules(), FOR_SHARES].concat());
    }

    /// Adds all modules, with `modules.dep`.
    pub(super) fn add_all_modules(&self, tree: &mut FileTree, base: &str) {
        self.add_modules(tree, base, &[BY_NAME, BOOT, FOR_SHARES, ON_DEMAND].concat());
    }

    fn add_modules(&self, tree: &mut FileTree, base: &str, roots: &[&str]) {
        let dir = format!("{base}/modules/{}", self.version);
        let mut dep = String::new();
        for name in self.modules.closure(roots) {
            let module = &self.modules.loadable[name];
            tree.file(&format!("{dir}/{name}.ko"), 0o644, module.bytes.clone());
            // modprobe loads from the right to the left.
            let mut needs = self.modules.closure(&[name]);
            needs.pop();
            let needs: String = needs.iter().rev().map(|n| format!(" {n}.ko")).collect();
            let _infallible = writeln!(dep, "{name}.ko:{needs}");
        }
        tree.file(&format!("{dir}/modules.dep"), 0o644, dep.into_bytes());
    }
}

/// What the modules above depend on in the kernels known: saves a second reading of the package.
const USUAL: &[&str] = &[
    "9pnet",
    "af_vsock",
    "vsock",
    "cdrom",
    "crc16",
    "failover",
    "fscache",
    "grace",
    "jbd2",
    "lockd",
    "mbcache",
    "net_failover",
    "netfs",
    "nfs_acl",
    "rng_core",
    "sunrpc",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_ring",
    "vmw_vsock_virtio_transport_common",
];

/// Picks what is worth keeping of a kernel's package, which unpacks to 400 MB.
fn is_wanted(path: &str, modules: &BTreeSet<String>) -> bool {
    path.starts_with("boot/vmlinuz-")
        || path.ends_with("/modules.builtin")
        || module_name(path).is_some_and(|name| modules.contains(&name))
}

/// Returns the kernel's own name of the module in a file.
fn module_name(path: &str) -> Option<String> {
    let (_, file) = path.rsplit_once('/')?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

impl Modules {
    fn from_tree(tree: &FileTree) -> Result<Self> {
        let mut modules = Self::default();
        for (path, _) in tree.iter() {
            if path.ends_with("/modules.builtin") {
                let list = tree.read(path).unwrap_or_default();
                let list = String::from_utf8_lossy(&list);
                modules.builtin.extend(list.lines().filter_map(module_name));
            } else if let (Some(name), Some(packed)) = (module_name(path), tree.read(path)) {
                let bytes = decompress(path, &packed)?;
                let depends = elf::module_depends(path, &bytes)?;
                modules.loadable.insert(name, Module { bytes, depends });
            }
        }
        Ok(modules)
    }

    fn has(&self, name: &str) -> bool {
        self.loadable.contains_key(name) || self.builtin.contains(name)
    }

    /// Returns what the loadable modules need and is not there.
    fn unknown(&self) -> BTreeSet<String> {
        let needed = self.loadable.values().flat_map(|m| &m.depends);
        needed.filter(|name| !self.has(name)).cloned().collect()
    }

    /// Returns `roots` and what they need in the order of loading, without what is built in.
    fn closure<'a>(&'a self, roots: &[&str]) -> Vec<&'a str> {
        let mut order = Vec::new();
        for root in roots {
            self.visit(root, &mut order);
        }
        order
    }

    fn visit<'a>(&'a self, name: &str, order: &mut Vec<&'a str>) {
        let Some((name, module)) = self.loadable.get_key_value(name) else {
            return;
        };
        if order.contains(&name.as_str()) {
            return;
        }
        for depend in &module.depends {
            self.visit(depend, order);
        }
        order.push(name);
    }
}

/// Extracts the ELF kernel from a bzImage (`Documentation/arch/x86/boot.rst` of the kernel);
/// `None` if it is packed in an unknown way or cannot be entered as PVH.
fn vmlinux(bz_image: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| -> Option<usize> {
        let bytes = bz_image.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    if bz_image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let setup_sectors = usize::from(*bz_image.get(0x1f1)?).max(4);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = bz_image.get(start..start.checked_add(word(0x24c)?)?)?;
    let bytes = decompress("kernel", payload).ok()?;
    elf::is_pvh(&bytes).then_some(bytes)
}

/// Reads one kernel of the host: with vmgenid, and as an ordinary user may (Ubuntu forbids it).
fn host_kernel(root: &Path, version: &str) -> Option<(Kernel, u32)> {
    let config = std::fs::read_to_string(root.join(format!("boot/config-{version}"))).ok()?;
    if !has_vmgenid(&config) {
        return None;
    }
    let mut tree = FileTree::default();
    let boot = format!("boot/vmlinuz-{version}");
    let image = std::fs::read(root.join(&boot)).ok()?;
    tree.file(&boot, 0o644, image);
    add_host_modules(root, Path::new(&format!("lib/modules/{version}")), &mut tree)?;
    let (kernel, _) = Kernel::from_tree(&tree).ok()?;
    kernel.check().ok()?;
    let modified = std::fs::metadata(root.join(&boot)).ok()?.modified().ok()?;
    let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some((kernel, u32::try_from(since.as_secs()).ok()?))
}

fn add_host_modules(root: &Path, dir: &Path, tree: &mut FileTree) -> Option<()> {
    let wanted = [BOOT, BY_NAME, FOR_SHARES, ON_DEMAND, USUAL].concat();
    let wanted = wanted.into_iter().map(str::to_owned).collect();
    let mut queue = vec![dir.to_owned()];
    while let Some(dir) = queue.pop() {
        for entry in std::fs::read_dir(root.join(&dir)).ok()? {
            let entry = entry.ok()?;
            let path = dir.join(entry.file_name());
            let name = path.to_str()?;
            if entry.file_type().ok()?.is_dir() {
                queue.push(path);
            } else if is_wanted(name, &wanted) {
                tree.file(name, 0o644, std::fs::read(entry.path()).ok()?);
            }
        }
    }
    Some(())
}

/// A clone of a running guest must notice that it is one: its kernel needs the driver built in.
fn has_vmgenid(config: &str) -> bool {
    config.lines().any(|line| line == "CONFIG_VMGENID=y")
}

/// Sorts versions by their numbers.
fn version_key(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(list: &[(&str, &[&str])]) -> Modules {
        let loadable = list.iter().map(|(name, depends)| {
            let depends = depends.iter().map(|d| (*d).to_owned()).collect();
            let bytes = Vec::new();
            ((*name).to_owned(), Module { bytes, depends })
        });
        Modules { loadable: loadable.collect(), builtin: ["crc16".to_owned()].into() }
    }

    #[test]
    fn modules_are_loaded_after_what_they_need_and_built_in_ones_not_at_all() {
        let modules = modules(&[
            ("ext4", &["mbcache", "jbd2", "crc16"]),
            ("jbd2", &["mbcache"]),
            ("mbcache", &[]),
        ]);
        assert_eq!(modules.closure(&["ext4", "crc16"]), ["mbcache", "jbd2", "ext4"]);
        assert_eq!(modules.unknown().len(), 0);
    }

    #[test]
    fn a_module_that_nothing_holds_is_told() {
        let modules = modules(&[("ext4", &["jbd3", "crc16"])]);
        assert!(modules.unknown().iter().eq(["jbd3"]));
        assert!(modules.has("crc16") && !modules.has("jbd3"));
    }

    #[test]
    fn module_files_have_the_kernels_names() {
        let path = "lib/modules/6.1/kernel/arch/x86/crypto/crc32c-intel.ko.xz";
        assert_eq!(module_name(path).unwrap(), "crc32c_intel");
        assert_eq!(module_name("lib/modules/6.1/modules.dep"), None);
    }

    #[test]
    fn bytes_that_are_no_kernel_give_no_vmlinux() {
        assert_eq!(vmlinux(b""), None);
        let mut image = vec![0; 0x300];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x250].fill(0xff);
        assert_eq!(vmlinux(&image), None);
    }

    #[test]
    fn the_newest_version_is_by_number() {
        assert!(version_key("6.1.0-9-amd64") < version_key("6.1.0-56-amd64"));
    }

    #[test]
    fn a_host_without_kernels_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Kernel::from_host(dir.path(), Arch::HOST).is_none());
        assert!(has_vmgenid("CONFIG_A=y\nCONFIG_VMGENID=y\n"));
        assert!(!has_vmgenid("# CONFIG_VMGENID is not set\n"));
    }
}
