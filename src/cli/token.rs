//! `acusight-agent token …`: the administrator's side.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde_json::json;
use thiserror::Error;
use uuid::Uuid;

use super::Context;
use super::printer::table;
use crate::api::client::{ApiError, Client};
use crate::api::http::Http;
use crate::api::retry::{Backoff, Policy, Worth, with_retries};
use crate::api::{CreateToken, Lifetime, TokenInfo};
use crate::env_vars;
use crate::error::{Exit, Explain, Failure};
use crate::files::{self, FileError};
use crate::prompt::{self, PromptError};
use crate::secret::{AdminToken, MalformedSecret};

const ADMIN_TOKEN_CAP: usize = 64 * 1024;

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Read the administrator's access token (JWT) from FILE, or from standard input with -
    #[arg(long, global = true, value_name = "FILE")]
    admin_token_file: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Create a token; it is shown this once
    Create {
        /// What it is for, e.g. "Production Line 1"
        name: String,
        /// Days until it expires [default: 30]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        expires_in_days: Option<u32>,
        /// Let it be good for ever
        #[arg(long, conflicts_with = "expires_in_days")]
        never_expires: bool,
        /// Let it be good for one device
        #[arg(long)]
        single_use: bool,
    },
    /// List the tokens of your organisation, newest first
    List,
    /// Revoke a token: no further device can join with it
    Revoke {
        /// Its id, or its name where only one active token has it
        #[arg(value_name = "ID|NAME")]
        token: String,
    },
}

