//! The ports that a container publishes.

use network::{Port, Protocol};

use crate::containers::config::{Config, HostConfig, PortBinding};
use crate::http::{ApiError, Result};

/// The ports to publish.
pub(crate) fn ports(config: &Config, host: &HostConfig) -> Result<Vec<Port>> {
    let mut ports = Vec::new();
    let empty = [PortBinding::default()];
    for (key, bindings) in &host.port_bindings {
        let (zone_port, protocol) = port(key)?;
        let bindings = bindings
            .as_deref()
            .filter(|list| !list.is_empty())
            .unwrap_or(&empty);
        for binding in bindings {
            let bad = |what: &str, value: &str| {
                ApiError::bad_request(format!(
                    "Port binding of {key}: {value:?} is no {what}; leave it out or correct it"
                ))
            };
            let host_ip = match binding.host_ip.as_str() {
                "" => None,
                address => Some(address.parse().map_err(|_| bad("address", address))?),
            };
            let host_ports = match binding.host_port.as_str() {
                "" | "0" => None,
                text => Some(range(text).ok_or_else(|| bad("port, and no range of them", text))?),
            };
            ports.push(Port {
                protocol,
                host_ip,
                host_ports,
                zone_port,
            });
        }
    }
    if host.publish_all_ports {
        for key in config.exposed_ports.keys() {
            let (zone_port, protocol) = port(key)?;
            if !ports
                .iter()
                .any(|port| (port.zone_port, port.protocol) == (zone_port, protocol))
            {
                ports.push(Port {
                    protocol,
                    host_ip: None,
                    host_ports: None,
                    zone_port,
                });
            }
        }
    }
    Ok(ports)
}

/// Reads `8000-8010` or `80`.
fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (0 < first && first <= last).then_some((first, last))
}

/// Reads `80/tcp`, `53/udp` or `80`.
fn port(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            return Err(ApiError::bad_request(format!(
                "invalid port specification: {text:?}"
            )));
        }
    };
    match number.parse() {
        Ok(number) if number > 0 => Ok((number, protocol)),
        _ => Err(ApiError::bad_request(format!(
            "invalid port specification: {text:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use serde_json::json;

    use super::super::testing::wanted;
    use super::*;

    #[test]
    fn ports_are_read_and_wrong_ones_refused() {
        let of = |host| {
            let wanted = wanted(host);
            ports(&wanted.config, &wanted.host)
        };
        let read = of(json!({"PortBindings": {
            "80/tcp": [{"HostPort": "8080"}], "53/udp": [{"HostIp": "127.0.0.1"}],
            "9/sctp": [{"HostIp": "::1", "HostPort": "9000-9010"}],
        }}))
        .unwrap();
        assert_eq!(read.len(), 3);
        assert_eq!((read[1].zone_port, read[1].host_ports), (80, Some((8080, 8080))));
        assert_eq!(
            (read[0].host_ip, read[0].host_ports),
            (Some(Ipv4Addr::LOCALHOST.into()), None)
        );
        assert_eq!(
            (read[2].protocol, read[2].host_ports),
            (Protocol::Sctp, Some((9000, 9010)))
        );
        let all = of(json!({"PublishAllPorts": true})).unwrap();
        assert_eq!((all.len(), all[0].zone_port), (1, 90));
        for bindings in [
            json!({"80/dccp": []}),
            json!({"x/tcp": []}),
            json!({"80/tcp": [{"HostPort": "90-80"}]}),
            json!({"80/tcp": [{"HostIp": "here"}]}),
        ] {
            assert!(of(json!({"PortBindings": bindings})).is_err());
        }
    }
}
