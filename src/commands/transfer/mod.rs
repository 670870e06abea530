//! What `aq cp` and `aq sync` share: a side of a copy, on the host or in a guest, and writing to it.
//!
//! [`dir`]: a directory that is open, from which nothing is followed. [`place`]: what `VM:PATH` means.
//! [`put`]: files and links that appear whole. [`work`]: ending when the user wants to.
//!
//! A guest is not trusted: below a directory that the user has named, every step is to one name that is no
//! link, so that what a guest has put there cannot lead a write elsewhere.
//!
//! Not here: what is copied and why (`cp`, `sync`).

pub(super) mod dir;
pub(super) mod place;
pub(super) mod put;
pub(super) mod work;
