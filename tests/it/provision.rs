//! `provision` from end to end: what is told, what is sent, what is on the disk, what became of
//! the token.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use acusight_agent::mock::{Fault, MockCloud, Moment, Route};
use acusight_agent::secret::Secret;
use serde_json::json;

use crate::support::{Bench, Run, Running, WITHOUT_THE_REST, lost_answer, write_private};

fn provision_calls(bench: &Bench) -> usize {
    let requests = bench.cloud.requests();
    requests
        .iter()
        .filter(|request| request.route == Some(Route::Provision))
        .count()
}

#[test]
fn a_token_becomes_a_device_with_a_key() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let run = bench.provision(&token);
    insta::assert_snapshot!(run.told(), @"
    exit 0
    -- stderr
      ok   token found   from [ROOT]/given-token
      ok   machine ready [ROOT]/var/lib/acusight
      ok   server found  http://127.0.0.1:[PORT]/api
      ok   device        [UUID]
      ok   provisioned   [UUID]
      ok   key stored    [ROOT]/var/lib/acusight/device-key
      ok   key verified  127.0.0.1 accepts the key
    The token is still in [ROOT]/given-token; if nothing else needs it: rm [ROOT]/given-token
    Next: acusight-agent status
    -- stdout

    This device is provisioned.

      device   [UUID]
      name     edge-1
      server   http://127.0.0.1:[PORT]/api
      status   approved
      key      [ROOT]/var/lib/acusight/device-key
    ");

    let devices = bench.cloud.devices();
    assert_eq!(devices.len(), 1);
    let info = &devices[0].info;
    assert_eq!(info.name.as_deref(), Some("edge-1"));
    assert_eq!(
        info.agent_version.as_deref(),
        Some(env!("CARGO_PKG_VERSION"))
    );
    assert_eq!(bench.uses(), 1);

    let state = bench.state_dir();
    assert_eq!(
        bench.state_files(),
        ["device-key", "device-key.bak", "device.json", "lock"]
    );
    assert_eq!(fs::metadata(&state).expect("there").mode() & 0o777, 0o700);
    for name in bench.state_files() {
        let mode = fs::metadata(state.join(&name)).expect("there").mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    let key = bench.device_key().expect("a key");
    assert!(key.starts_with("adk_"));
    let record = fs::read_to_string(state.join("device.json")).expect("a record");
    insta::assert_snapshot!(record, @r#"
    {
      "schema": 1,
      "device_id": "[UUID]",
      "name": "edge-1",
      "api_url": "http://127.0.0.1:[PORT]/api",
      "portainer_endpoint_id": 1,
      "provisioned_at": "[TIME]"
    }
    "#);
}

#[test]
fn json_is_one_object_on_stdout_and_the_steps_stay_on_stderr() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let run = Run::of(bench.provision_command(&token, &["--json"])).expect(0);
    let answer = run.json();
    assert_eq!(answer["schema"], json!(1));
    assert_eq!(answer["already"], json!(false));
    assert_eq!(
        answer["device_id"],
        json!(bench.cloud.devices()[0].device_id)
    );
    assert_eq!(answer["key"]["store"], json!("file"));
    assert!(run.stderr.contains("key stored"), "{}", run.stderr);

    let again = Run::of(bench.provision_command(&token, &["--json", "--quiet"])).expect(0);
    assert_eq!(again.json()["already"], json!(true));
    assert_eq!(again.stderr, "");
}

#[test]
fn provisioned_already_means_done_and_the_token_stays_good() {
    let bench = Bench::new();
    let first = bench.cloud.create_token("first", true);
    bench.provision(&first).expect(0);
    let key = bench.device_key();

    let second = bench.cloud.create_token("second", true);
    let run = bench.provision(&second).expect(0);
    insta::assert_snapshot!(run.told(), @"
    exit 0
    -- stderr
      ok   key verified  127.0.0.1 knows this device
    The token is still in [ROOT]/given-token; if nothing else needs it: rm [ROOT]/given-token
    Next: acusight-agent status
    -- stdout

    This device is provisioned already; nothing was changed, and no token was used.

      device   [UUID]
      name     edge-1
      server   http://127.0.0.1:[PORT]/api
      status   approved
      key      [ROOT]/var/lib/acusight/device-key
    ");
    assert_eq!(provision_calls(&bench), 1);
    assert_eq!(bench.device_key(), key);
    // Even without any token there is nothing to ask for.
    let mut bare = bench.agent(&["provision"]);
    bare.args(WITHOUT_THE_REST);
    Run::of(bare).expect(0);
}

#[test]
fn without_the_two_flags_it_says_what_this_build_cannot_do_and_uses_nothing() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    for flags in [&[][..], &["--no-edge"], &["--no-service"]] {
        let file = bench.token_file(token.expose());
        let mut command = bench.agent(&["provision", "--token-file"]);
        command.arg(file).args(flags);
        let run = Run::of(command);
        insta::allow_duplicates! { insta::assert_snapshot!(run.told(), @"
        exit 3
        -- stderr
        error: this build cannot launch the edge agent or install the service yet
        token: the token was not used
        hint: add --no-edge --no-service to provision the device without them
        ") };
    }
    assert_eq!(bench.cloud.requests().len(), 0);
    assert_eq!(bench.state_files(), [""; 0]);
}

#[test]
fn a_rejected_token_leaves_nothing_behind() {
    let bench = Bench::new();
    let run = bench.provision(&Secret::new("apt_00"));
    insta::assert_snapshot!(run.error(), @"
    exit 4
    error: the token was rejected: the server refused: the provisioning token is not valid (HTTP 401)
    hint: it may be mistyped, revoked, or a single-use token that was used; ask the administrator for a new one
    ");
    assert_eq!(bench.state_files(), ["lock"]);
    assert_eq!(bench.cloud.devices().len(), 0);
}

#[test]
fn an_expired_token() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.clock().advance(Duration::from_secs(31 * 86400));
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 4
    error: the token has expired: the server refused: the provisioning token has expired (HTTP 401)
    hint: ask the administrator for a new token (`acusight-agent token create NAME`)
    ");
    assert_eq!(bench.uses(), 0);
    assert_eq!(bench.state_files(), ["lock"]);
}

#[test]
fn a_device_that_exists() {
    let bench = Bench::new();
    let conflict = Fault::status(409, "DEVICE_EXISTS");
    bench.cloud.inject(conflict.on(Route::Provision).times(1));
    let token = bench.cloud.create_token("t", true);
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 5
    error: the server knows a device [UUID] already: the server refused: an injected fault (HTTP 409)
    token: the token was not used
    hint: if that is this machine, delete device [UUID] in the dashboard and run the same command again; if it is another (a cloned disk), add --new-identity
    ");
    assert_eq!(bench.uses(), 0);
    assert_eq!(bench.state_files(), ["lock"]);
    // The way out that the hint names.
    Run::of(bench.provision_command(&token, &["--new-identity"])).expect(0);
}

#[test]
fn a_request_that_the_server_finds_invalid() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let name = "x".repeat(300);
    let mut command = bench.agent(&["provision", token.expose(), "--name", &name]);
    command.args(WITHOUT_THE_REST);
    insta::assert_snapshot!(Run::of(command).error(), @"
    exit 7
    error: the device was not provisioned: the server refused: the request is not valid: device_info.name: at most 255 characters (HTTP 400)
    token: the token was not used
    hint: correct what the server names, then run it again
    ");
    assert_eq!(
        (bench.uses(), bench.state_files()),
        (0, vec!["lock".to_owned()])
    );
}

#[test]
fn a_server_that_nobody_runs() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let mut command = bench.provision_command(&token, &["--retry-for", "0"]);
    // Port 9 of loopback: nothing listens there.
    command.env("ACUSIGHT_API_URL", "http://127.0.0.1:9");
    insta::assert_snapshot!(Run::of(command).error(), @"
    exit 6
    error: the server could not be asked: could not connect to 127.0.0.1: Connection refused (os error 111)
    token: the token was not used
    hint: check that the server runs there, and that a firewall or proxy (HTTPS_PROXY, NO_PROXY) lets this machine reach it
    ");
    assert_eq!(bench.state_files(), ["lock"]);
}

#[test]
fn a_name_that_does_not_resolve() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let mut command = bench.provision_command(&token, &["--retry-for", "0"]);
    command.env("ACUSIGHT_API_URL", "https://acusight.invalid");
    let run = Run::of(command).expect(6);
    let told =
        "error: the server could not be asked: the name acusight.invalid could not be resolved";
    assert!(run.error().contains(told), "{}", run.told());
    assert!(run.error().contains("DNS server"), "{}", run.told());
}

#[test]
fn a_captive_portal_is_no_server_and_no_reason_to_doubt_the_token() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench
        .cloud
        .inject(Fault::CaptivePortal.on(Route::DeviceSelf));
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 6
    error: the server could not be asked: http://127.0.0.1:[PORT]/api did not answer like the Acusight API: HTTP 200, and no answer in its format
    token: the token was not used
    hint: a login page of this network may be in the way: open a browser on it; else check --api-url (http://127.0.0.1:[PORT]/api)
    ");
    assert_eq!(provision_calls(&bench), 0);
}

#[test]
fn a_redirect_is_not_followed() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let elsewhere = MockCloud::start();
    let redirect = Fault::Redirect {
        location: format!("{}/api/device/self", elsewhere.origin()),
    };
    bench.cloud.inject(redirect.on(Route::DeviceSelf));
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 6
    error: the server could not be asked: http://127.0.0.1:[PORT]/api did not answer like the Acusight API: HTTP 302, a redirect to 127.0.0.1
    token: the token was not used
    hint: a login page of this network may be in the way: open a browser on it; else check --api-url (http://127.0.0.1:[PORT]/api)
    ");
    assert_eq!(elsewhere.requests().len(), 0);
}

#[test]
fn a_server_in_trouble_is_asked_again_as_it_wishes() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let busy = Fault::Status {
        status: 503,
        code: "UNAVAILABLE".into(),
        retry_after: Some("1".into()),
    };
    bench.cloud.inject(busy.on(Route::Provision).times(2));
    let began = std::time::Instant::now();
    let run = Run::of(bench.provision_command(&token, &["--retry-for", "60"])).expect(0);
    assert!(
        began.elapsed() >= Duration::from_secs(2),
        "Retry-After is a floor"
    );
    assert_eq!(provision_calls(&bench), 3);
    assert_eq!(
        run.stderr.matches("trying again in").count(),
        2,
        "{}",
        run.stderr
    );
    let ids: Vec<String> = bench
        .cloud
        .requests()
        .iter()
        .filter_map(|request| request.headers.get("idempotency-key").cloned())
        .collect();
    assert_eq!(ids.len(), 3);
    assert!(
        ids.iter().all(|id| *id == ids[0]),
        "one request id: {ids:?}"
    );
}

#[test]
fn a_server_that_stays_in_trouble() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench
        .cloud
        .inject(Fault::status(500, "INTERNAL_ERROR").on(Route::Provision));
    let run = Run::of(bench.provision_command(&token, &["--retry-for", "0"]));
    insta::assert_snapshot!(run.error(), @"
    exit 8
    error: the device may have been provisioned, but there is no answer with its key: the server refused: an injected fault (HTTP 500)
    token: the token may be spent
    hint: run the same command again with the same token: it goes on where this one stopped
    ");
    // What failed may have happened: the journal stays, and the next run goes on with it.
    assert_eq!(bench.state_files(), ["lock", "provisioning.json"]);
}

#[test]
fn a_server_that_says_yes_without_a_key() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let answer = Fault::Body {
        status: 201,
        text: json!({"success": true, "data": {"device_id": "d"}}).to_string(),
    };
    bench.cloud.inject(answer.on(Route::Provision).times(1));
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 8
    error: the device may have been provisioned, but there is no answer with its key: the server said yes, but its answer cannot be used: missing field `api_key` at line 1 column 25
    token: the token may be spent
    hint: run the same command again; if that does not help, show this to Acusight's support, delete the device in the dashboard, and start over with a new token
    ");
    assert_eq!(bench.state_files(), ["lock", "provisioning.json"]);
}

