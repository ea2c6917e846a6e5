//! The API's calls, and how every other request is refused: always in the envelope.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER};
use axum::http::{HeaderMap, Method, Request, Response, StatusCode};
use axum::routing::{MethodRouter, any};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::connection::{Counters, Ending, Script, Step, Takeover};
use super::faults::{Fault, Route};
use super::world::{Recorded, Refusal, World};
use super::{admin, files, portainer};
use crate::api::{
    CreateToken, DEVICE_KEY_HEADER, Envelope, ErrorBody, IDEMPOTENCY_HEADER, Meta, code,
};
use crate::secret::redact;

const BODY_CAP: usize = 256 * 1024;
const JSON: &str = "application/json";

#[derive(Debug, Clone)]
pub(super) struct Cloud {
    pub(super) world: Arc<World>,
    pub(super) counters: Arc<Counters>,
    pub(super) admin_routes: bool,
    pub(super) files: Option<PathBuf>,
}

/// One request, read whole.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Call {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(super) fn last_segment(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let kind = self.header("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case(JSON) {
            return Err(Refusal::new(
                415,
                "UNSUPPORTED_MEDIA_TYPE",
                "the body must be application/json",
            ));
        }
        serde_json::from_slice(&self.body).map_err(|error| Refusal::invalid(error.to_string()))
    }
}

/// An answer before it is HTTP, so that faults can bend it.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Reply {
    pub(super) fn data<T: Serialize>(status: u16, data: T) -> Reply {
        Reply::enveloped(status, Some(data), None)
    }

    pub(super) fn plain_json(status: u16, value: &Value) -> Reply {
        Reply::of(status, JSON, value.to_string().into_bytes())
    }

    pub(super) fn of(status: u16, content_type: &str, body: Vec<u8>) -> Reply {
        Reply {
            status,
            headers: vec![(CONTENT_TYPE.as_str(), content_type.to_owned())],
            body,
        }
    }

    fn enveloped<T: Serialize>(status: u16, data: Option<T>, meta: Option<Meta>) -> Reply {
        let envelope = Envelope {
            success: true,
            data,
            error: None,
            meta,
        };
        let body = serde_json::to_vec(&envelope).expect("wire types always encode");
        Reply::of(status, JSON, body)
    }

    fn refusal(refusal: Refusal) -> Reply {
        let envelope: Envelope<()> = Envelope {
            success: false,
            data: None,
            error: Some(ErrorBody {
                code: refusal.code.into(),
                message: refusal.message.into(),
                details: refusal.details,
            }),
            meta: None,
        };
        let body = serde_json::to_vec(&envelope).expect("wire types always encode");
        Reply::of(refusal.status, JSON, body)
    }

    fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(*name, value);
        }
        response.body(Body::from(self.body)).unwrap_or_else(|_| {
            let mut failed = Response::new(Body::empty());
            *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            failed
        })
    }

    /// The same as bytes on the wire.
    fn to_bytes(&self, announced_length: i64) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} Mock\r\n", self.status);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let now = httpdate::fmt_http_date(crate::clock::Clock::system().now());
        head.push_str(&format!(
            "{DATE}: {now}\r\n{CONTENT_LENGTH}: {announced_length}\r\n\r\n"
        ));
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

type Work = fn(&Cloud, &Call) -> Result<Reply, Refusal>;

pub(super) fn router(cloud: Cloud) -> Router {
    let mut router = Router::new()
        .route(
            "/api/provisioning-tokens",
            calls(
                &cloud,
                &[
                    (Method::POST, Route::CreateToken, create_token),
                    (Method::GET, Route::ListTokens, list_tokens),
                ],
            ),
        )
        .route(
            "/api/provisioning-tokens/{id}",
            calls(
                &cloud,
                &[(Method::DELETE, Route::RevokeToken, revoke_token)],
            ),
        )
        .route(
            "/api/devices/provision",
            calls(&cloud, &[(Method::POST, Route::Provision, provision)]),
        )
        .route(
            "/api/device/self",
            calls(&cloud, &[(Method::GET, Route::DeviceSelf, device_self)]),
        )
        .route(
            "/api/device/checkin",
            calls(&cloud, &[(Method::POST, Route::Checkin, checkin)]),
        )
        .route(
            "/api/endpoints/{id}/edge/status",
            calls(
                &cloud,
                &[(Method::GET, Route::EdgeStatus, portainer::edge_status)],
            ),
        );
    if cloud.files.is_some() {
        let served = calls(&cloud, &[(Method::GET, Route::Files, files::serve)]);
        router = router
            .route("/setup", served.clone())
            .route("/download/{*path}", served);
    }
    if cloud.admin_routes {
        router = router.route("/_mock/{*path}", unfaulted(&cloud, admin::answer));
    }
    router.fallback_service(unfaulted(&cloud, |_, _| {
        Err(Refusal::new(404, code::NOT_FOUND, "there is no such call"))
    }))
}

