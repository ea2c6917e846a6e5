//! The calls of the API, each with typed answers and typed refusals.

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;
use thiserror::Error;
use uuid::Uuid;

use super::http::{Answer, BODY_CAP, DEADLINE, Http, HttpError, Request, SetupError};
use super::retry::Worth;
use super::{
    Checkin, CheckinReply, CreateToken, CreatedToken, DEVICE_KEY_HEADER, DeviceSelf, Envelope,
    ErrorBody, IDEMPOTENCY_HEADER, ProvisionRequest, Provisioned, TokenInfo,
};
use crate::config::ApiUrl;
use crate::error::{Exit, Explain};
use crate::secret::{AdminToken, DeviceKey, Secret};

/// Provisioning creates things on the far side, and giving up on it too early costs a token:
/// it gets more time than the other calls.
const PROVISION_DEADLINE: Duration = Duration::from_secs(60);

/// Some ten thousand tokens.
const LIST_CAP: usize = 4 * 1024 * 1024;

#[derive(Debug)]
pub struct TokenList {
    /// Newest first.
    pub tokens: Vec<TokenInfo>,
    /// Tokens that the server has and did not send.
    pub not_shown: u64,
}

#[derive(Debug, Clone)]
pub struct Client {
    http: Http,
    base: ApiUrl,
}

#[derive(Debug, Error)]
pub enum ApiError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("{base} did not answer like the Acusight API: HTTP {status}, {what}")]
    Foreign {
        base: ApiUrl,
        status: u16,
        what: String,
        retry_after: Option<Duration>,
    },
    #[error("the server refused: {body} (HTTP {status})", body = Spoken(body))]
    Refused {
        status: u16,
        body: ErrorBody,
        retry_after: Option<Duration>,
    },
    #[error("the server said yes, but its answer cannot be used: {what}")]
    BadReply { what: String },
}

/// A server's words, fit for one line of a terminal.
struct Spoken<'a>(&'a ErrorBody);

impl std::fmt::Display for Spoken<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let details = self.0.details.as_deref().unwrap_or_default();
        let message = match (self.0.message.as_str(), details) {
            ("", "") => self.0.code.clone(),
            (message, "") => message.to_owned(),
            ("", details) => details.to_owned(),
            (message, details) => format!("{message}: {details}"),
        };
        let line: String = message
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(300)
            .collect();
        f.write_str(&line)
    }
}

impl ApiError {
    /// The status and error code of a refusal in the API's own envelope.
    pub fn refusal(&self) -> Option<(u16, &str)> {
        match self {
            ApiError::Refused { status, body, .. } => Some((*status, &body.code)),
            _ => None,
        }
    }

    /// The server does not accept the credential the call was made with.
    pub fn is_unauthorized(&self) -> bool {
        self.refusal().is_some_and(|(status, _)| status == 401)
    }

    /// Whether the server may have carried out the request all the same.
    pub fn may_have_been_carried_out(&self) -> bool {
        match self {
            ApiError::Setup(_) => false,
            ApiError::Http(error) => error.may_have_been_delivered(),
            // After the commit it looks as before it; a 503 may be a proxy's, whose server died.
            ApiError::Refused { status, .. } | ApiError::Foreign { status, .. } => {
                *status >= 500 || *status < 300
            }
            ApiError::BadReply { .. } => true,
        }
    }

    pub fn worth(&self) -> Worth {
        let (retry, after) = match self {
            ApiError::Http(error) => (error.is_passing(), None),
            ApiError::Refused {
                status,
                retry_after,
                ..
            } => (is_passing_status(*status), *retry_after),
            // A captive portal answers with a 200 of its own until somebody logs in.
            ApiError::Foreign {
                status,
                retry_after,
                ..
            } => (is_passing_status(*status) || *status < 300, *retry_after),
            ApiError::Setup(_) | ApiError::BadReply { .. } => (false, None),
        };
        if retry {
            Worth::Retry { after }
        } else {
            Worth::Nothing
        }
    }
}

impl Explain for ApiError {
    fn exit(&self) -> Exit {
        match self {
            ApiError::Setup(error) => error.exit(),
            ApiError::Http(error) => error.exit(),
            ApiError::Foreign { status, .. } if *status < 400 || *status == 407 => Exit::Network,
            ApiError::Foreign { .. } | ApiError::Refused { .. } | ApiError::BadReply { .. } => {
                Exit::Server
            }
        }
    }

    fn id(&self) -> &'static str {
        match self {
            ApiError::Setup(error) => error.id(),
            ApiError::Http(error) => error.id(),
            ApiError::Foreign { .. } => "not_the_api",
            ApiError::Refused { status: 429, .. } => "throttled",
            ApiError::Refused { status: 400, .. } => "validation_error",
            ApiError::Refused { .. } => "server_error",
            ApiError::BadReply { .. } => "bad_reply",
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ApiError::Setup(error) => error.hint(),
            ApiError::Http(error) => error.hint(),
            ApiError::Foreign { base, status, .. } if *status < 400 => Some(format!(
                "a login page of this network may be in the way: open a browser on it; else check --api-url ({base})"
            )),
            ApiError::Foreign { status: 407, .. } => {
                Some("the proxy wants a user and password: HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT".into())
            }
            ApiError::Foreign { base, status, .. } if *status < 500 => {
                Some(format!("check --api-url: is {base} the address of the API?"))
            }
            ApiError::Refused { status: 429, .. } => {
                Some("too many devices ask at once; run the same command again in a few minutes".into())
            }
            ApiError::Refused { status: 404, .. } => Some("check --api-url: this server does not know the call".into()),
            ApiError::Foreign { .. } | ApiError::Refused { status: 500.., .. } => {
                Some("the server has a problem; run the same command again later".into())
            }
            ApiError::Refused { .. } => Some("correct what the server names, then run it again".into()),
            ApiError::BadReply { .. } => Some("the server may need another version of this agent; show this to Acusight's support".into()),
        }
    }

    fn retryable(&self) -> bool {
        self.worth() != Worth::Nothing
    }
}

