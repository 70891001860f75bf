//! `POST /networks/create`: what is asked for, and what of it can be done.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use hyper::StatusCode;
use network::{Cidr, Cidr6};
use serde::Deserialize;
use serde_json::{Value, json};
use store::Digest;

use super::pools;
use super::record::{Network, Pool, Pool6, Settings, states};
use super::table::Found;
use super::tell;
use crate::containers::{new_id, nullable};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, json, with_causes};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wanted {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    driver: String,
    #[serde(deserialize_with = "nullable")]
    scope: String,
    #[serde(deserialize_with = "nullable")]
    internal: bool,
    #[serde(deserialize_with = "nullable")]
    attachable: bool,
    #[serde(deserialize_with = "nullable")]
    ingress: bool,
    #[serde(deserialize_with = "nullable")]
    config_only: bool,
    config_from: Option<ConfigFrom>,
    #[serde(deserialize_with = "nullable", rename = "IPAM")]
    ipam: Ipam,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    #[serde(deserialize_with = "nullable")]
    options: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigFrom {
    network: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    #[serde(deserialize_with = "nullable")]
    driver: String,
    #[serde(deserialize_with = "nullable")]
    config: Vec<PoolWanted>,
    #[serde(deserialize_with = "nullable")]
    options: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct PoolWanted {
    #[serde(deserialize_with = "nullable")]
    subnet: String,
    #[serde(deserialize_with = "nullable", rename = "IPRange")]
    ip_range: String,
    #[serde(deserialize_with = "nullable")]
    gateway: String,
    #[serde(deserialize_with = "nullable")]
    auxiliary_addresses: BTreeMap<String, String>,
}

pub(super) async fn create(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    let wanted: Wanted = req.json().await?;
    check(&wanted)?;
    // In a task of its own: a client that goes away leaves nothing half-made.
    let engine = engine.clone();
    let making = tokio::spawn(async move { make(&engine, wanted).await });
    let network = making.await??;
    json(StatusCode::CREATED, &json!({"Id": network.id, "Warning": ""}))
}

fn refuse(what: &str) -> ApiError {
    ApiError::not_implemented(format!("Monobloc does not do {what}; leave it out."))
}

/// What can be told without a look at the machine.
fn check(wanted: &Wanted) -> Result<()> {
    if wanted.name.trim().is_empty() {
        return Err(ApiError::bad_request("invalid network name: name is empty"));
    }
    if wanted.name.contains(['/', '\0']) || wanted.name.len() > 255 {
        return Err(ApiError::bad_request(format!(
            "invalid network name: {:?} has a slash or more than 255 characters",
            wanted.name
        )));
    }
    if super::BUILTIN.iter().any(|own| own.name() == wanted.name) || wanted.name == "default" {
        return Err(ApiError::forbidden(format!(
            "operation is not permitted on predefined {} network ",
            wanted.name
        )));
    }
    match wanted.driver.as_str() {
        "" | "default" | "bridge" => {}
        "overlay" => {
            return Err(ApiError::forbidden(
                "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
            ));
        }
        "host" | "null" => {
            return Err(ApiError::forbidden(format!(
                "only one instance of \"{}\" network is allowed",
                wanted.driver
            )));
        }
        other => {
            return Err(ApiError::not_found(format!(
                "could not find plugin {other} in v1 plugin registry: plugin \"{other}\" not found"
            )));
        }
    }
    if wanted.scope == "swarm" || wanted.ingress {
        return Err(ApiError::forbidden(
            "This node is not a swarm manager: it has no networks of a swarm.",
        ));
    }
    let from = wanted.config_from.as_ref();
    if wanted.config_only || from.is_some_and(|from| !from.network.is_empty()) {
        return Err(refuse(
            "networks that only hold settings for others (ConfigOnly, ConfigFrom)",
        ));
    }
    if wanted.enable_ipv4 == Some(false) {
        return Err(refuse("networks without IPv4 (EnableIPv4)"));
    }
    if !matches!(wanted.ipam.driver.as_str(), "" | "default") {
        let other = &wanted.ipam.driver;
        return Err(ApiError::not_found(format!(
            "failed to find ipam driver {other}: plugin \"{other}\" not found"
        )));
    }
    Ok(())
}

async fn make(engine: &Arc<Engine>, wanted: Wanted) -> Result<Arc<Network>> {
    let (store, networks) = (engine.store().await?, engine.network().await?);
    let _turn = engine.networks.turn.lock().await;
    let made = engine.networks.made();
    if made.iter().any(|network| network.name == wanted.name) {
        return Err(ApiError::conflict(format!(
            "network with name {} already exists",
            wanted.name
        )));
    }
    let id = new_id()?;
    let (settings, link) = settings(&wanted.options, &id)?;
    if let Some(other) = made.iter().find(|network| network.link == link) {
        return Err(ApiError::forbidden(format!(
            "cannot create network {id} ({link}): conflicts with network {} ({link}): networks have same bridge name",
            other.id
        )));
    }
    let (mut pool, mut pool6) = pools_wanted(&wanted.ipam.config)?;
    if wanted.enable_ipv6 == Some(false) && pool6.is_some() {
        return Err(ApiError::bad_request(
            "invalid network config:\ninvalid subnet: IPv6 has not been enabled for this network",
        ));
    }
    if wanted.enable_ipv6 == Some(true) && pool6.is_none() {
        pool6 = Some(unique_local(&id));
    }
    let (kept, adding) = (store.clone(), networks.clone());
    let network = blocking(move || {
        let pool = match pool.take() {
            Some(pool) => {
                adding.is_free(pool.gateway).map_err(|_| overlap())?;
                pool
            }
            None => pools::free(&adding)?,
        };
        let network = Network {
            id,
            name: wanted.name,
            created: zones::log::now(),
            link,
            pool,
            pool6,
            internal: wanted.internal,
            attachable: wanted.attachable,
            settings,
            labels: wanted.labels,
            options: wanted.options,
            ipam_options: wanted.ipam.options,
        };
        adding.add(&network.bridge()).map_err(refused)?;
        let written = states(&kept).and_then(|states| states.write(&network.id, &network));
        written.inspect_err(|_| {
            // What has no record is no network.
            let _ = adding.remove(&network.link);
        })?;
        Ok::<_, ApiError>(network)
    })
    .await?;
    let network = engine.networks.put(network);
    tell(engine, "create", &Found::Made(network.clone()), None);
    Ok(network)
}

fn overlap() -> ApiError {
    ApiError::forbidden("Pool overlaps with other one on this address space")
}

fn refused(error: network::Error) -> ApiError {
    match error {
        network::Error::Overlap(..) => overlap(),
        network::Error::Subnet(_) | network::Error::LinkName(_) => ApiError::bad_request(error.to_string()),
        network::Error::NotABridge(_) => ApiError::conflict(error.to_string()),
        other => ApiError::internal(with_causes(&other)),
    }
}

/// What the options mean, and the name of the network's link.
fn settings(options: &BTreeMap<String, String>, id: &str) -> Result<(Settings, String)> {
    let mut settings = Settings {
        together: true,
        masquerade: true,
        publish_at: None,
        mtu: None,
    };
    let mut link = format!("br-{}", id.get(..12).unwrap_or(id));
    for (key, value) in options {
        let bad =
            |what: &str| ApiError::bad_request(format!("invalid value for {key}: {value:?} is no {what}"));
        let yes = || match value.as_str() {
            "1" | "t" | "T" | "true" | "True" | "TRUE" => Ok(true),
            "0" | "f" | "F" | "false" | "False" | "FALSE" => Ok(false),
            _ => Err(bad("yes or no")),
        };
        match key.as_str() {
            "com.docker.network.bridge.name" => link.clone_from(value),
            "com.docker.network.bridge.enable_icc" => settings.together = yes()?,
            "com.docker.network.bridge.enable_ip_masquerade" => settings.masquerade = yes()?,
            "com.docker.network.bridge.host_binding_ipv4" => {
                let address: Ipv4Addr = value.parse().map_err(|_| bad("IPv4 address"))?;
                settings.publish_at = Some(address).filter(|address| !address.is_unspecified());
            }
            "com.docker.network.driver.mtu" => {
                let mtu = value
                    .parse()
                    .ok()
                    .filter(|mtu| *mtu == 0 || (68..=65535).contains(mtu));
                settings.mtu = Some(mtu.ok_or_else(|| bad("MTU"))?).filter(|mtu| *mtu != 0);
            }
            "com.docker.network.enable_ipv4" | "com.docker.network.enable_ipv6" => {
                return Err(refuse(&format!(
                    "the option {key}, as EnableIPv4 and EnableIPv6 are there for it"
                )));
            }
            other => return Err(refuse(&format!("the network option {other}"))),
        }
    }
    Ok((settings, link))
}

/// A subnet of 64 bits that is as good as nobody else's (RFC 4193).
fn unique_local(id: &str) -> Pool6 {
    let digest = Digest::of(format!("addresses {id}").as_bytes()).hex();
    let random = u128::from_str_radix(digest.get(..10).unwrap_or("0"), 16).unwrap_or(0);
    let subnet = 0xfd << 120 | random << 80;
    Pool6 {
        gateway: Cidr6::new(Ipv6Addr::from_bits(subnet | 1), 64),
        spared: BTreeMap::new(),
        chosen: false,
    }
}

fn wrong(text: String) -> ApiError {
    ApiError::bad_request(format!("invalid network config:\n{text}"))
}

/// The pools that are asked for, at most one of each kind.
fn pools_wanted(wanted: &[PoolWanted]) -> Result<(Option<Pool>, Option<Pool6>)> {
    let (mut pool, mut pool6) = (None, None);
    for one in wanted {
        if one.subnet.is_empty() {
            if one.ip_range.is_empty() && one.gateway.is_empty() && one.auxiliary_addresses.is_empty() {
                continue;
            }
            return Err(wrong("invalid subnet : invalid CIDR block notation".to_owned()));
        }
        let twice = if one.subnet.contains(':') {
            pool6.replace(read6(one)?).is_some()
        } else {
            pool.replace(read(one)?).is_some()
        };
        if twice {
            return Err(ApiError::bad_request(
                "bridge driver does not support multiple subnets",
            ));
        }
    }
    Ok((pool, pool6))
}

/// The gateway, by default the `first` address, and those that are given to nobody; all are to lie in the
/// subnet.
fn addresses<T: FromStr>(
    wanted: &PoolWanted,
    first: T,
    fits: impl Fn(&T) -> bool,
) -> Result<(T, BTreeMap<String, T>)> {
    let read = |what: &str, text: &str| {
        let address = text.parse();
        let address = address.map_err(|_| wrong(format!("invalid {what} {text}: invalid address")))?;
        if !fits(&address) {
            let subnet = &wanted.subnet;
            return Err(wrong(format!(
                "invalid {what} {text}: parent subnet {subnet} doesn't contain this address"
            )));
        }
        Ok(address)
    };
    let gateway = match wanted.gateway.as_str() {
        "" => first,
        text => read("gateway", text)?,
    };
    let spared = wanted
        .auxiliary_addresses
        .iter()
        .map(|(name, text)| Ok((name.clone(), read("auxiliary address", text)?)));
    Ok((gateway, spared.collect::<Result<_>>()?))
}

fn read(wanted: &PoolWanted) -> Result<Pool> {
    let PoolWanted { subnet, ip_range, .. } = wanted;
    let cidr = |what: &str, text: &str| {
        let cidr: Cidr = text
            .parse()
            .map_err(|_| wrong(format!("invalid {what} {text}: invalid CIDR block notation")))?;
        match cidr.network() == cidr {
            true => Ok(cidr),
            false => Err(wrong(format!(
                "invalid {what} {text}: it should be {}",
                cidr.network()
            ))),
        }
    };
    let net = cidr("subnet", subnet)?;
    if !(8..=30).contains(&net.prefix) {
        return Err(ApiError::bad_request(
            network::Error::Subnet(subnet.clone()).to_string(),
        ));
    }
    let range = match ip_range.as_str() {
        "" => None,
        text => {
            let range = cidr("ip-range", text)?;
            if range.prefix < net.prefix {
                return Err(wrong(format!(
                    "invalid ip-range {text}: CIDR block is bigger than its parent subnet {subnet}"
                )));
            }
            if !net.contains(range.address) {
                return Err(wrong(format!(
                    "invalid ip-range {text}: parent subnet {subnet} doesn't contain ip-range"
                )));
            }
            Some(range)
        }
    };
    let first = Ipv4Addr::from_bits(net.address.to_bits() + 1);
    let (gateway, spared) = addresses(wanted, first, |address| net.contains(*address))?;
    Ok(Pool {
        gateway: Cidr::new(gateway, net.prefix),
        range,
        spared,
        chosen: true,
    })
}

fn read6(wanted: &PoolWanted) -> Result<Pool6> {
    let PoolWanted { subnet, ip_range, .. } = wanted;
    let net: Cidr6 = subnet
        .parse()
        .map_err(|_| wrong(format!("invalid subnet {subnet}: invalid CIDR block notation")))?;
    if net.network() != net {
        return Err(wrong(format!(
            "invalid subnet {subnet}: it should be {}",
            net.network()
        )));
    }
    if !ip_range.is_empty() {
        return Err(refuse("a range of IPv6 addresses within a subnet (IPRange)"));
    }
    let first = Ipv6Addr::from_bits(net.address.to_bits() + 1);
    let (gateway, spared) = addresses(wanted, first, |address| net.contains(*address))?;
    Ok(Pool6 {
        gateway: Cidr6::new(gateway, net.prefix),
        spared,
        chosen: true,
    })
}

/// The pools as a network shows them.
pub(super) fn show_pools(network: &Network) -> Vec<Value> {
    let pool = |gateway: IpAddr, subnet: String, range: Option<Cidr>, spared: BTreeMap<&String, String>| {
        let mut shown = json!({"Subnet": subnet, "Gateway": gateway.to_string()});
        if let Some(range) = range {
            shown["IPRange"] = range.to_string().into();
        }
        if !spared.is_empty() {
            shown["AuxiliaryAddresses"] = json!(spared);
        }
        shown
    };
    let own = &network.pool;
    let spared = own
        .spared
        .iter()
        .map(|(name, address)| (name, address.to_string()));
    let subnet = own.gateway.network().to_string();
    let mut shown = vec![pool(
        own.gateway.address.into(),
        subnet,
        own.range,
        spared.collect(),
    )];
    if let Some(own) = &network.pool6 {
        let spared = own
            .spared
            .iter()
            .map(|(name, address)| (name, address.to_string()));
        let subnet = own.gateway.network().to_string();
        shown.push(pool(own.gateway.address.into(), subnet, None, spared.collect()));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_pools(config: Value) -> Result<(Option<Pool>, Option<Pool6>)> {
        pools_wanted(&serde_json::from_value::<Vec<PoolWanted>>(config).unwrap())
    }

    #[test]
    fn pools_are_read_and_wrong_ones_refused_with_dockers_words() {
        let (pool, pool6) = read_pools(json!([
            {"Subnet": "10.5.0.0/16", "IPRange": "10.5.1.0/24", "AuxiliaryAddresses": {"router": "10.5.0.9"}},
            {"Subnet": "fd00:5::/64", "Gateway": "fd00:5::99"},
        ]))
        .unwrap();
        let pool = pool.unwrap();
        assert_eq!(pool.gateway.to_string(), "10.5.0.1/16");
        assert_eq!(pool.range.unwrap().to_string(), "10.5.1.0/24");
        assert_eq!(pool6.unwrap().gateway.to_string(), "fd00:5::99/64");
        for (config, words) in [
            (json!([{"Subnet": "10.5.0.1/16"}]), "it should be 10.5.0.0/16"),
            (json!([{"Subnet": "10.5.0.0"}]), "invalid CIDR block notation"),
            (
                json!([{"Subnet": "10.5.0.0/16", "Gateway": "10.6.0.1"}]),
                "doesn't contain this address",
            ),
            (
                json!([{"Subnet": "10.5.0.0/16", "IPRange": "10.6.0.0/24"}]),
                "doesn't contain ip-range",
            ),
            (
                json!([{"Subnet": "10.5.0.0/16", "IPRange": "10.0.0.0/8"}]),
                "bigger than its parent",
            ),
            (
                json!([{"Subnet": "10.5.0.0/16"}, {"Subnet": "10.6.0.0/16"}]),
                "multiple subnets",
            ),
            (json!([{"Gateway": "10.5.0.1"}]), "invalid subnet"),
        ] {
            let error = read_pools(config.clone()).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST, "{config}");
            assert!(error.message.contains(words), "{config}: {}", error.message);
        }
    }

    #[test]
    fn options_are_read_and_unknown_ones_refused() {
        let of = |key: &str, value: &str| {
            settings(
                &BTreeMap::from([(key.to_owned(), value.to_owned())]),
                &"a".repeat(64),
            )
        };
        assert_eq!(of("com.docker.network.bridge.name", "lan0").unwrap().1, "lan0");
        assert!(
            !of("com.docker.network.bridge.enable_icc", "false")
                .unwrap()
                .0
                .together
        );
        assert_eq!(
            of("com.docker.network.driver.mtu", "1400").unwrap().0.mtu,
            Some(1400)
        );
        assert!(of("com.docker.network.driver.mtu", "14").is_err());
        let unknown = of("com.example.colour", "red").unwrap_err();
        assert_eq!(unknown.status, StatusCode::NOT_IMPLEMENTED);
    }

    #[test]
    fn a_made_up_subnet_of_ipv6_is_of_the_unique_local_kind() {
        let pool = unique_local(&"5".repeat(64));
        assert_eq!(pool.gateway.address.octets()[0], 0xfd);
        assert_eq!(pool.gateway.address.octets()[6..15], [0; 9]);
    }
}
