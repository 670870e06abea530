//! Connecting to a destination from the host.
//!
//! A name that is allowed is whatever its owner lets it resolve to. So a name that leads to the host
//! itself is not followed: what listens on the host's loopback trusts whoever reaches it. To allow that
//! is to write the address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::Target;

/// How long a name may take to be resolved, and one address to answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Addresses that are tried of one name.
const MOST_ADDRESSES: usize = 4;
/// Where QEMU's user networking has the host's loopback.
const HOST_AS_GUESTS_SEE_IT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));

/// Connects, or says in words why not.
pub(super) async fn connect(target: &Target) -> Result<TcpStream, String> {
    let mut why =
        "it has no address that may be used: a name may not lead to the host itself".to_owned();
    for address in addresses(target).await? {
        match timeout(TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => why = format!("{}: {error}", address.ip()),
            Err(_) => {
                why = format!("{} has not answered within {} s", address.ip(), TIMEOUT.as_secs());
            }
        }
    }
    Err(why)
}

async fn addresses(target: &Target) -> Result<Vec<SocketAddr>, String> {
    if let Ok(address) = target.host.parse::<IpAddr>() {
        let address =
            if address == HOST_AS_GUESTS_SEE_IT { Ipv4Addr::LOCALHOST.into() } else { address };
        return Ok(vec![SocketAddr::new(address, target.port)]);
    }
    let found = timeout(TIMEOUT, lookup_host((&*target.host, target.port))).await;
    let found = found.map_err(|_| "its name has not been resolved in time".to_owned())?;
    let found = found.map_err(|error| error.to_string())?;
    Ok(found.filter(|address| !is_of_the_host(address.ip())).take(MOST_ADDRESSES).collect())
}

/// Says whether an address is the host's own, or one of its link, where clouds serve secrets.
fn is_of_the_host(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_unspecified() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_to_the_host() {
        for own in
            ["127.0.0.1", "127.9.9.9", "0.0.0.0", "169.254.169.254", "::1", "::ffff:127.0.0.1"]
        {
            assert!(is_of_the_host(own.parse().expect("an address")), "{own}");
        }
        for other in ["10.0.0.1", "192.0.2.1", "2001:db8::1"] {
            assert!(!is_of_the_host(other.parse().expect("an address")), "{other}");
        }
    }

    #[tokio::test]
    async fn the_address_of_the_host_is_its_loopback() {
        let target = |host: &str| Target { host: host.to_owned(), port: 80 };
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        assert_eq!(addresses(&target("10.0.2.2")).await, Ok(vec![loopback]));
        assert_eq!(addresses(&target("localhost")).await, Ok(Vec::new()));
    }
}
