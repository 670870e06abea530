//! The version of the virtual hardware: what a guest finds in its machine beside what settings ask for.
//!
//! A saved memory fits no machine with other hardware, so each has the version noted with it: a
//! snapshot, a template, a machine that runs. A VM that boots gets the newest; one that resumes from a
//! memory gets the hardware of that memory. What a version is made of in QEMU's terms is
//! `qemu::cmdline`'s, and `doc/adr/0019-hardware-versions.md` has their history.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A version of the virtual hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hardware(u32);

impl Hardware {
    /// The one that had no number.
    pub const FIRST: Self = Self(1);
    /// The one with room for devices and processors that are added while the guest runs.
    pub const WITH_ROOM: Self = Self(2);
    /// The one whose disks have one queue, however many processors there are at the start: what is saved after
    /// processors were added fits a machine that is started with as many.
    pub const ONE_QUEUE: Self = Self(3);
    /// What a VM gets when it boots.
    pub const NEWEST: Self = Self::ONE_QUEUE;

    /// Returns the earlier versions, latest first.
    pub fn earlier(self) -> impl Iterator<Item = Self> {
        (Self::FIRST.0..self.0).rev().map(Self)
    }

    /// Returns the version with this number; `None` if it is not known here.
    pub fn numbered(number: u32) -> Option<Self> {
        Some(Self(number)).filter(|version| version.is_known())
    }

    /// Says whether a machine of this version can be started here: a later aqfs may have noted others.
    pub fn is_known(self) -> bool {
        (Self::FIRST..=Self::NEWEST).contains(&self)
    }
}

/// What a record that names no version is about.
impl Default for Hardware {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a guest sees as hardware beside processors, memory and disk. It is stored as one string:
/// `2 fw-cfg`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Devices {
    /// The version that says what every machine has.
    pub hardware: Hardware,
    /// What this one has beside, in words.
    pub words: String,
}

impl From<String> for Devices {
    fn from(stored: String) -> Self {
        let (number, words) = stored.split_once(' ').unwrap_or((&stored, ""));
        match number.parse() {
            Ok(number) => Self { hardware: Hardware(number), words: words.to_owned() },
            Err(_) => Self { hardware: Hardware::FIRST, words: stored },
        }
    }
}

impl From<Devices> for String {
    fn from(Devices { hardware, words }: Devices) -> Self {
        format!("{hardware} {words}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_as_they_were_written_and_as_they_always_were() {
        let devices = |hardware, words: &str| Devices { hardware, words: words.to_owned() };
        let table = [
            ("1 fw-cfg", devices(Hardware::FIRST, "fw-cfg")),
            ("2 nocloud cdrom -device x", devices(Hardware::WITH_ROOM, "nocloud cdrom -device x")),
            ("7 fw-cfg", devices(Hardware(7), "fw-cfg")),
            ("", devices(Hardware::FIRST, "")),
            ("fw-cfg", devices(Hardware::FIRST, "fw-cfg")),
        ];
        for (stored, expected) in table {
            let read = Devices::from(stored.to_owned());
            assert_eq!(read, expected, "{stored}");
            assert_eq!(Devices::from(String::from(read.clone())), read);
        }
    }

    #[test]
    fn a_version_of_a_later_aqfs_is_not_known() {
        assert_eq!(Hardware::numbered(1), Some(Hardware::FIRST));
        assert_eq!(Hardware::numbered(0), None);
        assert!(Hardware::numbered(Hardware::NEWEST.0 + 1).is_none());
        let earlier: Vec<_> = Hardware::ONE_QUEUE.earlier().collect();
        assert_eq!(earlier, [Hardware::WITH_ROOM, Hardware::FIRST]);
    }
}
