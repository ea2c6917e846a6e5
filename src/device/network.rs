//! The interface that leads to the world: the one of the default route, never a bridge that
//! Docker made. A box without a default route (a closed LAN) tells of its first real interface.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use sysinfo::Networks;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Uplink {
    pub(super) interface: String,
    pub(super) ip: Option<IpAddr>,
    pub(super) mac: Option<String>,
}

pub(super) fn uplink(proc: &Path, sys: &Path) -> Option<Uplink> {
    let networks = Networks::new_with_refreshed_list().ok()?;
    let routed = default_route(proc);
    let interface = routed.or_else(|| first_physical(sys, &networks))?;
    let ip = networks.get(OsStr::new(&interface)).and_then(|network| {
        let addresses = network.ip_networks().iter().map(|network| network.addr);
        best_address(addresses.collect())
    });
    Some(Uplink {
        ip,
        mac: mac_of(&interface),
        interface,
    })
}

fn mac_of(interface: &str) -> Option<String> {
    let mac = mac_address::mac_address_by_name(interface).ok()??;
    // Tunnels and modems have none, and say so with zeros.
    (mac.bytes() != [0; 6]).then(|| mac.to_string())
}

/// The interface of the IPv4 default route with the lowest metric, else of the IPv6 one.
fn default_route(proc: &Path) -> Option<String> {
    let ipv4 = fs::read_to_string(proc.join("net/route")).unwrap_or_default();
    let ipv6 = fs::read_to_string(proc.join("net/ipv6_route")).unwrap_or_default();
    default_ipv4(&ipv4).or_else(|| default_ipv6(&ipv6))
}

fn default_ipv4(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[interface, destination, _, _, _, _, metric, mask, ..] = columns.as_slice() else {
            return None;
        };
        let is_default = destination == "00000000" && mask == "00000000";
        is_default.then_some((metric.parse::<u32>().ok()?, interface))
    });
    routes
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, interface)| interface.to_owned())
}

fn default_ipv6(table: &str) -> Option<String> {
    const ANY: &str = "00000000000000000000000000000000";
    let routes = table.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[destination, prefix, _, _, _, metric, _, _, _, interface] = columns.as_slice() else {
            return None;
        };
        // The kernel keeps an unreachable default of its own on lo.
        let is_default = destination == ANY && prefix == "00" && interface != "lo";
        is_default.then_some((u32::from_str_radix(metric, 16).ok()?, interface))
    });
    routes
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, interface)| interface.to_owned())
}

/// The first interface, by name, that is hardware and has an address.
fn first_physical(sys: &Path, networks: &Networks) -> Option<String> {
    let mut names: Vec<&OsString> = networks
        .iter()
        .filter(|(name, network)| {
            let is_hardware = sys.join("class/net").join(name).join("device").exists();
            let addresses = network.ip_networks().iter().map(|network| network.addr);
            is_hardware && best_address(addresses.collect()).is_some()
        })
        .map(|(name, _)| name)
        .collect();
    names.sort_unstable();
    names.first()?.to_str().map(str::to_owned)
}

/// IPv4 before IPv6; nothing that only the same link understands.
fn best_address(mut addresses: Vec<IpAddr>) -> Option<IpAddr> {
    addresses.retain(|address| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    });
    addresses.sort_unstable();
    addresses.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str =
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";

    #[test]
    fn the_default_route_with_the_lowest_metric_wins_over_docker_and_wifi() {
        let table = format!(
            "{HEAD}docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
             wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n"
        );
        assert_eq!(default_ipv4(&table).as_deref(), Some("eth0"));
    }

    #[test]
    fn half_of_the_internet_is_not_a_default_route() {
        // A VPN that routes 0.0.0.0/1 has the destination, but not the mask.
        let table = format!("{HEAD}tun0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n");
        assert_eq!(default_ipv4(&table), None);
    }

    #[test]
    fn a_box_with_ipv6_only() {
        let any = "0".repeat(32);
        let gateway = "fe800000000000000000000000000001";
        let table = format!(
            "fe800000000000000000000000000000 40 {any} 00 {any} 00000100 00000001 00000000 00000001 eth0\n\
             {any} 00 {any} 00 {gateway} 00000400 00000003 00000000 00000003 eth0\n\
             {any} 00 {any} 00 {any} ffffffff 00000001 00000000 00200200 lo\n"
        );
        assert_eq!(default_ipv6(&table).as_deref(), Some("eth0"));
    }

    #[test]
    fn an_address_others_can_use() {
        let parse = |text: &str| text.parse::<IpAddr>().expect(text);
        let pick = |texts: &[&str]| best_address(texts.iter().map(|text| parse(text)).collect());
        assert_eq!(
            pick(&["fe80::1", "2001:db8::5", "192.0.2.7"]),
            Some(parse("192.0.2.7"))
        );
        assert_eq!(
            pick(&["fe80::1", "2001:db8::5"]),
            Some(parse("2001:db8::5"))
        );
        assert_eq!(pick(&["fe80::1", "169.254.3.4", "127.0.0.1"]), None);
    }

    proptest! {
        #[test]
        fn no_table_makes_the_parsers_panic(table in "([0-9a-z \t]{0,60}\n){0,5}") {
            default_ipv4(&table);
            default_ipv6(&table);
        }
    }
}