fn calls(cloud: &Cloud, table: &[(Method, Route, Work)]) -> MethodRouter<(), Infallible> {
    let cloud = cloud.clone();
    let table: Arc<[(Method, Route, Work)]> = table.into();
    any(move |request: Request<Body>| async move {
        let known = table.iter().find(|(method, ..)| method == request.method());
        match known {
            Some((_, route, work)) => answer(&cloud, Some(*route), *work, request).await,
            None => answer(&cloud, None, method_not_allowed, request).await,
        }
    })
}

fn unfaulted(cloud: &Cloud, work: Work) -> MethodRouter<(), Infallible> {
    let cloud = cloud.clone();
    any(move |request: Request<Body>| async move { answer(&cloud, None, work, request).await })
}

async fn answer(
    cloud: &Cloud,
    route: Option<Route>,
    work: Work,
    request: Request<Body>,
) -> Response<Body> {
    let takeover = request.extensions().get::<Takeover>().cloned();
    let (head, body) = request.into_parts();
    let read = axum::body::to_bytes(body, BODY_CAP).await;
    let too_large = read.is_err();
    let call = Call {
        method: head.method,
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body: read.unwrap_or_default().into(),
    };
    let fault = route.and_then(|route| cloud.world.strike(route));
    if let Some(delay) = fault.as_ref().and_then(Fault::delay) {
        tokio::time::sleep(delay).await;
    }
    let honest = match &fault {
        Some(fault) if !fault.commits() => None,
        _ if too_large => Some(Err(Refusal::new(
            413,
            "PAYLOAD_TOO_LARGE",
            "the body is too large",
        ))),
        _ => Some(work(cloud, &call)),
    };
    let honest = honest.map(|outcome| outcome.unwrap_or_else(Reply::refusal));
    let bent = match fault {
        None | Some(Fault::Delay { .. }) => Bent::Answer(honest.unwrap_or_else(nothing)),
        Some(fault) => bend(fault, honest.unwrap_or_else(nothing)),
    };
    let status = match &bent {
        Bent::Answer(reply) => Some(reply.status),
        Bent::Silence | Bent::Takeover(_) => None,
    };
    cloud.world.record(recorded(&call, route, status));
    match (bent, takeover) {
        (Bent::Answer(reply), _) => reply.into_response(),
        (Bent::Takeover(script), Some(takeover)) => {
            takeover.run(script);
            std::future::pending().await
        }
        (Bent::Silence | Bent::Takeover(_), _) => std::future::pending().await,
    }
}

enum Bent {
    Answer(Reply),
    Silence,
    Takeover(Script),
}

