//! SFTP version 3 as bytes: requests that are written, replies that are read. What a guest sends may
//! be anything: every length is checked against what is there, and nothing is reserved on its word.
//!
//! Not here: who waits for which reply (`client`).

use crate::vm::backend::{DirectoryEntry, FileAttr, FileChange, FileError, FileSystemSpace};

/// The most bytes of a packet: OpenSSH's limit. A guest that announces more is cut off.
pub(super) const LONGEST_PACKET: u32 = 256 << 10;
/// The longest handle that the protocol allows.
const LONGEST_HANDLE: usize = 256;
/// The longest name that Linux has.
const LONGEST_NAME: usize = 255;
/// The longest path that Linux has.
const LONGEST_TARGET: usize = 4096;

/// Kinds of packets.
pub(super) mod kind {
    pub(crate) const INIT: u8 = 1;
    pub(crate) const VERSION: u8 = 2;
    pub(crate) const OPEN: u8 = 3;
    pub(crate) const CLOSE: u8 = 4;
    pub(crate) const READ: u8 = 5;
    pub(crate) const WRITE: u8 = 6;
    pub(crate) const LSTAT: u8 = 7;
    pub(crate) const FSTAT: u8 = 8;
    pub(crate) const SETSTAT: u8 = 9;
    pub(crate) const FSETSTAT: u8 = 10;
    pub(crate) const OPENDIR: u8 = 11;
    pub(crate) const READDIR: u8 = 12;
    pub(crate) const REMOVE: u8 = 13;
    pub(crate) const MKDIR: u8 = 14;
    pub(crate) const RMDIR: u8 = 15;
    pub(crate) const RENAME: u8 = 18;
    pub(crate) const READLINK: u8 = 19;
    pub(crate) const SYMLINK: u8 = 20;
    pub(crate) const STATUS: u8 = 101;
    pub(crate) const HANDLE: u8 = 102;
    pub(crate) const DATA: u8 = 103;
    pub(crate) const NAME: u8 = 104;
    pub(crate) const ATTRS: u8 = 105;
    pub(crate) const EXTENDED: u8 = 200;
    pub(crate) const EXTENDED_REPLY: u8 = 201;
}

const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_PERMISSIONS: u32 = 4;
const HAS_TIMES: u32 = 8;
const HAS_EXTENDED: u32 = 0x8000_0000;

/// A reply, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Status(u32),
    Handle(Vec<u8>),
    Data(Vec<u8>),
    Names(Vec<DirectoryEntry>),
    Attr(FileAttr),
    Extended(Vec<u8>),
}

type Read<T> = Result<T, FileError>;

const SHORT: FileError = FileError::Protocol("a packet ends before its fields do");

/// The rest of a packet.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Read<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(super) fn u32(&mut self) -> Read<u32> {
        let bytes = self.take(4)?;
        bytes.try_into().map(u32::from_be_bytes).map_err(|_| SHORT)
    }

    pub(super) fn u64(&mut self) -> Read<u64> {
        let bytes = self.take(8)?;
        bytes.try_into().map(u64::from_be_bytes).map_err(|_| SHORT)
    }

    pub(super) fn bytes(&mut self) -> Read<&'a [u8]> {
        let count = self.u32()? as usize;
        self.take(count)
    }

    fn attr(&mut self) -> Read<FileAttr> {
        let (flags, mut attr) = (self.u32()?, FileAttr::default());
        if flags & HAS_SIZE != 0 {
            attr.size = self.u64()?;
        }
        if flags & HAS_OWNER != 0 {
            (attr.uid, attr.gid) = (self.u32()?, self.u32()?);
        }
        if flags & HAS_PERMISSIONS != 0 {
            attr.mode = self.u32()?;
        }
        if flags & HAS_TIMES != 0 {
            (attr.atime, attr.mtime) = (self.u32()?, self.u32()?);
        }
        if flags & HAS_EXTENDED != 0 {
            for _ in 0..self.u32()? {
                // Each takes 8 bytes at least, so a number that lies ends with the packet.
                let _name = self.bytes()?;
                let _data = self.bytes()?;
            }
        }
        // The kernel takes no length beyond what off_t holds.
        attr.size = attr.size.min(i64::MAX.unsigned_abs());
        Ok(attr)
    }

    fn names(&mut self) -> Read<Vec<DirectoryEntry>> {
        let count = self.u32()?;
        let mut names = Vec::new();
        for _ in 0..count {
            let name = self.bytes()?.to_vec();
            let _long_form = self.bytes()?;
            names.push(DirectoryEntry { name, attr: self.attr()? });
        }
        Ok(names)
    }
}

/// Reads a reply: whose it is, and what it says.
pub(super) fn reply(packet: &[u8]) -> Read<(u32, Reply)> {
    let mut fields = Fields(packet);
    let (kind, id) = (fields.byte()?, fields.u32()?);
    let reply = match kind {
        kind::STATUS => Reply::Status(fields.u32()?),
        kind::HANDLE => match fields.bytes()? {
            handle if handle.len() > LONGEST_HANDLE => {
                return Err(FileError::Protocol("a handle is longer than 256 bytes"));
            }
            handle => Reply::Handle(handle.to_vec()),
        },
        kind::DATA => Reply::Data(fields.bytes()?.to_vec()),
        kind::NAME => Reply::Names(fields.names()?),
        kind::ATTRS => Reply::Attr(fields.attr()?),
        kind::EXTENDED_REPLY => Reply::Extended(fields.0.to_vec()),
        _ => return Err(FileError::Protocol("a packet is of no known kind")),
    };
    Ok((id, reply))
}

