//! What is on disk: names ([`layout`]), atomic files ([`mod@file`]), the daemon's lock ([`lock`]),
//! output kept for its readers ([`spool`]).
//!
//! Not here: what the files mean; that is said by the types that are stored.

pub mod file;
pub mod layout;
pub mod lock;
pub mod spool;
