//! `acusight-agent provision`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::printer::table;
use super::progress::Progress;
use super::{Context, interrupted, interruption};
use crate::error::{Exit, Failure, TokenFate};
use crate::provision::{Event, Outcome, Request, provision};
use crate::secret::Secret;
use crate::token::{self, TokenError};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// The provisioning token (apt_…); safer: --token-file, or leave it out and be asked
    #[arg(value_parser = secret, value_name = "TOKEN")]
    token: Option<Secret>,
    /// Read the token from FILE, or from standard input with -
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Read the token from the open file descriptor N
    #[arg(long, value_name = "N")]
    token_fd: Option<u32>,
    /// Name of the device in the dashboard [default: the host name]
    #[arg(long)]
    name: Option<String>,
    /// Become a new device, whatever this machine was before
    #[arg(long)]
    new_identity: bool,
    /// Accept a state directory that does not outlive a restart (tmpfs, overlay)
    #[arg(long)]
    allow_volatile_state: bool,
    /// Do not launch the Portainer Edge agent
    #[arg(long)]
    no_edge: bool,
    /// Do not install the background service
    #[arg(long)]
    no_service: bool,
}

impl Flags {
    pub(super) fn token_argument(&self) -> Option<&Secret> {
        self.token.as_ref()
    }
}

/// Infallible, and so never repeats the token in an error.
fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

pub(super) async fn run(context: Context, flags: Flags) -> Result<(), Failure> {
    if !(flags.no_edge && flags.no_service) {
        return Err(not_in_this_build());
    }
    let explicit = token::Explicit {
        file: flags.token_file,
        fd: flags.token_fd,
        argument: flags.token,
    };
    let token = token::find(explicit, &context.env, &context.settings.paths);
    if let Err(error @ TokenError::TwoSources) = token {
        // Whatever this machine is already: that is not what somebody meant to type.
        return Err(error.into());
    }
    super::close_to_debuggers();
    let request = Request {
        token,
        name: flags.name,
        new_identity: flags.new_identity,
        allow_volatile_state: flags.allow_volatile_state,
    };
    let mut progress = Progress::new(context.printer.clone());
    let mut report = |event: Event<'_>| progress.observe(event);
    let outcome = tokio::select! {
        outcome = provision(&context.settings, &context.clock, request, &mut report) => Some(outcome),
        () = interrupted() => None,
    };
    progress.stop();
    match outcome {
        Some(outcome) => show(&context, &outcome?),
        None => Err(interruption(Some(progress.token_fate()))),
    }
}

fn not_in_this_build() -> Failure {
    Failure {
        exit: Exit::Preflight,
        id: "not_in_this_build",
        message: "this build cannot launch the edge agent or install the service yet".into(),
        hint: Some("add --no-edge --no-service to provision the device without them".into()),
        retryable: false,
        token: Some(TokenFate::Unused),
    }
}

fn show(context: &Context, outcome: &Outcome) -> Result<(), Failure> {
    let device = &outcome.credential;
    let headline = if outcome.already {
        "This device is provisioned already; nothing was changed, and no token was used."
    } else {
        "This device is provisioned."
    };
    let rows = [
        ("device", Some(device.device_id.clone())),
        ("name", device.name.clone()),
        ("server", Some(device.api_url.to_string())),
        ("status", Some(outcome.status.clone())),
        ("key", Some(outcome.key_path.display().to_string())),
    ];
    let text = format!("\n{headline}\n\n{}\n", table(&rows));
    let value = json!({
        "schema": 1,
        "already": outcome.already,
        "device_id": device.device_id,
        "name": device.name,
        "api_url": device.api_url,
        "status": outcome.status,
        "key": { "store": "file", "path": outcome.key_path },
        "provisioned_at": device.provisioned_at,
    });
    context.printer.data(&text, &value)?;
    if let Some(path) = &outcome.token_left_in {
        context.printer.say(&format!(
            "The token is still in {0}; if nothing else needs it: rm {0}",
            path.display()
        ));
    }
    context.printer.say("Next: acusight-agent status");
    Ok(())
}