/// What comes of an answer under a fault. `honest` is empty if the server did not do its work.
fn bend(fault: Fault, honest: Reply) -> Bent {
    let raw = |steps| {
        Bent::Takeover(Script {
            steps,
            ending: Ending::Close,
        })
    };
    let length = i64::try_from(honest.body.len()).unwrap_or(i64::MAX);
    match fault {
        Fault::Status {
            status,
            code,
            retry_after,
        } => {
            let body = json!({"success": false, "error": {"code": code, "message": "an injected fault"}});
            let reply = Reply::plain_json(status, &body);
            Bent::Answer(match retry_after {
                Some(value) => reply.with_header(RETRY_AFTER.as_str(), value),
                None => reply,
            })
        }
        Fault::Delay { .. } => Bent::Answer(honest),
        Fault::Hang { .. } => Bent::Silence,
        Fault::Reset { .. } => Bent::Takeover(Script {
            steps: Vec::new(),
            ending: Ending::Reset,
        }),
        Fault::CutAfter { bytes } => {
            let mut whole = honest.to_bytes(length);
            whole.truncate(bytes);
            raw(vec![Step::Write(whole)])
        }
        Fault::Trickle { ms_per_byte } => raw(vec![Step::Trickle {
            bytes: honest.to_bytes(length),
            pause: std::time::Duration::from_millis(ms_per_byte),
        }]),
        Fault::EndlessBody => raw(vec![
            Step::Write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
                    .to_vec(),
            ),
            Step::WriteForever(b"400\r\n".iter().chain(&[b' '; 0x400]).chain(b"\r\n").copied().collect()),
        ]),
        Fault::GiantBody { bytes } => {
            let announced = i64::try_from(bytes).unwrap_or(i64::MAX);
            let head = Reply::of(200, JSON, Vec::new()).to_bytes(announced);
            raw(vec![Step::Write(head), Step::WriteForever(vec![b' '; 0x4000])])
        }
        Fault::CaptivePortal => {
            let page = "<!doctype html><title>Welcome to Free WiFi</title><form>Room number</form>";
            Bent::Answer(Reply::of(200, "text/html", page.into()))
        }
        Fault::Redirect { location } => Bent::Answer(
            Reply::of(302, "text/html", Vec::new()).with_header("location", location),
        ),
        Fault::WrongLength { off_by } => raw(vec![Step::Write(honest.to_bytes(length + off_by))]),
        Fault::Body { status, text } => Bent::Answer(Reply::of(status, JSON, text.into_bytes())),
        Fault::BadUtf8 => Bent::Answer(Reply::of(
            200,
            JSON,
            b"{\"success\":true,\"data\":{\"device_id\":\"\xff\xfe\"}}".to_vec(),
        )),
        Fault::Garbage => raw(vec![Step::Write(b"\x16\x03\x01 not HTTP at all\r\n\r\n".to_vec())]),
        Fault::CloseAfter => raw(vec![Step::Write(honest.to_bytes(length))]),
    }
}

fn nothing() -> Reply {
    Reply::of(500, JSON, Vec::new())
}

fn recorded(call: &Call, route: Option<Route>, status: Option<u16>) -> Recorded {
    const SECRET_HEADERS: [&str; 2] = ["authorization", DEVICE_KEY_HEADER];
    let headers: BTreeMap<String, String> = call
        .headers
        .iter()
        .map(|(name, value)| {
            let shown = if SECRET_HEADERS.contains(&name.as_str()) {
                "[redacted]".to_owned()
            } else {
                redact(&String::from_utf8_lossy(value.as_bytes()))
            };
            (name.as_str().to_owned(), shown)
        })
        .collect();
    Recorded {
        method: call.method.to_string(),
        path: call.path.clone(),
        route,
        status,
        headers,
        body: String::from_utf8_lossy(&call.body).into_owned(),
    }
}

fn method_not_allowed(_: &Cloud, _: &Call) -> Result<Reply, Refusal> {
    Err(Refusal::new(
        405,
        "METHOD_NOT_ALLOWED",
        "this call knows other methods",
    ))
}

fn create_token(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    cloud.world.authorize_admin(call.header("authorization"))?;
    let request: CreateToken = call.json()?;
    cloud.world.validate_token(&request)?;
    Ok(Reply::data(201, cloud.world.create_token(request)))
}

fn list_tokens(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    cloud.world.authorize_admin(call.header("authorization"))?;
    let (tokens, meta) = cloud.world.tokens();
    Ok(Reply::enveloped(200, Some(tokens), Some(meta)))
}

fn revoke_token(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    cloud.world.authorize_admin(call.header("authorization"))?;
    let id = call.last_segment();
    cloud.world.revoke_token(id)?;
    Ok(Reply::data(200, json!({ "id": id, "revoked": true })))
}

fn provision(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    let request = call.json()?;
    let answer = cloud
        .world
        .provision(request, call.header(IDEMPOTENCY_HEADER))?;
    Ok(Reply::data(201, answer))
}

fn device_self(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    let device = cloud.world.device_self(call.header(DEVICE_KEY_HEADER))?;
    Ok(Reply::data(200, device))
}

fn checkin(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    let key = call.header(DEVICE_KEY_HEADER);
    // Who may not ask learns nothing about what is wrong with the question.
    cloud.world.authorize_device(key)?;
    let reply = cloud.world.checkin(key, &call.json()?)?;
    Ok(Reply::data(200, reply))
}
