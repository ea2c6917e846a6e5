//! Settings, resolved once: flag, else environment, else `agent.toml`, else default.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;
use url::{Host, Url};

use crate::env_vars::{self, Env};
use crate::error::{Exit, Explain};
use crate::files::{self, FileError};
use crate::paths::Paths;

const DEFAULT_API_URL: &str = "https://acusight.io/api";
const DEFAULT_RETRY_FOR: Duration = Duration::from_secs(300);
const SETTINGS_CAP: usize = 64 * 1024;

/// What the command line may say about settings.
#[derive(Debug, Default)]
pub struct Overrides {
    pub api_url: Option<String>,
    pub allow_http: bool,
    pub ca_cert: Option<PathBuf>,
    pub retry_for: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub paths: Paths,
    pub api_url: ApiUrl,
    /// Somebody chose it; it is not just the default.
    pub api_url_given: bool,
    pub allow_http: bool,
    pub ca_cert: Option<PathBuf>,
    /// How long to go on trying while a person waits.
    pub retry_for: Duration,
    /// Where Docker answers, if not at its usual place.
    pub docker_host: Option<String>,
}

/// `agent.toml`. No secret has a place in it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SettingsFile {
    api_url: Option<String>,
    allow_http: Option<bool>,
    ca_cert: Option<PathBuf>,
    retry_for: Option<u64>,
}

#[derive(Debug, Error)]
pub enum ConfigError {
    #[error("{origin}: {reason}")]
    ApiUrl { origin: String, reason: BadApiUrl },
    #[error("{name} must be {expected}")]
    Variable {
        name: &'static str,
        expected: &'static str,
    },
    #[error("{path} line {line}: {reason}")]
    SettingsFile {
        path: PathBuf,
        line: usize,
        reason: String,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

impl Explain for ConfigError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn id(&self) -> &'static str {
        "bad_settings"
    }

    fn hint(&self) -> Option<String> {
        match self {
            ConfigError::ApiUrl {
                reason: BadApiUrl::PlainHttp,
                ..
            } => Some(
                "use https, or add --allow-http if this is your own server on a network you trust"
                    .into(),
            ),
            ConfigError::ApiUrl { .. } => Some(format!(
                "it looks like {DEFAULT_API_URL} or http://192.168.1.10:8080/api"
            )),
            ConfigError::SettingsFile { .. } => {
                Some("known settings: api_url, allow_http, ca_cert, retry_for".into())
            }
            ConfigError::File(error) => error.hint(),
            ConfigError::Variable { .. } => Some("set it so, or unset it".into()),
        }
    }
}

impl Settings {
    pub fn resolve(flags: Overrides, env: &Env, paths: Paths) -> Result<Settings, ConfigError> {
        let file = SettingsFile::load(&paths)?;
        let allow_http = flags.allow_http
            || match env.text(env_vars::ALLOW_HTTP) {
                Some(text) => parse_switch(env_vars::ALLOW_HTTP, &text)?,
                None => file.allow_http.unwrap_or(false),
            };
        let retry_for = match (flags.retry_for, env.text(env_vars::RETRY_FOR)) {
            (Some(seconds), _) => Some(seconds),
            (None, Some(text)) => Some(parse_seconds(env_vars::RETRY_FOR, &text)?),
            (None, None) => file.retry_for,
        };
        let api_url_given = flags.api_url.is_some()
            || env.text(env_vars::API_URL).is_some()
            || file.api_url.is_some();
        let (origin, api_url) = match (flags.api_url, env.text(env_vars::API_URL), file.api_url) {
            (Some(url), _, _) => ("--api-url".to_owned(), url),
            (None, Some(url), _) => (env_vars::API_URL.to_owned(), url),
            (None, None, Some(url)) => (
                format!("api_url in {}", paths.settings_file().display()),
                url,
            ),
            (None, None, None) => ("the default".to_owned(), DEFAULT_API_URL.to_owned()),
        };
        let api_url = ApiUrl::parse(&api_url, allow_http)
            .map_err(|reason| ConfigError::ApiUrl { origin, reason })?;
        Ok(Settings {
            paths,
            api_url,
            api_url_given,
            allow_http,
            ca_cert: flags
                .ca_cert
                .or_else(|| env.path(env_vars::CA_CERT))
                .or(file.ca_cert),
            retry_for: retry_for.map_or(DEFAULT_RETRY_FOR, Duration::from_secs),
            docker_host: env.text(env_vars::DOCKER_HOST),
        })
    }
}

