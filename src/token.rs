//! Finding the provisioning token, wherever the administrator put it.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::env_vars::{self, Env};
use crate::error::{Exit, Explain, TokenFate};
use crate::files::{self, FileError};
use crate::paths::Paths;
use crate::prompt::{self, PromptError};
use crate::secret::{MalformedSecret, ProvisioningToken, Secret};

const CAP: usize = 64 * 1024;
/// In the arguments or the environment: the token is not here any more, but behind the descriptor
/// with this number.
pub const HIDDEN: &str = "fd:";
const SYSTEMD_CREDENTIAL: &str = "acusight.token";

/// What the command line names. At most one of them.
#[derive(Debug, Default)]
pub struct Explicit {
    /// A path, or `-` for standard input.
    pub file: Option<PathBuf>,
    pub fd: Option<u32>,
    pub argument: Option<Secret>,
}

#[derive(Debug)]
pub struct Found {
    pub token: ProvisioningToken,
    pub source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Argument,
    Stdin,
    Descriptor(u32),
    File(PathBuf),
    SystemdCredential,
    Variable,
    /// A file dropped for us to pick up, and to remove once it has served.
    DropIn(PathBuf),
    Prompt,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Argument => f.write_str("the command line"),
            Source::Stdin => f.write_str("standard input"),
            Source::Descriptor(fd) => write!(f, "file descriptor {fd}"),
            Source::File(path) | Source::DropIn(path) => write!(f, "{}", path.display()),
            Source::SystemdCredential => f.write_str("the systemd credential"),
            Source::Variable => f.write_str(env_vars::TOKEN),
            Source::Prompt => f.write_str("the prompt"),
        }
    }
}

#[derive(Debug, Error)]
pub enum TokenError {
    #[error("more than one token was given")]
    TwoSources,
    #[error("no token was given")]
    Missing,
    #[error("{origin} does not exist")]
    NoSuchFile { origin: Source },
    #[error("what {origin} holds is not a provisioning token: {reason}")]
    Malformed {
        origin: Source,
        reason: MalformedSecret,
    },
    #[error("the token was not typed")]
    Prompt(#[source] PromptError),
    #[error(transparent)]
    File(#[from] FileError),
}

impl Explain for TokenError {
    fn exit(&self) -> Exit {
        match self {
            TokenError::Prompt(PromptError::Interrupted) => Exit::Interrupted,
            _ => Exit::Usage,
        }
    }

    fn id(&self) -> &'static str {
        match self {
            TokenError::Prompt(PromptError::Interrupted) => "interrupted",
            TokenError::TwoSources => "two_tokens",
            TokenError::Missing | TokenError::NoSuchFile { .. } => "no_token",
            TokenError::Malformed { .. } => "malformed_token",
            TokenError::Prompt(_) => "no_token",
            TokenError::File(error) => error.id(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            TokenError::TwoSources => {
                "give one of: TOKEN, --token-file PATH (or - for standard input), --token-fd N".into()
            }
            TokenError::Missing => {
                "give it with --token-file PATH (or - for standard input); an administrator makes one with `acusight-agent token create NAME`".into()
            }
            TokenError::NoSuchFile { .. } => "check the path".into(),
            TokenError::Malformed {
                reason: MalformedSecret::DeviceKeyAsToken,
                ..
            } => "a device key belongs to one device and is never typed; ask the administrator for a token".into(),
            TokenError::Malformed { .. } => {
                "copy it again, whole: apt_ and a row of digits and letters a to f".into()
            }
            TokenError::Prompt(_) => "give it with --token-file PATH instead".into(),
            TokenError::File(error) => return error.hint(),
        };
        Some(hint)
    }

    fn token_fate(&self) -> Option<TokenFate> {
        Some(TokenFate::Unused)
    }
}

/// Looks in every place that needs nobody at the keyboard. An explicit source must hold a token;
/// of the others the first that is there counts.
pub fn find(explicit: Explicit, env: &Env, paths: &Paths) -> Result<Option<Found>, TokenError> {
    if let Some(found) = find_explicit(explicit)? {
        return Ok(Some(found));
    }
    if let Some(dir) = env.path(env_vars::CREDENTIALS_DIRECTORY) {
        let path = dir.join(SYSTEMD_CREDENTIAL);
        // systemd makes these files, and guards them itself.
        if let Some(text) = files::read_text(&path, CAP)? {
            return parse(text.trim(), Source::SystemdCredential).map(Some);
        }
    }
    if let Some(path) = env.path(env_vars::TOKEN_FILE) {
        return from_named_file(path).map(Some);
    }
    if let Some(text) = env.text(env_vars::TOKEN) {
        return parse_visible(&text, Source::Variable).map(Some);
    }
    for path in paths.token_drop_ins() {
        if let Some(text) = files::read_token(&path, CAP)? {
            return parse(&text, Source::DropIn(path)).map(Some);
        }
    }
    Ok(None)
}

/// Asks on the terminal, without echo.
pub async fn prompt() -> Result<Found, TokenError> {
    match prompt::secret("Provisioning token (apt_…, not shown): ").await {
        Ok(text) => parse(text.trim(), Source::Prompt),
        Err(PromptError::NoTerminal) => Err(TokenError::Missing),
        Err(error) => Err(TokenError::Prompt(error)),
    }
}

impl Found {
    /// Removes a drop-in that has served. Other sources belong to whoever named them.
    pub fn consume(&self) -> Result<(), FileError> {
        match &self.source {
            Source::DropIn(path) => files::remove(path),
            _ => Ok(()),
        }
    }
}

fn find_explicit(explicit: Explicit) -> Result<Option<Found>, TokenError> {
    match (explicit.file, explicit.fd, explicit.argument) {
        (None, None, None) => Ok(None),
        (Some(path), None, None) if path == Path::new("-") => {
            let text = files::read_token_from(io::stdin().lock(), &path, CAP)?;
            parse(&text, Source::Stdin).map(Some)
        }
        (Some(path), None, None) => from_named_file(path).map(Some),
        (None, Some(fd), None) => from_descriptor(fd, Source::Descriptor(fd)).map(Some),
        (None, None, Some(text)) => parse_visible(text.expose(), Source::Argument).map(Some),
        _ => Err(TokenError::TwoSources),
    }
}

fn from_descriptor(fd: u32, origin: Source) -> Result<Found, TokenError> {
    let path = PathBuf::from(format!("/proc/self/fd/{fd}"));
    match File::open(&path) {
        Ok(file) => parse(&files::read_token_from(file, &path, CAP)?, origin),
        Err(_) => Err(TokenError::NoSuchFile { origin }),
    }
}

/// From where others can see it, unless it has been hidden since.
fn parse_visible(text: &str, origin: Source) -> Result<Found, TokenError> {
    let hidden = text.strip_prefix(HIDDEN).and_then(|fd| fd.parse().ok());
    match hidden {
        Some(fd) => from_descriptor(fd, origin),
        None => parse(text.trim(), origin),
    }
}

fn from_named_file(path: PathBuf) -> Result<Found, TokenError> {
    let text = files::read_token(&path, CAP)?;
    let origin = Source::File(path);
    match text {
        Some(text) => parse(&text, origin),
        None => Err(TokenError::NoSuchFile { origin }),
    }
}

fn parse(text: &str, source: Source) -> Result<Found, TokenError> {
    match ProvisioningToken::parse(text) {
        Ok(token) => Ok(Found { token, source }),
        Err(reason) => Err(TokenError::Malformed {
            origin: source,
            reason,
        }),
    }
}