/// Reads the extensions that the server offers, from its greeting.
pub(super) fn version(packet: &[u8]) -> Read<Vec<String>> {
    let mut fields = Fields(packet);
    if fields.byte()? != kind::VERSION || fields.u32()? < 3 {
        return Err(FileError::Protocol("its greeting is not that of version 3"));
    }
    let mut extensions = Vec::new();
    while !fields.0.is_empty() {
        extensions.push(String::from_utf8_lossy(fields.bytes()?).into_owned());
        let _version = fields.bytes()?;
    }
    Ok(extensions)
}

/// Reads the most bytes of a read and of a write, of `limits@openssh.com`.
pub(super) fn limits(data: &[u8]) -> Read<(u64, u64)> {
    let mut fields = Fields(data);
    let _packet = fields.u64()?;
    Ok((fields.u64()?, fields.u64()?))
}

/// Reads the answer of `statvfs@openssh.com`.
pub(super) fn space(data: &[u8]) -> Read<FileSystemSpace> {
    let mut fields = Fields(data);
    let _block_size = fields.u64()?;
    Ok(FileSystemSpace {
        fragment_size: u32::try_from(fields.u64()?).unwrap_or(4096),
        blocks: fields.u64()?,
        free: fields.u64()?,
        available: fields.u64()?,
        files: fields.u64()?,
        files_free: fields.u64()?,
    })
}

/// Says whether a name can be one of a directory: a guest's name that leads elsewhere is left out.
pub(super) fn is_name(name: &[u8]) -> bool {
    let special = name.is_empty() || name == b"." || name == b"..";
    !special && name.len() <= LONGEST_NAME && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// Reads where a link leads.
pub(super) fn target(mut names: Vec<DirectoryEntry>) -> Read<Vec<u8>> {
    match names.pop() {
        Some(DirectoryEntry { name, .. })
            if !name.is_empty() && name.len() < LONGEST_TARGET && !name.contains(&0) =>
        {
            Ok(name)
        }
        Some(_) | None => Err(FileError::Protocol("a link leads to no path")),
    }
}

/// A request, as it is written.
#[derive(Debug)]
pub(super) struct Packet(Vec<u8>);

impl Packet {
    /// Begins one. Its length follows at the end.
    pub(super) fn new(kind: u8, id: u32) -> Self {
        Self([&[0, 0, 0, 0, kind], &id.to_be_bytes()[..]].concat())
    }

    pub(super) fn extended(id: u32, name: &str) -> Self {
        Self::new(kind::EXTENDED, id).bytes(name.as_bytes())
    }

    pub(super) fn u32(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn u64(mut self, number: u64) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        let mut packet = self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        packet.0.extend(bytes);
        packet
    }

    pub(super) fn change(self, change: &FileChange) -> Self {
        let flag = |present: bool, flag| if present { flag } else { 0 };
        let flags = flag(change.size.is_some(), HAS_SIZE)
            | flag(change.owner.is_some(), HAS_OWNER)
            | flag(change.permissions.is_some(), HAS_PERMISSIONS)
            | flag(change.times.is_some(), HAS_TIMES);
        let mut packet = self.u32(flags);
        if let Some(size) = change.size {
            packet = packet.u64(size);
        }
        if let Some((uid, gid)) = change.owner {
            packet = packet.u32(uid).u32(gid);
        }
        if let Some(permissions) = change.permissions {
            packet = packet.u32(permissions);
        }
        if let Some((atime, mtime)) = change.times {
            packet = packet.u32(atime).u32(mtime);
        }
        packet
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_none() {
        for name in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            assert!(!is_name(name), "{name:?}");
        }
        for name in [&b"a"[..], b"...", b".git", b"\xff", b"a\nb", &[b'x'; 255]] {
            assert!(is_name(name), "{name:?}");
        }
    }

    #[test]
    fn a_count_that_lies_reserves_nothing() {
        let names = [&[kind::NAME, 0, 0, 0, 1][..], &[0xff; 4]].concat();
        assert_eq!(reply(&names), Err(SHORT));
        let data = [&[kind::DATA, 0, 0, 0, 1][..], &[0xff; 4], b"x"].concat();
        assert_eq!(reply(&data), Err(SHORT));
        let attr = [&[kind::ATTRS, 0, 0, 0, 1][..], &[0x80, 0, 0, 0], &[0xff; 4]].concat();
        assert_eq!(reply(&attr), Err(SHORT));
    }

    #[test]
    fn attributes_come_back_as_they_were_written() {
        let change = FileChange {
            size: Some(u64::MAX),
            owner: Some((1, 2)),
            permissions: Some(0o100_644),
            times: Some((3, 4)),
        };
        let packet = Packet::new(kind::ATTRS, 7).change(&change).finish();
        let size = i64::MAX.unsigned_abs();
        let attr = FileAttr { size, uid: 1, gid: 2, mode: 0o100_644, atime: 3, mtime: 4 };
        assert_eq!(reply(&packet[4..]), Ok((7, Reply::Attr(attr))));
    }

    proptest! {
        #[test]
        fn nothing_that_a_guest_sends_panics(packet: Vec<u8>, kind in 100_u8..203) {
            let _any = reply(&packet);
            let _any = version(&packet);
            let _any = (limits(&packet), space(&packet));
            let _any = reply(&[&[kind, 0, 0, 0, 1][..], &packet].concat());
        }
    }
}
