//! Network settings as types: a hardware address, a forwarded port.
//!
//! What is printed reads back as itself, and holds nothing that QEMU's option syntax could mistake:
//! whatever a user wrote is gone after parsing.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The network address of a device: six bytes, neither multicast nor all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// Derives the address of a VM from its identity, within QEMU's own prefix.
    pub fn of(uuid: Uuid) -> Self {
        let [.., a, b, c] = *uuid.as_bytes();
        Self([0x52, 0x54, 0, a, b, c])
    }

    /// Derives the address of a device on a net from its IPv4 address: no other member has it.
    pub fn of_address(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x52, 0x54, a, b, c, d])
    }

    /// Derives the address of a device that is on no net yet.
    pub fn of_place(uuid: Uuid, place: u8) -> Self {
        let [.., a, b, c] = *uuid.as_bytes();
        Self([0x52, 0x55, place, a, b, c])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = BadForm;

    fn from_str(text: &str) -> Result<Self, BadForm> {
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or(BadForm)?;
            let hex = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
            *byte = u8::from_str_radix(part, 16).ok().filter(|_| hex).ok_or(BadForm)?;
        }
        let unicast = bytes[0] & 1 == 0 && bytes != [0; 6];
        (unicast && parts.next().is_none()).then_some(Self(bytes)).ok_or(BadForm)
    }
}

/// What a guest reaches by its network device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// What a program of the host's user reaches: other hosts, and the host itself at 10.0.2.2.
    #[default]
    User,
    /// Nothing. What the host begins reaches the guest: SSH and forwarded ports.
    Offline,
    /// By a proxy the destinations that its VM allows, otherwise nothing.
    Allow,
}

impl Network {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::User, Self::Offline, Self::Allow];

    /// Returns the word of the setting.
    pub fn word(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Offline => "offline",
            Self::Allow => "allow",
        }
    }
}

/// Where a guest may go by the proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Destination {
    host: Host,
    /// `None`: the web's two, 80 and 443.
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
    /// Every name that ends with a dot and this.
    Below(String),
}

impl Destination {
    /// Says whether it is, or holds, a host (in lower case) and a port.
    pub fn holds(&self, host: &str, port: u16) -> bool {
        let is_port = self.port.map_or(matches!(port, 80 | 443), |own| own == port);
        is_port
            && match &self.host {
                Host::Address(address) => host.parse() == Ok(*address),
                Host::Name(name) => host == name,
                Host::Below(name) => {
                    host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'))
                }
            }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]")?,
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}")?,
            Host::Name(name) => write!(f, "{name}")?,
            Host::Below(name) => write!(f, "*.{name}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl FromStr for Destination {
    type Err = BadForm;

    /// Reads `HOST[:PORT]`: a name, `*.` before a name, an IPv4 address or an IPv6 address in brackets.
    fn from_str(text: &str) -> Result<Self, BadForm> {
        let (host, own_port) = match text.rsplit_once(':') {
            Some((host, number)) if !number.ends_with(']') => (host, Some(port(number)?)),
            Some(_) | None => (text, None),
        };
        if own_port == Some(0) {
            return Err(BadForm);
        }
        Ok(Self { host: host.to_ascii_lowercase().parse()?, port: own_port })
    }
}

impl FromStr for Host {
    type Err = BadForm;

    fn from_str(text: &str) -> Result<Self, BadForm> {
        if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return address
                .parse()
                .map(|v6: Ipv6Addr| Self::Address(v6.into()))
                .map_err(|_| BadForm);
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Ok(Self::Address(address.into()));
        }
        match text.strip_prefix("*.") {
            Some(name) => host_name(name).map(Self::Below),
            None => host_name(text).map(Self::Name),
        }
    }
}

