//! What is on disk: names ([`layout`]), atomic files ([`mod@file`]), the daemon's lock ([`lock`]),
//! operations that were begun on a VM ([`operation`]), output kept for its readers ([`spool`]), the
//! newest failures ([`failure_log`]), and files that cannot be used ([`mod@quarantine`]).
//!
//! Not here: what the files mean; that is said by the types that are stored.

pub mod bounded;
pub mod failure_log;
pub mod file;
pub mod layout;
pub mod lock;
pub mod operation;
pub mod quarantine;
pub mod rolling;
pub mod spool;
