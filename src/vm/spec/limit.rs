//! Limits as settings: what a VM's disks may transfer (`20M 500iops`).
//!
//! Not here: who holds them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{SpecError, parse, parse_size, render_size};

/// The word for no limit.
pub const NONE: &str = "none";
/// What follows a number of operations.
const OPERATIONS: &str = "iops";
/// The fewest bytes a second: a guest whose disk is slower takes it for broken.
const MIN_BYTES: u64 = 64 << 10;
/// The most that QEMU counts exactly.
const MAX_BYTES: u64 = 512 << 30;
const MAX_OPERATIONS: u64 = 1_000_000;
const RANGE: &str = "64K to 512G bytes, and 1 to 1000000iops";

/// How much all disks of a VM together may transfer in a second, reads and writes; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    /// Bytes.
    pub bytes: u64,
    /// Operations.
    pub operations: u64,
}

impl IoLimit {
    /// Reads `20M`, `500iops`, both, or `none`.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, SpecError> {
        if text == NONE {
            return Ok(None);
        }
        let (mut bytes, mut operations) = (None, None);
        for word in text.split_whitespace() {
            let (field, number) = match word.strip_suffix(OPERATIONS) {
                Some(number) => (&mut operations, number.parse().ok()),
                None => (&mut bytes, parse_size(word)),
            };
            let number = number.filter(|_| field.is_none()).ok_or_else(|| malformed(text))?;
            *field = Some(number);
        }
        let fits = bytes.is_none_or(|n| (MIN_BYTES..=MAX_BYTES).contains(&n))
            && operations.is_none_or(|n| (1..=MAX_OPERATIONS).contains(&n));
        let limit =
            Self { bytes: bytes.unwrap_or_default(), operations: operations.unwrap_or_default() };
        match (limit.bytes, limit.operations, fits) {
            (0, 0, true) => Err(malformed(text)),
            (_, _, true) => Ok(Some(limit)),
            (_, _, false) => Err(parse::out_of_range("io_limit", text, RANGE)),
        }
    }

    /// Prints a setting.
    pub fn render_or_none(limit: Option<Self>) -> String {
        limit.map_or_else(|| NONE.to_owned(), |limit| limit.to_string())
    }
}

impl fmt::Display for IoLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.bytes, self.operations) {
            (bytes, 0) => f.write_str(&render_size(bytes)),
            (0, operations) => write!(f, "{operations}{OPERATIONS}"),
            (bytes, operations) => write!(f, "{} {operations}{OPERATIONS}", render_size(bytes)),
        }
    }
}

fn malformed(text: &str) -> SpecError {
    parse::malformed("io_limit", text, "bytes a second, operations or both: 20M, 500iops, or none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_limit_is_bytes_operations_or_both() {
        let table = [
            ("20M", "20M"),
            ("20480K", "20M"),
            ("500iops", "500iops"),
            ("500iops  20m", "20M 500iops"),
            ("none", "none"),
        ];
        for (written, printed) in table {
            assert_eq!(IoLimit::render_or_none(IoLimit::parse(written).unwrap()), printed);
        }
        for bad in ["20M 30M", "iops", "1.5M", "20M/s", "-1", "20M 5iops 6iops", "none 20M"] {
            let error = IoLimit::parse(bad).unwrap_err();
            assert!(matches!(error, SpecError::Malformed { .. }), "{bad}: {error}");
        }
        for bad in ["0", "1K", "0iops", "600G", "1000001iops", "20M 0iops"] {
            let error = IoLimit::parse(bad).unwrap_err();
            assert!(matches!(error, SpecError::OutOfRange { .. }), "{bad}: {error}");
        }
    }
}
