//! `builtin:tiny`: a small Linux made of Debian's packages, without root, on any host and for any
//! architecture. The guest's files are in `tiny/`; `doc/adr/0003-tiny-image.md` gives the reasons.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::busybox;
use super::debian::Archive;
use super::elf;
use super::ext4;
use super::file_tree::FileTree;
use super::initramfs;
use super::kernel::{Kernel, KernelImage};
use super::manifest::{Manifest, VMLINUX};
use super::packages::PackageQuery;
use super::source::{BuildError, ImageSource, Progress, Result};
use super::unpack;
use crate::arch::Arch;
use crate::store::file;
use crate::vm::backend::DiskFormat;
use crate::vm::spec::ImageSettings;

const NAME: &str = "builtin:tiny";
/// The number of this recipe: it grows with every change of what the image consists of, so that
/// users of an older one are informed (`the_recipe_has_a_new_number_when_it_changes` holds that).
pub(super) const RECIPE: u32 = 4;
/// The base disk's size in bytes: room for the files and a journal. A VM's disk is larger, and
/// the guest grows its file system to it.
const DISK_SIZE: u64 = 64 << 20;
/// The kernel as its package has it.
const VMLINUZ: &str = "vmlinuz";
/// Before the packages' names, as an image may hold a kernel of the host's.
const DISK: &str = "disk.raw";
const INITRD: &str = "initrd";

/// The kernel's command line. `quiet` keeps warnings; `cryptomgr.notests` skips 100 ms of
/// self-tests under TCG; `panic=-1` reboots at once, so that a guest that died ends its QEMU.
const CMDLINE: &str = "root=/dev/vda rw quiet panic=-1 cryptomgr.notests random.trust_cpu=on";

const STEPS: u32 = 6;
/// How often a build that waits for another one looks whether it is cancelled.
const LOOK: Duration = Duration::from_millis(250);
/// What directories of the cache begin with that hold a kernel for containers.
pub(super) const BOOT_PREFIX: &str = "boot-";

/// The kernel has vmgenid, which Debian 12's for virtual machines has not.
const KERNEL_OF_PC: PackageQuery<'_> = kernel(&["linux-image-amd64"]);
/// The kernel for virtual machines is a third of the general one, which stands in for it where a
/// mirror has no other.
const KERNEL_OF_ARM: PackageQuery<'_> = kernel(&["linux-image-cloud-arm64", "linux-image-arm64"]);
const USERLAND: &[PackageQuery<'_>] = &[
    libraries_of(&["busybox-static"]),
    libraries_of(&["dropbear-bin"]),
    libraries_of(&["openssh-sftp-server"]),
    libraries_of(&["e2fsprogs"]),
];
/// Where the machine has no vmgenid, a clone's random numbers are renewed by it.
const PERL: &[PackageQuery<'_>] = &[libraries_of(&["perl-base"])];

/// Returns the release of Debian. Under QEMU 7.2's TCG, one boot in twenty of Debian 13's kernel
/// (6.12) for PCs ends in a fault: EFLAGS have bits there that no processor has. 6.1 boots.
const fn suite(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "bookworm",
        Arch::Aarch64 => "stable",
    }
}

