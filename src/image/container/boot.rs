//! The kernel and the initramfs that containers boot with. They are the same for every image: made
//! once, kept in the store's cache, and shared by hard links.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::image::busybox;
use crate::image::elf;
use crate::image::file_tree::FileTree;
use crate::image::initramfs;
use crate::image::source::{BuildError, Progress};
use crate::image::tiny::{self, Inputs, Tiny};
use crate::store::file;

const INITRD: &str = "initrd";
/// A line for each input.
const INPUTS: &str = "inputs";
/// The kernel's command line; see that of `tiny`.
const CMDLINE: &str = "root=/dev/vda rw quiet panic=-1 cryptomgr.notests random.trust_cpu=on";

/// The files that are ours.
const FILES: &[(&str, u16, &str)] = &[
    ("bin/console", 0o755, include_str!("guest/console")),
    ("bin/enter", 0o755, include_str!("guest/enter")),
    ("bin/run", 0o755, include_str!("guest/run")),
    ("bin/sftp-server", 0o755, include_str!("guest/sftp-server")),
    ("etc/group", 0o644, include_str!("../tiny/group")),
    ("etc/image/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/image/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    ("etc/image/resolv.conf", 0o644, "nameserver 10.0.2.3\n"),
    ("etc/nsswitch.conf", 0o644, include_str!("../tiny/nsswitch.conf")),
    ("etc/passwd", 0o644, include_str!("guest/passwd")),
    ("etc/prepare", 0o755, include_str!("guest/prepare")),
    ("etc/rc", 0o755, include_str!("guest/rc")),
    ("etc/shells", 0o644, "/bin/enter\n"),
    ("init", 0o755, include_str!("guest/init")),
];
const DIRECTORIES: &[(&str, u16)] = &[
    ("dev", 0o755),
    ("etc/dropbear", 0o700),
    ("image", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("root/.ssh", 0o700),
    ("run/aqfs", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];
/// The programs that need libraries.
const PROGRAMS: [&str; 3] = ["usr/sbin/dropbear", "usr/sbin/resize2fs", "usr/lib/sftp-server"];
/// Files that are mounted over the image's own, and changed under both names.
const SHARED: &[&str] = &["hostname", "hosts", "machine-id", "resolv.conf"];

/// What an image boots with.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) kernel: &'static str,
    /// The same as UEFI starts it, where that is another file.
    pub(super) efi_kernel: Option<&'static str>,
    pub(super) initrd: &'static str,
    pub(super) cmdline: String,
    pub(super) inputs: Vec<String>,
    /// The time of what has none.
    pub(super) time: u32,
}

/// Puts the kernel and the initramfs into an image's directory.
pub(super) fn make(
    tiny: &Tiny,
    cache: &Path,
    dir: &Path,
    progress: &Progress,
) -> Result<Boot, BuildError> {
    let _alone = tiny.lock(progress)?;
    let kept = cache.join(format!("{}{}", tiny::BOOT_PREFIX, recipe()));
    if !kept.join(INPUTS).exists() {
        fill(tiny, cache, &kept, progress)?;
    }
    let mut kernels = ["vmlinux", "vmlinuz"].into_iter().filter(|name| kept.join(name).exists());
    let (kernel, efi_kernel) = (kernels.next().unwrap_or("vmlinux"), kernels.next());
    for name in [kernel, INITRD].into_iter().chain(efi_kernel) {
        link(&kept.join(name), &dir.join(name)).map_err(BuildError::at(&kept))?;
    }
    let inputs = kept.join(INPUTS);
    let inputs = fs::read_to_string(&inputs).map_err(BuildError::at(&inputs))?;
    let mut lines = inputs.lines().map(str::to_owned);
    let time = lines.next().and_then(|time| time.parse().ok()).unwrap_or(0);
    let inputs = lines.collect();
    Ok(Boot { kernel, efi_kernel, initrd: INITRD, cmdline: CMDLINE.to_owned(), inputs, time })
}

/// Makes the files in a directory that gets its name when it is whole.
fn fill(tiny: &Tiny, cache: &Path, kept: &Path, progress: &Progress) -> Result<(), BuildError> {
    file::private_dir(cache).map_err(BuildError::at(cache))?;
    let hidden = tempfile::Builder::new().prefix(".boot.").tempdir_in(cache);
    let hidden = hidden.map_err(BuildError::at(cache))?;
    let inputs = tiny.inputs(progress)?;
    progress.building("writing kernel and initramfs");
    tiny::write_kernel(&inputs.kernel, hidden.path())?;
    let archive = initramfs::archive(&tree(&inputs)?, inputs.time);
    let archive = archive.map_err(|e| BuildError::malformed("initramfs", e))?;
    let write = |name: &str, bytes: &[u8]| {
        let path = hidden.path().join(name);
        fs::write(&path, bytes).map_err(BuildError::at(&path))
    };
    write(INITRD, &archive)?;
    let names = inputs.names().join("\n");
    write(INPUTS, format!("{}\n{names}\n", inputs.time).as_bytes())?;
    sync(hidden.path()).map_err(BuildError::at(kept))?;
    fs::rename(hidden.keep(), kept).map_err(BuildError::at(kept))
}

/// Every later container boots with these files: a crash must not leave them empty.
fn sync(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        fs::File::open(entry?.path())?.sync_all()?;
    }
    file::sync_dir(dir)
}

fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}

