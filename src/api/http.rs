//! The one door to the HTTP client: addresses in, bounded answers or classified errors out.
//!
//! Redirects are never followed (the client would carry `X-Device-Key` along), answers are capped,
//! every exchange has a deadline. Certificates are checked against the system's authorities *and*
//! a bundled set, so that a device without `ca-certificates` still works; `--ca-cert` adds to both.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{
    CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
};
use reqwest::{Certificate, Method, redirect};
use rustls::CertificateError;
use thiserror::Error;
use tokio::time::Instant;
use url::Url;

use super::retry::parse_retry_after;
use crate::clock::{Clock, rfc3339};
use crate::config::ApiUrl;
use crate::error::{Exit, Explain};
use crate::files::{self, FileError};
use crate::secret::Secret;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
pub const DEADLINE: Duration = Duration::from_secs(10);
const HEADER_CAP: usize = 16 * 1024;
const HEADERS_CAP: usize = 64;
pub const BODY_CAP: usize = 64 * 1024;
const CA_FILE_CAP: usize = 1024 * 1024;

#[derive(Debug, Clone)]
pub struct Http {
    client: reqwest::Client,
    clock: Clock,
    bypasses_proxies: bool,
}

#[derive(Debug)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    /// Values are treated as secrets by everything below.
    pub headers: Vec<(&'static str, Secret)>,
    pub json: Option<Vec<u8>>,
    pub deadline: Duration,
    pub body_cap: usize,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub retry_after: Option<Duration>,
    /// Where a redirect points to: the host only, the rest may hold secrets.
    pub redirects_to: Option<String>,
    pub body: Vec<u8>,
}

#[derive(Debug, Error)]
pub enum SetupError {
    #[error("no certificate was found in {0}")]
    NoCertificate(PathBuf),
    #[error("the certificates in {path} cannot be used")]
    BadCertificate {
        path: PathBuf,
        source: reqwest::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
    #[error("could not prepare the HTTP client")]
    Client(#[source] reqwest::Error),
}

impl Explain for SetupError {
    fn exit(&self) -> Exit {
        match self {
            SetupError::Client(_) => Exit::Unexpected,
            _ => Exit::Usage,
        }
    }

    fn id(&self) -> &'static str {
        "bad_ca_cert"
    }

    fn hint(&self) -> Option<String> {
        match self {
            SetupError::Client(_) => None,
            _ => Some(
                "--ca-cert takes a PEM file: blocks that begin with -----BEGIN CERTIFICATE-----"
                    .into(),
            ),
        }
    }
}

#[derive(Debug, Error)]
pub enum HttpError {
    #[error("the name {host} could not be resolved: {cause}")]
    Dns { host: String, cause: String },
    #[error("could not connect to {host}: {cause}")]
    Connect { host: String, cause: String },
    #[error("could not connect to {host} within {} s", CONNECT_DEADLINE.as_secs())]
    ConnectTimeout { host: String },
    #[error("no secure connection to {host}: {problem}")]
    Tls { host: String, problem: TlsProblem },
    #[error("{host} did not answer within {} s", deadline.as_secs())]
    TimedOut { host: String, deadline: Duration },
    #[error("the connection to {host} broke before its answer was complete: {cause}")]
    Cut { host: String, cause: String },
    #[error("the answer of {host} is too large to be one of the Acusight API")]
    TooLarge { host: String },
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum TlsProblem {
    #[error("its certificate is not valid yet, says this machine's clock ({now})")]
    NotYetValid { now: String },
    #[error("its certificate has expired, says this machine's clock ({now})")]
    Expired { now: String },
    #[error("its certificate is for another name")]
    WrongName,
    #[error("its certificate is signed by nobody this machine trusts")]
    UnknownIssuer,
    #[error("{0}")]
    Other(String),
}

impl HttpError {
    /// Whether the server may have received and carried out the request all the same.
    pub fn may_have_been_delivered(&self) -> bool {
        matches!(
            self,
            HttpError::TimedOut { .. } | HttpError::Cut { .. } | HttpError::TooLarge { .. }
        )
    }

    /// Whether the same request may well succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            HttpError::Tls { problem, .. } => matches!(problem, TlsProblem::NotYetValid { .. }),
            HttpError::TooLarge { .. } => false,
            _ => true,
        }
    }
}

