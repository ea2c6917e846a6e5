//! The mock cloud's side of the contract, asked over plain sockets, as any client might.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use acusight_agent::mock::{ADMIN_TOKEN, MockCloud};
use serde_json::{Value, json};

/// One request without our own client in the way.
struct Raw {
    status: u16,
    head: String,
    body: String,
}

impl Raw {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}\n{}", self.head, self.body))
    }

    fn error_code(&self) -> (u16, String) {
        let answer = self.json();
        assert_eq!(answer["success"], json!(false), "{answer}");
        assert!(answer.get("data").is_none(), "{answer}");
        let code = answer["error"]["code"].as_str().expect("a code");
        (self.status, code.to_owned())
    }
}

fn send(cloud: &MockCloud, request: &str) -> Raw {
    let address = cloud.origin().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).expect("the cloud listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a deadline");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status");
    Raw {
        status: status.parse().expect("a number"),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn call(cloud: &MockCloud, method: &str, path: &str, headers: &str, body: &str) -> Raw {
    let length = body.len();
    send(
        cloud,
        &format!(
            "{method} {path} HTTP/1.1\r\nhost: mock\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{body}"
        ),
    )
}

fn json_call(cloud: &MockCloud, method: &str, path: &str, headers: &str, body: &Value) -> Raw {
    let headers = format!("content-type: application/json\r\n{headers}");
    call(cloud, method, path, &headers, &body.to_string())
}

fn admin() -> String {
    format!("authorization: Bearer {ADMIN_TOKEN}\r\n")
}

fn create(cloud: &MockCloud, body: &Value) -> Raw {
    json_call(cloud, "POST", "/api/provisioning-tokens", &admin(), body)
}

fn provision(cloud: &MockCloud, token: &str, device_id: &str) -> Raw {
    let body = json!({"token": token, "device_info": {"device_id": device_id}});
    json_call(cloud, "POST", "/api/devices/provision", "", &body)
}

fn list(cloud: &MockCloud) -> Value {
    call(cloud, "GET", "/api/provisioning-tokens", &admin(), "").json()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key} in {value}"))
}

#[test]
fn a_created_token_is_shown_once_and_says_how_to_use_it() {
    let cloud = MockCloud::start();
    let made = create(
        &cloud,
        &json!({"name": "Line 1", "expires_in_days": 7, "single_use": true}),
    );
    assert_eq!(made.status, 201);
    assert!(made.head.contains("content-type: application/json"));
    let data = &made.json()["data"];
    let token = text(data, "token");
    assert!(token.starts_with("apt_") && token.len() == 68, "{token}");
    assert_eq!(
        text(data, "setup_command"),
        format!("curl -sSL {}/setup | sudo sh -s -- {token}", cloud.origin())
    );
    let seconds = |key| {
        let at = humantime::parse_rfc3339(text(data, key)).expect("RFC 3339");
        at.duration_since(std::time::UNIX_EPOCH)
            .expect("after 1970")
            .as_secs()
    };
    assert_eq!(
        seconds("expires_at") - seconds("created_at"),
        7 * 24 * 60 * 60
    );

    let listed = list(&cloud).to_string();
    assert!(
        listed.contains("Line 1") && !listed.contains(token),
        "{listed}"
    );
}

#[test]
fn defaults_of_a_token_are_thirty_days_and_many_uses_and_null_is_never() {
    let cloud = MockCloud::start();
    let plain = create(&cloud, &json!({"name": "plain", "unknown": [1]})).json();
    assert_eq!(plain["data"]["single_use"], json!(false));
    let expires = humantime::parse_rfc3339(text(&plain["data"], "expires_at")).expect("RFC 3339");
    let days = expires
        .duration_since(cloud.clock().now())
        .expect("ahead")
        .as_secs_f64()
        / 86400.0;
    assert!((29.99..=30.0).contains(&days), "{days}");

    let never = create(&cloud, &json!({"name": "never", "expires_in_days": null})).json();
    assert_eq!(never["data"]["expires_at"], Value::Null);
}

