//! Figures of the mock cloud and of the client, and of the start of the program.
//!
//! `cargo bench` prints them beside what is promised, and fails when a promise is broken. The
//! whole process is held on one core, the mock and its clients together.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use acusight_agent::api::client::Client;
use acusight_agent::api::http::Http;
use acusight_agent::api::{Checkin, DeviceInfo, Health, Metrics, ProvisionRequest};
use acusight_agent::clock::Clock;
use acusight_agent::config::ApiUrl;
use acusight_agent::mock::MockCloud;
use acusight_agent::secret::{DeviceKey, Secret};
use uuid::Uuid;

const DEVICES: u32 = 5_000;
const CHECKINS: u32 = 20_000;
const RACERS: u32 = 100;
const STARTS: usize = 200;
const CLIENTS: u32 = 4;

fn main() -> ExitCode {
    let core = rustix::thread::sched_getcpu();
    let mut one_core = rustix::thread::CpuSet::new();
    one_core.set(core);

    let starts = time_of_starts(&["--version"]);
    let kept = promise(
        "`--version`, median ms",
        starts.as_secs_f64() * 1e3,
        At::Most(3.0),
    );

    rustix::thread::sched_setaffinity(None, &one_core).expect("held on one core");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (provisions, key) = runtime.block_on(provision_many());
    let kept = kept
        & promise(
            "provisions of one token, per s",
            provisions,
            At::Least(200.0),
        );
    let (checkins, bytes) = runtime.block_on(check_in_many(key));
    let kept = kept & promise("check-ins on one core, per s", checkins, At::Least(2_000.0));
    println!(
        "{:<40} {bytes:>10.0}   (both ways, headers and all)",
        "bytes per check-in"
    );
    let winners = runtime.block_on(race());
    let kept = kept
        & promise(
            "winners of 100 racing for one use",
            winners,
            At::Exactly(1.0),
        );

    let demo = time_of_demo();
    let kept = kept
        & promise(
            "`demo` without Docker, s",
            demo.as_secs_f64(),
            At::Most(5.0),
        );
    if kept {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

enum At {
    Least(f64),
    Most(f64),
    Exactly(f64),
}

fn promise(what: &str, figure: f64, bound: At) -> bool {
    let (kept, bound, sign) = match bound {
        At::Least(bound) => (figure >= bound, bound, ">="),
        At::Most(bound) => (figure <= bound, bound, "<="),
        At::Exactly(bound) => ((figure - bound).abs() < 0.5, bound, "=="),
    };
    let verdict = if kept { "ok" } else { "BROKEN" };
    println!("{what:<40} {figure:>10.2}   {sign} {bound:<8} {verdict}");
    kept
}

fn client(cloud: &MockCloud) -> Client {
    let base = ApiUrl::parse(&cloud.api_url(), false).expect("a good address");
    let http = Http::new(None, &base, Clock::system()).expect("a client");
    Client::new(http, base)
}

fn request(token: &Secret, device_id: String) -> ProvisionRequest {
    ProvisionRequest {
        token: token.clone(),
        device_info: DeviceInfo {
            device_id,
            ..DeviceInfo::default()
        },
    }
}

/// Provisions per second, and the cloud with the key of one of the devices.
async fn provision_many() -> (f64, (MockCloud, DeviceKey)) {
    let cloud = MockCloud::start();
    let token = cloud.create_token("bench", false);
    let began = Instant::now();
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (client, token) = (client(&cloud), token.clone());
            tokio::spawn(async move {
                let mut last = None;
                for device in (number..DEVICES).step_by(CLIENTS as usize) {
                    let request = request(&token, format!("device-{device}"));
                    let issued = client.provision(&request, Uuid::new_v4()).await;
                    last = Some(issued.expect("no error in 5,000").api_key);
                }
                last.expect("at least one device")
            })
        })
        .collect();
    let mut key = None;
    for task in tasks {
        key = Some(task.await.expect("no panic"));
    }
    let elapsed = began.elapsed();
    assert_eq!(cloud.devices().len(), DEVICES as usize);
    let key = DeviceKey::parse(key.expect("a key").expose()).expect("a good key");
    (f64::from(DEVICES) / elapsed.as_secs_f64(), (cloud, key))
}

/// Check-ins per second, and bytes on the wire for each.
async fn check_in_many((cloud, key): (MockCloud, DeviceKey)) -> (f64, f64) {
    let checkin = Arc::new(Checkin {
        status: Health::Healthy,
        metrics: Metrics {
            cpu_usage: Some(12.5),
            memory_usage: Some(40.25),
            disk_usage: Some(61.0),
            temperature: Some(51.5),
            uptime: Some(86_400),
        },
    });
    let bytes = || cloud.counters().bytes_in() + cloud.counters().bytes_out();
    let bytes_before = bytes();
    let began = Instant::now();
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (client, key, checkin) = (client(&cloud), key.clone(), Arc::clone(&checkin));
            tokio::spawn(async move {
                for _ in 0..CHECKINS / CLIENTS {
                    client.checkin(&key, &checkin).await.expect("accepted");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    let elapsed = began.elapsed();
    let checkins = f64::from(CHECKINS);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = (bytes() - bytes_before) as f64;
    (checkins / elapsed.as_secs_f64(), bytes / checkins)
}

async fn race() -> f64 {
    let cloud = MockCloud::start();
    let token = cloud.create_token("single", true);
    let tasks: Vec<_> = (0..RACERS)
        .map(|racer| {
            let client = client(&cloud);
            let request = request(&token, format!("racer-{racer}"));
            tokio::spawn(async move { client.provision(&request, Uuid::new_v4()).await.is_ok() })
        })
        .collect();
    let mut winners = 0;
    for task in tasks {
        winners += u32::from(task.await.expect("no panic"));
    }
    f64::from(winners)
}

fn time_of_starts(args: &[&str]) -> Duration {
    let mut times: Vec<Duration> = (0..STARTS)
        .map(|_| {
            let began = Instant::now();
            let status = Command::new(env!("CARGO_BIN_EXE_acusight-agent"))
                .args(args)
                .stdout(Stdio::null())
                .status();
            assert!(status.expect("it starts").success());
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[STARTS / 2]
}

fn time_of_demo() -> Duration {
    let began = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_acusight-mock"))
        .arg("demo")
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.expect("it starts").success());
    began.elapsed()
}