#[test]
fn interrupted_before_the_call_and_in_the_middle_of_it() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let hang = |moment, route| Fault::Hang { moment }.on(route).times(1);
    bench
        .cloud
        .inject(hang(Moment::BeforeCommit, Route::DeviceSelf));
    let run = Running::start(bench.provision_command(&token, &[]));
    bench.wait_for_call(Route::DeviceSelf);
    run.signal(rustix::process::Signal::INT);
    insta::assert_snapshot!(run.finish().error(), @"
    exit 130
    error: interrupted
    token: the token was not used
    hint: run the same command again
    ");
    assert_eq!(bench.state_files(), ["lock"]);

    bench
        .cloud
        .inject(hang(Moment::AfterCommit, Route::Provision));
    let run = Running::start(bench.provision_command(&token, &[]));
    bench.wait_for_call(Route::Provision);
    run.signal(rustix::process::Signal::TERM);
    insta::assert_snapshot!(run.finish().error(), @"
    exit 130
    error: interrupted
    token: the token may be spent
    hint: run the same command again with the same token: it goes on where this one stopped
    ");
    assert_eq!(bench.state_files(), ["lock", "provisioning.json"]);

    bench.provision(&token).expect(0);
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_key_that_finds_no_disk_goes_to_memory_and_from_there_to_its_place() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let late = Fault::Delay { ms: 1500 };
    bench.cloud.inject(late.on(Route::Provision).times(1));
    let run = Running::start(bench.provision_command(&token, &[]));
    let journal = bench.state_dir().join("provisioning.json");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !journal.exists() {
        assert!(std::time::Instant::now() < deadline, "no journal");
        std::thread::yield_now();
    }
    // The card falls out between the call and its answer.
    fs::remove_dir_all(bench.state_dir()).expect("removed");
    insta::assert_snapshot!(run.finish().error(), @"
    exit 9
    error: the key was issued, but could not be stored in the state directory: could not find [ROOT]/var/lib/acusight: No such file or directory (os error 2)
    token: the token was used
    hint: the key is in [ROOT]/run/acusight/issued-key until this machine restarts: mend the state directory and run the same command again before that
    ");
    let refuge = bench.root().join("run/acusight/issued-key");
    assert_eq!(fs::metadata(&refuge).expect("there").mode() & 0o777, 0o600);

    // A new card, and the same command: no journal, no token needed, the key is found.
    let mut again = bench.agent(&["provision"]);
    again.args(WITHOUT_THE_REST);
    Run::of(again).expect(0);
    assert!(bench.device_key().is_some());
    assert!(!refuge.exists());
    bench.run(&["status"]).expect(0);
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_revoked_key_gives_way_to_a_new_token() {
    let bench = Bench::new();
    let first = bench.cloud.create_token("first", true);
    bench.provision(&first).expect(0);
    let device_id = bench.cloud.devices()[0].device_id.clone();
    let old_key = bench.device_key();
    assert!(bench.cloud.delete_device(&device_id));

    let second = bench.cloud.create_token("second", true);
    let run = bench.provision(&second).expect(0);
    assert!(run.stderr.contains("it was revoked"), "{}", run.stderr);
    assert_eq!(
        bench.cloud.devices()[0].device_id,
        device_id,
        "the identity stays"
    );
    assert_ne!(bench.device_key(), old_key);
    bench.run(&["status"]).expect(0);
}

#[test]
fn a_device_that_belongs_elsewhere_is_not_moved_by_accident() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    let mut command = bench.provision_command(&token, &[]);
    command.env("ACUSIGHT_API_URL", "https://elsewhere.example");
    insta::assert_snapshot!(Run::of(command).error(), @"
    exit 5
    error: this device belongs to http://127.0.0.1:[PORT]/api already, not to https://elsewhere.example/api
    token: the token was not used
    hint: leave out --api-url to keep it at http://127.0.0.1:[PORT]/api; or add --new-identity to make it a new device elsewhere
    ");

    let unreachable = Fault::Reset {
        moment: Moment::BeforeCommit,
    };
    bench.cloud.inject(unreachable.on(Route::DeviceSelf));
    let run = Run::of(bench.provision_command(&token, &["--retry-for", "0"]));
    insta::assert_snapshot!(run.error(), @"
    exit 6
    error: this device has a key already, but the server could not confirm it: the connection to 127.0.0.1 broke before its answer was complete: Connection reset by peer (os error 104)
    token: the token was not used
    hint: the network is bad or the server is busy; run the same command again
    ");
}

#[test]
fn a_server_that_points_its_devices_to_plain_http_is_not_obeyed() {
    let cloud = MockCloud::builder().public_origin("http://192.0.2.1:8080");
    let bench = Bench::with(cloud.start().expect("starts"));
    let token = bench.cloud.create_token("t", true);
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 7
    error: the key is stored, but the server named an address for its devices that is refused: plain http would send the token and the key unprotected
    token: the token was used
    hint: the address you gave is used instead, and works; have the server's api_endpoint corrected
    ");
    assert!(bench.device_key().is_some(), "the key is kept all the same");
    bench.provision(&token).expect(0);
}

#[test]
fn a_damaged_record_is_made_again_from_the_credential() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    let record = bench.state_dir().join("device.json");
    let whole = fs::read_to_string(&record).expect("there");
    write_private(&record, &whole[..whole.len() / 2]);
    bench.run(&["status"]).expect(0);
    bench.provision(&token).expect(0);
    assert_eq!(fs::read_to_string(&record).expect("there"), whole);

    // Without the credential it is all that tells who this device was: then it is not guessed.
    for name in ["device-key", "device-key.bak"] {
        fs::remove_file(bench.state_dir().join(name)).expect("removed");
    }
    write_private(&record, &whole[..whole.len() / 2]);
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 3
    error: what this device was cannot be read: [ROOT]/var/lib/acusight/device.json is damaged: EOF while parsing a value at line 5 column 13
    token: the token was not used
    hint: restore [ROOT]/var/lib/acusight/device.json from a backup, or move it aside and run the same command again; without it this machine becomes another device, if its key is gone as well
    ");
    assert_eq!(bench.uses(), 1);
}

#[test]
fn a_damaged_journal_stops_everything_and_the_token_may_be_spent() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    Run::of(bench.provision_command(&token, &["--retry-for", "0"])).expect(8);
    let journal = bench.state_dir().join("provisioning.json");
    write_private(&journal, "{");
    insta::assert_snapshot!(bench.provision(&token).error(), @"
    exit 3
    error: what this device was cannot be read: [ROOT]/var/lib/acusight/provisioning.json is damaged: EOF while parsing an object at line 1 column 1
    token: the token may be spent
    hint: restore [ROOT]/var/lib/acusight/provisioning.json from a backup, or move it aside and run the same command again; if an answer of the server was lost, it is the only way to that answer's key
    ");
    assert_eq!(fs::read_to_string(&journal).expect("there"), "{");
}

#[test]
fn a_server_without_portainer_gives_no_edge_key() {
    let bench = Bench::with(
        MockCloud::builder()
            .without_portainer()
            .start()
            .expect("starts"),
    );
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    let credential = bench.credential().expect("stored");
    assert_eq!(credential["edge_key"], serde_json::Value::Null);
}
