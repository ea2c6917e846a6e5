//! The only writer of files. A private file is private from its first byte, appears whole or not
//! at all, and is on the disk when the call returns.
#![expect(clippy::disallowed_methods, reason = "the door to files stands here")]

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::error::{Exit, Explain};

#[derive(Debug, Error)]
pub enum FileError {
    #[error("could not {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is not trusted: {why}")]
    Untrusted { path: PathBuf, why: &'static str },
    #[error("{path} can be read by others on this machine (mode {mode:04o})")]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} is larger than {cap} bytes")]
    TooLarge { path: PathBuf, cap: usize },
}

impl FileError {
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        match self {
            FileError::Io { source, .. } => Some(source.kind()),
            _ => None,
        }
    }
}

impl Explain for FileError {
    fn exit(&self) -> Exit {
        Exit::Unexpected
    }

    fn id(&self) -> &'static str {
        match self {
            FileError::Exposed { .. } => "exposed_token_file",
            _ => "file",
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            FileError::Untrusted { path, .. } => format!(
                "look at it as root: ls -l {0}; move it away if it is not yours",
                path.display()
            ),
            FileError::Exposed { path, .. } => format!(
                "chmod 600 {}; if others use this machine, have the token revoked and use a new one",
                path.display()
            ),
            FileError::TooLarge { path, .. } => {
                format!("look at what {} holds; it is not ours", path.display())
            }
            FileError::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => "run the same command with sudo".into(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "free some space on that file system, then run the same command again".into()
                }
                io::ErrorKind::ReadOnlyFilesystem => {
                    "that file system is read-only; remount it, or choose another directory with --state-dir".into()
                }
                _ => return None,
            },
        };
        Some(hint)
    }
}

trait At<T> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: &'static str, path: &Path) -> Result<T, FileError> {
        self.map_err(|error| FileError::Io {
            what,
            path: path.to_owned(),
            source: error.into(),
        })
    }
}

/// Replaces `path` by `bytes`, readable by its owner only. After an error, or a crash at any
/// point, the old content is still there; the new may be, whole, in [`staging_of`] the path.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let dir = directory_of(path);
    // Resolved once, so that a link swapped in half-way cannot split the steps over two places.
    let dir = fs::canonicalize(dir).at("find", dir)?;
    let name = path.file_name().unwrap_or_default();
    let live = dir.join(name);
    let staging = staging_of(&live);

    remove_if_there(&staging)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&staging)
        .at("create", &staging)?;
    file.write_all(bytes).at("write", &staging)?;
    file.sync_all().at("flush", &staging)?;
    fs::rename(&staging, &live).at("put in place", &live)?;
    sync_dir(&dir)
}

/// Where [`write_private`] prepares the new content of `path`.
pub fn staging_of(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    path.with_file_name(name)
}

#[derive(Debug)]
pub struct PrivateFile {
    pub bytes: Vec<u8>,
    /// Others could read it until now; its mode has been repaired.
    pub was_exposed: bool,
}

/// Reads a file that only its owner should be able to read, and does not believe one that
/// somebody else could have put there. `None` if there is none.
pub fn read_private(path: &Path, cap: usize) -> Result<Option<PrivateFile>, FileError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
        .open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(untrusted(path, "it is a symbolic link"));
        }
        opened => opened.at("open", path)?,
    };
    let meta = file.metadata().at("inspect", path)?;
    if !meta.is_file() {
        return Err(untrusted(path, "it is not a regular file"));
    }
    // None at all means that it was replaced after it was opened: still whole, just older.
    if meta.nlink() > 1 {
        return Err(untrusted(path, "it has a second name (a hard link)"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(untrusted(path, "it belongs to somebody else"));
    }
    let was_exposed = meta.mode() & 0o077 != 0;
    if was_exposed {
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .at("make private", path)?;
    }
    let bytes = read_to_cap(file, path, cap)?;
    Ok(Some(PrivateFile { bytes, was_exposed }))
}

/// Reads a small text file of anybody's. `None` if there is none.
pub fn read_text(path: &Path, cap: usize) -> Result<Option<String>, FileError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.at("open", path)?,
    };
    let bytes = read_to_cap(file, path, cap)?;
    let text = String::from_utf8(bytes).map_err(|_| untrusted(path, "it is not text"))?;
    Ok(Some(text))
}

