//! `identity`: what provisioning would send, without sending it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Bench, Run, is_root, write_private};

const DAEMON_ID: &str = "ABCD:1234:5678:EFGH";

/// A socket that answers like a Docker daemon asked for `/info`, as often as asked.
fn docker(bench: &Bench, answer: &'static str) -> String {
    let path = bench.root().join("docker.sock");
    let listener = UnixListener::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let asked = String::from_utf8_lossy(&request[..read]).into_owned();
            assert!(asked.contains("/info"), "{asked}");
            stream.write_all(answer.as_bytes()).ok();
        }
    });
    format!("unix://{}", path.display())
}

fn identity(bench: &Bench, docker_host: &str) -> Value {
    let mut command = bench.agent(&["identity", "--json"]);
    command.env("DOCKER_HOST", docker_host);
    Run::of(command).expect(0).json()
}

const INFO: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 29\r\nConnection: close\r\n\r\n{\"ID\":\"ABCD:1234:5678:EFGH\"}\n";

#[test]
fn the_docker_daemons_id_names_the_device_and_is_what_is_sent() {
    let bench = Bench::new();
    let host = docker(&bench, INFO);
    assert_eq!(identity(&bench, &host)["device_id"], json!(DAEMON_ID));

    let token = bench.cloud.create_token("t", true);
    let mut command = bench.provision_command(&token, &[]);
    command.env("DOCKER_HOST", &host);
    Run::of(command).expect(0);
    assert_eq!(bench.cloud.devices()[0].device_id, DAEMON_ID);
    // Docker gone, or another one in its place: the device stays who it is.
    let later = identity(&bench, "unix:///nonexistent/docker.sock");
    assert_eq!(later["device_id"], json!(DAEMON_ID));
    assert_eq!(later["device_id_origin"], json!("as provisioned"));
}

#[test]
fn without_docker_it_says_why_and_makes_nothing_up() {
    let bench = Bench::new();
    let run = bench.run(&["identity", "--name", "edge-1"]).expect(0);
    let first = run.stdout.lines().next().unwrap_or_default();
    insta::assert_snapshot!(first, @"  device id     a random one, made when provisioning: there is no Docker socket at /nonexistent/docker.sock");
    assert!(run.stdout.contains("edge-1"), "{}", run.stdout);
    assert_eq!(bench.state_files(), [""; 0]);
}

#[test]
fn a_docker_that_is_broken_or_hangs_does_not_take_long() {
    let bench = Bench::new();
    let host = docker(
        &bench,
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\n{}",
    );
    let broken = identity(&bench, &host);
    assert_eq!(broken["device_id"], Value::Null);

    let silent = bench.root().join("silent.sock");
    let _listener = UnixListener::bind(&silent).expect("a socket");
    let began = Instant::now();
    let hung = identity(&bench, &format!("unix://{}", silent.display()));
    assert!(began.elapsed() < Duration::from_secs(10));
    let why = hung["device_id_origin"].as_str().expect("a reason");
    assert!(why.contains("did not answer within 5 s"), "{why}");

    let odd = identity(&bench, "ssh://somewhere");
    let why = odd["device_id_origin"].as_str().expect("a reason");
    assert!(why.contains("not ssh://somewhere"), "{why}");
}

#[test]
fn the_facts_are_this_machines_unless_the_root_is_a_machine_of_its_own() {
    let bench = Bench::new();
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let here = identity(&bench, "unix:///nonexistent/docker.sock");
    assert_eq!(here["name"], json!(host_name.trim()));

    let root = bench.root();
    write_private(
        &root.join("proc/device-tree/model"),
        "Raspberry Pi 5 Model B Rev 1.0\0",
    );
    write_private(&root.join("proc/device-tree/serial-number"), "a1b2c3d4\0");
    write_private(&root.join("proc/sys/kernel/hostname"), "pi\n");
    let pi = identity(&bench, "unix:///nonexistent/docker.sock");
    assert_eq!(pi["name"], json!("pi"));
    assert_eq!(
        pi["hardware_id"],
        json!("Raspberry Pi 5 Model B Rev 1.0/a1b2c3d4")
    );
}

/// A network of its own, with a Docker bridge in front of the real interface.
#[test]
fn mac_and_ip_are_those_of_the_default_route() {
    if !is_root("a network namespace") {
        return;
    }
    let facts = |network: &str| {
        let bench = Bench::new();
        let script = format!(
            "mount -t sysfs sysfs /sys && {network} && exec '{}' --root '{}' identity --json",
            env!("CARGO_BIN_EXE_acusight-agent"),
            bench.root().display()
        );
        let mut command = std::process::Command::new("unshare");
        command
            .args(["--net", "--mount", "sh", "-ec", &script])
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock");
        Run::of(command).expect(0).json()
    };
    let link = |name: &str, mac: &str| {
        format!(
            "ip link add {name} address {mac} type veth peer name far-{name}; ip link set {name} up; ip link set far-{name} up"
        )
    };
    let bridge = format!(
        "{}; ip address add 172.17.0.1/16 dev docker0",
        link("docker0", "02:42:00:00:00:01")
    );
    let uplink = link("uplink0", "02:00:00:00:00:07");

    let ipv4 = facts(&format!(
        "{bridge}; {uplink}; ip address add 198.51.100.7/24 dev uplink0; ip route add default via 198.51.100.1"
    ));
    assert_eq!(ipv4["interface"], json!("uplink0"));
    assert_eq!(ipv4["ip_address"], json!("198.51.100.7"));
    assert_eq!(ipv4["mac_address"], json!("02:00:00:00:00:07"));

    let ipv6 = facts(&format!(
        "{bridge}; {uplink}; ip -6 address add 2001:db8::7/64 dev uplink0 nodad; ip -6 route add default via 2001:db8::1"
    ));
    assert_eq!(ipv6["interface"], json!("uplink0"));
    assert_eq!(ipv6["ip_address"], json!("2001:db8::7"));

    let none = facts(&bridge);
    assert_eq!(none["interface"], Value::Null);
    assert_eq!(none["mac_address"], Value::Null);
}
