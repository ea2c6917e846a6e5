//! Every environment variable the program reads, and the only place that spells them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Base URL of the Acusight API.
pub const API_URL: &str = "ACUSIGHT_API_URL";
/// `1` or `true`: plain http is allowed to other hosts than this machine.
pub const ALLOW_HTTP: &str = "ACUSIGHT_ALLOW_HTTP";
/// PEM file with certificate authorities to trust besides the system's.
pub const CA_CERT: &str = "ACUSIGHT_CA_CERT";
/// Where the device's identity and key live.
pub const STATE_DIR: &str = "ACUSIGHT_STATE_DIR";
/// How long, in seconds, to go on trying while a person waits.
pub const RETRY_FOR: &str = "ACUSIGHT_RETRY_FOR";
/// `human`, `journald` or `json`.
pub const LOG_FORMAT: &str = "ACUSIGHT_LOG_FORMAT";
/// The provisioning token. Visible to root in `/proc`; a file is better.
pub const TOKEN: &str = "ACUSIGHT_TOKEN";
/// File with the provisioning token.
pub const TOKEN_FILE: &str = "ACUSIGHT_TOKEN_FILE";
/// The administrator's JWT for `token …`.
pub const ADMIN_TOKEN: &str = "ACUSIGHT_ADMIN_TOKEN";
/// What the clock shows, in RFC 3339. Only in builds for tests: nobody must be able to tell a real
/// agent the wrong time.
#[cfg(feature = "mock")]
pub const CLOCK: &str = "ACUSIGHT_CLOCK";

/// Where Docker answers, as the docker command reads it.
pub const DOCKER_HOST: &str = "DOCKER_HOST";
/// Set by systemd for a service with `StateDirectory=`.
pub const STATE_DIRECTORY: &str = "STATE_DIRECTORY";
/// Set by systemd for a service with credentials.
pub const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Set by systemd when the output goes to the journal.
pub const JOURNAL_STREAM: &str = "JOURNAL_STREAM";
/// Set by people who want no colour.
pub const NO_COLOR: &str = "NO_COLOR";

/// The environment as it was when the program started, so that nothing reads it behind one's back.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<OsString, OsString>);

impl Env {
    #[expect(
        clippy::disallowed_methods,
        reason = "the door to the environment stands here"
    )]
    pub fn of_process() -> Env {
        Env(std::env::vars_os().collect())
    }

    /// Without all variables but these.
    pub fn only(mut self, names: &[&str]) -> Env {
        self.0
            .retain(|name, _| names.iter().any(|kept| name == kept));
        self
    }

    /// The value, unless it is absent, empty or not text.
    pub fn text(&self, name: &str) -> Option<String> {
        let value = self.0.get(std::ffi::OsStr::new(name))?.to_str()?;
        (!value.is_empty()).then(|| value.to_owned())
    }

    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let value = self.0.get(std::ffi::OsStr::new(name))?;
        (!value.is_empty()).then(|| PathBuf::from(value))
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(vars: I) -> Env {
        Env(vars
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect())
    }
}

impl std::fmt::Debug for Env {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}
