//! Flag, environment, file, default: which one wins, and what a bad one earns.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;

use crate::support::{Bench, Run, write_private};

/// The API address that is in force, as an error about reaching it tells.
fn address_in_force(bench: &Bench, args: &[&str], env: &[(&str, &str)]) -> String {
    let mut command = bench.bare_agent(&["token", "list", "--json", "--retry-for", "0"]);
    command
        .args(args)
        .env("ACUSIGHT_ADMIN_TOKEN", "x")
        .envs(env.iter().copied());
    let run = Run::of(command);
    let message = run.json()["error"]["message"].to_string();
    let host = message
        .split(['"', ' ', ':'])
        .find(|word| word.ends_with(".invalid"));
    host.unwrap_or_else(|| panic!("{message}")).to_owned()
}

fn settings_file(bench: &Bench, text: &str) {
    write_private(&bench.root().join("etc/acusight/agent.toml"), text);
}

#[test]
fn a_flag_beats_a_variable_beats_the_file() {
    let bench = Bench::new();
    settings_file(&bench, "api_url = \"https://file.invalid\"\n");
    let flag = ["--api-url", "https://flag.invalid"];
    let env = [("ACUSIGHT_API_URL", "https://env.invalid")];
    assert_eq!(address_in_force(&bench, &flag, &env), "flag.invalid");
    assert_eq!(address_in_force(&bench, &[], &env), "env.invalid");
    assert_eq!(address_in_force(&bench, &[], &[]), "file.invalid");
}