#[test]
fn a_list_is_newest_first_with_its_measure() {
    let cloud = MockCloud::start();
    for name in ["first", "second", "third"] {
        create(&cloud, &json!({"name": name}));
    }
    let listed = list(&cloud);
    let names: Vec<&str> = listed["data"]
        .as_array()
        .expect("an array")
        .iter()
        .map(|token| text(token, "name"))
        .collect();
    assert_eq!(names, ["third", "second", "first"]);
    assert_eq!(
        listed["meta"],
        json!({"count": 3, "limit": 100, "offset": 0, "total": 3})
    );
    assert_eq!(
        listed["data"][0]
            .as_object()
            .expect("an object")
            .keys()
            .collect::<Vec<_>>(),
        [
            "created_at",
            "expires_at",
            "id",
            "last_used_at",
            "name",
            "revoked_at",
            "single_use",
            "use_count"
        ]
    );
}

#[test]
fn invalid_requests_name_the_field() {
    let cloud = MockCloud::start();
    let token = cloud.create_token("t", false);
    let long = "x".repeat(300);
    let table = [
        (create(&cloud, &json!({})), "name"),
        (create(&cloud, &json!({"name": " "})), "name"),
        (create(&cloud, &json!({"name": long})), "name"),
        (
            create(&cloud, &json!({"name": "a", "expires_in_days": 0})),
            "expires_in_days",
        ),
        (
            create(&cloud, &json!({"name": "a", "expires_in_days": 99999})),
            "expires_in_days",
        ),
        (provision(&cloud, token.expose(), ""), "device_id"),
        (provision(&cloud, "", "d"), "token"),
        (
            json_call(
                &cloud,
                "POST",
                "/api/devices/provision",
                "",
                &json!({"token": "apt_00"}),
            ),
            "device_info",
        ),
    ];
    for (answer, field) in table {
        assert_eq!(answer.error_code(), (400, "VALIDATION_ERROR".into()));
        let details = answer.json()["error"]["details"].to_string();
        assert!(details.contains(field), "{details} should name {field}");
    }
    // Of another type altogether: still the envelope.
    for bad in [
        json!({"name": "a", "expires_in_days": -1}),
        json!({"name": 7}),
        json!([]),
    ] {
        assert_eq!(
            create(&cloud, &bad).error_code(),
            (400, "VALIDATION_ERROR".into())
        );
    }
    assert_eq!(cloud.devices().len(), 0);
}

#[test]
fn administrators_need_the_right_bearer() {
    let cloud = MockCloud::start();
    for headers in [
        "",
        "authorization: Bearer wrong\r\n",
        "authorization: Basic eDp5\r\n",
    ] {
        for (method, path) in [
            ("GET", "/api/provisioning-tokens"),
            ("POST", "/api/provisioning-tokens"),
            (
                "DELETE",
                "/api/provisioning-tokens/550e8400-e29b-41d4-a716-446655440000",
            ),
        ] {
            let answer = call(&cloud, method, path, headers, "");
            assert_eq!(
                answer.error_code(),
                (401, "UNAUTHORIZED".into()),
                "{method} {path}"
            );
        }
    }
}

#[test]
fn everything_that_is_no_call_is_refused_in_the_envelope() {
    let cloud = MockCloud::start();
    let get = |path: &str| call(&cloud, "GET", path, "", "").error_code();
    assert_eq!(get("/"), (404, "NOT_FOUND".into()));
    assert_eq!(get("/api"), (404, "NOT_FOUND".into()));
    assert_eq!(get("/setup"), (404, "NOT_FOUND".into()));
    assert_eq!(get("/_mock/devices"), (404, "NOT_FOUND".into()));
    assert_eq!(
        get("/api/devices/provision"),
        (405, "METHOD_NOT_ALLOWED".into())
    );
    let put = call(&cloud, "PUT", "/api/device/self", "", "");
    assert_eq!(put.error_code(), (405, "METHOD_NOT_ALLOWED".into()));

    let post = |headers: &str, body: &str| {
        call(&cloud, "POST", "/api/devices/provision", headers, body).error_code()
    };
    let json = "content-type: application/json; charset=utf-8\r\n";
    assert_eq!(post("", "{}"), (415, "UNSUPPORTED_MEDIA_TYPE".into()));
    assert_eq!(
        post("content-type: text/plain\r\n", "{}"),
        (415, "UNSUPPORTED_MEDIA_TYPE".into())
    );
    assert_eq!(post(json, "{"), (400, "VALIDATION_ERROR".into()));
    assert_eq!(post(json, ""), (400, "VALIDATION_ERROR".into()));
    assert_eq!(
        post(json, &"[".repeat(10_000)),
        (400, "VALIDATION_ERROR".into())
    );
    assert_eq!(
        post(json, &" ".repeat(300_000)),
        (413, "PAYLOAD_TOO_LARGE".into())
    );
}

