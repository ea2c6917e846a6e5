//! `token create`, `token list`, `token revoke`.

use acusight_agent::mock::{ADMIN_TOKEN, Fault, Moment, Route};
use serde_json::json;

use crate::support::{Bench, Run, write_private, write_with_mode};

#[test]
fn a_token_is_created_shown_once_listed_and_revoked() {
    let bench = Bench::new();
    let create = [
        "token",
        "create",
        "Production Line 1",
        "--expires-in-days",
        "7",
        "--single-use",
    ];
    insta::assert_snapshot!(bench.admin(&create).told(), @r#"
    exit 0
    -- stderr
    This is the only time the token is shown: store it now, or use it right away.
    -- stdout
    Token "Production Line 1", good for one device, until [TIME] (id [UUID]):

      apt_[TOKEN]

    On the device, run:

      curl -sSL http://127.0.0.1:[PORT]/setup | sudo sh -s -- apt_[TOKEN]
    "#);
    let never = bench
        .admin(&["token", "create", "Lab", "--never-expires", "--json"])
        .expect(0);
    let answer = never.json();
    assert_eq!(answer["expires_at"], serde_json::Value::Null);
    assert_eq!(answer["single_use"], json!(false));
    let token = answer["token"].as_str().expect("a token").to_owned();
    assert!(token.starts_with("apt_"));
    insta::assert_snapshot!(bench.admin(&["token", "list"]).told(), @"
    exit 0
    -- stdout
    Lab
      id        [UUID]
      state     good for many devices, for ever
      used      never
      created   [TIME]

    Production Line 1
      id        [UUID]
      state     good for one device, until [TIME]
      used      never
      created   [TIME]
    ");
    assert!(
        !bench
            .admin(&["token", "list", "--json"])
            .stdout
            .contains(&token)
    );

    insta::assert_snapshot!(bench.admin(&["token", "revoke", "Lab"]).told(), @r#"
    exit 0
    -- stdout
    Token "Lab" is revoked: no further device can join with it.
    "#);
    let id = answer["id"].as_str().expect("an id");
    bench.admin(&["token", "revoke", id]).expect(0);
    let device = bench.agent(&[
        "provision",
        &token,
        "--no-edge",
        "--no-service",
        "--allow-volatile-state",
    ]);
    Run::of(device).expect(4);
}

#[test]
fn an_empty_list_says_so() {
    insta::assert_snapshot!(Bench::new().admin(&["token", "list"]).told(), @"
    exit 0
    -- stderr
    There are no tokens yet: acusight-agent token create NAME
    ");
}

#[test]
fn a_name_must_mean_one_active_token() {
    let bench = Bench::new();
    insta::assert_snapshot!(bench.admin(&["token", "revoke", "Lab"]).told(), @r#"
    exit 2
    -- stderr
    error: there is no token "Lab"
    hint: see `acusight-agent token list`
    "#);
    let unknown = ["token", "revoke", "550e8400-e29b-41d4-a716-446655440000"];
    insta::assert_snapshot!(bench.admin(&unknown).told(), @r#"
    exit 2
    -- stderr
    error: there is no token "[UUID]"
    hint: see `acusight-agent token list`
    "#);
    bench.cloud.create_token("Lab", false);
    bench.cloud.create_token("Lab", false);
    insta::assert_snapshot!(bench.admin(&["token", "revoke", "Lab"]).told(), @r#"
    exit 2
    -- stderr
    error: 2 active tokens are named "Lab"
    hint: name one by its id: [UUID], [UUID]
    "#);
}

#[test]
fn the_administrators_token_comes_from_a_file_standard_input_or_the_environment() {
    let bench = Bench::new();
    let file = bench.root().join("jwt");
    write_private(&file, &format!("{ADMIN_TOKEN}\n"));
    let file = file.to_str().expect("a name");
    bench
        .run(&["token", "list", "--admin-token-file", file])
        .expect(0);
    let piped = bench.agent(&["token", "list", "--admin-token-file", "-"]);
    Run::with_stdin(piped, ADMIN_TOKEN).expect(0);

    write_with_mode(&bench.root().join("shared"), ADMIN_TOKEN, 0o640);
    let shared = bench.root().join("shared");
    let shared = shared.to_str().expect("a name");
    let told = |file| {
        bench
            .run(&["token", "list", "--admin-token-file", file])
            .told()
    };
    insta::assert_snapshot!(told(shared), @"
    exit 2
    -- stderr
    error: [ROOT]/shared can be read by others on this machine (mode 0640)
    hint: chmod 600 [ROOT]/shared; if others use this machine, have the token revoked and use a new one
    ");
    insta::assert_snapshot!(told("/nonexistent/jwt"), @"
    exit 2
    -- stderr
    error: /nonexistent/jwt does not exist
    hint: check the path
    ");
    write_private(&bench.root().join("two"), "Bearer abc");
    let two = bench.root().join("two");
    insta::assert_snapshot!(told(two.to_str().expect("a name")), @"
    exit 2
    -- stderr
    error: the administrator's access token cannot be used: it holds a character that cannot be part of it
    hint: copy it again, whole, without the word Bearer
    ");
}

#[test]
fn a_token_that_the_server_does_not_accept() {
    let bench = Bench::new();
    let mut command = bench.agent(&["token", "list"]);
    command.env("ACUSIGHT_ADMIN_TOKEN", "eyJhbGciOiJub25lIn0.e30.x");
    let run = Run::of(command);
    insta::assert_snapshot!(run.told(), @"
    exit 4
    -- stderr
    error: the server does not accept the administrator's access token: the server refused: authentication failed (HTTP 401)
    hint: it may have expired: log in to the dashboard and copy a new one
    ");
    bench
        .cloud
        .inject(Fault::status(500, "INTERNAL_ERROR").on(Route::CreateToken));
    insta::assert_snapshot!(bench.admin(&["token", "create", "x"]).told(), @"
    exit 7
    -- stderr
    error: the token may have been created, but the server's answer was lost: the server refused: an injected fault (HTTP 500)
    hint: see `acusight-agent token list`; if it is there, revoke it and create another
    ");
    insta::assert_snapshot!(bench.admin(&["token", "create", "x", "--expires-in-days", "0"]).told(), @"
    exit 2
    -- stderr
    error: invalid value '0' for '--expires-in-days <N>': 0 is not in 1..=4294967295
    hint: For more information, try '--help'.
    ");
    let bad = Fault::status(400, "VALIDATION_ERROR").on(Route::ListTokens);
    bench.cloud.inject(bad.times(1));
    bench.admin(&["token", "list"]).expect(7);
}

#[test]
fn a_busy_server_is_asked_again_but_no_token_is_made_twice() {
    let bench = Bench::new();
    let busy = |route| Fault::status(429, "RATE_LIMITED").on(route).times(1);
    for route in [Route::CreateToken, Route::ListTokens, Route::RevokeToken] {
        bench.cloud.inject(busy(route));
    }
    bench.admin(&["token", "create", "x"]).expect(0);
    bench.admin(&["token", "list"]).expect(0);
    bench.admin(&["token", "revoke", "x"]).expect(0);

    let lost = Fault::Reset {
        moment: Moment::AfterCommit,
    };
    bench.cloud.inject(lost.on(Route::CreateToken).times(1));
    let run = bench.admin(&["token", "create", "y"]);
    insta::assert_snapshot!(run.told(), @"
    exit 6
    -- stderr
    error: the token may have been created, but the server's answer was lost: the connection to 127.0.0.1 broke before its answer was complete: Connection reset by peer (os error 104)
    hint: see `acusight-agent token list`; if it is there, revoke it and create another
    ");
    let listed = bench.admin(&["token", "list", "--json"]).expect(0).json();
    assert_eq!(listed["tokens"].as_array().expect("a list").len(), 2);
}

#[test]
fn an_organisation_with_many_tokens() {
    let bench = Bench::new();
    for number in 0..2_000 {
        bench.cloud.create_token(&format!("Line {number}"), false);
    }
    let listed = bench.admin(&["token", "list"]).expect(0).stdout;
    assert_eq!(listed.matches("Line ").count(), 2_000);
    bench.admin(&["token", "revoke", "Line 7"]).expect(0);

    let part = Fault::Body {
        status: 200,
        text: r#"{"success":true,"data":[],"meta":{"total":5}}"#.into(),
    };
    bench.cloud.inject(part.on(Route::ListTokens).times(1));
    let run = bench.admin(&["token", "list"]).expect(0);
    assert!(
        run.stderr.contains("5 more tokens than it shows"),
        "{}",
        run.told()
    );
}

#[test]
fn an_expired_token_is_listed_as_such() {
    let bench = Bench::new();
    let old = Fault::Body {
        status: 200,
        text: r#"{"success":true,"data":[{"id":"i","name":"old","created_at":"2020-01-01T00:00:00Z","expires_at":"2020-01-31T00:00:00.123456Z"}]}"#.into(),
    };
    bench.cloud.inject(old.on(Route::ListTokens));
    let listed = bench.admin(&["token", "list"]).expect(0).stdout;
    assert!(listed.contains("expired since 2020-01-31"), "{listed}");
}
