//! Files that tell the container names and addresses: `hosts` and `resolv.conf`.

use std::net::{IpAddr, Ipv4Addr};

use crate::containers::config::HostConfig;
use crate::containers::container::Record;
use crate::http::{ApiError, Result};

/// What stands for the machine's own address.
const HOST_GATEWAY: &str = "host-gateway";

/// An address, or [`HOST_GATEWAY`], and a name.
pub(super) fn extra_host(entry: &str) -> Result<(&str, &str)> {
    let is_address = |text: &str| text == HOST_GATEWAY || text.parse::<std::net::IpAddr>().is_ok();
    match entry.split_once(['=', ':']) {
        Some((name, address)) if !name.is_empty() && is_address(address) => Ok((address, name)),
        _ => Err(ApiError::bad_request(format!(
            "invalid extra host {entry:?}: expected NAME:ADDRESS"
        ))),
    }
}

pub(super) fn hosts(
    record: &Record,
    hostname: &str,
    addresses: &[IpAddr],
    gateway: Option<Ipv4Addr>,
) -> Result<Vec<u8>> {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for entry in &record.host.extra_hosts {
        let (address, name) = extra_host(entry)?;
        if address != HOST_GATEWAY {
            text.push_str(&format!("{address}\t{name}\n"));
            continue;
        }
        let gateway = gateway.ok_or_else(|| {
            ApiError::bad_request(
                "unable to derive the IP value for host-gateway: the container has no network",
            )
        })?;
        text.push_str(&format!("{gateway}\t{name}\n"));
    }
    for address in addresses {
        match record.config.domainname.as_str() {
            "" => text.push_str(&format!("{address}\t{hostname}\n")),
            domain => text.push_str(&format!("{address}\t{hostname}.{domain} {hostname}\n")),
        }
    }
    Ok(text.into_bytes())
}

/// `service`: it asks the name service of its networks, which asks the servers that it would ask itself.
pub(super) fn resolv_conf(host: &HostConfig, of_host: Vec<u8>, service: bool) -> Vec<u8> {
    let own = without_service(host, of_host);
    if !service {
        return own;
    }
    let own = String::from_utf8_lossy(&own);
    let mut text = format!("nameserver {}\n", network::NAME_SERVICE);
    for line in own.lines().filter(|line| !line.starts_with("nameserver")) {
        text.push_str(line);
        text.push('\n');
    }
    if !own.contains("ndots:") {
        // A name without a dot is first of all a neighbour's.
        text.push_str("options ndots:0\n");
    }
    text.into_bytes()
}

fn without_service(host: &HostConfig, of_host: Vec<u8>) -> Vec<u8> {
    let line = |keyword: &str, words: &[String]| match words {
        [] => String::new(),
        words => format!("{keyword} {}\n", words.join(" ")),
    };
    if host.dns.is_empty() && host.dns_search.is_empty() && host.dns_options.is_empty() {
        return of_host;
    }
    let of_host = String::from_utf8_lossy(&of_host);
    let kept = |keyword: &str, replaced: bool| -> String {
        let lines = of_host
            .lines()
            .filter(|line| !replaced && line.starts_with(keyword));
        lines.map(|line| format!("{line}\n")).collect()
    };
    let servers: String = host
        .dns
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    [
        kept("nameserver", !host.dns.is_empty()),
        servers,
        kept("search", !host.dns_search.is_empty()),
        line("search", &host.dns_search),
        kept("options", !host.dns_options.is_empty()),
        line("options", &host.dns_options),
    ]
    .concat()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::wanted;
    use super::*;

    #[test]
    fn name_servers_of_the_container_replace_those_of_the_host() {
        let host = wanted(json!({"Dns": ["9.9.9.9"]})).host;
        let of_host = || b"nameserver 1.1.1.1\nsearch home\n".to_vec();
        let text = resolv_conf(&host, of_host(), false);
        assert_eq!(text, b"nameserver 9.9.9.9\nsearch home\n");
        let text = resolv_conf(&host, of_host(), true);
        assert_eq!(text, b"nameserver 127.0.0.11\nsearch home\noptions ndots:0\n");
    }
}