impl Explain for HttpError {
    fn exit(&self) -> Exit {
        match self {
            HttpError::TooLarge { .. } => Exit::Server,
            _ => Exit::Network,
        }
    }

    fn id(&self) -> &'static str {
        match self {
            HttpError::Dns { .. } => "dns",
            HttpError::Connect { .. } | HttpError::ConnectTimeout { .. } => "connect",
            HttpError::Tls { problem, .. } => match problem {
                TlsProblem::NotYetValid { .. } => "tls_not_yet_valid",
                TlsProblem::Expired { .. } => "tls_expired",
                TlsProblem::WrongName => "tls_wrong_name",
                TlsProblem::UnknownIssuer => "tls_unknown_issuer",
                TlsProblem::Other(_) => "tls",
            },
            HttpError::TimedOut { .. } => "timeout",
            HttpError::Cut { .. } => "connection_lost",
            HttpError::TooLarge { .. } => "answer_too_large",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            HttpError::Dns { .. } => {
                "check the network cable or Wi-Fi and the DNS server; then run the same command again"
            }
            HttpError::Connect { .. } | HttpError::ConnectTimeout { .. } => {
                "check that the server runs there, and that a firewall or proxy (HTTPS_PROXY, NO_PROXY) lets this machine reach it"
            }
            HttpError::TimedOut { .. } | HttpError::Cut { .. } => {
                "the network is bad or the server is busy; run the same command again"
            }
            HttpError::TooLarge { .. } => "check --api-url: something else seems to answer there",
            HttpError::Tls { problem, .. } => match problem {
                TlsProblem::NotYetValid { .. } => {
                    "if that time is wrong, set the clock (timedatectl, or let it synchronise) and run the same command again"
                }
                TlsProblem::Expired { .. } => {
                    "if that time is right, the server's certificate must be renewed; if not, set this machine's clock"
                }
                TlsProblem::WrongName => {
                    "check --api-url; on a strange network, something may be answering in the server's place"
                }
                TlsProblem::UnknownIssuer => {
                    "for your own server, name its certificate authority with --ca-cert; on a strange network, something may be answering in the server's place"
                }
                TlsProblem::Other(_) => "check that --api-url names an https server",
            },
        };
        Some(hint.into())
    }

    fn retryable(&self) -> bool {
        self.is_passing()
    }
}

impl Http {
    /// For the server at `base`. Proxies are those of the environment, but this machine is
    /// always reached directly.
    pub fn new(ca_cert: Option<&Path>, base: &ApiUrl, clock: Clock) -> Result<Http, SetupError> {
        install_crypto();
        let mut authorities: Vec<Certificate> = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .filter_map(|der| Certificate::from_der(der).ok())
            .collect();
        if let Some(path) = ca_cert {
            authorities.extend(read_authorities(path)?);
        }
        #[expect(clippy::disallowed_methods, reason = "this is the door to reqwest")]
        let mut builder = reqwest::Client::builder()
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .tcp_user_timeout(DEADLINE)
            .http1_max_headers(HEADERS_CAP)
            .pool_max_idle_per_host(1)
            .tls_certs_merge(authorities)
            .dns_resolver(SystemResolver);
        if base.is_loopback() {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|error| match ca_cert {
            Some(path) => SetupError::BadCertificate {
                path: path.to_owned(),
                source: error,
            },
            None => SetupError::Client(error),
        })?;
        Ok(Http {
            client,
            clock,
            bypasses_proxies: base.is_loopback(),
        })
    }

    /// Whether it was made for a server like this one, as far as proxies go.
    pub fn suits(&self, base: &ApiUrl) -> bool {
        self.bypasses_proxies == base.is_loopback()
    }

    pub async fn exchange(&self, request: Request) -> Result<Answer, HttpError> {
        let began = Instant::now();
        let method = request.method.clone();
        let path = request.url.path().to_owned();
        let outcome = self.send(request).await;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &outcome {
            Ok(answer) => tracing::debug!(%method, path, status = answer.status, ms, "answered"),
            Err(error) => tracing::debug!(%method, path, %error, ms, "no answer"),
        }
        outcome
    }

