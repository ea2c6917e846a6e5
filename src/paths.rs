//! Where things live. Everything the program writes, and every setting and token it reads, hangs
//! off one root: `/` in production, a scratch directory in tests and the demo.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::env_vars::{self, Env};
use crate::error::{Exit, Explain};

#[derive(Debug, Clone)]
pub struct Paths {
    root: PathBuf,
    state: PathBuf,
    settings: PathBuf,
    runtime: PathBuf,
    scope: Scope,
}

/// Whose installation this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The machine's, run by root: fixed paths.
    System,
    /// One person's, in their own directories, for trying things without root.
    User,
}

#[derive(Debug, Error)]
pub enum PathsError {
    #[error("no home directory was found for --user")]
    NoHome,
}

impl Explain for PathsError {
    fn exit(&self) -> Exit {
        Exit::Usage
    }

    fn id(&self) -> &'static str {
        "no_home"
    }

    fn hint(&self) -> Option<String> {
        Some("set HOME, or name a directory with --root".into())
    }
}

impl Paths {
    pub fn system(root: &Path) -> Paths {
        Paths {
            root: root.to_owned(),
            state: root.join("var/lib/acusight"),
            settings: root.join("etc/acusight"),
            runtime: root.join("run/acusight"),
            scope: Scope::System,
        }
    }

    pub fn user() -> Result<Paths, PathsError> {
        let dirs =
            directories::ProjectDirs::from("io", "", "acusight").ok_or(PathsError::NoHome)?;
        let state = dirs.state_dir().unwrap_or_else(|| dirs.data_local_dir());
        Ok(Paths {
            root: PathBuf::from("/"),
            state: state.to_owned(),
            settings: dirs.config_dir().to_owned(),
            runtime: match dirs.runtime_dir() {
                Some(runtime) => runtime.join("acusight"),
                // No session: still memory, and not the disk that may just be failing.
                None => Path::new("/dev/shm")
                    .join(format!("acusight-{}", rustix::process::geteuid().as_raw())),
            },
            scope: Scope::User,
        })
    }

    /// The same, with the state elsewhere: as the flag or variable says, else as systemd says.
    pub fn with_state_dir(mut self, explicit: Option<PathBuf>, env: &Env) -> Paths {
        let from_systemd = || env.path(env_vars::STATE_DIRECTORY);
        if let Some(state) = explicit.or_else(from_systemd) {
            self.state = state;
        }
        self
    }

    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// The state directory: identity, key, journal. Private.
    pub fn state_dir(&self) -> &Path {
        &self.state
    }

    /// Who this device is; no secret.
    pub fn device_record(&self) -> PathBuf {
        self.state.join("device.json")
    }

    /// The device's key, and what came with it.
    pub fn device_key(&self) -> PathBuf {
        self.state.join("device-key")
    }

    /// Exists only while an attempt to provision is open.
    pub fn journal(&self) -> PathBuf {
        self.state.join("provisioning.json")
    }

    pub fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }

    /// Where an issued key goes when the state directory fails at the worst moment.
    pub fn refuge(&self) -> PathBuf {
        self.runtime.join("issued-key")
    }

    pub fn settings_file(&self) -> PathBuf {
        self.settings.join("agent.toml")
    }

    /// Files an administrator may drop a token into; consumed once it was used.
    pub fn token_drop_ins(&self) -> Vec<PathBuf> {
        let mut drop_ins = vec![self.settings.join("token")];
        if self.scope == Scope::System {
            drop_ins.push(self.root.join("boot/firmware/acusight-token"));
            drop_ins.push(self.root.join("boot/acusight-token"));
        }
        drop_ins
    }

    pub fn proc(&self) -> PathBuf {
        self.kernel_tree("proc")
    }

    pub fn sys(&self) -> PathBuf {
        self.kernel_tree("sys")
    }

    /// A root that has a `/proc` or `/sys` of its own is believed; any other is a place for our
    /// files on this machine, and the facts are this machine's.
    fn kernel_tree(&self, name: &str) -> PathBuf {
        let own = self.root.join(name);
        if own.is_dir() {
            own
        } else {
            Path::new("/").join(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_ours_hangs_off_the_root() {
        let paths = Paths::system(Path::new("/tmp/elsewhere"));
        let mut ours = vec![
            paths.device_record(),
            paths.device_key(),
            paths.journal(),
            paths.lock(),
            paths.refuge(),
            paths.settings_file(),
        ];
        ours.extend(paths.token_drop_ins());
        for path in ours {
            assert!(path.starts_with("/tmp/elsewhere"), "{}", path.display());
        }
    }

    #[test]
    fn systemd_names_the_state_directory_unless_a_person_does() {
        let env: Env = [(env_vars::STATE_DIRECTORY, "/var/lib/by-systemd")]
            .into_iter()
            .collect();
        let by_systemd = Paths::system(Path::new("/")).with_state_dir(None, &env);
        assert_eq!(by_systemd.state_dir(), Path::new("/var/lib/by-systemd"));
        let by_person = Paths::system(Path::new("/")).with_state_dir(Some("/mine".into()), &env);
        assert_eq!(by_person.state_dir(), Path::new("/mine"));
    }
}
