//! `status`: who this device is, and what the server says of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use acusight_agent::mock::{Fault, Moment, Route};
use serde_json::json;

use crate::support::{Bench, Run};

fn provisioned() -> Bench {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    bench.provision(&token).expect(0);
    bench
}

#[test]
fn a_device_in_good_order() {
    let bench = provisioned();
    insta::assert_snapshot!(bench.run(&["status"]).told(), @"
    exit 0
    -- stdout
      device   [UUID]
      name     edge-1
      server   http://127.0.0.1:[PORT]/api
      status   approved (asked just now)
      key      [ROOT]/var/lib/acusight/device-key
      since    [TIME]
    ");
    let status = bench.run(&["status", "--json"]).expect(0).json();
    assert_eq!(status["provisioned"], json!(true));
    assert_eq!(status["status"], json!("approved"));
    assert_eq!(
        status["device_id"],
        json!(bench.cloud.devices()[0].device_id)
    );
    // It asks the server that the device belongs to, whatever the settings say now.
    let mut command = bench.bare_agent(&["status"]);
    command.env("ACUSIGHT_API_URL", "https://elsewhere.invalid");
    Run::of(command).expect(0);
}

#[test]
fn not_provisioned_and_half_provisioned() {
    let bench = Bench::new();
    insta::assert_snapshot!(bench.run(&["status"]).told(), @"
    exit 11
    -- stderr
    error: this device is not provisioned
    hint: run `acusight-agent provision` with a token from the administrator
    ");
    let answer = bench.run(&["status", "--json"]).expect(11).json();
    assert_eq!(answer["error"]["id"], json!("not_provisioned"));

    let token = bench.cloud.create_token("t", true);
    let reset = Fault::Reset {
        moment: Moment::AfterCommit,
    };
    bench.cloud.inject(reset.on(Route::Provision));
    Run::of(bench.provision_command(&token, &["--retry-for", "0"])).expect(8);
    insta::assert_snapshot!(bench.run(&["status"]).told(), @"
    exit 11
    -- stderr
    error: provisioning began on this device, but did not finish
    hint: run `acusight-agent provision` again with the same token: it goes on where it stopped
    ");
}

#[test]
fn a_revoked_key_and_a_server_out_of_reach() {
    let bench = provisioned();
    let reset = Fault::Reset {
        moment: Moment::BeforeCommit,
    };
    bench.cloud.inject(reset.on(Route::DeviceSelf).times(1));
    insta::assert_snapshot!(bench.run(&["status"]).told(), @"
    exit 6
    -- stderr
    error: the connection to 127.0.0.1 broke before its answer was complete: Connection reset by peer (os error 104)
    hint: the network is bad or the server is busy; run the same command again
    -- stdout
      device   [UUID]
      name     edge-1
      server   http://127.0.0.1:[PORT]/api
      status   unknown: it could not be asked
      key      [ROOT]/var/lib/acusight/device-key
      since    [TIME]
    ");
    // Something in between says 401, but not the API: that is no revocation.
    let proxy = Fault::Body {
        status: 401,
        text: "<html>".into(),
    };
    bench.cloud.inject(proxy.on(Route::DeviceSelf).times(1));
    bench.run(&["status"]).expect(7);

    let device_id = bench.cloud.devices()[0].device_id.clone();
    assert!(bench.cloud.revoke_device(&device_id));
    insta::assert_snapshot!(bench.run(&["status"]).told(), @"
    exit 12
    -- stderr
    error: the server does not accept this device's key
    hint: if the device was removed on purpose, nothing is wrong; else provision it again with a new token
    -- stdout
      device   [UUID]
      name     edge-1
      server   http://127.0.0.1:[PORT]/api
      status   this device's key was revoked
      key      [ROOT]/var/lib/acusight/device-key
      since    [TIME]
    ");
    let answer = bench.run(&["status", "--json"]).expect(12).json();
    assert_eq!(answer["error"]["id"], json!("key_revoked"));
}

#[test]
fn an_exposed_key_is_closed_and_reported() {
    let bench = provisioned();
    let key = bench.state_dir().join("device-key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("opened");
    let run = bench.run(&["status"]).expect(0);
    assert!(
        run.stderr.contains("could be read by others"),
        "{}",
        run.stderr
    );
    assert_eq!(bench.run(&["status"]).expect(0).stderr, "");
}

#[test]
fn a_damaged_key_is_taken_from_its_copy_and_never_reset() {
    let bench = provisioned();
    let key = bench.state_dir().join("device-key");
    let whole = fs::read(&key).expect("there");
    fs::write(&key, &whole[..whole.len() / 2]).expect("torn");
    bench.run(&["status"]).expect(0);
    assert_eq!(
        fs::read(&key).expect("there").len(),
        whole.len() / 2,
        "looking changes nothing: a provisioning run may be at work"
    );
    bench
        .run(&[
            "provision",
            "--no-edge",
            "--no-service",
            "--allow-volatile-state",
        ])
        .expect(0);
    assert_eq!(fs::read(&key).expect("there"), whole, "healed");

    for name in ["device-key", "device-key.bak"] {
        fs::write(bench.state_dir().join(name), b"").expect("emptied");
    }
    insta::assert_snapshot!(bench.run(&["status"]).told(), @"
    exit 12
    -- stderr
    error: [ROOT]/var/lib/acusight/device-key is damaged, and so is every copy of it
    hint: restore [ROOT]/var/lib/acusight/device-key from a backup; or move [ROOT]/var/lib/acusight/device-key and its .bak aside, delete the device in the dashboard and provision it again with a new token
    ");
}

#[test]
fn a_servers_words_cannot_draw_on_the_terminal() {
    let bench = provisioned();
    let drawing = Fault::Body {
        status: 200,
        text: r#"{"success":true,"data":{"device_id":"d","status":"\u001b[31mX\u001b]0;own\u0007\nforged"}}"#.into(),
    };
    bench.cloud.inject(drawing.on(Route::DeviceSelf));
    let run = bench.run(&["status"]).expect(0);
    let drawn = run.stdout.chars().any(|c| c.is_control() && c != '\n');
    assert!(!drawn, "{:?}", run.stdout);
    assert!(run.stdout.contains(" forged"), "{:?}", run.stdout);
}