    async fn send(&self, request: Request) -> Result<Answer, HttpError> {
        let host = request.url.host_str().unwrap_or_default().to_owned();
        let (deadline, body_cap) = (request.deadline, request.body_cap);
        let failed = |error: reqwest::Error| self.classify(&error, host.clone(), deadline);

        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            if let Ok(mut value) = HeaderValue::from_str(value.expose()) {
                value.set_sensitive(true);
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        let mut builder = self
            .client
            .request(request.method, request.url)
            .timeout(deadline)
            .headers(headers);
        if let Some(json) = request.json {
            builder = builder.header(CONTENT_TYPE, "application/json").body(json);
        }
        let mut response = builder.send().await.map_err(failed)?;

        let too_large = || HttpError::TooLarge { host: host.clone() };
        let header_bytes: usize = response
            .headers()
            .iter()
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        let announced = response.content_length().unwrap_or(0);
        if header_bytes > HEADER_CAP || announced > body_cap as u64 {
            return Err(too_large());
        }
        let mut answer = Answer {
            status: response.status().as_u16(),
            retry_after: self.retry_after(response.headers()),
            redirects_to: redirect_host(&response),
            body: Vec::new(),
        };
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if answer.body.len() + chunk.len() > body_cap {
                return Err(too_large());
            }
            answer.body.extend_from_slice(&chunk);
        }
        Ok(answer)
    }

    fn retry_after(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        parse_retry_after(text(RETRY_AFTER)?, text(DATE), self.clock.now())
    }

    fn classify(&self, error: &reqwest::Error, host: String, deadline: Duration) -> HttpError {
        // Only while connecting: a broken record later on says nothing of what the server did.
        if let Some(tls) = find::<rustls::Error>(error).filter(|_| error.is_connect()) {
            let problem = self.tls_problem(tls);
            return HttpError::Tls { host, problem };
        }
        if let Some(DnsFailure(cause)) = find(error) {
            let cause = cause.to_string();
            return HttpError::Dns { host, cause };
        }
        match (error.is_connect(), error.is_timeout()) {
            (true, true) => HttpError::ConnectTimeout { host },
            (true, false) => HttpError::Connect {
                host,
                cause: innermost(error),
            },
            (false, true) => HttpError::TimedOut { host, deadline },
            (false, false) => HttpError::Cut {
                host,
                cause: innermost(error),
            },
        }
    }

    fn tls_problem(&self, error: &rustls::Error) -> TlsProblem {
        let now = rfc3339(self.clock.now());
        let rustls::Error::InvalidCertificate(reason) = error else {
            return TlsProblem::Other(error.to_string());
        };
        match reason {
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                TlsProblem::NotYetValid { now }
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                TlsProblem::Expired { now }
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                TlsProblem::WrongName
            }
            CertificateError::UnknownIssuer => TlsProblem::UnknownIssuer,
            other => TlsProblem::Other(other.to_string()),
        }
    }
}

/// The process-wide choice of cryptography; reqwest panics without one.
pub fn install_crypto() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that one is installed already, which is what we want.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
    });
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, SetupError> {
    let missing = || SetupError::NoCertificate(path.to_owned());
    let pem = files::read_text(path, CA_FILE_CAP)?.ok_or_else(missing)?;
    let authorities = Certificate::from_pem_bundle(pem.as_bytes()).map_err(|source| {
        SetupError::BadCertificate {
            path: path.to_owned(),
            source,
        }
    })?;
    if authorities.is_empty() {
        return Err(missing());
    }
    Ok(authorities)
}

fn redirect_host(response: &reqwest::Response) -> Option<String> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let target = response.url().join(location).ok()?;
    target.host_str().map(str::to_owned)
}

/// The system's own resolver, with an error that can be told from others.
#[derive(Debug)]
struct SystemResolver;

#[derive(Debug, Error)]
#[error("{0}")]
struct DnsFailure(io::Error);

impl Resolve for SystemResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(DnsFailure)?
                .collect();
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Looks for an error of type `T` among the causes, also inside I/O errors that wrap others.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        let wrapped = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .and_then(|inner| find::<T>(inner));
        if wrapped.is_some() {
            return wrapped;
        }
        next = error.source();
    }
    None
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}
