//! Interrupted, and run again: nothing is lost, nothing is doubled, nobody is blamed.

use std::fs;
use std::net::{SocketAddr, TcpListener};

use acusight_agent::mock::{Fault, MockCloud, Moment, Route};
use serde_json::json;

use crate::support::{Bench, Run, WITHOUT_THE_REST, framed, lost_answer, write_private};

const NO_RETRY: [&str; 2] = ["--retry-for", "0"];
const NEW_IDENTITY: [&str; 3] = ["--new-identity", "--retry-for", "0"];

fn without_idempotency() -> Bench {
    let cloud = MockCloud::builder().without_idempotency();
    Bench::with(cloud.start().expect("starts"))
}

fn journal(bench: &Bench) -> String {
    fs::read_to_string(bench.state_dir().join("provisioning.json")).unwrap_or_default()
}

fn record(bench: &Bench) -> serde_json::Value {
    let text = fs::read(bench.state_dir().join("device.json")).expect("a record");
    serde_json::from_slice(&text).expect("JSON")
}

/// Keeps a file of the state directory from being written, until removed.
fn block(bench: &Bench, name: &str) -> std::path::PathBuf {
    let obstacle = bench.state_dir().join(format!("{name}.tmp"));
    fs::create_dir_all(&obstacle).expect("made");
    fs::set_permissions(bench.state_dir(), private()).expect("private");
    obstacle
}

fn private() -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o700)
}

