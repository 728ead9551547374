//! The two address families, and which IPv6 address goes with which IPv4 address.
//!
//! A pod's second address follows from its first: both have the same place in their range. So one record of who has what
//! serves both families, an address of one family tells the other, and what holds for one address of a pod can never be
//! forgotten for the other.
//! Upstream: <https://kubernetes.io/docs/concepts/services-networking/dual-stack/>

use ipnet::{Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// How nftables names its tables and the matches on its headers.
    pub fn keyword(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// How nftables names the type of its addresses.
    pub fn address_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// How Kubernetes names it, in `ipFamilies` and as the type of an EndpointSlice.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The IPv6 ranges of a network of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondRanges {
    /// With room for as many addresses as the IPv4 range has, at least.
    pub pods: Ipv6Net,
    pub services: Ipv6Net,
}

/// The pods' ranges of both families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pairing {
    pub first: Ipv4Net,
    pub second: Ipv6Net,
}

impl Pairing {
    /// Whether every address of the first range has a partner in the second.
    pub fn fits(&self) -> bool {
        128 - self.second.prefix_len() >= 32 - self.first.prefix_len()
    }

    /// The IPv6 address of who has this IPv4 address.
    pub fn partner(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        if !self.first.contains(&address) || !self.fits() {
            return None;
        }
        let place = u32::from(address) - u32::from(self.first.network());
        Some(Ipv6Addr::from(u128::from(self.second.network()) + u128::from(place)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partners_have_the_same_place_in_their_ranges() {
        let of = |first: &str, second: &str| Pairing { first: first.parse().unwrap(), second: second.parse().unwrap() };
        let pairing = of("10.244.0.0/22", "fd00:1::/64");
        let partner = |address: &str| pairing.partner(address.parse().unwrap()).map(|a| a.to_string());
        assert_eq!(partner("10.244.0.1").as_deref(), Some("fd00:1::1"));
        assert_eq!(partner("10.244.3.255").as_deref(), Some("fd00:1::3ff"));
        assert_eq!(partner("10.244.4.0"), None, "of another range");
        assert!(of("10.244.0.0/22", "fd00::/118").fits());
        assert!(!of("10.244.0.0/22", "fd00::/119").fits());
        assert_eq!(of("10.244.0.0/22", "fd00::/119").partner([10, 244, 0, 1].into()), None);
    }
}
