//! Onboards an edge device to Acusight and keeps it running.
//!
//! The rooms, in the order data flows:
//!
//! ```text
//! apt_ token ─▶ device facts ─▶ provisioning call ─▶ credential store
//!   token         device          api, provision        credential
//! ```
//!
//! A room may use rooms to its left and the ground floor below; nothing flows back.
//! [`cli`] is the front door: it resolves settings, calls the rooms, prints, and turns
//! errors into exit codes. `mock` (feature `mock`) is the cloud's stand-in; it shares the
//! wire types of [`api`], so that the two cannot drift apart.
//!
//! Ground floor, without policy: [`error`], [`env_vars`], [`paths`], [`config`], [`secret`],
//! [`files`], [`records`], [`prompt`], [`logging`], [`clock`].
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests play everybody else on the machine"
    )
)]

pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod credential;
pub mod device;
pub mod env_vars;
pub mod error;
pub mod files;
pub mod logging;
#[cfg(feature = "mock")]
pub mod mock;
pub mod paths;
pub mod prompt;
pub mod provision;
pub mod records;
pub mod secret;
pub mod token;
