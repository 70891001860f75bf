//! The ports that a container publishes.

use handover::Protocol;
use network::Port;

use crate::containers::config::{PortBinding, Wanted};
use crate::http::{ApiError, Result};

/// The ports to publish.
pub(crate) fn ports(wanted: &Wanted) -> Result<Vec<Port>> {
    let mut ports = Vec::new();
    let empty = [PortBinding::default()];
    for (key, bindings) in &wanted.host.port_bindings {
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
                "" | "0.0.0.0" => None,
                // All addresses: those of IPv6 are none here.
                "::" => continue,
                address => Some(address.parse().map_err(|_| bad("IPv4 address", address))?),
            };
            let host_port = match binding.host_port.as_str() {
                "" | "0" => None,
                number => Some(number.parse().map_err(|_| bad("single port", number))?),
            };
            ports.push(Port {
                protocol,
                host_ip,
                host_port,
                zone_port,
            });
        }
    }
    if wanted.host.publish_all_ports {
        for key in wanted.config.exposed_ports.keys() {
            let (zone_port, protocol) = port(key)?;
            if !ports
                .iter()
                .any(|port| (port.zone_port, port.protocol) == (zone_port, protocol))
            {
                ports.push(Port {
                    protocol,
                    host_ip: None,
                    host_port: None,
                    zone_port,
                });
            }
        }
    }
    Ok(ports)
}

/// Reads `80/tcp`, `53/udp` or `80`.
fn port(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            return Err(ApiError::not_implemented(format!(
                "Monobloc does not publish {other} ports ({text}); tcp and udp are what there is."
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
        let read = ports(&wanted(
            json!({"PortBindings": {"80/tcp": [{"HostPort": "8080"}], "53/udp": [{"HostIp": "127.0.0.1"}]}}),
        ))
        .unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[1].zone_port, read[1].host_port), (80, Some(8080)));
        assert_eq!(
            (read[0].host_ip, read[0].host_port),
            (Some(Ipv4Addr::LOCALHOST), None)
        );
        let all = ports(&wanted(json!({"PublishAllPorts": true}))).unwrap();
        assert_eq!((all.len(), all[0].zone_port), (1, 90));
        for bindings in [
            json!({"80/sctp": []}),
            json!({"x/tcp": []}),
            json!({"80/tcp": [{"HostPort": "80-90"}]}),
        ] {
            assert!(ports(&wanted(json!({"PortBindings": bindings}))).is_err());
        }
    }
}