#[test]
fn a_lost_answer_is_asked_for_again_under_the_same_id() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    Run::of(bench.provision_command(&token, &["--retry-for", "60"])).expect(0);
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_lost_answer_of_a_server_without_replays_ends_in_instructions_that_work() {
    for way_out in ["dashboard", "new identity"] {
        let bench = without_idempotency();
        let token = bench.cloud.create_token("t", true);
        bench.cloud.inject(lost_answer(Route::Provision));
        let run = Run::of(bench.provision_command(&token, &["--retry-for", "60"]));
        insta::allow_duplicates! { insta::assert_snapshot!(run.error(), @"
        exit 8
        error: the device was probably provisioned by an attempt whose answer was lost, and the server does not repeat it
        token: the token may be spent
        hint: its key is lost: delete device [UUID] in the dashboard and run this again with a new token; or leave it there and add --new-identity
        ") };
        assert_eq!(bench.state_files(), ["lock", "provisioning.json"]);
        // Again, with the same token: still not the token's fault, and no loop.
        bench.provision(&token).expect(8);

        let fresh = bench.cloud.create_token("fresh", true);
        if way_out == "dashboard" {
            let device_id = &bench.cloud.devices()[0].device_id;
            assert!(bench.cloud.delete_device(device_id));
            bench.provision(&fresh).expect(0);
            assert_eq!(bench.cloud.devices().len(), 1);
        } else {
            Run::of(bench.provision_command(&fresh, &["--new-identity"])).expect(0);
            assert_eq!(bench.cloud.devices().len(), 2);
        }
        assert_eq!(journal(&bench), "");
    }
}

#[test]
fn an_answer_that_never_comes_can_be_picked_up_later() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    let run = Run::of(bench.provision_command(&token, &NO_RETRY));
    insta::assert_snapshot!(run.error(), @"
    exit 8
    error: the device may have been provisioned, but there is no answer with its key: the connection to 127.0.0.1 broke before its answer was complete: Connection reset by peer (os error 104)
    token: the token may be spent
    hint: run the same command again with the same token: it goes on where this one stopped
    ");
    // Nobody may say now that the token was not used.
    let portal = Fault::CaptivePortal.on(Route::DeviceSelf).times(1);
    bench.cloud.inject(portal);
    let run = bench.provision(&token).expect(6);
    assert!(
        run.stderr.contains("the token may be spent"),
        "{}",
        run.told()
    );

    let run = bench.provision(&token).expect(0);
    assert!(
        run.stderr.contains("going on where an earlier run stopped"),
        "{}",
        run.told()
    );
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_token_mistyped_in_between_is_just_that() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(8);
    let before = journal(&bench);
    let wrong = acusight_agent::secret::Secret::new("apt_00");
    bench.provision(&wrong).expect(4);
    assert_eq!(journal(&bench), before, "the open attempt stays open");
    bench.provision(&token).expect(0);
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_new_identity_does_not_make_an_open_attempt_forgotten() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(8);
    // The token is spent by our own attempt: no reason to call it bad.
    Run::of(bench.provision_command(&token, &NEW_IDENTITY)).expect(8);
    bench.provision(&token).expect(0);
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_device_that_was_to_become_another_stays_itself_until_it_is() {
    let bench = Bench::new();
    let first = bench.cloud.create_token("first", true);
    bench.provision(&first).expect(0);
    let old_id = record(&bench)["device_id"].clone();

    let second = bench.cloud.create_token("second", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    Run::of(bench.provision_command(&second, &NEW_IDENTITY)).expect(8);
    let run = bench.provision(&second).expect(0);
    assert!(
        run.stderr.contains("--new-identity with the same token"),
        "{}",
        run.told()
    );
    assert_eq!(record(&bench)["device_id"], old_id);

    Run::of(bench.provision_command(&second, &["--new-identity"])).expect(0);
    assert_ne!(record(&bench)["device_id"], old_id);
    assert_eq!(bench.cloud.devices().len(), 2);
    bench.run(&["status"]).expect(0);
}

#[test]
fn a_key_that_is_stored_but_not_verified_is_verified_by_the_next_run() {
    let deaf = Fault::Reset {
        moment: Moment::BeforeCommit,
    };
    for args in [&NO_RETRY[..], &NEW_IDENTITY] {
        let bench = without_idempotency();
        let token = bench.cloud.create_token("t", true);
        // The first of these calls asks whether the server is there.
        bench
            .cloud
            .inject(deaf.clone().on(Route::DeviceSelf).after(1).times(1));
        let run = Run::of(bench.provision_command(&token, args));
        insta::allow_duplicates! { insta::assert_snapshot!(run.error(), @"
        exit 6
        error: the key is stored, but the server did not confirm it: the connection to 127.0.0.1 broke before its answer was complete: Connection reset by peer (os error 104)
        token: the token was used
        hint: run the same command again: it goes on where this one stopped
        ") };
        Run::of(bench.provision_command(&token, args)).expect(0);
        assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
        assert_eq!(journal(&bench), "");
    }
}

#[test]
fn a_key_that_is_revoked_before_it_was_verified_is_not_replayed_for_ever() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let deaf = Fault::Reset {
        moment: Moment::BeforeCommit,
    };
    bench
        .cloud
        .inject(deaf.on(Route::DeviceSelf).after(1).times(1));
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(6);
    assert!(
        bench
            .cloud
            .revoke_device(&bench.cloud.devices()[0].device_id)
    );
    let run = bench.provision(&token).expect(4);
    assert!(run.stderr.contains("revoked"), "{}", run.told());

    assert!(
        bench
            .cloud
            .delete_device(&bench.cloud.devices()[0].device_id)
    );
    let fresh = bench.cloud.create_token("fresh", true);
    bench.provision(&fresh).expect(0);
    bench.run(&["status"]).expect(0);
}

#[test]
fn the_key_and_what_came_with_it_are_stored_at_once() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let obstacle = block(&bench, "device.json");
    let run = Run::of(bench.provision_command(&token, &NO_RETRY));
    insta::assert_snapshot!(run.error(), @"
    exit 1
    error: the key is stored, but a record of it could not be written: could not remove [ROOT]/var/lib/acusight/device.json.tmp: Is a directory (os error 21)
    token: the token was used
    hint: run the same command again: it goes on where this one stopped
    ");
    fs::remove_dir(obstacle).expect("removed");

    // Without any token: nothing has to be asked for again.
    let mut bare = bench.agent(&["provision"]);
    bare.args(WITHOUT_THE_REST);
    Run::of(bare).expect(0);
    let credential = bench.credential().expect("stored");
    let device = &bench.cloud.devices()[0];
    let edge_key = credential["edge_key"].as_str().expect("an edge key");
    let edge_key = acusight_agent::secret::EdgeKey::parse(edge_key).expect("a word");
    assert!(bench.cloud.issued_edge_key(&device.device_id, &edge_key));
    assert_eq!(
        record(&bench)["portainer_endpoint_id"],
        json!(device.portainer_endpoint_id)
    );
    assert_eq!(journal(&bench), "");
}

#[test]
fn a_new_identity_cut_off_between_key_and_record_is_the_one_that_counts() {
    let bench = Bench::new();
    let first = bench.cloud.create_token("first", true);
    bench.provision(&first).expect(0);
    let old_id = record(&bench)["device_id"].clone();
    let second = bench.cloud.create_token("second", true);
    let obstacle = block(&bench, "device.json");
    Run::of(bench.provision_command(&second, &NEW_IDENTITY)).expect(1);
    fs::remove_dir(obstacle).expect("removed");

    bench.provision(&second).expect(0);
    let new_id = record(&bench)["device_id"].clone();
    assert_ne!(new_id, old_id);
    let status = bench.run(&["status", "--json"]).expect(0).json();
    assert_eq!(status["device_id"], new_id);
}

#[test]
fn a_key_in_the_refuge_is_newer_than_any_on_the_disk() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    let newer = bench.credential().expect("stored");
    let key = bench.device_key().expect("a key");
    let refuge = bench.root().join("run/acusight/issued-key");
    write_private(&refuge, &framed(&newer));
    fs::set_permissions(refuge.parent().expect("a parent"), private()).expect("private");
    let mut older = newer.clone();
    older["device_key"] = json!("adk_00");
    for old in ["device-key", "device-key.bak"] {
        write_private(&bench.state_dir().join(old), &framed(&older));
    }
    let mut bare = bench.agent(&["provision"]);
    bare.args(WITHOUT_THE_REST);
    Run::of(bare).expect(0);
    assert_eq!(bench.device_key(), Some(key));
    assert!(!refuge.exists());
}

#[test]
fn a_first_write_that_the_power_cut_short_is_no_damage() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(8);
    write_private(&bench.state_dir().join("device-key.tmp"), "");
    bench.provision(&token).expect(0);
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_server_known_by_two_names_is_one_server() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address: SocketAddr = port.local_addr().expect("an address");
    drop(port);
    let cloud = MockCloud::builder()
        .listen(address)
        .public_origin(format!("http://localhost:{}", address.port()));
    let bench = Bench::with(cloud.start().expect("starts"));
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    bench.provision(&token).expect(0);
    bench.run(&["status"]).expect(0);
}

#[test]
fn a_bad_token_is_no_trouble_for_a_device_that_needs_none() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    let mut command = bench.agent(&["provision", "--token-file", "/nonexistent/token"]);
    command.args(WITHOUT_THE_REST);
    let run = Run::of(command).expect(0);
    insta::assert_snapshot!(run.stderr, @"
      ok   key verified  127.0.0.1 knows this device
    warning: no token is needed, but this one is bad: /nonexistent/token does not exist
    Next: acusight-agent status
    ");
}

#[test]
fn a_good_key_in_an_odd_answer_is_kept() {
    let odd = [
        json!({"edge_key": "two words", "device_id": "d", "api_endpoint": "http://127.0.0.1:9"}),
        json!({"portainer_endpoint_id": "5", "device_id": "d"}),
        json!({"device_id": 7, "api_endpoint": null}),
        json!({}),
    ];
    for mut data in odd {
        let bench = Bench::new();
        let token = bench.cloud.create_token("t", true);
        data["api_key"] = json!("adk_0011");
        let answer = json!({"success": true, "data": data, "meta": {"count": "many"}});
        let fault = Fault::Body {
            status: 201,
            text: answer.to_string(),
        };
        bench.cloud.inject(fault.on(Route::Provision).times(1));
        let run = Run::of(bench.provision_command(&token, &NO_RETRY));
        // The mock does not know this key: it cannot be verified.
        assert!(run.code == 7 || run.code == 6, "{}", run.told());
        assert!(run.stderr.contains("the key is stored"), "{}", run.told());
        assert_eq!(bench.device_key().as_deref(), Some("adk_0011"), "{answer}");
    }
}

#[test]
fn a_busy_server_on_the_second_try_is_no_proof_of_anything() {
    for status in [429, 400, 404, 422] {
        let bench = Bench::new();
        let token = bench.cloud.create_token("t", true);
        bench.cloud.inject(lost_answer(Route::Provision));
        Run::of(bench.provision_command(&token, &NO_RETRY)).expect(8);
        let refusal = Fault::status(status, "X").on(Route::Provision).times(1);
        bench.cloud.inject(refusal);
        let run = Run::of(bench.provision_command(&token, &NO_RETRY)).expect(8);
        assert!(!run.stderr.contains("key is lost"), "{}", run.told());
        bench.provision(&token).expect(0);
        assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
    }
}

#[test]
fn a_503_may_come_from_a_proxy_whose_server_died_after_the_work() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let unavailable = Fault::status(503, "UNAVAILABLE").on(Route::Provision);
    bench.cloud.inject(unavailable.times(1));
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(8);
    let id = |bench: &Bench| {
        let requests = bench.cloud.requests();
        let mut ids = requests
            .iter()
            .filter_map(|request| request.headers.get("idempotency-key"));
        ids.next_back().expect("a request id").clone()
    };
    let first = id(&bench);
    bench.provision(&token).expect(0);
    assert_eq!(id(&bench), first, "the request id is kept");
}

#[test]
fn an_address_for_devices_that_nobody_can_reach_is_no_dead_end() {
    // Nothing listens there.
    let cloud = MockCloud::builder().public_origin("http://127.0.0.1:1");
    let bench = Bench::with(cloud.start().expect("starts"));
    let token = bench.cloud.create_token("t", true);
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(6);
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(0);
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(0);
    bench.run(&["status"]).expect(0);
}

#[test]
fn a_token_that_may_be_spent_at_one_server_is_not_taken_to_another() {
    let bench = Bench::new();
    let other = MockCloud::start();
    let token = bench.cloud.create_token("t", true);
    bench.cloud.inject(lost_answer(Route::Provision));
    Run::of(bench.provision_command(&token, &NO_RETRY)).expect(8);

    let mut elsewhere = bench.provision_command(&token, &NO_RETRY);
    elsewhere.env("ACUSIGHT_API_URL", other.api_url());
    let run = Run::of(elsewhere).expect(5);
    assert!(
        run.stderr.contains("the token may be spent"),
        "{}",
        run.told()
    );
    assert_eq!(other.requests().len(), 0);

    // Without an address it goes on where it was, not at the default server.
    let mut unsaid = bench.provision_command(&token, &NO_RETRY);
    unsaid.env_remove("ACUSIGHT_API_URL");
    Run::of(unsaid).expect(0);
    assert_eq!((bench.cloud.devices().len(), bench.uses()), (1, 1));
}

#[test]
fn a_key_is_shown_to_no_server_but_its_own() {
    let bench = Bench::new();
    let first = bench.cloud.create_token("first", true);
    bench.provision(&first).expect(0);
    let other = MockCloud::start();
    let second = other.create_token("second", true);
    other.inject(Fault::status(500, "X").on(Route::Provision));
    let mut elsewhere = bench.provision_command(&second, &NEW_IDENTITY);
    elsewhere.env("ACUSIGHT_API_URL", other.api_url());
    Run::of(elsewhere).expect(8);
    let before = other.requests().len();

    let mut bare = bench.agent(&["provision"]);
    bare.args(WITHOUT_THE_REST);
    Run::of(bare).expect(0);
    assert_eq!(other.requests().len(), before);
    // Nor does the other's silence outweigh what its own says.
    drop(other);
    assert!(
        bench
            .cloud
            .delete_device(&bench.cloud.devices()[0].device_id)
    );
    let third = bench.cloud.create_token("third", true);
    bench.provision(&third).expect(0);
}

#[test]
fn a_key_that_came_with_something_large_is_kept_and_read_again() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let data = json!({"api_key": "adk_0011", "device_id": "d", "edge_key": "\"".repeat(25_000)});
    let answer = Fault::Body {
        status: 201,
        text: json!({"success": true, "data": data}).to_string(),
    };
    bench.cloud.inject(answer.on(Route::Provision).times(1));
    let run = Run::of(bench.provision_command(&token, &NO_RETRY)).expect(7);
    assert!(run.stderr.contains("the key is stored"), "{}", run.told());
    assert_eq!(bench.device_key().as_deref(), Some("adk_0011"));
    // The mock does not know this key, but it could be read and asked about.
    bench.run(&["status"]).expect(12);
}

#[test]
fn a_key_that_still_finds_no_disk_stays_in_the_refuge() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    let credential = bench.credential().expect("stored");
    let refuge = bench.root().join("run/acusight/issued-key");
    write_private(&refuge, &framed(&credential));
    let obstacle = block(&bench, "device-key");
    let run = bench.provision(&token);
    insta::assert_snapshot!(run.error(), @"
    exit 9
    error: the key was issued, but could not be stored in the state directory: could not remove [ROOT]/var/lib/acusight/device-key.tmp: Is a directory (os error 21)
    token: the token was used
    hint: the key is in [ROOT]/run/acusight/issued-key until this machine restarts: mend the state directory and run the same command again before that
    ");
    assert!(refuge.exists());
    fs::remove_dir(obstacle).expect("removed");
    bench.provision(&token).expect(0);
    assert!(!refuge.exists());
}
