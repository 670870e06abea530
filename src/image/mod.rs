//! Images: the immutable disks that new VMs are made from.
//!
//! [`catalogue`] knows which images there are and what each ([`entry`]) is doing; [`builds`] runs one build, for which a
//! [`source::ImageSource`] makes the files. A disk on this host ([`local_disk`]: what it is, [`disk_format`]; how
//! it is unpacked, [`unpacked`]) and a VM ([`publish`]) are copied. An empty disk is [`blank`]. A distribution's
//! own disk ([`cloud`]) is pulled: [`distribution`] has the rows, [`release`] finds a release on a mirror, and
//! `fetch` fetches it. A warm image has a template too ([`warming`], [`template`]); disks of
//! forks are in the same place ([`fork`]). An image that is made
//! again has several versions ([`versions`]). `builtin:tiny` ([`tiny`]) is made of Debian's packages
//! ([`debian`], [`packages`]), read by [`unpack`], [`kernel`], [`busybox`] and [`elf`], collected in a
//! [`file_tree::FileTree`], and written by [`initramfs`] and [`ext4`]. A container image or an archive of a
//! root file system ([`container`]) boots with the same kernel.
//!
//! Not here: a VM's own disk (`qemu`), a guest's seed (`guest::seed`).

mod blank;
mod builds;
mod busybox;
mod catalogue;
mod cloud;
mod command;
mod container;
mod debian;
mod disk_format;
mod distribution;
mod elf;
mod entry;
mod ext4;
mod file_tree;
mod fork;
mod initramfs;
mod kernel;
mod local_disk;
mod manifest;
mod packages;
mod publish;
mod release;
mod source;
mod template;
mod tiny;
mod unpack;
mod unpacked;
mod versions;
mod warming;

use std::path::PathBuf;

pub use catalogue::ImageStore;

use crate::store::layout::Layout;
use crate::vm::backend::Recipes;

/// Returns the kernel of a finished image, without opening the store.
pub fn kernel_of(layout: &Layout, name: &str) -> Option<PathBuf> {
    let dir = versions::current_dir(layout, name);
    let manifest = manifest::Manifest::read(&dir).ok()?;
    manifest.kernel.map(|kernel| dir.join(kernel)).filter(|kernel| kernel.exists())
}

/// Returns the number of the recipe that `tiny` was made by and the present one, without opening
/// the store; `None` if it is not made.
pub fn recipe_of_tiny(layout: &Layout) -> Option<Recipes> {
    let manifest = manifest::Manifest::read(&versions::current_dir(layout, "tiny")).ok()?;
    Some(Recipes { made_by: manifest.recipe, present: tiny::RECIPE })
}
