//! `acusight-agent status`

use serde_json::json;

use super::Context;
use super::printer::table;
use crate::api::client::{ApiError, Client};
use crate::api::http::Http;
use crate::credential::CredentialStore;
use crate::error::{Exit, Explain, Failure, chain};
use crate::records::Journal;

pub(super) async fn run(context: Context) -> Result<(), Failure> {
    let paths = &context.settings.paths;
    let Some(stored) = CredentialStore::new(paths).get()? else {
        return Err(not_provisioned(&context)?);
    };
    let record = stored.credential.record();
    let http = Http::new(
        context.settings.ca_cert.as_deref(),
        &record.api_url,
        context.clock.clone(),
    )?;
    let client = Client::new(http, record.api_url.clone());
    let server = client.device_self(&stored.credential.device_key).await;

    let said = match &server {
        Ok(server) => format!("{} (asked just now)", server.status),
        Err(error) if error.is_unauthorized() => "this device's key was revoked".into(),
        Err(_) => "unknown: it could not be asked".into(),
    };
    let key_path = paths.device_key();
    let rows = [
        ("device", Some(record.device_id.clone())),
        ("name", record.name.clone()),
        ("server", Some(record.api_url.to_string())),
        ("status", Some(said)),
        ("key", Some(key_path.display().to_string())),
        ("since", Some(record.provisioned_at.clone())),
    ];
    let value = json!({
        "schema": 1,
        "provisioned": true,
        "device_id": record.device_id,
        "name": record.name,
        "api_url": record.api_url,
        "status": server.as_ref().ok().map(|server| &server.status),
        "key": { "store": "file", "path": key_path, "was_exposed": stored.was_exposed },
        "provisioned_at": record.provisioned_at,
    });
    if let Some(warning) = stored.warning(paths) {
        context.printer.warn(&warning);
    }
    // With --json there is one object: the failure, if there is one.
    match server {
        Ok(_) => Ok(context.printer.data(&table(&rows), &value)?),
        Err(error) => {
            if !context.printer.json {
                context.printer.data(&table(&rows), &value)?;
            }
            Err(unhealthy(&error))
        }
    }
}

fn unhealthy(error: &ApiError) -> Failure {
    if error.is_unauthorized() {
        return Failure {
            exit: Exit::Unhealthy,
            id: "key_revoked",
            message: "the server does not accept this device's key".into(),
            hint: Some(
                "if the device was removed on purpose, nothing is wrong; else provision it again with a new token".into(),
            ),
            retryable: false,
            token: None,
        };
    }
    Failure {
        exit: error.exit(),
        id: error.id(),
        message: chain(error),
        hint: error.hint(),
        retryable: error.retryable(),
        token: None,
    }
}

fn not_provisioned(context: &Context) -> Result<Failure, Failure> {
    let journal = Journal::load(&context.settings.paths.journal())?;
    let interrupted = !journal.attempts.is_empty();
    let (message, hint) = if interrupted {
        (
            "provisioning began on this device, but did not finish",
            "run `acusight-agent provision` again with the same token: it goes on where it stopped",
        )
    } else {
        (
            "this device is not provisioned",
            "run `acusight-agent provision` with a token from the administrator",
        )
    };
    Ok(Failure {
        exit: Exit::NotProvisioned,
        id: "not_provisioned",
        message: message.into(),
        hint: Some(hint.into()),
        retryable: false,
        token: None,
    })
}
