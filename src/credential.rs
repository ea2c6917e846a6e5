//! Where the device's secrets live between runs.
//!
//! Both are framed files in the state directory: the device key, which the server tells only
//! once, and the edge key, with which the container can be made again without the server.

mod file;

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::error::{Exit, Explain};
use crate::files::{self, FileError};
use crate::paths::Paths;
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

/// A secret as it was found.
#[derive(Debug)]
pub struct Stored<T> {
    pub secret: T,
    /// Others on this machine could read it until now.
    pub was_exposed: bool,
    /// It had to be read from a copy: the proper file is missing or damaged.
    pub from_copy: bool,
}

/// Reading is for everybody; whoever writes must hold the lock of the state directory.
#[derive(Debug)]
pub struct CredentialStore {
    device_key: FramedFile,
    edge_key: FramedFile,
    /// In memory: for a key that was issued and found the disk failing.
    refuge: FramedFile,
}

impl CredentialStore {
    pub fn new(paths: &Paths) -> CredentialStore {
        CredentialStore {
            device_key: FramedFile::new(paths.device_key()),
            edge_key: FramedFile::new(paths.edge_key()),
            refuge: FramedFile::new(paths.refuge()),
        }
    }

    /// On the disk, read back, with a second copy, when this returns.
    pub fn put_device_key(&self, key: &DeviceKey) -> Result<(), CredentialError> {
        self.device_key.put(key.expose())
    }

    pub fn device_key(&self) -> Result<Option<Stored<DeviceKey>>, CredentialError> {
        self.device_key.get(DeviceKey::parse)
    }

    /// Writes a key that was read from a copy back to its place.
    pub fn heal_device_key(&self, key: &DeviceKey) {
        if let Err(error) = self.device_key.heal(key.expose()) {
            let error = crate::error::chain(&error);
            tracing::warn!(error, "the recovered key could not be written back");
        }
    }

    /// Keeps the key where it survives this process, though not a restart of the machine.
    pub fn put_in_refuge(&self, key: &DeviceKey) -> Result<&Path, CredentialError> {
        let path = self.refuge.path();
        if let Some(dir) = path.parent() {
            files::create_private_dir(dir)?;
        }
        self.refuge.put(key.expose())?;
        Ok(path)
    }

    /// Brings a key from the refuge to its proper place. It is newer than any that is there.
    pub fn leave_refuge(&self) -> Result<(), CredentialError> {
        if let Some(stored) = self.refuge.get(DeviceKey::parse)? {
            self.put_device_key(&stored.secret)?;
            self.refuge.delete()?;
        }
        Ok(())
    }

    pub fn put_edge_key(&self, key: &EdgeKey) -> Result<(), CredentialError> {
        self.edge_key.put(key.expose())
    }

    pub fn edge_key(&self) -> Result<Option<Stored<EdgeKey>>, CredentialError> {
        self.edge_key.get(EdgeKey::parse)
    }
}
