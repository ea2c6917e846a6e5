//! The Docker daemon's id: it names the device for as long as that Docker lives.

use std::path::PathBuf;
use std::time::Duration;

use bollard::Docker;
use thiserror::Error;

use crate::error::chain;

const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";
const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
pub enum DockerError {
    #[error("there is no Docker socket at {0}")]
    NoSocket(PathBuf),
    #[error("only unix:// and tcp:// addresses of Docker are understood, not {0}")]
    BadHost(String),
    #[error("Docker at {host} did not answer within {} s", DEADLINE.as_secs())]
    Hung { host: String },
    #[error("Docker at {host} could not be asked: {cause}")]
    Failed { host: String, cause: String },
    #[error("Docker at {host} has no id")]
    NoId { host: String },
}

pub(super) async fn daemon_id(host: Option<&str>) -> Result<String, DockerError> {
    let host = host.unwrap_or(DEFAULT_HOST).to_owned();
    let docker = connect(&host)?;
    let answer = tokio::time::timeout(DEADLINE, docker.info())
        .await
        .map_err(|_| DockerError::Hung { host: host.clone() })?;
    let info = answer.map_err(|error| failed(&host, &error))?;
    match info.id {
        Some(id) if !id.is_empty() => Ok(id),
        _ => Err(DockerError::NoId { host }),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the door to Docker")]
fn connect(host: &str) -> Result<Docker, DockerError> {
    let version = bollard::API_DEFAULT_VERSION;
    // Ours ends first, with a message of our own.
    let timeout = 2 * DEADLINE.as_secs();
    let connected = if let Some(path) = host.strip_prefix("unix://") {
        let path = PathBuf::from(path);
        if !path.exists() {
            return Err(DockerError::NoSocket(path));
        }
        Docker::connect_with_unix(host, timeout, version)
    } else if host.starts_with("tcp://") {
        Docker::connect_with_http(host, timeout, version)
    } else {
        return Err(DockerError::BadHost(host.to_owned()));
    };
    connected.map_err(|error| failed(host, &error))
}

fn failed(host: &str, error: &bollard::errors::Error) -> DockerError {
    DockerError::Failed {
        host: host.to_owned(),
        cause: chain(error),
    }
}