fn is_passing_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..)
}

impl Client {
    pub fn new(http: Http, base: ApiUrl) -> Client {
        Client { http, base }
    }

    pub async fn create_token(
        &self,
        admin: &AdminToken,
        token: &CreateToken,
    ) -> Result<CreatedToken, ApiError> {
        let call = self
            .call(Method::POST, "/provisioning-tokens")
            .bearer(admin)
            .json(token);
        self.data(call).await
    }

    pub async fn list_tokens(&self, admin: &AdminToken) -> Result<TokenList, ApiError> {
        let mut call = self.call(Method::GET, "/provisioning-tokens").bearer(admin);
        call.body_cap = LIST_CAP;
        let envelope: Envelope<Vec<TokenInfo>> = decode(&self.accepted(call).await?)?;
        let total = envelope.meta.and_then(|meta| meta.total).unwrap_or(0);
        let tokens = envelope.data.ok_or_else(no_data)?;
        Ok(TokenList {
            not_shown: total.saturating_sub(tokens.len() as u64),
            tokens,
        })
    }

    pub async fn revoke_token(&self, admin: &AdminToken, id: Uuid) -> Result<(), ApiError> {
        let call = self
            .call(Method::DELETE, &format!("/provisioning-tokens/{id}"))
            .bearer(admin);
        self.accepted(call).await.map(drop)
    }

    pub async fn provision(
        &self,
        request: &ProvisionRequest,
        request_id: Uuid,
    ) -> Result<Provisioned, ApiError> {
        let mut call = self
            .call(Method::POST, "/devices/provision")
            .header(IDEMPOTENCY_HEADER, Secret::new(request_id.to_string()))
            .json(request);
        call.deadline = PROVISION_DEADLINE;
        self.data(call).await
    }

    pub async fn device_self(&self, key: &DeviceKey) -> Result<DeviceSelf, ApiError> {
        let call = self
            .call(Method::GET, "/device/self")
            .header(DEVICE_KEY_HEADER, key.as_secret().clone());
        self.data(call).await
    }

    pub async fn checkin(
        &self,
        key: &DeviceKey,
        checkin: &Checkin,
    ) -> Result<CheckinReply, ApiError> {
        let call = self
            .call(Method::POST, "/device/checkin")
            .header(DEVICE_KEY_HEADER, key.as_secret().clone())
            .json(checkin);
        self.data(call).await
    }

    /// Whether the API answers at all, asked without any secret: names, network, certificates,
    /// captive portals are out of the way if it succeeds.
    pub async fn probe(&self) -> Result<(), ApiError> {
        match self.accepted(self.call(Method::GET, "/device/self")).await {
            Err(ApiError::Refused { status, .. }) if !is_passing_status(status) => Ok(()),
            answered => answered.map(drop),
        }
    }

    fn call(&self, method: Method, path: &str) -> Request {
        Request {
            method,
            url: self.base.join(path),
            headers: Vec::new(),
            json: None,
            deadline: DEADLINE,
            body_cap: BODY_CAP,
        }
    }

    async fn data<T: DeserializeOwned>(&self, call: Request) -> Result<T, ApiError> {
        let envelope: Envelope<T> = decode(&self.accepted(call).await?)?;
        envelope.data.ok_or_else(no_data)
    }

    /// An answer of the API itself that says yes.
    async fn accepted(&self, call: Request) -> Result<Answer, ApiError> {
        let answer = self.http.exchange(call).await?;
        let status = answer.status;
        let foreign = |what: String| ApiError::Foreign {
            base: self.base.clone(),
            status,
            what,
            retry_after: answer.retry_after,
        };
        if let Some(host) = &answer.redirects_to {
            return Err(foreign(format!("a redirect to {host}")));
        }
        let envelope: Option<Envelope<serde::de::IgnoredAny>> = std::str::from_utf8(&answer.body)
            .ok()
            .and_then(|text| serde_json::from_str(text).ok());
        let Some(envelope) = envelope else {
            return Err(foreign("and no answer in its format".into()));
        };
        match (status, envelope.success, envelope.error) {
            (200..300, true, _) => Ok(answer),
            (200..300, false, _) => Err(ApiError::BadReply {
                what: "HTTP says success, the text says failure".into(),
            }),
            (_, false, Some(body)) => Err(ApiError::Refused {
                status,
                body,
                retry_after: answer.retry_after,
            }),
            _ => Err(foreign("and no error in its format".into())),
        }
    }
}

fn decode<T: DeserializeOwned>(answer: &Answer) -> Result<Envelope<T>, ApiError> {
    serde_json::from_slice(&answer.body).map_err(|error| ApiError::BadReply {
        what: error.to_string(),
    })
}

fn no_data() -> ApiError {
    ApiError::BadReply {
        what: "it holds no data".into(),
    }
}

impl Request {
    fn header(mut self, name: &'static str, value: Secret) -> Request {
        self.headers.push((name, value));
        self
    }

    fn bearer(self, admin: &AdminToken) -> Request {
        let value = Secret::new(format!("Bearer {}", admin.expose()));
        self.header("authorization", value)
    }

    fn json(mut self, body: &impl Serialize) -> Request {
        let json = serde_json::to_vec(body).expect("wire types always encode");
        self.json = Some(json);
        self
    }
}