#[derive(Debug, Error)]
enum AdminError {
    #[error("the administrator's access token is missing")]
    Missing,
    #[error("{0} does not exist")]
    NoSuchFile(PathBuf),
    #[error("the administrator's access token cannot be used: {0}")]
    Malformed(MalformedSecret),
    #[error("the access token was not typed")]
    Prompt(#[source] PromptError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the server does not accept the administrator's access token")]
    NotAccepted(#[source] ApiError),
    #[error("there is no token {0:?}")]
    NoSuchToken(String),
    #[error("{count} active tokens are named {name:?}")]
    Ambiguous {
        name: String,
        count: usize,
        ids: String,
    },
    #[error("the token may have been created, but the server's answer was lost")]
    MaybeCreated(#[source] ApiError),
    #[error("the server could not do it")]
    Api(#[source] ApiError),
}

impl Explain for AdminError {
    fn exit(&self) -> Exit {
        match self {
            AdminError::NotAccepted(_) => Exit::TokenRejected,
            AdminError::Api(error) | AdminError::MaybeCreated(error) => error.exit(),
            AdminError::Prompt(PromptError::Interrupted) => Exit::Interrupted,
            _ => Exit::Usage,
        }
    }

    fn id(&self) -> &'static str {
        match self {
            AdminError::Missing | AdminError::NoSuchFile(_) => "no_admin_token",
            AdminError::Malformed(_) => "malformed_admin_token",
            AdminError::Prompt(PromptError::Interrupted) => "interrupted",
            AdminError::Prompt(_) => "no_admin_token",
            AdminError::File(error) => error.id(),
            AdminError::NotAccepted(_) => "admin_token_rejected",
            AdminError::NoSuchToken(_) => "no_such_token",
            AdminError::Ambiguous { .. } => "ambiguous_name",
            AdminError::MaybeCreated(_) => "maybe_created",
            AdminError::Api(error) => error.id(),
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            AdminError::Missing | AdminError::Prompt(_) => {
                "give it with --admin-token-file FILE (or - for standard input)".into()
            }
            AdminError::NoSuchFile(_) => "check the path".into(),
            AdminError::Malformed(_) => "copy it again, whole, without the word Bearer".into(),
            AdminError::NotAccepted(_) => {
                "it may have expired: log in to the dashboard and copy a new one".into()
            }
            AdminError::NoSuchToken(_) => "see `acusight-agent token list`".into(),
            AdminError::Ambiguous { ids, .. } => format!("name one by its id: {ids}"),
            AdminError::MaybeCreated(_) => {
                "see `acusight-agent token list`; if it is there, revoke it and create another"
                    .into()
            }
            AdminError::File(error) => return error.hint(),
            AdminError::Api(error) => return error.hint(),
        };
        Some(hint)
    }

    fn retryable(&self) -> bool {
        matches!(self, AdminError::Api(error) if error.retryable())
    }
}

impl From<ApiError> for AdminError {
    fn from(error: ApiError) -> AdminError {
        match error.refusal() {
            Some((401 | 403, _)) => AdminError::NotAccepted(error),
            _ => AdminError::Api(error),
        }
    }
}

pub(super) async fn run(context: Context, flags: Flags) -> Result<(), Failure> {
    let admin = admin_token(&context, flags.admin_token_file.as_deref()).await?;
    let http = Http::new(
        context.settings.ca_cert.as_deref(),
        &context.settings.api_url,
        context.clock.clone(),
    )?;
    let client = Client::new(http, context.settings.api_url.clone());
    match flags.verb {
        Verb::Create {
            name,
            expires_in_days,
            never_expires,
            single_use,
        } => {
            let expires_in_days = match expires_in_days {
                Some(days) => Lifetime::Days(days),
                None if never_expires => Lifetime::Never,
                None => Lifetime::default(),
            };
            let token = CreateToken {
                name,
                expires_in_days,
                single_use,
            };
            create(&context, &client, &admin, &token).await
        }
        Verb::List => list(&context, &client, &admin).await,
        Verb::Revoke { token } => revoke(&context, &client, &admin, &token).await,
    }
}

/// Never from the command line: arguments are visible to everybody on the machine.
async fn admin_token(context: &Context, file: Option<&Path>) -> Result<AdminToken, AdminError> {
    let text = match (file, context.env.text(env_vars::ADMIN_TOKEN)) {
        (Some(path), _) if path == Path::new("-") => {
            files::read_token_from(io::stdin().lock(), path, ADMIN_TOKEN_CAP)?
        }
        (Some(path), _) => files::read_token(path, ADMIN_TOKEN_CAP)?
            .ok_or_else(|| AdminError::NoSuchFile(path.to_owned()))?,
        (None, Some(text)) => text.into(),
        (None, None) => match prompt::secret("Administrator's access token (not shown): ").await {
            Ok(text) => text,
            Err(PromptError::NoTerminal) => return Err(AdminError::Missing),
            Err(error) => return Err(AdminError::Prompt(error)),
        },
    };
    AdminToken::parse(text.trim()).map_err(AdminError::Malformed)
}

async fn create(
    context: &Context,
    client: &Client,
    admin: &AdminToken,
    token: &CreateToken,
) -> Result<(), Failure> {
    // Not what may have been carried out: nobody would know of the first token.
    let worth = |error: &ApiError| match error.may_have_been_carried_out() {
        true => Worth::Nothing,
        false => error.worth(),
    };
    let created = retrying(
        context,
        async || client.create_token(admin, token).await,
        worth,
    )
    .await
    .map_err(|error| match error.may_have_been_carried_out() {
        true => AdminError::MaybeCreated(error),
        false => AdminError::from(error),
    })?;
    let uses = if created.single_use {
        "good for one device"
    } else {
        "good for many devices"
    };
    let expiry = match &created.expires_at {
        Some(at) => format!("until {at}"),
        None => "for ever".into(),
    };
    let text = format!(
        "Token {:?}, {uses}, {expiry} (id {}):\n\n  {}\n\nOn the device, run:\n\n  {}\n\n",
        created.name,
        created.id,
        created.token.expose(),
        created.setup_command.expose(),
    );
    let value = json!({
        "schema": 1,
        "id": created.id,
        "name": created.name,
        "token": created.token.expose(),
        "single_use": created.single_use,
        "created_at": created.created_at,
        "expires_at": created.expires_at,
        "setup_command": created.setup_command.expose(),
    });
    context.printer.data(&text, &value).with_context(|| {
        format!(
            "token {} was created, but could not be shown; revoke it",
            created.id
        )
    })?;
    context
        .printer
        .say("This is the only time the token is shown: store it now, or use it right away.");
    Ok(())
}

async fn list(context: &Context, client: &Client, admin: &AdminToken) -> Result<(), Failure> {
    let tokens = all_tokens(context, client, admin).await?;
    let value = json!({ "schema": 1, "tokens": tokens });
    let text: String = tokens
        .iter()
        .map(|token| {
            let rows = [
                ("id", Some(token.id.clone())),
                ("state", Some(state(token, context.clock.now()))),
                (
                    "used",
                    Some(match &token.last_used_at {
                        Some(at) if token.use_count == 1 => format!("once, at {at}"),
                        Some(at) => format!("{} times, last at {at}", token.use_count),
                        None => "never".into(),
                    }),
                ),
                ("created", Some(token.created_at.clone())),
            ];
            format!("{}\n{}", token.name, table(&rows))
        })
        .collect::<Vec<_>>()
        .join("\n");
    context.printer.data(&text, &value)?;
    if tokens.is_empty() {
        context
            .printer
            .say("There are no tokens yet: acusight-agent token create NAME");
    }
    Ok(())
}

fn state(token: &TokenInfo, now: SystemTime) -> String {
    let uses = if token.single_use {
        "one device"
    } else {
        "many devices"
    };
    let has_passed = |at: &str| humantime::parse_rfc3339_weak(at).is_ok_and(|at| at <= now);
    match (&token.revoked_at, &token.expires_at) {
        (Some(at), _) => format!("revoked since {at}"),
        (None, Some(at)) if has_passed(at) => format!("expired since {at}"),
        (None, Some(at)) => format!("good for {uses}, until {at}"),
        (None, None) => format!("good for {uses}, for ever"),
    }
}

async fn revoke(
    context: &Context,
    client: &Client,
    admin: &AdminToken,
    token: &str,
) -> Result<(), Failure> {
    let id = match token.parse::<Uuid>() {
        Ok(id) => id,
        Err(_) => {
            let tokens = all_tokens(context, client, admin).await?;
            id_of_name(&tokens, token)?
        }
    };
    let revoke = async || client.revoke_token(admin, id).await;
    retrying(context, revoke, ApiError::worth)
        .await
        .map_err(|error| match error.refusal() {
            Some((404, _)) => AdminError::NoSuchToken(token.to_owned()),
            _ => AdminError::from(error),
        })?;
    let value = json!({ "schema": 1, "id": id, "revoked": true });
    let text = format!("Token {token:?} is revoked: no further device can join with it.\n");
    Ok(context.printer.data(&text, &value)?)
}

async fn all_tokens(
    context: &Context,
    client: &Client,
    admin: &AdminToken,
) -> Result<Vec<TokenInfo>, AdminError> {
    let list = async || client.list_tokens(admin).await;
    let list = retrying(context, list, ApiError::worth).await?;
    if list.not_shown > 0 {
        context.printer.warn(&format!(
            "the server has {} more tokens than it shows here",
            list.not_shown
        ));
    }
    Ok(list.tokens)
}

async fn retrying<T>(
    context: &Context,
    exchange: impl AsyncFnMut() -> Result<T, ApiError>,
    worth: impl Fn(&ApiError) -> Worth,
) -> Result<T, ApiError> {
    let policy = Policy::interactive(context.settings.retry_for);
    let mut backoff = Backoff::new(policy, fastrand::u64(..));
    with_retries(&mut backoff, exchange, worth, |error, delay| {
        context.printer.waiting(error, delay);
    })
    .await
}

fn id_of_name(tokens: &[TokenInfo], name: &str) -> Result<Uuid, AdminError> {
    let ids: Vec<&str> = tokens
        .iter()
        .filter(|token| token.name == name && token.revoked_at.is_none())
        .map(|token| token.id.as_str())
        .collect();
    match ids.as_slice() {
        [id] => id
            .parse()
            .map_err(|_| AdminError::NoSuchToken(name.to_owned())),
        [] => Err(AdminError::NoSuchToken(name.to_owned())),
        several => Err(AdminError::Ambiguous {
            name: name.to_owned(),
            count: several.len(),
            ids: several.join(", "),
        }),
    }
}