/// Reads a token that a person put into a file; not one that others could have read as well.
/// `None` if there is no such file.
pub fn read_token(path: &Path, cap: usize) -> Result<Option<Zeroizing<String>>, FileError> {
    let file = match File::open(path) {
        Err(error) if is_absent(&error) => return Ok(None),
        opened => opened.at("open", path)?,
    };
    let mode = file.metadata().at("inspect", path)?.mode() & 0o7777;
    if mode & 0o077 != 0 && !is_modeless(&file).at("inspect the file system of", path)? {
        return Err(FileError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    read_token_from(file, path, cap).map(Some)
}

/// The same from an open stream; `path` is its name in errors.
pub fn read_token_from(
    source: impl Read,
    path: &Path,
    cap: usize,
) -> Result<Zeroizing<String>, FileError> {
    let bytes = Zeroizing::new(read_to_cap(source, path, cap)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| untrusted(path, "it is not text"))?;
    // Windows editors put a byte order mark in front.
    let text = text.trim_start_matches('\u{feff}').trim();
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_to_cap(source: impl Read, path: &Path, cap: usize) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    source
        .take(cap as u64 + 1)
        .read_to_end(&mut bytes)
        .at("read", path)?;
    if bytes.len() > cap {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            cap,
        });
    }
    Ok(bytes)
}

/// Removes a file for good; it being gone already is fine.
pub fn remove(path: &Path) -> Result<(), FileError> {
    if remove_if_there(path)? {
        sync_dir(directory_of(path))?;
    }
    Ok(())
}

/// Makes `path` and what is missing above it. What this call makes is private.
pub fn create_private_dir(path: &Path) -> Result<(), FileError> {
    let missing: Vec<&Path> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at("create", path)?;
    // A new directory's name is as durable as the directory that holds it.
    for made in missing.into_iter().rev() {
        sync_dir(directory_of(made))?;
    }
    Ok(())
}

/// Refuses a directory that somebody else owns or can look into.
pub fn check_private_dir(path: &Path) -> Result<(), FileError> {
    let meta = fs::symlink_metadata(path).at("inspect", path)?;
    if !meta.is_dir() {
        return Err(untrusted(path, "it is not a directory"));
    }
    if meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(untrusted(path, "others have access to it"));
    }
    Ok(())
}

/// Held by one process at a time; the kernel lets go of it when the process ends, however.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held open, never read")] File);

