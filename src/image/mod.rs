//! Images: the frozen disks that new VMs are made from.
//!
//! [`catalogue`] knows which images there are and what each is doing; a [`source::Source`] makes
//! one. A disk on this host ([`disk`]) and a VM ([`publish`]) are copied ([`convert`]). A machine may
//! be frozen in an image ([`warming`], [`template`]).
//! `builtin:tiny` ([`tiny`]) is made of the host distribution's packages ([`apt`]), read by [`kernel`] and [`elf`], collected in a
//! [`tree::FileTree`], and written by [`initramfs`] and [`ext4`].
//!
//! Not here: a VM's own disk (`qemu`), what a guest is told at boot (`guest::seed`).

mod apt;
mod catalogue;
mod command;
mod convert;
mod disk;
mod elf;
mod ext4;
mod initramfs;
mod kernel;
mod manifest;
mod publish;
mod source;
mod template;
mod tiny;
mod tree;
mod unpack;
mod warming;

pub use catalogue::ImageStore;
