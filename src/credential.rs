//! Where the device's key lives between runs, with everything else that came with it.
//!
//! One framed file in the state directory, written at once: a device that has its key has all of
//! it. What else says who this device is (`device.json`) can be made from it again.

mod file;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::config::ApiUrl;
use crate::error::{Exit, Explain};
use crate::files::{self, FileError};
use crate::paths::Paths;
use crate::records::DeviceRecord;
use crate::secret::{DeviceKey, EdgeKey};
use file::FramedFile;

#[derive(Debug, Error)]
pub enum CredentialError {
    #[error("{path} is damaged, and so is every copy of it")]
    Damaged { path: PathBuf },
    #[error("{path} was written, but reads differently: the disk may be failing")]
    NotAsWritten { path: PathBuf },
    #[error(transparent)]
    File(#[from] FileError),
}

impl Explain for CredentialError {
    fn exit(&self) -> Exit {
        match self {
            CredentialError::File(error) => error.exit(),
            CredentialError::Damaged { .. } | CredentialError::NotAsWritten { .. } => {
                Exit::Unhealthy
            }
        }
    }

    fn id(&self) -> &'static str {
        match self {
            CredentialError::Damaged { .. } => "credential_damaged",
            CredentialError::NotAsWritten { .. } => "credential_not_as_written",
            CredentialError::File(error) => error.id(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            CredentialError::Damaged { path } => Some(format!(
                "restore {0} from a backup; or move {0} and its .bak aside, delete the device in the dashboard and provision it again with a new token",
                path.display()
            )),
            CredentialError::NotAsWritten { .. } => {
                Some("check the disk (dmesg), or choose another directory with --state-dir".into())
            }
            CredentialError::File(error) => error.hint(),
        }
    }
}

/// What the provisioning answer brought, and which attempt brought it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    #[serde(serialize_with = "DeviceKey::send")]
    pub device_key: DeviceKey,
    pub device_id: String,
    pub name: Option<String>,
    /// The server as the administrator named it.
    pub server: ApiUrl,
    /// Base of the device's calls, as the server named it.
    pub api_url: ApiUrl,
    pub portainer_endpoint_id: Option<i64>,
    /// With it the container can be made again without the server.
    #[serde(serialize_with = "EdgeKey::send_option")]
    pub edge_key: Option<EdgeKey>,
    pub request_id: Uuid,
    pub provisioned_at: String,
}

impl Credential {
    /// The same without secrets, for everybody who wants to know who this device is.
    pub fn record(&self) -> DeviceRecord {
        DeviceRecord::new(
            self.device_id.clone(),
            self.name.clone(),
            self.api_url.clone(),
            self.portainer_endpoint_id,
            self.provisioned_at.clone(),
        )
    }

    fn encode(&self) -> Zeroizing<String> {
        Zeroizing::new(serde_json::to_string(self).expect("plain data always encodes"))
    }

    fn decode(text: &str) -> Option<Credential> {
        serde_json::from_str(text).ok()
    }
}

/// A credential as it was found.
#[derive(Debug)]
pub struct Stored {
    pub credential: Credential,
    /// Others on this machine could read it until now.
    pub was_exposed: bool,
    /// The file or its copy is missing, damaged or out of date.
    pub needs_healing: bool,
}

impl Stored {
    /// What the owner of an exposed key must know.
    pub fn warning(&self, paths: &Paths) -> Option<String> {
        self.was_exposed.then(|| {
            format!(
                "{} could be read by others on this machine; it is private again, but the key may be known",
                paths.device_key().display()
            )
        })
    }
}

/// Reading is for everybody; whoever writes must hold the lock of the state directory.
#[derive(Debug)]
pub struct CredentialStore {
    file: FramedFile,
    /// In memory: for a key that was issued and found the disk failing.
    refuge: FramedFile,
}

impl CredentialStore {
    pub fn new(paths: &Paths) -> CredentialStore {
        CredentialStore {
            file: FramedFile::new(paths.device_key()),
            refuge: FramedFile::new(paths.refuge()),
        }
    }

    /// On the disk, read back, with a second copy, when this returns.
    pub fn put(&self, credential: &Credential) -> Result<(), CredentialError> {
        self.file.put(&credential.encode())
    }

    pub fn get(&self) -> Result<Option<Stored>, CredentialError> {
        self.file.get(Credential::decode)
    }

    /// Writes what was read to both places.
    pub fn heal(&self, credential: &Credential) {
        if let Err(error) = self.file.heal(&credential.encode()) {
            let error = crate::error::chain(&error);
            tracing::warn!(error, "the recovered key could not be written back");
        }
    }

    /// Keeps it where it survives this process, though not a restart of the machine.
    pub fn put_in_refuge(&self, credential: &Credential) -> Result<&Path, CredentialError> {
        let path = self.refuge.path();
        if let Some(dir) = path.parent() {
            files::create_private_dir(dir)?;
            files::check_private_dir(dir)?;
        }
        self.refuge.put(&credential.encode())?;
        Ok(path)
    }

    /// A key that an earlier run could store nowhere else. It is newer than any that is.
    pub fn in_refuge(&self) -> Result<Option<Stored>, CredentialError> {
        self.refuge.get(Credential::decode)
    }

    /// Brings a key from the refuge to its proper place.
    pub fn leave_refuge(&self, credential: &Credential) -> Result<(), CredentialError> {
        self.put(credential)?;
        self.refuge.delete()
    }
}