impl Lock {
    /// `None` if another process holds it.
    pub fn try_acquire(path: &Path) -> Result<Option<Lock>, FileError> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .at("open", path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).at("lock", path),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Free {
    pub bytes: u64,
    /// `None` where the file system does not count them (btrfs, vfat).
    pub inodes: Option<u64>,
}

/// What is left on the file system of `path` for an unprivileged writer.
pub fn free_space(path: &Path) -> Result<Free, FileError> {
    let stat = rustix::fs::statvfs(path).at("inspect the file system of", path)?;
    Ok(Free {
        bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

/// The kind of file system below `path`, if it does not outlive a restart of the machine (or, for
/// an overlay, of the container or the live system).
pub fn volatile_kind(path: &Path) -> Result<Option<&'static str>, FileError> {
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const OVERLAY: u64 = 0x794c_7630;
    let stat = rustix::fs::statfs(path).at("inspect the file system of", path)?;
    Ok(match kind_of(&stat) {
        TMPFS => Some("tmpfs"),
        RAMFS => Some("ramfs"),
        OVERLAY => Some("overlay"),
        _ => None,
    })
}

/// Whether this file system keeps no owners and modes (a boot partition, a USB stick).
fn is_modeless(file: &File) -> io::Result<bool> {
    const MSDOS: u64 = 0x4d44;
    const EXFAT: u64 = 0x2011_bab0;
    let kind = kind_of(&rustix::fs::fstatfs(file)?);
    Ok(kind == MSDOS || kind == EXFAT)
}

#[allow(
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    reason = "the field's type differs between platforms"
)]
fn kind_of(stat: &rustix::fs::StatFs) -> u64 {
    // The numbers have 32 bits; where the field is signed they must not grow more.
    u64::from(stat.f_type as u32)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn remove_if_there(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        removed => removed.at("remove", path).map(|()| true),
    }
}

fn sync_dir(dir: &Path) -> Result<(), FileError> {
    File::open(dir)
        .and_then(|handle| handle.sync_all())
        .at("flush", dir)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

fn untrusted(path: &Path, why: &'static str) -> FileError {
    FileError::Untrusted {
        path: path.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAP: usize = 64;

    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir().expect("a scratch directory")
    }

    #[test]
    fn a_private_file_is_0600_even_under_an_open_umask_and_leaves_no_staging() {
        let dir = scratch();
        let path = dir.path().join("key");
        write_private(&path, b"one").expect("written");
        write_private(&path, b"two").expect("replaced");
        let read = read_private(&path, CAP).expect("readable").expect("there");
        assert_eq!(read.bytes, b"two");
        assert!(!read.was_exposed);
        let mode = fs::metadata(&path).expect("metadata").mode() & 0o7777;
        assert_eq!(mode, 0o600);
        assert_eq!(fs::read_dir(&dir).expect("listing").count(), 1);
    }

    #[test]
    fn an_exposed_file_is_read_repaired_and_reported() {
        let dir = scratch();
        let path = dir.path().join("key");
        write_private(&path, b"one").expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("exposed");
        let read = read_private(&path, CAP).expect("readable").expect("there");
        assert!(read.was_exposed);
        let again = read_private(&path, CAP).expect("readable").expect("there");
        assert!(!again.was_exposed, "the mode is repaired once");
    }

    #[test]
    fn a_file_that_is_replaced_while_it_is_read_is_no_link() {
        let dir = scratch();
        let path = dir.path().join("key");
        write_private(&path, b"new").expect("written");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for _ in 0..300 {
                    write_private(&path, b"new").expect("replaced");
                }
            });
            while !writer.is_finished() {
                let read = read_private(&path, CAP).expect("readable").expect("there");
                assert_eq!(read.bytes, b"new");
            }
        });
    }

    #[test]
    fn links_and_foreign_kinds_are_not_believed() {
        let dir = scratch();
        let real = dir.path().join("real");
        write_private(&real, b"one").expect("written");

        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("a symlink");
        let why = read_private(&link, CAP).expect_err("refused").to_string();
        assert!(why.ends_with("it is a symbolic link"), "{why}");

        let twin = dir.path().join("twin");
        fs::hard_link(&real, &twin).expect("a hard link");
        let why = read_private(&real, CAP).expect_err("refused").to_string();
        assert!(why.contains("hard link"), "{why}");

        let why = read_private(dir.path(), CAP)
            .expect_err("refused")
            .to_string();
        assert!(why.contains("not a regular file"), "{why}");
    }

    #[test]
    fn a_file_over_the_cap_is_refused_and_one_at_the_cap_is_not() {
        let dir = scratch();
        let path = dir.path().join("big");
        write_private(&path, &[b'x'; CAP]).expect("written");
        assert!(read_private(&path, CAP).is_ok());
        write_private(&path, &[b'x'; CAP + 1]).expect("written");
        assert!(matches!(
            read_private(&path, CAP),
            Err(FileError::TooLarge { .. })
        ));
    }

    #[test]
    fn a_lock_is_held_once() {
        let dir = scratch();
        let path = dir.path().join("lock");
        let held = Lock::try_acquire(&path).expect("no error").expect("free");
        assert!(Lock::try_acquire(&path).expect("no error").is_none());
        drop(held);
        assert!(Lock::try_acquire(&path).expect("no error").is_some());
    }
}
