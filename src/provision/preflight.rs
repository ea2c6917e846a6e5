//! Is this machine fit to keep a key? Asked before the token is used.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use thiserror::Error;

use super::ProvisionError;
use crate::clock::{Clock, rfc3339};
use crate::error::{Exit, Explain, TokenFate};
use crate::files::{self, FileError, Lock};
use crate::paths::{Paths, Scope};

const BYTES_NEEDED: u64 = 1024 * 1024;
const INODES_NEEDED: u64 = 16;

#[derive(Debug, Error)]
pub enum NotReady {
    #[error("this needs root")]
    NotRoot(#[source] FileError),
    #[error("this needs root: {0} is root's")]
    BelongsToRoot(PathBuf),
    #[error("the state directory cannot be used")]
    StateDir(#[source] FileError),
    #[error("the state directory {0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("the state directory {path} belongs to user {owner}")]
    ForeignOwner { path: PathBuf, owner: u32 },
    #[error("the state directory {path} is open to others on this machine (mode {mode:04o})")]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "{dir} belongs to others on this machine, or can be written to by them: they could put another state directory in its place"
    )]
    ParentOpen { dir: PathBuf },
    #[error(
        "the state directory {path} is on a {kind} file system: what is stored there does not outlive a restart"
    )]
    Volatile { path: PathBuf, kind: &'static str },
    #[error("this machine's clock says {now}, which is before this program was built ({built})")]
    Clock { now: String, built: String },
    #[error(
        "there is no space left for the key: {left} bytes free at {path}, {BYTES_NEEDED} needed"
    )]
    NoSpace { path: PathBuf, left: u64 },
    #[error("there is no room left for new files at {path} (no inodes)")]
    NoInodes { path: PathBuf },
    #[error("what was written to {path} reads differently: the disk may be failing")]
    NotAsWritten { path: PathBuf },
}

impl Explain for NotReady {
    fn exit(&self) -> Exit {
        match self {
            NotReady::Clock { .. } => Exit::Network,
            _ => Exit::Preflight,
        }
    }

    fn id(&self) -> &'static str {
        match self {
            NotReady::NotRoot(_) | NotReady::BelongsToRoot(_) => "not_root",
            NotReady::StateDir(_) | NotReady::NotADirectory(_) => "state_dir",
            NotReady::ForeignOwner { .. } => "state_dir_owner",
            NotReady::Open { .. } => "state_dir_open",
            NotReady::ParentOpen { .. } => "state_dir_parent_open",
            NotReady::Volatile { .. } => "state_dir_volatile",
            NotReady::Clock { .. } => "clock_wrong",
            NotReady::NoSpace { .. } => "no_space",
            NotReady::NoInodes { .. } => "no_inodes",
            NotReady::NotAsWritten { .. } => "disk_failing",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            NotReady::NotRoot(_) | NotReady::BelongsToRoot(_) => "run the same command with sudo".into(),
            NotReady::StateDir(error) => error.hint().unwrap_or_else(|| {
                "look at that directory, or choose another with --state-dir".into()
            }),
            NotReady::NotADirectory(path) => format!("move {} away", path.display()),
            NotReady::ForeignOwner { path, .. } => {
                format!(
                    "chown it to the user that runs this: chown root: {}",
                    path.display()
                )
            }
            NotReady::Open { path, .. } => format!("chmod 700 {}", path.display()),
            NotReady::ParentOpen { dir } => format!(
                "chmod go-w {0}; chown root: {0}; or choose another directory with --state-dir",
                dir.display()
            ),
            NotReady::Volatile { .. } => {
                "choose a directory on a disk with --state-dir; or add --allow-volatile-state if losing the key with the next restart is fine".into()
            }
            NotReady::Clock { .. } => {
                "set the clock (timedatectl, or let it synchronise) and run the same command again".into()
            }
            NotReady::NoSpace { .. } | NotReady::NoInodes { .. } => {
                "free some space there, or choose another directory with --state-dir".into()
            }
            NotReady::NotAsWritten { .. } => {
                "check the disk (dmesg), or choose another directory with --state-dir".into()
            }
        };
        Some(hint)
    }

    fn token_fate(&self) -> Option<TokenFate> {
        Some(TokenFate::Unused)
    }
}

