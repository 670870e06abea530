//! Limits as settings: what a VM's disks may transfer (`20M 500iops`), processors (`1.5`), sizes of memory, or `none`.
//!
//! Not here: who holds them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{MAX_MEMORY, MIN_MEMORY, SpecError, VmSpec, parse, parse_size, render_size};

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

/// How much of the host's processors: one is 1000 thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CpuLimit(u32);

/// The kernel gives out no less than a millisecond in each tenth of a second.
const MIN_THOUSANDTHS: u32 = 10;
const MAX_THOUSANDTHS: u32 = 4_096_000;

impl CpuLimit {
    /// Reads `0.5`, `2`, or `none`.
    pub(crate) fn parse(key: &'static str, text: &str) -> Result<Option<Self>, SpecError> {
        if text == NONE {
            return Ok(None);
        }
        let expected = "a number of processors such as 0.5 or 2, or none";
        let limit =
            Self::thousandths_of(text).ok_or_else(|| parse::malformed(key, text, expected))?;
        match (MIN_THOUSANDTHS..=MAX_THOUSANDTHS).contains(&limit) {
            true => Ok(Some(Self(limit))),
            false => Err(parse::out_of_range(key, text, "0.01 to 4096")),
        }
    }

    /// Digits, and up to three more behind a point.
    fn thousandths_of(text: &str) -> Option<u32> {
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let is_number =
            |digits: &str| !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
        (is_number(whole) && is_number(part) && part.len() <= 3).then_some(())?;
        let whole: u32 = whole.parse().ok()?;
        let part: u32 = format!("{part:0<3}").parse().ok()?;
        whole.checked_mul(1000)?.checked_add(part)
    }

    /// Returns it as a whole number.
    pub fn thousandths(self) -> u64 {
        u64::from(self.0)
    }

    /// Prints a setting.
    pub(crate) fn render_or_none(limit: Option<Self>) -> String {
        limit.map_or_else(|| NONE.to_owned(), |limit| limit.to_string())
    }
}

impl fmt::Display for CpuLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / 1000, format!("{:03}", self.0 % 1000));
        match part.trim_end_matches('0') {
            "" => write!(f, "{whole}"),
            part => write!(f, "{whole}.{part}"),
        }
    }
}

/// Reads a size of memory, or `none`.
pub(crate) fn memory(key: &'static str, text: &str) -> Result<Option<u64>, SpecError> {
    match text {
        NONE => Ok(None),
        _ => parse::sized(key, text, MIN_MEMORY, MAX_MEMORY, "32M to 4T").map(Some),
    }
}

/// Prints a size, or `none`.
pub(crate) fn render_size_or_none(size: Option<u64>) -> String {
    size.map_or_else(|| NONE.to_owned(), render_size)
}

/// What the host's kernel is to hold a VM's QEMU to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// Processor time.
    pub cpu: Option<CpuLimit>,
    /// From so many bytes on it is slowed down, and gives back what it can.
    pub memory_high: Option<u64>,
    /// So many bytes it never exceeds: it is ended.
    pub memory_max: Option<u64>,
}

impl VmSpec {
    /// Returns what the host's kernel is to hold.
    pub fn host_limits(&self) -> HostLimits {
        let Self { cpu_limit: cpu, memory_high, memory_max, .. } = *self;
        HostLimits { cpu, memory_high, memory_max }
    }

    /// Puts these limits in.
    pub fn set_host_limits(&mut self, limits: HostLimits) {
        (self.cpu_limit, self.memory_high, self.memory_max) =
            (limits.cpu, limits.memory_high, limits.memory_max);
    }
}

fn malformed(text: &str) -> SpecError {
    parse::malformed("io_limit", text, "bytes a second, operations or both: 20M, 500iops, or none")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_processors_has_up_to_three_digits_behind_the_point() {
        let parse = |text| CpuLimit::parse("cpu_limit", text);
        let table =
            [("0.5", "0.5"), ("2", "2"), ("1.50", "1.5"), ("0.125", "0.125"), ("none", "none")];
        for (written, printed) in table {
            assert_eq!(CpuLimit::render_or_none(parse(written).unwrap()), printed);
        }
        for bad in ["50%", ".5", "1.", "-1", "0.1234", "1,5", "two", "99999999999"] {
            assert!(matches!(parse(bad), Err(SpecError::Malformed { .. })), "{bad}");
        }
        for bad in ["0", "0.009", "4097"] {
            assert!(matches!(parse(bad), Err(SpecError::OutOfRange { .. })), "{bad}");
        }
    }

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
