//! Subnets for networks that ask for none: Docker's default pools.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use network::links::{Links, Route};
use network::{Cidr, Networks};

use super::record::Pool;
use crate::http::{ApiError, Result};

/// All of them, in the order in which they are taken.
fn all() -> impl Iterator<Item = Cidr> {
    let large = (17..=31).map(|second| Cidr::new(Ipv4Addr::new(172, second, 0, 0), 16));
    let small = (0..16).map(|step| Cidr::new(Ipv4Addr::new(192, 168, step * 16, 0), 20));
    large.chain(small)
}

/// The first that no network has and that the machine itself does not reach elsewhere. Blocks.
pub(super) fn free(networks: &Networks) -> Result<Pool> {
    let routes = Links::open()?.routes()?;
    let free = all().find(|pool| networks.is_free(*pool).is_ok() && !reached(&routes, *pool));
    let pool =
        free.ok_or_else(|| ApiError::bad_request("all predefined address pools have been fully subnetted"))?;
    Ok(Pool {
        gateway: Cidr::new(Ipv4Addr::from_bits(pool.address.to_bits() + 1), pool.prefix),
        range: None,
        spared: BTreeMap::new(),
        chosen: false,
    })
}

/// Whether a route other than the default one leads into the pool.
fn reached(routes: &[Route], pool: Cidr) -> bool {
    routes.iter().any(|route| {
        let to = route.destination;
        to.prefix > 0 && (pool.contains(to.address) || to.contains(pool.address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pools_are_dockers() {
        let pools: Vec<String> = all().map(|pool| pool.to_string()).collect();
        assert_eq!(pools.len(), 31);
        assert_eq!((&*pools[1], &*pools[14]), ("172.18.0.0/16", "172.31.0.0/16"));
        assert_eq!((&*pools[15], &*pools[30]), ("192.168.0.0/20", "192.168.240.0/20"));
    }

    #[test]
    fn a_pool_that_the_machine_reaches_elsewhere_is_not_taken() {
        let pool = "172.18.0.0/16".parse().unwrap();
        let route = |to: &str| {
            let destination = to.parse().unwrap();
            vec![Route {
                destination,
                ..Route::to_neighbour(Ipv4Addr::LOCALHOST, 1)
            }]
        };
        assert!(reached(&route("172.18.5.0/24"), pool));
        assert!(reached(&route("172.16.0.0/12"), pool));
        assert!(!reached(&route("172.19.0.0/16"), pool));
        assert!(!reached(&route("0.0.0.0/0"), pool));
    }
}
