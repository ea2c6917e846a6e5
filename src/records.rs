//! What the state directory says in plain JSON: who this device is (`device.json`) and which
//! attempts to provision it are still open (`provisioning.json`). No secret stands in either.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::config::ApiUrl;
use crate::error::{Exit, Explain};
use crate::files::{self, FileError};

const SCHEMA: u32 = 1;
const CAP: usize = 64 * 1024;

/// Who this device is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    schema: u32,
    pub device_id: String,
    pub name: Option<String>,
    /// Base of the device's calls.
    pub api_url: ApiUrl,
    pub portainer_endpoint_id: Option<i64>,
    pub provisioned_at: String,
}

impl DeviceRecord {
    pub fn new(
        device_id: String,
        name: Option<String>,
        api_url: ApiUrl,
        portainer_endpoint_id: Option<i64>,
        provisioned_at: String,
    ) -> DeviceRecord {
        DeviceRecord {
            schema: SCHEMA,
            device_id,
            name,
            api_url,
            portainer_endpoint_id,
            provisioned_at,
        }
    }

    pub fn load(path: &Path) -> Result<Option<DeviceRecord>, RecordError> {
        load(path)
    }

    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        save(path, self)
    }
}

/// The attempts to provision whose outcome is not known yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    schema: u32,
    pub attempts: Vec<Attempt>,
}

/// One request to provision, under one idempotency key however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub request_id: Uuid,
    pub device_id: String,
    /// The id was made up because somebody asked for a new one.
    pub new_identity: bool,
    pub api_url: ApiUrl,
    pub token_fingerprint: String,
    pub started_at: String,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            schema: SCHEMA,
            attempts: Vec::new(),
        }
    }
}

impl Journal {
    /// An absent journal is one without attempts.
    pub fn load(path: &Path) -> Result<Journal, RecordError> {
        Ok(load(path)?.unwrap_or_default())
    }

    /// Writes the journal, or removes it when no attempt is open.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        if self.attempts.is_empty() {
            files::remove(path)
        } else {
            save(path, self)
        }
    }

    /// The attempt with this token, if one is open.
    pub fn with_token(&self, fingerprint: &str) -> Option<&Attempt> {
        (self.attempts.iter()).find(|open| open.token_fingerprint == fingerprint)
    }

    pub fn with_request(&self, request_id: Uuid) -> Option<&Attempt> {
        (self.attempts.iter()).find(|open| open.request_id == request_id)
    }

    pub fn forget(&mut self, request_id: Uuid) {
        self.attempts.retain(|open| open.request_id != request_id);
    }
}

#[derive(Debug, Error)]
pub enum RecordError {
    #[error("{path} is damaged")]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("{path} was written by a newer version of this program")]
    Newer { path: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
}

impl Explain for RecordError {
    fn exit(&self) -> Exit {
        match self {
            RecordError::File(error) => error.exit(),
            RecordError::Damaged { .. } | RecordError::Newer { .. } => Exit::Unhealthy,
        }
    }

    fn id(&self) -> &'static str {
        match self {
            RecordError::Damaged { .. } => "record_damaged",
            RecordError::Newer { .. } => "record_newer",
            RecordError::File(error) => error.id(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            RecordError::Damaged { path, .. } => Some(format!(
                "restore {0} from a backup, or move it aside and run the same command again; {1}",
                path.display(),
                if path.ends_with("provisioning.json") {
                    "if an answer of the server was lost, it is the only way to that answer's key"
                } else {
                    "without it this machine becomes another device, if its key is gone as well"
                }
            )),
            RecordError::Newer { .. } => Some("install that version again".into()),
            RecordError::File(error) => error.hint(),
        }
    }
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    #[derive(Deserialize)]
    struct Head {
        schema: u32,
    }
    let Some(file) = files::read_private(path, CAP)? else {
        return Ok(None);
    };
    let damaged = |source| RecordError::Damaged {
        path: path.to_owned(),
        source,
    };
    let head: Head = serde_json::from_slice(&file.bytes).map_err(damaged)?;
    if head.schema > SCHEMA {
        return Err(RecordError::Newer {
            path: path.to_owned(),
        });
    }
    serde_json::from_slice(&file.bytes)
        .map(Some)
        .map_err(damaged)
}

fn save<T: Serialize>(path: &Path, record: &T) -> Result<(), FileError> {
    let mut text = serde_json::to_vec_pretty(record).map_err(|error| FileError::Io {
        what: "encode",
        path: path.to_owned(),
        source: error.into(),
    })?;
    text.push(b'\n');
    files::write_private(path, &text)
}