impl SettingsFile {
    fn load(paths: &Paths) -> Result<SettingsFile, ConfigError> {
        let path = paths.settings_file();
        let Some(text) = files::read_text(&path, SETTINGS_CAP)? else {
            return Ok(SettingsFile::default());
        };
        toml::from_str(&text).map_err(|error| ConfigError::SettingsFile {
            line: error
                .span()
                .map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
            reason: error.message().to_owned(),
            path,
        })
    }
}

fn parse_switch(name: &'static str, text: &str) -> Result<bool, ConfigError> {
    match text {
        "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        _ => Err(ConfigError::Variable {
            name,
            expected: "1 or 0",
        }),
    }
}

fn parse_seconds(name: &'static str, text: &str) -> Result<u64, ConfigError> {
    text.parse().map_err(|_| ConfigError::Variable {
        name,
        expected: "a whole number of seconds",
    })
}

/// The base of all calls: scheme, host and path, without a trailing slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiUrl(Url);

#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadApiUrl {
    #[error("this is not an address of the form https://HOST/api")]
    Malformed,
    #[error("only https (or http) is spoken here")]
    Scheme,
    #[error("an API address carries no user, password, query or fragment")]
    Decorated,
    #[error("plain http would send the token and the key unprotected")]
    PlainHttp,
    #[error("an https server must not point to plain http")]
    Downgrade,
    #[error("a server elsewhere must not point to this machine itself")]
    Loopback,
}

