//! How provisioning can fail, and what then became of the token.

use std::path::PathBuf;

use thiserror::Error;

use super::NotReady;
use crate::api::client::ApiError;
use crate::api::code;
use crate::api::http::SetupError;
use crate::config::{ApiUrl, BadApiUrl};
use crate::credential::CredentialError;
use crate::error::{Exit, Explain, TokenFate};
use crate::files::FileError;
use crate::records::RecordError;
use crate::token::TokenError;

#[derive(Debug, Error)]
pub enum ProvisionError {
    #[error("another acusight-agent is provisioning this device right now")]
    Locked,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Http(#[from] SetupError),
    #[error(transparent)]
    NotReady(#[from] NotReady),
    #[error("what this device was cannot be read")]
    BadRecord(#[source] RecordError),
    #[error("the stored key cannot be used")]
    StoredKey(#[source] CredentialError),
    #[error("this device belongs to {belongs_to} already, not to {asked}")]
    OtherServer { belongs_to: ApiUrl, asked: ApiUrl },
    #[error("an attempt with this token is open at {open_at}")]
    AttemptElsewhere { open_at: ApiUrl },
    #[error("this device has a key already, but the server could not confirm it")]
    Unconfirmed(#[source] ApiError),
    #[error("the server could not be asked")]
    ServerNotReached(#[source] ApiError),

    #[error("the token {}", if *.expired { "has expired" } else { "was rejected" })]
    Rejected {
        expired: bool,
        #[source]
        error: ApiError,
    },
    #[error("the server knows a device {device_id} already")]
    DeviceExists {
        device_id: String,
        #[source]
        error: ApiError,
    },
    #[error("the device was not provisioned")]
    Refused(#[source] ApiError),
    #[error("the device may have been provisioned, but there is no answer with its key")]
    AnswerLost(#[source] ApiError),
    /// What the server says now is not passed on: it speaks of a token or a device that our own
    /// earlier attempt has used or made.
    #[error(
        "the device was probably provisioned by an attempt whose answer was lost, and the server does not repeat it"
    )]
    KeyLost { device_id: String },

    #[error("the key was issued, but could not be stored in the state directory")]
    NotStored {
        /// Where the key is instead; `None` if it could be kept nowhere.
        refuge: Option<PathBuf>,
        #[source]
        cause: CredentialError,
    },
    #[error(
        "the key is stored, but the server named an address for its devices that is refused: {reason}"
    )]
    BadEndpoint { reason: BadApiUrl },
    #[error("the key is stored, but the server did not confirm it")]
    Unverified(#[source] ApiError),
    #[error("the key is stored, but a record of it could not be written")]
    Record(#[source] FileError),
}

/// An error, and whether an attempt of an earlier run with the same token was open: then "the
/// token was not used" would be true of this run only.
#[derive(Debug, Error)]
#[error("{error}")]
pub struct Failed {
    #[source]
    pub error: ProvisionError,
    pub earlier_attempt: bool,
}

impl Explain for Failed {
    fn exit(&self) -> Exit {
        self.error.exit()
    }

    fn id(&self) -> &'static str {
        self.error.id()
    }

    fn hint(&self) -> Option<String> {
        self.error.hint()
    }

    fn retryable(&self) -> bool {
        self.error.retryable()
    }

    fn token_fate(&self) -> Option<TokenFate> {
        match self.error.token_fate() {
            Some(TokenFate::Unused) if self.earlier_attempt => Some(TokenFate::MaybeSpent),
            fate => fate,
        }
    }
}

impl ProvisionError {
    /// Nothing happened on the server: this attempt is closed.
    pub(super) fn settled(error: ApiError, device_id: &str) -> ProvisionError {
        if let Some(expired) = token_refusal(&error) {
            return ProvisionError::Rejected { expired, error };
        }
        match error.refusal() {
            Some((409, _)) => ProvisionError::DeviceExists {
                device_id: device_id.to_owned(),
                error,
            },
            _ => ProvisionError::Refused(error),
        }
    }

    /// Something may have happened on the server: this attempt stays open.
    pub(super) fn unsettled(error: ApiError, device_id: &str) -> ProvisionError {
        match error.refusal() {
            Some((401 | 403 | 409, _)) => ProvisionError::KeyLost {
                device_id: device_id.to_owned(),
            },
            _ => ProvisionError::AnswerLost(error),
        }
    }
}

impl Explain for ProvisionError {
    fn exit(&self) -> Exit {
        match self {
            ProvisionError::Locked => Exit::Locked,
            ProvisionError::Token(error) => error.exit(),
            ProvisionError::Http(error) => error.exit(),
            ProvisionError::NotReady(error) => error.exit(),
            ProvisionError::BadRecord(_) | ProvisionError::StoredKey(_) => Exit::Preflight,
            ProvisionError::OtherServer { .. }
            | ProvisionError::AttemptElsewhere { .. }
            | ProvisionError::DeviceExists { .. } => Exit::DeviceExists,
            ProvisionError::Unconfirmed(error)
            | ProvisionError::ServerNotReached(error)
            | ProvisionError::Refused(error) => error.exit(),
            ProvisionError::Rejected { .. } => Exit::TokenRejected,
            ProvisionError::AnswerLost(_) | ProvisionError::KeyLost { .. } => Exit::OutcomeUnknown,
            ProvisionError::NotStored { .. } => Exit::NotStored,
            ProvisionError::BadEndpoint { .. } => Exit::Server,
            ProvisionError::Unverified(error) => error.exit(),
            ProvisionError::Record(_) => Exit::Unexpected,
        }
    }

    fn id(&self) -> &'static str {
        match self {
            ProvisionError::Locked => "locked",
            ProvisionError::Token(error) => error.id(),
            ProvisionError::Http(error) => error.id(),
            ProvisionError::NotReady(error) => error.id(),
            ProvisionError::BadRecord(error) => error.id(),
            ProvisionError::StoredKey(error) => error.id(),
            ProvisionError::OtherServer { .. } => "other_server",
            ProvisionError::AttemptElsewhere { .. } => "attempt_elsewhere",
            ProvisionError::Unconfirmed(error)
            | ProvisionError::ServerNotReached(error)
            | ProvisionError::Refused(error)
            | ProvisionError::Unverified(error) => error.id(),
            ProvisionError::Rejected { expired: true, .. } => "token_expired",
            ProvisionError::Rejected { expired: false, .. } => "token_rejected",
            ProvisionError::DeviceExists { .. } => "device_exists",
            ProvisionError::AnswerLost(_) => "answer_lost",
            ProvisionError::KeyLost { .. } => "key_lost",
            ProvisionError::NotStored { .. } => "not_stored",
            ProvisionError::BadEndpoint { .. } => "bad_endpoint",
            ProvisionError::Record(error) => error.id(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            ProvisionError::Locked => "wait for it to finish, then look at `acusight-agent status`".into(),
            ProvisionError::Token(error) => return error.hint(),
            ProvisionError::Http(error) => return error.hint(),
            ProvisionError::NotReady(error) => return error.hint(),
            ProvisionError::BadRecord(error) => return error.hint(),
            ProvisionError::StoredKey(error) => return error.hint(),
            ProvisionError::OtherServer { belongs_to, .. } => format!(
                "leave out --api-url to keep it at {belongs_to}; or add --new-identity to make it a new device elsewhere"
            ),
            ProvisionError::AttemptElsewhere { open_at } => format!(
                "it may have spent the token there: leave out --api-url to go on with it at {open_at}, or use another token"
            ),
            ProvisionError::Unconfirmed(error)
            | ProvisionError::ServerNotReached(error)
            | ProvisionError::Refused(error) => return error.hint(),
            ProvisionError::Rejected { expired: true, .. } => {
                "ask the administrator for a new token (`acusight-agent token create NAME`)".into()
            }
            ProvisionError::Rejected { expired: false, .. } => {
                "it may be mistyped, revoked, or a single-use token that was used; ask the administrator for a new one".into()
            }
            ProvisionError::DeviceExists { device_id, .. } => format!(
                "if that is this machine, delete device {device_id} in the dashboard and run the same command again; if it is another (a cloned disk), add --new-identity"
            ),
            ProvisionError::AnswerLost(ApiError::BadReply { .. }) => {
                "run the same command again; if that does not help, show this to Acusight's support, delete the device in the dashboard, and start over with a new token".into()
            }
            ProvisionError::AnswerLost(_) => {
                "run the same command again with the same token: it goes on where this one stopped".into()
            }
            ProvisionError::KeyLost { device_id } => format!(
                "its key is lost: delete device {device_id} in the dashboard and run this again with a new token; or leave it there and add --new-identity"
            ),
            ProvisionError::NotStored { refuge: Some(path), .. } => format!(
                "the key is in {} until this machine restarts: mend the state directory and run the same command again before that",
                path.display()
            ),
            ProvisionError::NotStored { refuge: None, .. } => {
                "mend the state directory and run the same command again with the same token; if that fails, delete the device in the dashboard and start over".into()
            }
            ProvisionError::Unverified(_) | ProvisionError::Record(_) => {
                "run the same command again: it goes on where this one stopped".into()
            }
            ProvisionError::BadEndpoint { .. } => {
                "the address you gave is used instead, and works; have the server's api_endpoint corrected".into()
            }
        };
        Some(hint)
    }

    fn retryable(&self) -> bool {
        match self {
            ProvisionError::Locked | ProvisionError::Record(_) | ProvisionError::AnswerLost(_) => {
                true
            }
            ProvisionError::Unconfirmed(error)
            | ProvisionError::ServerNotReached(error)
            | ProvisionError::Refused(error)
            | ProvisionError::Unverified(error) => error.retryable(),
            _ => false,
        }
    }

    fn token_fate(&self) -> Option<TokenFate> {
        match self {
            ProvisionError::Rejected { .. } | ProvisionError::Locked => None,
            ProvisionError::AnswerLost(_) | ProvisionError::KeyLost { .. } => {
                Some(TokenFate::MaybeSpent)
            }
            ProvisionError::NotStored { .. }
            | ProvisionError::BadEndpoint { .. }
            | ProvisionError::Unverified(_)
            | ProvisionError::Record(_) => Some(TokenFate::Spent),
            _ => Some(TokenFate::Unused),
        }
    }
}

/// Whether a refusal means that the token is no good, and which way.
fn token_refusal(error: &ApiError) -> Option<bool> {
    let (status, code) = error.refusal()?;
    matches!(status, 401 | 403).then_some(code == code::TOKEN_EXPIRED)
}