#[test]
fn bad_settings_are_named_with_their_place() {
    let bench = Bench::new();
    let told = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = bench.bare_agent(&["token", "list"]);
        command
            .args(args)
            .env("ACUSIGHT_ADMIN_TOKEN", "x")
            .envs(env.iter().copied());
        Run::of(command).told()
    };
    insta::assert_snapshot!(told(&["--api-url", "acusight.io"], &[]), @"
    exit 2
    -- stderr
    error: --api-url: this is not an address of the form https://HOST/api
    hint: it looks like https://acusight.io/api or http://192.168.1.10:8080/api
    ");
    insta::assert_snapshot!(told(&["--api-url", "http://192.0.2.1:8080"], &[]), @"
    exit 2
    -- stderr
    error: --api-url: plain http would send the token and the key unprotected
    hint: use https, or add --allow-http if this is your own server on a network you trust
    ");
    insta::assert_snapshot!(told(&["--api-url", "https://u:hunter2@acusight.io"], &[]), @"
    exit 2
    -- stderr
    error: --api-url: an API address carries no user, password, query or fragment
    hint: it looks like https://acusight.io/api or http://192.168.1.10:8080/api
    ");
    insta::assert_snapshot!(told(&[], &[("ACUSIGHT_API_URL", "ftp://acusight.io")]), @"
    exit 2
    -- stderr
    error: ACUSIGHT_API_URL: only https (or http) is spoken here
    hint: it looks like https://acusight.io/api or http://192.168.1.10:8080/api
    ");
    insta::assert_snapshot!(told(&[], &[("ACUSIGHT_ALLOW_HTTP", "maybe")]), @"
    exit 2
    -- stderr
    error: ACUSIGHT_ALLOW_HTTP must be 1 or 0
    hint: set it so, or unset it
    ");
    insta::assert_snapshot!(told(&[], &[("ACUSIGHT_RETRY_FOR", "soon")]), @"
    exit 2
    -- stderr
    error: ACUSIGHT_RETRY_FOR must be a whole number of seconds
    hint: set it so, or unset it
    ");
    insta::assert_snapshot!(told(&["--ca-cert", "/nonexistent.pem"], &[]), @"
    exit 2
    -- stderr
    error: no certificate was found in /nonexistent.pem
    hint: --ca-cert takes a PEM file: blocks that begin with -----BEGIN CERTIFICATE-----
    ");
    settings_file(
        &bench,
        "api_url = \"https://acusight.io\"\napi_key = \"adk_00\"\n",
    );
    insta::assert_snapshot!(told(&[], &[]), @"
    exit 2
    -- stderr
    error: [ROOT]/etc/acusight/agent.toml line 2: unknown field `api_key`, expected one of `api_url`, `allow_http`, `ca_cert`, `retry_for`
    hint: known settings: api_url, allow_http, ca_cert, retry_for
    ");
    settings_file(&bench, "\n\napi_url = \n");
    insta::assert_snapshot!(told(&[], &[]), @"
    exit 2
    -- stderr
    error: [ROOT]/etc/acusight/agent.toml line 3: string values must be quoted, expected literal string
    hint: known settings: api_url, allow_http, ca_cert, retry_for
    ");
    write_private(&bench.root().join("empty.pem"), "no certificate\n");
    settings_file(&bench, "");
    let pem = bench.root().join("empty.pem");
    insta::assert_snapshot!(told(&["--ca-cert", pem.to_str().expect("a name")], &[]), @"
    exit 2
    -- stderr
    error: no certificate was found in [ROOT]/empty.pem
    hint: --ca-cert takes a PEM file: blocks that begin with -----BEGIN CERTIFICATE-----
    ");
}

#[test]
fn plain_http_to_another_machine_needs_to_be_allowed() {
    let bench = Bench::new();
    for allow in ["flag", "variable", "file"] {
        let mut command = bench.bare_agent(&["token", "list", "--retry-for", "0"]);
        command
            .args(["--api-url", "http://lan.invalid:8080"])
            .env("ACUSIGHT_ADMIN_TOKEN", "x");
        match allow {
            "flag" => drop(command.arg("--allow-http")),
            "variable" => drop(command.env("ACUSIGHT_ALLOW_HTTP", "1")),
            _ => settings_file(&bench, "allow_http = true\n"),
        }
        Run::of(command).expect(6);
    }
}

#[test]
fn a_state_directory_of_ones_own() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let elsewhere = bench.root().join("elsewhere");
    let flag = ["--state-dir", elsewhere.to_str().expect("a name")];
    Run::of(bench.provision_command(&token, &flag)).expect(0);
    assert!(elsewhere.join("device-key").exists());
    assert_eq!(bench.state_files(), [""; 0]);

    bench.run(&["status"]).expect(11);
    for name in ["ACUSIGHT_STATE_DIR", "STATE_DIRECTORY"] {
        let mut command = bench.agent(&["status"]);
        command.env(name, &elsewhere);
        Run::of(command).expect(0);
    }
}

#[test]
fn a_persons_own_installation_lives_in_their_home() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let file = bench.token_file(token.expose());
    let provision = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_acusight-agent"));
        command
            .env_clear()
            .env("HOME", bench.root())
            .env("DOCKER_HOST", "unix:///nonexistent/docker.sock")
            .env("ACUSIGHT_API_URL", bench.cloud.api_url())
            .args([
                "--user",
                "provision",
                "--no-edge",
                "--no-service",
                "--allow-volatile-state",
                "--token-file",
            ])
            .arg(&file);
        Run::of(command)
    };
    provision().expect(0);
    let key = bench.root().join(".local/state/acusight/device-key");
    let stored = std::fs::read(&key).expect("a key");
    provision().expect(0);
    assert_eq!(std::fs::read(&key).expect("a key"), stored);
}

#[test]
fn version_and_help_are_answers() {
    let bench = Bench::new();
    let version = bench.run(&["--version"]).expect(0).stdout;
    let expected = format!("acusight-agent {} (", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&expected), "{version}");
    let inside = version.split(['(', ')']).nth(1).expect("commit and target");
    let (commit, target) = inside.split_once(", ").expect("two parts");
    assert!(commit == "unknown" || commit.len() == 12, "{commit}");
    assert!(target.contains("linux"), "{target}");

    let help = bench.run(&["--help"]).expect(0);
    assert!(help.stderr.is_empty() && help.stdout.contains("Exit codes:"));
    insta::assert_snapshot!(bench.run(&["provison"]).told(), @"
    exit 2
    -- stderr
    error: unrecognized subcommand 'provison'
    hint: tip: a similar subcommand exists: 'provision'
    Usage: acusight-agent [OPTIONS] <COMMAND>
    For more information, try '--help'.
    ");
    insta::assert_snapshot!(bench.run(&["provision", "--json", "--no-such-flag"]).told(), @r#"
    exit 2
    -- stderr
    error: unexpected argument '--no-such-flag' found
    hint: tip: to pass '--no-such-flag' as a value, use '-- --no-such-flag'
    Usage: acusight-agent provision --json [TOKEN]
    For more information, try '--help'.
    -- stdout
    {"error":{"code":2,"hint":"tip: to pass '--no-such-flag' as a value, use '-- --no-such-flag'\nUsage: acusight-agent provision --json [TOKEN]\nFor more information, try '--help'.","id":"usage","message":"unexpected argument '--no-such-flag' found","retryable":false,"token":null},"schema":1}
    "#);
}

#[test]
fn log_lines_take_the_form_that_is_asked_for() {
    let bench = Bench::new();
    let first_log_line = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = bench.agent(&["token", "list", "-vv"]);
        command
            .args(args)
            .env("ACUSIGHT_ADMIN_TOKEN", acusight_agent::mock::ADMIN_TOKEN)
            .envs(env.iter().copied());
        let run = Run::of(command).expect(0);
        let line = run.stderr.lines().find(|line| line.contains("answered"));
        let line = line.unwrap_or_else(|| panic!("{}", run.stderr)).to_owned();
        line.split(" ms=").next().unwrap_or_default().to_owned()
    };
    insta::assert_snapshot!(first_log_line(&[], &[]), @"[TIME] DEBUG answered method=GET path=/api/provisioning-tokens status=200");
    insta::assert_snapshot!(first_log_line(&[], &[("JOURNAL_STREAM", "8:1")]), @"<7>answered method=GET path=/api/provisioning-tokens status=200");
    let json = first_log_line(&["--log-format", "json"], &[("JOURNAL_STREAM", "8:1")]);
    let line: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(line["level"], serde_json::json!("debug"));
    assert_eq!(line["status"], serde_json::json!("200"));
    let by_variable = first_log_line(&[], &[("ACUSIGHT_LOG_FORMAT", "journald")]);
    assert!(by_variable.starts_with("<7>"), "{by_variable}");
    let mut command = bench.agent(&["status"]);
    command.env("ACUSIGHT_LOG_FORMAT", "xml");
    insta::assert_snapshot!(Run::of(command).told(), @"
    exit 2
    -- stderr
    error: ACUSIGHT_LOG_FORMAT must be human, journald or json
    hint: set it so, or unset it
    ");
}

#[test]
fn colour_is_for_those_who_ask() {
    let bench = Bench::new();
    let plain = bench.run(&["status"]).expect(11).stderr;
    assert!(!plain.contains('\u{1b}'), "{plain:?}");
    let coloured = bench
        .run(&["status", "--color", "always"])
        .expect(11)
        .stderr;
    assert!(coloured.contains('\u{1b}'), "{coloured:?}");
}

#[test]
fn proxies_are_those_of_the_environment_and_this_machine_is_reached_directly() {
    let proxy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", proxy.local_addr().expect("an address"));
    let seen = std::thread::spawn(move || {
        let (mut stream, _) = proxy.accept().expect("a client");
        let mut request = [0; 4096];
        let read = stream.read(&mut request).expect("a request");
        stream
            .write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
            .expect("answered");
        String::from_utf8_lossy(&request[..read]).into_owned()
    });
    let bench = Bench::new();
    let list = |api_url: &str| {
        let mut command = bench.bare_agent(&["token", "list", "--allow-http", "--retry-for", "0"]);
        command
            .env("ACUSIGHT_API_URL", api_url)
            .env("ACUSIGHT_ADMIN_TOKEN", acusight_agent::mock::ADMIN_TOKEN)
            .env("HTTP_PROXY", &address);
        command
    };
    Run::of(list(&bench.cloud.api_url())).expect(0);
    let mut excepted = list("http://lan.invalid:8080");
    excepted.env("NO_PROXY", "lan.invalid");
    assert!(
        Run::of(excepted)
            .expect(6)
            .stderr
            .contains("could not be resolved")
    );
    insta::assert_snapshot!(Run::of(list("http://lan.invalid:8080")).told(), @"
    exit 6
    -- stderr
    error: the server could not do it: http://lan.invalid:8080/api did not answer like the Acusight API: HTTP 407, and no answer in its format
    hint: the proxy wants a user and password: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT
    ");
    let seen = seen.join().expect("no panic");
    assert!(
        seen.starts_with("GET http://lan.invalid:8080/api/provisioning-tokens "),
        "{seen}"
    );
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let full = || {
        std::fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("there")
    };
    let run = |mut command: std::process::Command| {
        let child = command.stdout(full()).stderr(Stdio::piped()).spawn();
        Run::from_output(
            child
                .expect("it starts")
                .wait_with_output()
                .expect("it ends"),
        )
    };
    insta::assert_snapshot!(run(bench.provision_command(&token, &[])).error(), @"
    exit 1
    error: could not write to standard output: No space left on device (os error 28)
    ");
    // What was done is done.
    assert_eq!((bench.uses(), bench.device_key().is_some()), (1, true));
    bench.run(&["status"]).expect(0);
    run(bench.agent(&["status"])).expect(1);
    run(bench.agent(&["status", "--json"])).expect(1);
}