impl ApiUrl {
    pub fn parse(text: &str, allow_http: bool) -> Result<ApiUrl, BadApiUrl> {
        let text = text.trim();
        // The standard would take the first word of the path for the host.
        if text.contains(":///") {
            return Err(BadApiUrl::Malformed);
        }
        let mut url = Url::parse(text).map_err(|_| BadApiUrl::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BadApiUrl::Scheme);
        }
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(BadApiUrl::Decorated);
        }
        if url.scheme() == "http" && !allow_http && !is_loopback(&url) {
            return Err(BadApiUrl::PlainHttp);
        }
        let path = match url.path().trim_end_matches('/') {
            "" => "/api".to_owned(),
            path => path.to_owned(),
        };
        url.set_path(&path);
        Ok(ApiUrl(url))
    }

    /// The base that a server at `self` names for the calls of its devices.
    pub fn endpoint(&self, named: &str, allow_http: bool) -> Result<ApiUrl, BadApiUrl> {
        let endpoint = ApiUrl::parse(named, allow_http)?;
        if self.0.scheme() == "https" && endpoint.0.scheme() == "http" {
            return Err(BadApiUrl::Downgrade);
        }
        if endpoint.is_loopback() && !self.is_loopback() {
            return Err(BadApiUrl::Loopback);
        }
        Ok(endpoint)
    }

    /// The address of one call; `path` starts with a slash and holds no user's text.
    pub fn join(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}{path}", self.0.path()));
        url
    }

    pub fn is_loopback(&self) -> bool {
        is_loopback(&self.0)
    }

    pub fn has_same_origin(&self, other: &ApiUrl) -> bool {
        self.0.origin() == other.0.origin()
    }

    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or_default()
    }
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl Serialize for ApiUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ApiUrl {
    /// From our own records: whether http is fine was decided before it was written.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ApiUrl, D::Error> {
        let text = String::deserialize(deserializer)?;
        ApiUrl::parse(&text, true).map_err(serde::de::Error::custom)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str, allow_http: bool) -> String {
        match ApiUrl::parse(text, allow_http) {
            Ok(url) => url.to_string(),
            Err(reason) => format!("refused: {reason}"),
        }
    }

    #[test]
    fn base_addresses() {
        let table = [
            ("https://acusight.io", false),
            ("https://acusight.io/", false),
            ("https://acusight.io/api/", false),
            ("https://acusight.io/tenant/api", false),
            ("https://acusight.io:8443", false),
            ("http://127.0.0.1:8080", false),
            ("http://[::1]:8080/api", false),
            ("http://localhost:8080/api", false),
            ("http://192.168.1.10:8080/api", true),
            ("http://192.168.1.10:8080/api", false),
            ("http://localhost.evil.example/api", false),
            ("http://127.0.0.1.evil.example/api", false),
            ("ftp://acusight.io", false),
            ("acusight.io", false),
            ("https://user:pw@acusight.io", false),
            ("https://acusight.io/api?x=1", false),
            ("https:///api", false),
            ("", false),
        ];
        let lines: Vec<String> = table
            .into_iter()
            .map(|(text, allow)| format!("{text} ({allow}) => {}", parsed(text, allow)))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        https://acusight.io (false) => https://acusight.io/api
        https://acusight.io/ (false) => https://acusight.io/api
        https://acusight.io/api/ (false) => https://acusight.io/api
        https://acusight.io/tenant/api (false) => https://acusight.io/tenant/api
        https://acusight.io:8443 (false) => https://acusight.io:8443/api
        http://127.0.0.1:8080 (false) => http://127.0.0.1:8080/api
        http://[::1]:8080/api (false) => http://[::1]:8080/api
        http://localhost:8080/api (false) => http://localhost:8080/api
        http://192.168.1.10:8080/api (true) => http://192.168.1.10:8080/api
        http://192.168.1.10:8080/api (false) => refused: plain http would send the token and the key unprotected
        http://localhost.evil.example/api (false) => refused: plain http would send the token and the key unprotected
        http://127.0.0.1.evil.example/api (false) => refused: plain http would send the token and the key unprotected
        ftp://acusight.io (false) => refused: only https (or http) is spoken here
        acusight.io (false) => refused: this is not an address of the form https://HOST/api
        https://user:pw@acusight.io (false) => refused: an API address carries no user, password, query or fragment
        https://acusight.io/api?x=1 (false) => refused: an API address carries no user, password, query or fragment
        https:///api (false) => refused: this is not an address of the form https://HOST/api
         (false) => refused: this is not an address of the form https://HOST/api
        ");
    }

    #[test]
    fn a_server_cannot_send_its_devices_just_anywhere() {
        let https = ApiUrl::parse("https://acusight.io", false).expect("good");
        assert_eq!(
            https.endpoint("http://acusight.io", true),
            Err(BadApiUrl::Downgrade)
        );
        assert_eq!(
            https.endpoint("http://acusight.io", false),
            Err(BadApiUrl::PlainHttp)
        );
        assert_eq!(
            https.endpoint("https://localhost", false),
            Err(BadApiUrl::Loopback)
        );
        let http = ApiUrl::parse("http://10.0.0.1:8080", true).expect("good");
        assert!(http.endpoint("http://10.0.0.1:8080", true).is_ok());
    }

    proptest! {
        #[test]
        fn what_is_accepted_parses_to_itself_again(text in "https?://[a-z0-9.]{1,20}(:[0-9]{1,4})?(/[a-z]{0,5}){0,3}") {
            if let Ok(url) = ApiUrl::parse(&text, true) {
                prop_assert_eq!(ApiUrl::parse(&url.to_string(), true), Ok(url.clone()));
                prop_assert!(!url.to_string().ends_with('/'));
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            ApiUrl::parse(&text, false).ok();
        }
    }
}