#[test]
fn a_token_is_invalid_expired_revoked_or_spent() {
    let cloud = MockCloud::start();
    let refused = |token: &str| provision(&cloud, token, "d").error_code();
    let invalid = (401, "INVALID_TOKEN".to_owned());
    assert_eq!(refused("apt_0000"), invalid, "unknown");
    assert_eq!(refused("hello"), invalid, "malformed");
    assert_eq!(refused("adk_0000"), invalid, "a key");

    let expiring = cloud.create_token("expiring", false);
    assert_eq!(provision(&cloud, expiring.expose(), "before").status, 201);
    cloud.clock().advance(Duration::from_secs(30 * 86400));
    assert_eq!(refused(expiring.expose()), (401, "TOKEN_EXPIRED".into()));

    let revoked = create(&cloud, &json!({"name": "revoked"})).json();
    let path = format!("/api/provisioning-tokens/{}", text(&revoked["data"], "id"));
    assert_eq!(call(&cloud, "DELETE", &path, &admin(), "").status, 200);
    assert_eq!(
        call(&cloud, "DELETE", &path, &admin(), "").status,
        200,
        "twice is once"
    );
    assert_eq!(refused(text(&revoked["data"], "token")), invalid);
    let unknown = call(
        &cloud,
        "DELETE",
        "/api/provisioning-tokens/none",
        &admin(),
        "",
    );
    assert_eq!(unknown.error_code(), (404, "NOT_FOUND".into()));

    let single = cloud.create_token("single", true);
    assert_eq!(provision(&cloud, single.expose(), "one").status, 201);
    assert_eq!(
        provision(&cloud, single.expose(), "two").error_code(),
        invalid
    );
    let spent = &list(&cloud)["data"][0];
    assert_eq!(spent["use_count"], json!(1));
    assert!(
        spent["last_used_at"].is_string() && spent["revoked_at"].is_string(),
        "{spent}"
    );
}

#[test]
fn a_device_is_registered_once_and_a_refusal_uses_nothing() {
    let cloud = MockCloud::start();
    let token = cloud.create_token("t", false);
    assert_eq!(provision(&cloud, token.expose(), "d").status, 201);
    assert_eq!(
        provision(&cloud, token.expose(), "d").error_code(),
        (409, "DEVICE_EXISTS".into())
    );
    assert_eq!(list(&cloud)["data"][0]["use_count"], json!(1));
    assert!(cloud.delete_device("d"));
    assert_eq!(
        provision(&cloud, token.expose(), "d").status,
        201,
        "after it was deleted"
    );
}

#[test]
fn the_same_idempotency_key_brings_the_same_answer_for_a_day() {
    let cloud = MockCloud::start();
    let token = cloud.create_token("t", true);
    let body = json!({"token": token.expose(), "device_info": {"device_id": "d"}});
    let ask = |key: &str, body: &Value| {
        let header = format!("idempotency-key: {key}\r\n");
        json_call(&cloud, "POST", "/api/devices/provision", &header, body)
    };
    let first = ask("k1", &body);
    assert_eq!(first.status, 201);
    assert_eq!(
        ask("k1", &body).body,
        first.body,
        "although the token is spent"
    );
    assert_eq!(cloud.devices().len(), 1);

    let other = json!({"token": token.expose(), "device_info": {"device_id": "other"}});
    assert_eq!(
        ask("k1", &other).error_code(),
        (400, "VALIDATION_ERROR".into())
    );
    assert_eq!(ask("k2", &body).error_code(), (401, "INVALID_TOKEN".into()));
    cloud.clock().advance(Duration::from_secs(86400 + 1));
    assert_eq!(
        ask("k1", &body).error_code(),
        (401, "INVALID_TOKEN".into()),
        "a day later"
    );

    let forgetful = MockCloud::builder()
        .without_idempotency()
        .start()
        .expect("starts");
    let token = forgetful.create_token("t", false);
    let body = json!({"token": token.expose(), "device_info": {"device_id": "d"}});
    let ask = || {
        json_call(
            &forgetful,
            "POST",
            "/api/devices/provision",
            "idempotency-key: k\r\n",
            &body,
        )
    };
    assert_eq!(ask().status, 201);
    assert_eq!(ask().error_code(), (409, "DEVICE_EXISTS".into()));
}

