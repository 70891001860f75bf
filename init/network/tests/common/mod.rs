//! Network namespaces for tests. Nothing here touches the network of the machine itself.

#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod dnsmasq;

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Command;

use network::links::{Links, Route};
use serde_json::Value;

/// A network namespace of its own with its loopback up.
pub(crate) struct Namespace(pub(crate) OwnedFd);

impl Namespace {
    pub(crate) fn new() -> Self {
        let this =
            Self(sys::netlink::new_namespace().expect("a network namespace; these tests must run as root"));
        this.run(|| Links::open().unwrap().set_up("lo").unwrap());
        this
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Runs `work` on a thread in the namespace.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        sys::netlink::run_in(self.fd(), work).unwrap()
    }

    /// What a program run in the namespace prints.
    pub(crate) fn output(&self, program: &str, args: &[&str]) -> String {
        tools::need(&["iproute2", "nftables", "procps"]);
        let output = self
            .run(|| Command::new(program).args(args).output())
            .unwrap_or_else(|e| panic!("{program} cannot be run ({e}); install it from Debian's packages"));
        assert!(
            output.status.success(),
            "{program} {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `ip -j ARGS`
    pub(crate) fn ip(&self, args: &[&str]) -> Value {
        let text = self.output("ip", &[&["-j"], args].concat());
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// Joins this namespace with another by a cable: a veth pair, both ends up, with addresses.
    pub(crate) fn cable(&self, near: (&str, &str), other: &Namespace, far: (&str, &str)) {
        use std::os::fd::AsRawFd;
        let target = format!("/proc/{}/fd/{}", std::process::id(), other.fd().as_raw_fd());
        self.output(
            "ip",
            &[
                "link", "add", near.0, "type", "veth", "peer", "name", far.0, "netns", &target,
            ],
        );
        for (namespace, (link, address)) in [(self, near), (other, far)] {
            if !address.is_empty() {
                namespace.output("ip", &["addr", "add", address, "dev", link]);
            }
            namespace.output("ip", &["link", "set", link, "up"]);
        }
    }

    pub(crate) fn default_route(&self, gateway: Ipv4Addr, link: &str) {
        self.run(|| {
            let links = Links::open().unwrap();
            let index = links.find(link).unwrap().unwrap().index;
            links.replace_route(&Route::default_by(gateway, index)).unwrap();
        });
    }
}
