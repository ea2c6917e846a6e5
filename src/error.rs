//! The exit codes, which are an API: scripts, the unit file and the fleet's tooling act on them.
//!
//! Rooms have error enums of their own; each says through [`Explain`] which row of the table it
//! belongs to and what the person reading it can do. [`Failure`] is what remains of any of them
//! at the front door.

use std::error::Error;
use std::fmt;

/// How the program ends. One row each in the README; a failure is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Done,
    Unexpected,
    Usage,
    Preflight,
    TokenRejected,
    DeviceExists,
    Network,
    Server,
    OutcomeUnknown,
    NotStored,
    NotProvisioned,
    Unhealthy,
    Locked,
    Interrupted,
}

impl Exit {
    pub const ALL: [Exit; 14] = [
        Exit::Done,
        Exit::Unexpected,
        Exit::Usage,
        Exit::Preflight,
        Exit::TokenRejected,
        Exit::DeviceExists,
        Exit::Network,
        Exit::Server,
        Exit::OutcomeUnknown,
        Exit::NotStored,
        Exit::NotProvisioned,
        Exit::Unhealthy,
        Exit::Locked,
        Exit::Interrupted,
    ];

    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Unexpected => 1,
            Exit::Usage => 2,
            Exit::Preflight => 3,
            Exit::TokenRejected => 4,
            Exit::DeviceExists => 5,
            Exit::Network => 6,
            Exit::Server => 7,
            Exit::OutcomeUnknown => 8,
            Exit::NotStored => 9,
            Exit::NotProvisioned => 11,
            Exit::Unhealthy => 12,
            Exit::Locked => 14,
            Exit::Interrupted => 130,
        }
    }

    pub const fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "done, or already so",
            Exit::Unexpected => "unexpected error",
            Exit::Usage => "wrong usage or settings; nothing was changed",
            Exit::Preflight => "this machine is not ready; the token was not used",
            Exit::TokenRejected => "the token was rejected or has expired",
            Exit::DeviceExists => "the device is already registered",
            Exit::Network => "network, TLS or clock",
            Exit::Server => "the server failed or answered nonsense",
            Exit::OutcomeUnknown => "outcome unknown; the token may be spent",
            Exit::NotStored => "the key was issued but is not stored durably",
            Exit::NotProvisioned => "this device is not provisioned",
            Exit::Unhealthy => "provisioned, but not healthy",
            Exit::Locked => "another run is at work",
            Exit::Interrupted => "interrupted",
        }
    }
}

/// What an error of any room knows about itself beyond its message.
pub trait Explain: Error + Send + Sync + 'static {
    fn exit(&self) -> Exit;

    /// A stable word for machines: `token_expired`.
    fn id(&self) -> &'static str;

    /// What the reader can do now.
    fn hint(&self) -> Option<String> {
        None
    }

    /// Whether the same command, run again later, may succeed.
    fn retryable(&self) -> bool {
        false
    }

    /// What became of the provisioning token, where one was at stake.
    fn token_fate(&self) -> Option<TokenFate> {
        None
    }
}

/// A token is often good for one use: whoever reads an error must know whether it still is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenFate {
    Unused,
    MaybeSpent,
    Spent,
}

impl TokenFate {
    pub const fn id(self) -> &'static str {
        match self {
            TokenFate::Unused => "unused",
            TokenFate::MaybeSpent => "maybe_spent",
            TokenFate::Spent => "spent",
        }
    }

    pub const fn sentence(self) -> &'static str {
        match self {
            TokenFate::Unused => "the token was not used",
            TokenFate::MaybeSpent => "the token may be spent",
            TokenFate::Spent => "the token was used",
        }
    }
}

/// An error as the front door reports it.
#[derive(Debug)]
pub struct Failure {
    pub exit: Exit,
    pub id: &'static str,
    pub message: String,
    pub hint: Option<String>,
    pub retryable: bool,
    pub token: Option<TokenFate>,
}

impl Failure {
    pub fn usage(message: impl Into<String>, hint: Option<String>) -> Failure {
        Failure {
            exit: Exit::Usage,
            id: "usage",
            message: message.into(),
            hint,
            retryable: false,
            token: None,
        }
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure {
            exit: error.exit(),
            id: error.id(),
            hint: error.hint(),
            retryable: error.retryable(),
            token: error.token_fate(),
            message: chain(&error),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure {
            exit: Exit::Unexpected,
            id: "unexpected",
            message: format!("{error:#}"),
            hint: None,
            retryable: false,
            token: None,
        }
    }
}

/// The message with those of its sources: `could not write X: no space left on device`.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some crates repeat their source's words in their own; say them once.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_done_is_zero_and_no_code_stands_twice() {
        let mut codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1);
        codes.dedup();
        assert_eq!(codes.len(), Exit::ALL.len());
    }

    #[test]
    fn the_readme_has_every_row_of_the_table() {
        let readme = include_str!("../README.md");
        for exit in Exit::ALL {
            let row = format!("| {} | {} |", exit.code(), exit.meaning());
            assert!(readme.contains(&row), "README.md lacks the row {row}");
        }
    }
}