#[test]
fn an_edge_key_leads_to_the_mocks_own_portainer() {
    let cloud = MockCloud::start();
    let token = cloud.create_token("t", false);
    let answer = provision(&cloud, token.expose(), "d").json();
    assert_eq!(answer["data"]["endpoint_id"], json!("d"));
    assert_eq!(answer["data"]["api_endpoint"], json!(cloud.origin()));
    let id = answer["data"]["portainer_endpoint_id"]
        .as_i64()
        .expect("a number");

    let poll = |id: i64, edge_id: &str| {
        let header = format!("x-portaineragent-edgeid: {edge_id}\r\n");
        call(
            &cloud,
            "GET",
            &format!("/api/endpoints/{id}/edge/status"),
            &header,
            "",
        )
    };
    let polled = poll(id, "d");
    assert_eq!(polled.status, 200);
    assert_eq!(polled.json()["status"], json!("IDLE"));
    assert!(polled.json()["checkin"].as_i64().expect("an integer") >= 1);
    assert_eq!(poll(id, "d").status, 200);
    assert_eq!(
        poll(id, "another").status,
        403,
        "the first edge id is for good"
    );
    assert_eq!(poll(id, "").status, 403);
    assert_eq!(poll(id + 1, "d").status, 403);
    assert_eq!(cloud.devices()[0].edge_polls, 2);

    let bare = MockCloud::builder()
        .without_portainer()
        .start()
        .expect("starts");
    let token = bare.create_token("t", false);
    let answer = provision(&bare, token.expose(), "d").json();
    assert!(answer["data"].get("edge_key").is_none(), "{answer}");
    assert!(
        answer["data"].get("portainer_endpoint_id").is_none(),
        "{answer}"
    );
}

#[test]
fn a_device_sees_itself_checks_in_gets_its_actions_once_and_can_be_revoked() {
    let cloud = MockCloud::start();
    let token = cloud.create_token("t", false);
    let answer = provision(&cloud, token.expose(), "d").json();
    let key = format!("x-device-key: {}\r\n", text(&answer["data"], "api_key"));
    let who = call(&cloud, "GET", "/api/device/self", &key, "").json();
    assert_eq!(who["data"]["device_id"], json!("d"));
    assert_eq!(who["data"]["status"], json!("approved"));

    let checkin = |body: &Value| json_call(&cloud, "POST", "/api/device/checkin", &key, body);
    let healthy =
        json!({"status": "healthy", "metrics": {"cpu_usage": 12.5, "custom": 1}, "more": 1});
    assert_eq!(checkin(&healthy).json()["data"], json!({"actions": []}));
    let action = json!({"id": "a1", "type": "deploy_model", "model_id": "m"});
    let queued = serde_json::from_value(action.clone()).expect("an action");
    assert!(cloud.queue_action("d", queued));
    assert_eq!(checkin(&healthy).json()["data"]["actions"], json!([action]));
    assert_eq!(checkin(&healthy).json()["data"]["actions"], json!([]));
    assert_eq!(
        checkin(&json!({"status": "great", "metrics": {}}))
            .error_code()
            .0,
        400
    );
    assert_eq!(cloud.devices()[0].checkins, 3);

    assert!(cloud.revoke_device("d"));
    assert_eq!(checkin(&healthy).error_code(), (401, "UNAUTHORIZED".into()));
    let keyless = call(&cloud, "GET", "/api/device/self", "", "");
    assert_eq!(keyless.error_code(), (401, "UNAUTHORIZED".into()));
}

#[test]
fn what_is_recorded_holds_no_secret() {
    let cloud = MockCloud::start();
    let token = cloud.create_token("t", false);
    let answer = provision(&cloud, token.expose(), "d").json();
    let key = text(&answer["data"], "api_key");
    call(
        &cloud,
        "GET",
        "/api/device/self",
        &format!("x-device-key: {key}\r\n"),
        "",
    );
    list(&cloud);
    let recorded = serde_json::to_string(&cloud.requests()).expect("serialises");
    for secret in [token.expose(), key, ADMIN_TOKEN] {
        assert!(!recorded.contains(secret), "{recorded}");
    }
    assert_eq!(cloud.requests().len(), 3);
    assert_eq!(cloud.counters().requests(), 3);
    assert_eq!(cloud.counters().connections(), 3);
    assert!(cloud.counters().bytes_in() > 200 && cloud.counters().bytes_out() > 200);
}
