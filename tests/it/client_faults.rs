//! What the client makes of a server, or of whatever answers in its place, that misbehaves.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use acusight_agent::api::DeviceSelf;
use acusight_agent::api::client::{ApiError, Client};
use acusight_agent::api::retry::Worth;
use acusight_agent::error::Explain as _;
use acusight_agent::mock::{Fault, MockCloud, Moment, Route};
use acusight_agent::secret::DeviceKey;

use crate::support::{block_on, http_for};

const GOOD: &str = r#"{"success":true,"data":{"device_id":"d","status":"approved"}}"#;

fn ask(api_url: &str) -> Result<DeviceSelf, ApiError> {
    let (http, base) = http_for(api_url);
    let key = DeviceKey::parse("adk_00").expect("a key");
    block_on(Client::new(http, base).device_self(&key))
}

/// Serves these bytes to one connection, then closes it.
fn ask_raw(answer: &[u8]) -> Result<DeviceSelf, ApiError> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/api", listener.local_addr().expect("an address"));
    let answer = answer.to_vec();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = [0; 4096];
        let read = stream.read(&mut request).expect("a request");
        assert!(read > 0);
        // The client may hang up on what it does not like.
        stream.write_all(&answer).ok();
    });
    let outcome = ask(&url);
    server.join().expect("no panic");
    outcome
}

fn body(status: u16, text: &str) -> Fault {
    Fault::Body {
        status,
        text: text.into(),
    }
}

#[test]
fn each_fault_has_a_name_an_end_and_a_verdict() {
    let status = |status| Fault::status(status, "X");
    let quick = Duration::from_secs(5);
    let slow = Duration::from_secs(13);
    let deep = format!(
        "{{\"success\":true,\"data\":{}1{}}}",
        "[".repeat(9000),
        "]".repeat(9000)
    );
    let table = [
        // (what happens, its name, worth another try, how long it may take)
        (Fault::CloseAfter, "ok", false, quick),
        (Fault::Delay { ms: 300 }, "ok", false, quick),
        (body(200, GOOD), "ok", false, quick),
        (
            body(201, &GOOD.replace('}', ",\"new\":null}")),
            "ok",
            false,
            quick,
        ),
        (status(500), "server_error", true, quick),
        (status(502), "server_error", true, quick),
        (status(408), "server_error", true, quick),
        (status(425), "server_error", true, quick),
        (status(429), "throttled", true, quick),
        (status(400), "validation_error", false, quick),
        (status(401), "server_error", false, quick),
        (status(403), "server_error", false, quick),
        (status(404), "server_error", false, quick),
        (status(409), "server_error", false, quick),
        (
            Fault::Hang {
                moment: Moment::BeforeCommit,
            },
            "timeout",
            true,
            slow,
        ),
        (Fault::Trickle { ms_per_byte: 200 }, "timeout", true, slow),
        (
            Fault::Reset {
                moment: Moment::BeforeCommit,
            },
            "connection_lost",
            true,
            quick,
        ),
        (
            Fault::Reset {
                moment: Moment::AfterCommit,
            },
            "connection_lost",
            true,
            quick,
        ),
        (
            Fault::WrongLength { off_by: 10 },
            "connection_lost",
            true,
            quick,
        ),
        (
            Fault::WrongLength { off_by: -10 },
            "not_the_api",
            false,
            quick,
        ),
        (Fault::Garbage, "connection_lost", true, quick),
        (Fault::EndlessBody, "answer_too_large", false, quick),
        (
            Fault::GiantBody {
                bytes: 10_000_000_000,
            },
            "answer_too_large",
            false,
            quick,
        ),
        (Fault::CaptivePortal, "not_the_api", true, quick),
        (
            Fault::Redirect {
                location: "https://evil.example/".into(),
            },
            "not_the_api",
            false,
            quick,
        ),
        (Fault::BadUtf8, "not_the_api", true, quick),
        (body(200, ""), "not_the_api", true, quick),
        (body(200, "{}"), "not_the_api", true, quick),
        (body(200, "[]"), "not_the_api", true, quick),
        (body(200, "null"), "not_the_api", true, quick),
        (
            body(200, "{\"success\":\"yes\"}"),
            "not_the_api",
            true,
            quick,
        ),
        (body(200, &deep), "bad_reply", false, quick),
        (body(200, &GOOD[..40]), "not_the_api", true, quick),
        (body(200, "{\"success\":true}"), "bad_reply", false, quick),
        (
            body(200, "{\"success\":true,\"data\":[]}"),
            "bad_reply",
            false,
            quick,
        ),
        (
            body(200, "{\"success\":false,\"error\":{\"code\":\"X\"}}"),
            "bad_reply",
            false,
            quick,
        ),
        (body(401, "<html>"), "not_the_api", false, quick),
        (
            body(401, "{\"success\":false}"),
            "not_the_api",
            false,
            quick,
        ),
        (body(500, "<html>"), "not_the_api", true, quick),
        (body(404, "not found"), "not_the_api", false, quick),
    ];
    // Each on a cloud of its own, all at once: the slow ones take ten seconds.
    std::thread::scope(|scope| {
        for (fault, id, retried, limit) in table {
            scope.spawn(move || {
                let cloud = MockCloud::start();
                // The honest answer to this unknown key is a refusal; faults of the answer's
                // shape bend that one.
                cloud.inject(fault.clone().on(Route::DeviceSelf).times(1));
                let began = Instant::now();
                let outcome = ask(&cloud.api_url());
                assert!(
                    began.elapsed() < limit,
                    "{fault:?} took {:?}",
                    began.elapsed()
                );
                match outcome {
                    Ok(_) => assert_eq!(id, "ok", "{fault:?}"),
                    Err(error) if id == "ok" => {
                        assert!(error.is_unauthorized(), "{fault:?}: {error}");
                    }
                    Err(error) => {
                        assert_eq!(error.id(), id, "{fault:?}: {error}");
                        let worth = error.worth() != Worth::Nothing;
                        assert_eq!(worth, retried, "{fault:?}: {error}");
                        let revoked = error.is_unauthorized();
                        assert_eq!(revoked, fault == status(401), "{fault:?}: {error}");
                        assert_ne!(error.exit().code(), 0);
                    }
                }
            });
        }
    });
}