const fn kernel<'a>(any_of: &'a [&'a str]) -> PackageQuery<'a> {
    PackageQuery { any_of, follow: &["linux-image-"] }
}

const fn libraries_of<'a>(any_of: &'a [&'a str]) -> PackageQuery<'a> {
    PackageQuery { any_of, follow: &["lib", "zlib"] }
}

/// Files of the guest that are ours.
const FILES: &[(&str, u16, &str)] = &[
    ("etc/fstab", 0o644, include_str!("tiny/fstab")),
    ("etc/group", 0o644, include_str!("tiny/group")),
    ("etc/hostname", 0o644, "tiny\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/nsswitch.conf", 0o644, include_str!("tiny/nsswitch.conf")),
    ("etc/passwd", 0o644, include_str!("tiny/passwd")),
    ("etc/profile", 0o644, include_str!("tiny/profile")),
    ("etc/rc", 0o644, include_str!("tiny/rc")),
    ("etc/resolv.conf", 0o644, "nameserver 10.0.2.3\n"),
    ("etc/shadow", 0o600, include_str!("tiny/shadow")),
    ("etc/shells", 0o644, "/bin/sh\n"),
    ("usr/sbin/autologin", 0o755, include_str!("tiny/autologin")),
    ("usr/sbin/init", 0o755, include_str!("tiny/init")),
];
/// Its directories, as far as no file implies them.
const DIRECTORIES: &[(&str, u16)] = &[
    ("dev", 0o755),
    ("etc/dropbear", 0o700),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("root/.ssh", 0o700),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr/local/bin", 0o755),
    ("var/log", 0o755),
    ("var/tmp", 0o1777),
];

/// The source.
#[derive(Debug)]
pub(super) struct Tiny {
    cache: PathBuf,
    mirror: String,
    pub(super) arch: Arch,
    spec: String,
    host: PathBuf,
    /// Two builds, under two names, would disturb each other in the cache.
    building: Mutex<()>,
}

impl Tiny {
    /// Keeps what it fetches of `mirror` under `cache`.
    pub(super) fn new(cache: PathBuf, mirror: String, arch: Arch) -> Self {
        let spec = match arch == Arch::HOST {
            true => NAME.to_owned(),
            false => format!("{NAME}-{arch}"),
        };
        let host = PathBuf::from("/");
        Self { cache, mirror, arch, spec, host, building: Mutex::new(()) }
    }

    /// Waits until no other build uses the cache, or `cancel` ends this one.
    pub(super) fn lock(&self, progress: &Progress) -> Result<MutexGuard<'_, ()>> {
        loop {
            if let Some(alone) = self.building.try_lock_for(LOOK) {
                return Ok(alone);
            }
            progress.cancel().check()?;
            progress.fetching("waiting for another image that is made of the same packages");
        }
    }

    /// Forgets the kernel that containers boot with: the next one gets that of this build.
    fn forget_boot(&self) {
        let entries = fs::read_dir(&self.cache).into_iter().flatten().flatten();
        let kept = entries.filter(|e| e.file_name().to_string_lossy().starts_with(BOOT_PREFIX));
        kept.for_each(|entry| drop(fs::remove_dir_all(entry.path())));
    }

    /// Finds a kernel, and fetches the rest: the host's own needs no download, but is often absent
    /// or forbidden. The caller has the [`lock`](Self::lock).
    pub(super) fn inputs(&self, progress: &Progress) -> Result<Inputs> {
        file::private_dir(&self.cache).map_err(BuildError::at(&self.cache))?;
        let place = (&*self.mirror, suite(self.arch));
        let archive = Archive::new(place, self.arch, &self.cache, progress)?;
        let perl = if self.arch.platform().has_vmgenid { &[] } else { PERL };
        let host = Kernel::from_host(&self.host, self.arch);
        let (mut kernel, wanted) = (Vec::new(), [USERLAND, perl]);
        if host.is_none() {
            kernel.push(match self.arch {
                Arch::X86_64 => KERNEL_OF_PC,
                Arch::Aarch64 => KERNEL_OF_ARM,
            });
        }
        let mut debs = archive.fetch(&[&kernel, wanted[0], wanted[1]])?;
        let kernel_debs = debs.remove(0);
        step(progress, 1, "unpacking");
        let (kernel, time) = match host {
            Some(kernel) => kernel,
            None => Kernel::from_packages(&kernel_debs)?,
        };
        Inputs::new(kernel, time, debs.concat())
    }
}

/// What the image is made of.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) kernel: Kernel,
    debs: Vec<PathBuf>,
    pub(super) packages: FileTree,
    /// The newest input's time: the time of every file of the image.
    pub(super) time: u32,
}

impl Inputs {
    fn new(kernel: Kernel, time: u32, debs: Vec<PathBuf>) -> Result<Self> {
        let mut inputs = Self { kernel, debs, packages: FileTree::default(), time };
        for deb in &inputs.debs {
            let wanted = |path: &str| !path.starts_with("usr/share/");
            let time = unpack::package(deb, &mut inputs.packages, wanted)?;
            inputs.time = inputs.time.max(time);
        }
        Ok(inputs)
    }