/// Reads a name. What ends with a number is an address that is written in another way.
fn host_name(text: &str) -> Result<String, BadForm> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    let label = |l: &str| (1..=63).contains(&l.len()) && !l.starts_with('-') && l.bytes().all(good);
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_name = name.len() <= 253 && name.split('.').all(label);
    let is_number = last.bytes().all(|c| c.is_ascii_digit()) || last.starts_with("0x");
    (is_name && !is_number).then(|| name.to_owned()).ok_or(BadForm)
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns the word, as QEMU and we write it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A port of the host that leads to a port of the guest: `tcp:127.0.0.1:8080:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// The protocol.
    pub protocol: Protocol,
    /// The host's address. User networking of QEMU 7.2 forwards IPv4 only.
    pub address: Ipv4Addr,
    /// The host's port; 0 is one that the kernel picks.
    pub host: u16,
    /// The guest's port, never 0.
    pub guest: u16,
}

impl Forward {
    /// Says whether two forwards want the same port of the host.
    pub fn collides(&self, other: &Self) -> bool {
        let place = |f: &Self| (f.protocol, f.address, f.host);
        self == other || (self.host != 0 && place(self) == place(other))
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, address, host, guest } = self;
        write!(f, "{}:{address}:{host}:{guest}", protocol.word())
    }
}

impl FromStr for Forward {
    type Err = BadForm;

    /// Reads `[tcp:|udp:][ADDRESS:]HOST:GUEST`; TCP and 127.0.0.1 if nothing else is said.
    fn from_str(text: &str) -> Result<Self, BadForm> {
        let (protocol, rest) = match text.split_once(':') {
            Some(("tcp", rest)) => (Protocol::Tcp, rest),
            Some(("udp", rest)) => (Protocol::Udp, rest),
            _ => (Protocol::Tcp, text),
        };
        let parts: Vec<&str> = rest.split(':').collect();
        let (address, host, guest) = match parts[..] {
            [host, guest] => (Ipv4Addr::LOCALHOST, host, guest),
            [address, host, guest] => (address.parse().map_err(|_| BadForm)?, host, guest),
            _ => return Err(BadForm),
        };
        let (host, guest) = (port(host)?, port(guest)?);
        (guest != 0).then_some(Self { protocol, address, host, guest }).ok_or(BadForm)
    }
}

fn port(text: &str) -> Result<u16, BadForm> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or(BadForm)
}

/// A text that is not of the type's form; the setting says what would be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the right form")]
pub struct BadForm;

macro_rules! as_text {
    ($($type:ty),*) => {$(
        impl TryFrom<String> for $type {
            type Error = BadForm;

            fn try_from(text: String) -> Result<Self, BadForm> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_text!(Mac, Forward, Destination);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forwards_read_back_in_canonical_form() {
        let table = [
            ("8080:80", "tcp:127.0.0.1:8080:80"),
            ("tcp:8080:80", "tcp:127.0.0.1:8080:80"),
            ("udp:53:53", "udp:127.0.0.1:53:53"),
            ("0.0.0.0:2222:22", "tcp:0.0.0.0:2222:22"),
            ("udp:192.0.2.1:0:69", "udp:192.0.2.1:0:69"),
        ];
        for (written, read) in table {
            assert_eq!(written.parse::<Forward>().unwrap().to_string(), read, "{written}");
        }
        let bad = [
            "",
            "80",
            "tcp:80",
            "8080:",
            ":80",
            "8080:0",
            "65536:80",
            "+1:80",
            "sctp:1:2",
            "tcp:host:1:2",
            "tcp:[::1]:1:2",
            "1:2:3:4",
            "tcp:1.2.3:1:2",
            "8080:80,x=y",
            "1 :2",
        ];
        for text in bad {
            assert_eq!(text.parse::<Forward>(), Err(BadForm), "{text}");
        }
    }

    #[test]
    fn forwards_collide_on_the_host_side() {
        let forward = |text: &str| text.parse::<Forward>().unwrap();
        assert!(forward("8080:80").collides(&forward("8080:81")));
        assert!(!forward("8080:80").collides(&forward("udp:8080:80")));
        assert!(!forward("0:80").collides(&forward("0:81")));
        assert!(forward("0:80").collides(&forward("0:80")));
    }

    #[test]
    fn destinations_read_back_and_hold_what_they_say() {
        let table = [
            ("Deb.Debian.org.", "deb.debian.org", "deb.debian.org", 443, true),
            ("deb.debian.org", "deb.debian.org", "deb.debian.org", 22, false),
            ("deb.debian.org", "deb.debian.org", "x.deb.debian.org", 80, false),
            ("*.crates.io", "*.crates.io", "static.crates.io", 443, true),
            ("*.crates.io", "*.crates.io", "crates.io", 443, false),
            ("*.crates.io", "*.crates.io", "evilcrates.io", 443, false),
            ("git.example:22", "git.example:22", "git.example", 22, true),
            ("git.example:22", "git.example:22", "git.example", 443, false),
            ("10.0.2.2:8000", "10.0.2.2:8000", "10.0.2.2", 8000, true),
            ("[2001:DB8::0:1]:80", "[2001:db8::1]:80", "2001:db8::1", 80, true),
            ("[::1]", "[::1]", "::1", 443, true),
        ];
        for (written, read, host, port, holds) in table {
            let destination: Destination = written.parse().unwrap();
            assert_eq!(destination.to_string(), read);
            assert_eq!(destination.holds(host, port), holds, "{written} {host}:{port}");
        }
        let bad = [
            "", ".", "*", "a b", "a:", "a:0", "a:65536", "a/b", "::1", "1.2.3", "0x7f", "*.*.a",
            "a..b", "-a",
        ];
        for text in bad {
            assert_eq!(text.parse::<Destination>(), Err(BadForm), "{text}");
        }
    }

    #[test]
    fn addresses_are_unicast() {
        let mac = "52-54-00-AB-cd-EF".parse::<Mac>().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        let bad = [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:01",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            "5:54:00:ab:cd:ef",
            "52:54:00:ab:cd:+f",
            "52:54-00:ab:cd:ef",
        ];
        for text in bad {
            assert_eq!(text.parse::<Mac>(), Err(BadForm), "{text}");
        }
    }

    #[test]
    fn they_are_stored_as_text() {
        let forward: Forward = "8080:80".parse().unwrap();
        let json = serde_json::to_string(&forward).unwrap();
        assert_eq!(json, r#""tcp:127.0.0.1:8080:80""#);
        assert_eq!(serde_json::from_str::<Forward>(&json).unwrap(), forward);
        assert!(serde_json::from_str::<Forward>(r#""8080""#).is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic_and_what_parses_is_stable(text in "[a-f0-9.:tcpud+, -]{0,24}") {
            if let Ok(forward) = text.parse::<Forward>() {
                prop_assert_eq!(forward.to_string().parse::<Forward>(), Ok(forward));
                prop_assert!(!forward.to_string().contains(','));
            }
            if let Ok(mac) = text.parse::<Mac>() {
                prop_assert_eq!(mac.to_string().parse::<Mac>(), Ok(mac));
            }
        }

        #[test]
        fn every_address_and_port_reads_back(
            bytes: [u8; 6], address: [u8; 4], host: u16, guest in 1u16..,
        ) {
            let mac = Mac(bytes);
            let unicast = bytes[0] & 1 == 0 && bytes != [0; 6];
            prop_assert_eq!(mac.to_string().parse::<Mac>().ok(), unicast.then_some(mac));
            let forward =
                Forward { protocol: Protocol::Udp, address: address.into(), host, guest };
            prop_assert_eq!(forward.to_string().parse::<Forward>(), Ok(forward));
        }
    }
}