#[test]
fn an_answer_cut_anywhere_is_never_taken_for_a_whole_one() {
    let whole = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{GOOD}",
        GOOD.len()
    );
    for end in 0..whole.len() {
        let error = ask_raw(&whole.as_bytes()[..end]).expect_err("cut");
        assert_eq!(
            error.id(),
            "connection_lost",
            "cut after {end} bytes: {error}"
        );
        assert!(error.may_have_been_carried_out(), "cut after {end} bytes");
    }
    assert_eq!(ask_raw(whole.as_bytes()).expect("whole").device_id, "d");
}

#[test]
fn headers_and_bodies_are_bounded() {
    let with_headers = |headers: &str| {
        let length = GOOD.len();
        format!("HTTP/1.1 200 OK\r\n{headers}content-length: {length}\r\n\r\n{GOOD}")
    };
    let large = with_headers(&format!("x: {}\r\n", "y".repeat(17 * 1024)));
    assert_eq!(
        ask_raw(large.as_bytes()).expect_err("refused").id(),
        "answer_too_large"
    );
    let many = with_headers(&"x: y\r\n".repeat(100));
    assert!(ask_raw(many.as_bytes()).is_err());
    let usual = with_headers(&"x: y\r\n".repeat(30));
    assert!(ask_raw(usual.as_bytes()).is_ok());

    let padded = |size: usize| {
        let padding = " ".repeat(size - GOOD.len());
        format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{GOOD}{padding}")
    };
    assert!(ask_raw(padded(64 * 1024).as_bytes()).is_ok());
    let error = ask_raw(padded(64 * 1024 + 1).as_bytes()).expect_err("refused");
    assert_eq!(error.id(), "answer_too_large");
}

#[test]
fn retry_after_is_understood_in_both_forms() {
    let after = |value: &str| {
        let cloud = MockCloud::start();
        let fault = Fault::Status {
            status: 429,
            code: "RATE_LIMITED".into(),
            retry_after: Some(value.into()),
        };
        cloud.inject(fault.on(Route::DeviceSelf));
        match ask(&cloud.api_url()).expect_err("throttled").worth() {
            Worth::Retry { after } => after,
            Worth::Nothing => panic!("not retried"),
        }
    };
    assert_eq!(after("7"), Some(Duration::from_secs(7)));
    assert_eq!(after("whenever"), None);
    let in_a_minute = httpdate::fmt_http_date(
        acusight_agent::clock::Clock::system().now() + Duration::from_secs(60),
    );
    let seconds = after(&in_a_minute).expect("a date").as_secs();
    assert!((55..=60).contains(&seconds), "{seconds}");
}

#[test]
fn a_servers_words_cannot_draw_on_the_terminal() {
    let cloud = MockCloud::start();
    let text = r#"{"success":false,"error":{"code":"X","message":"\u001b[2Jgone\nerror: forged","details":"\u0007"}}"#;
    cloud.inject(body(400, text).on(Route::DeviceSelf));
    let told = ask(&cloud.api_url()).expect_err("refused").to_string();
    assert!(!told.chars().any(char::is_control), "{told:?}");
    assert!(told.contains("gone"), "{told}");
}