    pub(super) fn names(&self) -> Vec<String> {
        let debs = self.debs.iter().filter_map(|p| p.file_name());
        let debs = debs.map(|n| n.to_string_lossy().into_owned());
        std::iter::once(format!("linux {}", self.kernel.version)).chain(debs).collect()
    }
}

impl ImageSource for Tiny {
    fn spec(&self) -> &str {
        &self.spec
    }

    fn kind(&self) -> &'static str {
        "builtin"
    }

    fn recipe(&self) -> Option<u32> {
        Some(RECIPE)
    }

    fn settings(&self) -> ImageSettings {
        BTreeMap::from([("arch".to_owned(), self.arch.to_string())]).into()
    }

    fn build(&self, dir: &Path, progress: &Progress) -> Result<Manifest> {
        let _alone = self.lock(progress)?;
        let inputs = self.inputs(progress)?;
        self.forget_boot();
        step(progress, 2, "writing the kernel");
        let kernels = write_kernel(&inputs.kernel, dir)?;
        step(progress, 3, "writing the initramfs");
        let initramfs = initramfs::archive(&initramfs_tree(&inputs)?, inputs.time)
            .map_err(|e| BuildError::malformed("initramfs", e))?;
        write(&dir.join(INITRD), &initramfs)?;
        step(progress, 4, "collecting programs and libraries");
        let root = root_tree(&inputs)?;
        step(progress, 5, "making the root file system");
        let scratch = dir.join("scratch");
        ext4::make(&root, &dir.join(DISK), DISK_SIZE, inputs.time, &scratch)?;
        step(progress, STEPS, "computing the digest");
        Ok(self.manifest(kernels, &inputs))
    }
}

impl Tiny {
    fn manifest(&self, (kernel, for_efi): (&str, &str), inputs: &Inputs) -> Manifest {
        Manifest {
            kernel: Some(kernel.into()),
            efi_kernel: Some(for_efi.into()).filter(|_| kernel != for_efi),
            initrd: Some(INITRD.into()),
            cmdline: cmdline(self.arch),
            announces: true,
            settings: self.settings(),
            inputs: inputs.names(),
            ..Manifest::of_disk(self, DiskFormat::Raw, DISK_SIZE)
        }
    }
}

fn cmdline(arch: Arch) -> String {
    let platform = arch.platform();
    let words = [CMDLINE, platform.cmdline].into_iter().filter(|words| !words.is_empty());
    let words: Vec<&str> = words.collect();
    format!("console={} {}", platform.console, words.join(" "))
}

fn step(progress: &Progress, number: u32, what: &str) {
    progress.building(format!("{what} {number}/{STEPS}"));
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(BuildError::at(path))
}

/// Writes a file and leaves out pages of zeros: a kernel's ELF file has 25 MB of them.
fn write_sparse(path: &Path, bytes: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    const PAGE: usize = 4096;
    let failed = BuildError::at(path);
    let file = fs::File::create(path).map_err(failed)?;
    file.set_len(bytes.len() as u64).map_err(failed)?;
    for (page, at) in bytes.chunks(PAGE).zip((0..).step_by(PAGE)) {
        if page.iter().any(|b| *b != 0) {
            file.write_all_at(page, at).map_err(failed)?;
        }
    }
    Ok(())
}

/// Writes the kernel as QEMU starts it and as UEFI does; returns their names.
pub(super) fn write_kernel(kernel: &Kernel, dir: &Path) -> Result<(&'static str, &'static str)> {
    let (name, bz_image) = match &kernel.image {
        KernelImage::Vmlinux { elf, bz_image } => {
            write_sparse(&dir.join(VMLINUX), elf)?;
            (VMLINUX, bz_image)
        }
        KernelImage::Compressed(bz_image) => (VMLINUZ, bz_image),
    };
    write(&dir.join(VMLINUZ), bz_image)?;
    Ok((name, VMLINUZ))
}

