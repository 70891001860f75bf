//! Which address a zone gets on a network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{Bridge, Endpoint6, Error, Join, Result};

/// Who has which addresses of a network.
pub(crate) type Taken<'a> = BTreeMap<IpAddr, &'a str>;

/// The address that a zone gets on a network: what it asks for, or a free one.
pub(crate) fn choose(
    bridge: &Bridge,
    last_given: Ipv4Addr,
    taken: &Taken<'_>,
    join: &Join,
) -> Result<(Ipv4Addr, Option<Endpoint6>)> {
    let address = match join.address {
        Some(address) => check_wanted(bridge, taken, address)?,
        None => free_address(bridge, last_given, taken)?,
    };
    Ok((address, address6(bridge, taken, address, join)?))
}

fn check_wanted(bridge: &Bridge, taken: &Taken<'_>, address: Ipv4Addr) -> Result<Ipv4Addr> {
    let subnet = bridge.gateway.network();
    let reserved = [subnet.address, bridge.gateway.broadcast(), bridge.gateway.address];
    if !subnet.contains(address) || reserved.contains(&address) {
        return Err(Error::AddressOutside {
            address: address.into(),
            subnet: subnet.to_string(),
        });
    }
    not_taken(taken, address.into())?;
    Ok(address)
}

fn not_taken(taken: &Taken<'_>, address: IpAddr) -> Result<()> {
    match taken.get(&address) {
        Some(holder) => Err(Error::AddressTaken {
            address,
            holder: (*holder).to_owned(),
        }),
        None => Ok(()),
    }
}

/// A free address; the search begins behind the one given last.
fn free_address(bridge: &Bridge, last_given: Ipv4Addr, taken: &Taken<'_>) -> Result<Ipv4Addr> {
    let (subnet, range) = (bridge.gateway.network(), bridge.range.unwrap_or(bridge.gateway));
    let first = range
        .network()
        .address
        .to_bits()
        .max(subnet.address.to_bits() + 1);
    let last = range
        .broadcast()
        .to_bits()
        .min(bridge.gateway.broadcast().to_bits() - 1);
    let after = last_given.to_bits().clamp(first, last);
    // One that was never given comes before the one given last.
    let again = if after == last_given.to_bits() {
        after + 1
    } else {
        after
    };
    (again..=last)
        .chain(first..=after)
        .map(Ipv4Addr::from_bits)
        .find(|address| {
            let ip = IpAddr::V4(*address);
            *address != bridge.gateway.address && !bridge.spared.contains(&ip) && !taken.contains_key(&ip)
        })
        .ok_or_else(|| Error::Exhausted {
            name: bridge.name.clone(),
            subnet: range.network().to_string(),
        })
}

/// The address that is asked for, or the first free one from that on which has the number of the IPv4 address
/// within its subnet.
fn address6(bridge: &Bridge, taken: &Taken<'_>, address: Ipv4Addr, join: &Join) -> Result<Option<Endpoint6>> {
    let outside = |address: Ipv6Addr, subnet: String| Error::AddressOutside {
        address: address.into(),
        subnet,
    };
    let Some(gateway) = bridge.gateway6 else {
        return match join.address6 {
            Some(address) => Err(outside(address, bridge.gateway.network().to_string())),
            None => Ok(None),
        };
    };
    let subnet = gateway.network();
    let chosen = match join.address6 {
        Some(wanted) => {
            if !subnet.contains(wanted) || wanted == gateway.address || wanted == subnet.address {
                return Err(outside(wanted, subnet.to_string()));
            }
            not_taken(taken, wanted.into())?;
            Some(wanted)
        }
        None => {
            let number = address.to_bits() - bridge.gateway.network().address.to_bits();
            let first = subnet.address.to_bits() + 1;
            let size = subnet.last().to_bits() - first;
            let start = u128::from(number - 1) % size.max(1);
            let count = size.min(u128::from(u32::MAX));
            (0..=count)
                .map(|step| Ipv6Addr::from_bits(first + (start + step) % (size + 1)))
                .find(|address| {
                    let ip = IpAddr::V6(*address);
                    *address != gateway.address && !bridge.spared.contains(&ip) && !taken.contains_key(&ip)
                })
        }
    };
    let address = chosen.ok_or_else(|| Error::Exhausted {
        name: bridge.name.clone(),
        subnet: subnet.to_string(),
    })?;
    Ok(Some(Endpoint6 {
        address,
        prefix: gateway.prefix,
        gateway: gateway.address,
    }))
}