/// Names the recipe: what changes with any of our files, and with what is taken of a kernel.
fn recipe() -> String {
    let mut digest = Sha256::new();
    digest.update(tiny::RECIPE.to_be_bytes());
    digest.update(format!("{FILES:?}{DIRECTORIES:?}{SHARED:?}{CMDLINE}"));
    let digest = format!("{:x}", digest.finalize());
    digest[..16].to_owned()
}

fn tree(inputs: &Inputs) -> Result<FileTree, BuildError> {
    let mut tree = FileTree::default();
    for (path, mode) in DIRECTORIES {
        tree.directory(path, *mode);
    }
    let busybox = tiny::busybox_of(inputs)?;
    for applet in busybox::applets(&busybox)? {
        let name = applet.rsplit_once('/').map_or(&*applet, |(_, name)| name);
        tree.symlink(&format!("bin/{name}"), "busybox");
    }
    tree.file("bin/busybox", 0o755, busybox);
    for (name, target) in [("sbin", "bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        tree.symlink(name, target);
    }
    add_programs(inputs, &mut tree)?;
    let modules = inputs.kernel.boot_modules().join(" ") + "\n";
    tree.file("etc/modules", 0o644, modules.into_bytes());
    inputs.kernel.add_modules_of_containers(&mut tree, "usr/lib");
    for name in SHARED {
        tree.symlink(&format!("etc/{name}"), &format!("image/{name}"));
    }
    for (path, mode, text) in FILES {
        tree.file(path, *mode, text.as_bytes());
    }
    Ok(tree)
}

/// Adds the programs that need libraries, and the list of where those are. A link that goes up
/// would lead from the initramfs's root into the image's: all of ours begin at the root.
fn add_programs(inputs: &Inputs, tree: &mut FileTree) -> Result<(), BuildError> {
    let programs = tiny::programs(&inputs.packages);
    let programs: Vec<_> = programs.into_iter().filter(|(_, to)| PROGRAMS.contains(to)).collect();
    elf::copy_closure(&inputs.packages, &programs, tree)?;
    for (name, path) in [("dropbear", PROGRAMS[0]), ("resize2fs", PROGRAMS[1])] {
        tree.symlink(&format!("bin/{name}"), &format!("/{path}"));
    }
    let parts = tree.iter().filter_map(|(path, _)| path.rsplit_once('/'));
    let dirs: BTreeSet<String> = parts
        .filter(|(_, name)| name.contains(".so."))
        .map(|(dir, _)| format!("/dev/aqfs/{dir}"))
        .collect();
    let dirs: Vec<_> = dirs.into_iter().collect();
    tree.file("etc/library-path", 0o644, format!("{}\n", dirs.join(":")).into_bytes());
    Ok(())
}
