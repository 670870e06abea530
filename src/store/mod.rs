//! What is on disk: names ([`layout`]), atomic files ([`file`]), the daemon's lock ([`lock`]).
//!
//! Not here: what the files mean; that is said by the types that are stored.

pub mod file;
pub mod layout;
pub mod lock;