/// Makes the state directory if need be, checks whose it is, and keeps other runs out.
pub(super) fn claim_state_dir(paths: &Paths) -> Result<Lock, ProvisionError> {
    let dir = paths.state_dir();
    let refused = |error: FileError| {
        let denied = error.io_kind() == Some(io::ErrorKind::PermissionDenied);
        if denied && paths.scope() == Scope::System {
            NotReady::NotRoot(error)
        } else {
            NotReady::StateDir(error)
        }
    };
    if dir.exists() && !dir.is_dir() {
        return Err(NotReady::NotADirectory(dir.to_owned()).into());
    }
    files::create_private_dir(dir).map_err(refused)?;
    check_owner_and_mode(dir)?;
    let lock = Lock::try_acquire(&paths.lock()).map_err(refused)?;
    lock.ok_or(ProvisionError::Locked)
}

/// A clock that is behind the program's own age makes every certificate look not valid yet.
pub(super) fn check_clock(clock: &Clock) -> Result<(), NotReady> {
    let built: u64 = env!("ACUSIGHT_BUILT").parse().unwrap_or(0);
    let built = SystemTime::UNIX_EPOCH + Duration::from_secs(built);
    if clock.now() < built {
        return Err(NotReady::Clock {
            now: clock.timestamp(),
            built: rfc3339(built),
        });
    }
    Ok(())
}

/// Durable, with room enough, and a full cycle of what storing the key will do.
pub(super) fn try_out_state_dir(paths: &Paths, allow_volatile: bool) -> Result<(), NotReady> {
    let dir = paths.state_dir();
    let volatile = files::volatile_kind(dir).map_err(NotReady::StateDir)?;
    if let Some(kind) = volatile.filter(|_| !allow_volatile) {
        return Err(NotReady::Volatile {
            path: dir.to_owned(),
            kind,
        });
    }
    let free = files::free_space(dir).map_err(NotReady::StateDir)?;
    if free.bytes < BYTES_NEEDED {
        return Err(NotReady::NoSpace {
            path: dir.to_owned(),
            left: free.bytes,
        });
    }
    if free.inodes.is_some_and(|left| left < INODES_NEEDED) {
        return Err(NotReady::NoInodes {
            path: dir.to_owned(),
        });
    }
    let trial = dir.join("trial");
    let content = [0x5a; 256];
    files::write_private(&trial, &content).map_err(NotReady::StateDir)?;
    let read = files::read_private(&trial, content.len()).map_err(NotReady::StateDir)?;
    if read.is_none_or(|file| file.bytes != content) {
        return Err(NotReady::NotAsWritten { path: trial });
    }
    files::remove(&trial).map_err(NotReady::StateDir)
}

fn check_owner_and_mode(dir: &Path) -> Result<(), NotReady> {
    let meta = dir.metadata().map_err(|source| unreadable(dir, source))?;
    let path = dir.to_owned();
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() == 0 && me != 0 {
        return Err(NotReady::BelongsToRoot(path));
    }
    if meta.uid() != me {
        return Err(NotReady::ForeignOwner {
            path,
            owner: meta.uid(),
        });
    }
    let mode = meta.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(NotReady::Open { path, mode });
    }
    check_parents(dir)
}

/// Whoever can rename a directory above ours can put another in its place.
fn check_parents(dir: &Path) -> Result<(), NotReady> {
    const STICKY: u32 = 0o1000;
    let real = std::fs::canonicalize(dir).map_err(|source| unreadable(dir, source))?;
    for parent in real.ancestors().skip(1) {
        let meta = parent
            .metadata()
            .map_err(|source| unreadable(parent, source))?;
        let writable = meta.mode() & 0o022 != 0 && meta.mode() & STICKY == 0;
        let foreign = meta.uid() != 0 && meta.uid() != rustix::process::geteuid().as_raw();
        if writable || foreign {
            return Err(NotReady::ParentOpen {
                dir: parent.to_owned(),
            });
        }
    }
    Ok(())
}

fn unreadable(path: &Path, source: io::Error) -> NotReady {
    NotReady::StateDir(FileError::Io {
        what: "inspect",
        path: path.to_owned(),
        source,
    })
}
