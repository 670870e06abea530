//! What needs neither FUSE nor QEMU: rules over the sources, the fuzz targets' corpus, and the tests'
//! own tools.

#[path = "../common/mod.rs"]
mod common;

mod corpus;
mod docs;
mod harness;
mod layers;
mod semantics;
