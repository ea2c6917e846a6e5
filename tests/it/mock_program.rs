//! `acusight-mock serve`, as a developer runs it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use acusight_agent::mock::ADMIN_TOKEN;
use serde_json::{Value, json};

use crate::support::{Bench, Run, write_private};

struct Served {
    child: Child,
    api_url: String,
}

impl Served {
    fn start(args: &[&str]) -> Served {
        let mut child = Command::new(env!("CARGO_BIN_EXE_acusight-mock"))
            .args(["serve", "--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut line)
            .expect("a ready line");
        let ready: Value = serde_json::from_str(&line).expect("JSON");
        let api_url = ready["api_url"].as_str().expect("an address").to_owned();
        Served { child, api_url }
    }

    fn origin(&self) -> &str {
        self.api_url.trim_end_matches("/api")
    }

    fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Vec<u8>) {
        let mut command = Command::new("curl");
        command.args(["-sS", "-X", method, "-w", "%{stderr}%{http_code}"]);
        if let Some(body) = body {
            command.args([
                "-H",
                "content-type: application/json",
                "-d",
                &body.to_string(),
            ]);
        }
        let output = command
            .arg(format!("{}{path}", self.origin()))
            .output()
            .expect("curl is installed");
        let status = String::from_utf8(output.stderr).expect("text");
        (
            status.parse().unwrap_or_else(|_| panic!("{status}")),
            output.stdout,
        )
    }

    fn ask_json(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).expect("JSON")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn it_serves_the_agent_and_is_changed_from_outside() {
    let served = Served::start(&["--admin-token", "s3cret"]);
    let bench = Bench::new();
    let agent = |args: &[&str]| {
        let mut command = bench.agent(args);
        command
            .env("ACUSIGHT_API_URL", &served.api_url)
            .env("ACUSIGHT_ADMIN_TOKEN", "s3cret");
        Run::of(command)
    };
    let created = agent(&["token", "create", "t", "--json"]).expect(0).json();
    let token = created["token"].as_str().expect("a token");
    let provision = [
        "provision",
        token,
        "--no-edge",
        "--no-service",
        "--allow-volatile-state",
    ];

    let expired = json!({"route": "provision", "fault": {"status": {"status": 401, "code": "TOKEN_EXPIRED"}}, "times": 1});
    served.ask_json("POST", "/_mock/faults", Some(expired));
    agent(&provision).expect(4);
    agent(&provision).expect(0);

    let devices = served.ask_json("GET", "/_mock/devices", None);
    let id = devices["data"][0]["device_id"].as_str().expect("a device");
    let action = json!({"device_id": id, "action": {"id": 1, "type": "ping"}});
    served.ask_json("POST", "/_mock/actions", Some(action));
    served.ask_json("POST", &format!("/_mock/devices/{id}/revoke"), None);
    agent(&["status"]).expect(12);
    served.ask_json("DELETE", &format!("/_mock/devices/{id}"), None);
    assert_eq!(
        served
            .ask("DELETE", &format!("/_mock/devices/{id}"), None)
            .0,
        404
    );

    served.ask_json(
        "POST",
        "/_mock/clock",
        Some(json!({"advance_seconds": 31 * 86400})),
    );
    let now = served.ask_json("GET", "/_mock/clock", None)["data"]["now"].clone();
    assert!(now.as_str().expect("a time") > created["expires_at"].as_str().expect("a time"));
    assert!(agent(&provision).expect(4).stderr.contains("has expired"));

    let seen = served.ask_json("GET", "/_mock/requests", None);
    assert!(
        seen["data"]["counters"]["requests"]
            .as_u64()
            .expect("a count")
            > 8
    );
    assert!(!seen.to_string().contains(token));
    served.ask_json("DELETE", "/_mock/faults", None);
    assert_eq!(served.ask("GET", "/_mock/unknown", None).0, 404);
    let nonsense = json!({"route": "provision", "fault": {"explode": {}}});
    assert_eq!(served.ask("POST", "/_mock/faults", Some(nonsense)).0, 400);
}

#[test]
fn it_serves_files_to_installers_and_nothing_above_them() {
    let bench = Bench::new();
    write_private(&bench.root().join("files/setup.sh"), "echo hello\n");
    write_private(&bench.root().join("files/1.0/acusight-agent"), "\u{7f}ELF");
    write_private(&bench.root().join("secret"), "x");
    let files = bench.root().join("files");
    let served = Served::start(&["--files", files.to_str().expect("a name")]);
    let get = |path: &str| served.ask("GET", path, None);
    assert_eq!(get("/setup"), (200, b"echo hello\n".to_vec()));
    assert_eq!(
        get("/download/1.0/acusight-agent"),
        (200, b"\x7fELF".to_vec())
    );
    assert_eq!(get("/download/missing").0, 404);
    assert_eq!(get("/download/..%2fsecret").0, 404);
    let mut climb = Command::new("curl");
    climb.args([
        "-sS",
        "--path-as-is",
        "-w",
        "%{http_code}",
        "-o",
        "/dev/null",
    ]);
    climb.arg(format!("{}/download/../secret", served.origin()));
    let status = climb.output().expect("curl is installed").stdout;
    assert_eq!(String::from_utf8_lossy(&status), "404");
}

#[test]
fn it_stops_when_told_and_says_when_it_cannot_start() {
    let mut served = Served::start(&[]);
    let address = served.origin().trim_start_matches("http://").to_owned();
    let second = Command::new(env!("CARGO_BIN_EXE_acusight-mock"))
        .args(["serve", "--listen", &address])
        .output()
        .expect("it starts");
    assert_eq!(second.status.code(), Some(1));
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(told.contains("could not listen on"), "{told}");

    let pid = rustix::process::Pid::from_child(&served.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    assert!(served.child.wait().expect("it ends").success());

    let help = Command::new(env!("CARGO_BIN_EXE_acusight-mock"))
        .args(["serve", "--help"])
        .output()
        .expect("it starts");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("What it does not check"), "{help}");
    assert!(help.contains(ADMIN_TOKEN), "{help}");
}

#[test]
fn the_demo_tells_its_story_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let demo = Command::new(env!("CARGO_BIN_EXE_acusight-mock"))
        .arg("demo")
        .env("TMPDIR", scratch.path())
        .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
        .env("HTTP_PROXY", "http://127.0.0.1:9")
        .output()
        .expect("it starts");
    let told = String::from_utf8_lossy(&demo.stdout).into_owned();
    assert!(
        demo.status.success(),
        "{told}\n{}",
        String::from_utf8_lossy(&demo.stderr)
    );
    for part in [
        "This device is provisioned.",
        "approved",
        "once, at",
        "Every step was verified",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
    assert_eq!(std::fs::read_dir(&scratch).expect("there").count(), 0);
}
