//! Subnets: which a net can have, and which addresses are in one. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::NetError;

/// What QEMU's user networking gives every guest's first device.
const OF_USER_NETWORKING: Subnet = Subnet { network: Ipv4Addr::new(10, 0, 2, 0), prefix: 24 };
/// The networks that are private, by RFC 1918 and RFC 6598.
const PRIVATE: [Subnet; 4] = [
    Subnet { network: Ipv4Addr::new(10, 0, 0, 0), prefix: 8 },
    Subnet { network: Ipv4Addr::new(172, 16, 0, 0), prefix: 12 },
    Subnet { network: Ipv4Addr::new(192, 168, 0, 0), prefix: 16 },
    Subnet { network: Ipv4Addr::new(100, 64, 0, 0), prefix: 10 },
];
/// The longest prefix that leaves room for two members, and the shortest private one.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=30;
/// The first of the subnets that are tried for a new net.
const FIRST_TRIED: u8 = 77;

/// An IPv4 network: `10.77.0.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    /// Describes a network of the host, of which only the bits of the prefix count.
    pub(super) fn of_host((address, prefix): (Ipv4Addr, u8)) -> Self {
        let prefix = prefix.min(32);
        Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// Returns the length of the prefix.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Says whether some address is in both.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.network.to_bits() & shorter == other.network.to_bits() & shorter
    }

    fn is_within(self, other: Self) -> bool {
        self.prefix >= other.prefix && self.overlaps(other)
    }

    /// Lists the addresses that members can have.
    pub(super) fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (self.first()..=self.last()).map(Ipv4Addr::from_bits)
    }

    /// Returns how many members there is room for.
    pub(super) fn room(self) -> u32 {
        self.last() - self.first() + 1
    }

    fn first(self) -> u32 {
        self.network.to_bits() + 1
    }

    fn last(self) -> u32 {
        (self.network.to_bits() | !mask(self.prefix)) - 1
    }

    /// Picks one for a new net: 10.X.Y.0/24, apart from all of `taken`.
    pub(super) fn free(taken: &[Self]) -> Option<Self> {
        let second = (FIRST_TRIED..=255).chain(1..FIRST_TRIED);
        let all = second.flat_map(|x| (0..=255).map(move |y| Ipv4Addr::new(10, x, y, 0)));
        let mut all = all.map(|network| Self { network, prefix: 24 });
        all.find(|subnet| !taken.iter().any(|other| other.overlaps(*subnet)))
    }

    /// Says why no net can have it.
    fn fault(self) -> Option<String> {
        let Self { network, prefix } = self;
        let start = Self::of_host((network, prefix)).network;
        if !PREFIXES.contains(&prefix) {
            return Some(format!("a prefix is /8 to /30, not /{prefix}"));
        }
        if start != network {
            return Some(format!("{network} is an address in it; write {start}/{prefix}"));
        }
        if !PRIVATE.iter().any(|private| self.is_within(*private)) {
            let why = "it is not private: take one of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16";
            return Some(why.to_owned());
        }
        self.overlaps(OF_USER_NETWORKING).then(|| {
            format!("{OF_USER_NETWORKING} is that of every guest's first device; take another")
        })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let refused = |why: String| NetError::Subnet { text: text.to_owned(), why };
        let parts = text.split_once('/');
        let parsed = parts.and_then(|(network, prefix)| {
            let is_number = prefix.bytes().all(|c| c.is_ascii_digit());
            let prefix = prefix.parse().ok().filter(|_| is_number)?;
            Some(Self { network: network.parse().ok()?, prefix })
        });
        let subnet = parsed.ok_or_else(|| refused("write ADDRESS/PREFIX: 10.77.0.0/24".into()))?;
        subnet.fault().map_or(Ok(subnet), |why| Err(refused(why)))
    }
}

impl TryFrom<String> for Subnet {
    type Error = NetError;

    fn try_from(text: String) -> Result<Self, NetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn private_networks_of_a_sensible_size_are_subnets() {
        for text in ["10.77.0.0/24", "10.128.0.0/9", "172.31.255.252/30", "192.168.0.0/16"] {
            assert_eq!(subnet(text).to_string(), text);
        }
        let table = [
            ("", "write ADDRESS/PREFIX"),
            ("10.77.0.0", "write ADDRESS/PREFIX"),
            ("10.77.0.0/+24", "write ADDRESS/PREFIX"),
            ("fd00::/64", "write ADDRESS/PREFIX"),
            ("10.77.0.0/31", "/8 to /30"),
            ("10.0.0.0/7", "/8 to /30"),
            ("10.0.0.0/8", "first device"),
            ("10.0.2.128/25", "first device"),
            ("10.77.0.5/24", "write 10.77.0.0/24"),
            ("8.8.8.0/24", "not private"),
            ("172.0.0.0/8", "not private"),
        ];
        for (text, why) in table {
            let error = text.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn members_have_all_addresses_but_the_first_and_the_last() {
        let small = subnet("10.77.0.8/30");
        let addresses: Vec<String> = small.addresses().map(|a| a.to_string()).collect();
        assert_eq!((addresses, small.room()), (vec!["10.77.0.9".into(), "10.77.0.10".into()], 2));
    }

    #[test]
    fn a_free_one_is_apart_from_all_others() {
        assert_eq!(Subnet::free(&[]).unwrap(), subnet("10.77.0.0/24"));
        let host = Subnet::of_host(("10.77.3.9".parse().unwrap(), 22));
        assert_eq!(Subnet::free(&[host]).unwrap(), subnet("10.77.4.0/24"));
        let all = Subnet::of_host(("10.1.2.3".parse().unwrap(), 8));
        assert_eq!(Subnet::free(&[all]), None);
    }
}