pub(super) fn busybox_of(inputs: &Inputs) -> Result<std::sync::Arc<[u8]>> {
    let found =
        ["bin/busybox", "usr/bin/busybox"].into_iter().find_map(|path| inputs.packages.read(path));
    found.ok_or_else(|| BuildError::malformed("busybox-static", "it holds no bin/busybox"))
}

fn initramfs_tree(inputs: &Inputs) -> Result<FileTree> {
    let mut tree = FileTree::default();
    for name in ["dev", "proc", "root"] {
        tree.directory(name, 0o755);
    }
    tree.file("bin/busybox", 0o755, busybox_of(inputs)?);
    for applet in ["modprobe", "mount", "sh", "switch_root"] {
        tree.symlink(&format!("bin/{applet}"), "busybox");
    }
    tree.symlink("sbin", "bin");
    tree.file("init", 0o755, *include_bytes!("tiny/initramfs-init"));
    let modules = inputs.kernel.boot_modules().join(" ") + "\n";
    tree.file("etc/modules", 0o644, modules.into_bytes());
    inputs.kernel.add_boot_modules(&mut tree, "lib");
    Ok(tree)
}

fn root_tree(inputs: &Inputs) -> Result<FileTree> {
    let mut tree = FileTree::default();
    for (path, mode) in DIRECTORIES {
        tree.directory(path, *mode);
    }
    for name in ["bin", "lib", "lib64", "sbin"] {
        tree.directory(&format!("usr/{name}"), 0o755);
        tree.symlink(name, &format!("usr/{name}"));
    }
    for applet in busybox::applets(&busybox_of(inputs)?)? {
        tree.symlink(&applet, "/usr/bin/busybox");
    }
    tree.file("usr/bin/busybox", 0o755, busybox_of(inputs)?);
    elf::copy_closure(&inputs.packages, &programs(&inputs.packages), &mut tree)?;
    inputs.kernel.add_all_modules(&mut tree, "usr/lib");
    for (path, mode, text) in FILES {
        tree.file(path, *mode, text.as_bytes());
    }
    Ok(tree)
}

/// Says where the programs that need libraries are, and where they go. dropbear starts
/// `/usr/lib/sftp-server`, or `/usr/lib/openssh/sftp-server`, as it was compiled.
pub(super) fn programs(packages: &FileTree) -> Vec<(&'static str, &'static str)> {
    let sbin = |merged: &'static str, old: &'static str| {
        if packages.contains(merged) { merged } else { old }
    };
    let sftp = "usr/lib/openssh/sftp-server";
    let mut programs = vec![
        ("usr/sbin/dropbear", "usr/sbin/dropbear"),
        ("usr/bin/dropbearkey", "usr/bin/dropbearkey"),
        (sftp, "usr/lib/sftp-server"),
        (sftp, sftp),
        (sbin("usr/sbin/resize2fs", "sbin/resize2fs"), "usr/sbin/resize2fs"),
    ];
    if packages.contains("usr/bin/perl") {
        programs.push(("usr/bin/perl", "usr/bin/perl"));
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// What the recipe is known by: its number, and the digest of what it adds to the packages.
    const KNOWN: (u32, &str) = (4, "73203a30758ad579");

    #[test]
    fn the_recipe_has_a_new_number_when_it_changes() {
        use sha2::{Digest, Sha256};
        let mut digest = Sha256::new();
        digest
            .update(format!("{FILES:?}{DIRECTORIES:?}{CMDLINE}{DISK_SIZE}{KERNEL_OF_PC:?}{KERNEL_OF_ARM:?}{USERLAND:?}{PERL:?}"));
        digest.update(include_bytes!("tiny/initramfs-init"));
        let digest = format!("{:x}", digest.finalize());
        assert_eq!(
            (RECIPE, &digest[..16]),
            KNOWN,
            "give RECIPE a new number, and note it in KNOWN"
        );
    }

    #[test]
    fn pages_of_zeros_take_no_room_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let mut bytes = vec![0; (1 << 20) + 5];
        bytes[500_000] = 1;
        write_sparse(&path, &bytes).unwrap();
        assert!(fs::read(&path).unwrap() == bytes);
        assert!(fs::metadata(&path).unwrap().blocks() * 512 <= 64 << 10);
    }
}
