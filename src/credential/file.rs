//! A secret in a file: framed, so that damage is noticed; twice, so that damage is survived.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Credential, CredentialError, Stored};
use crate::files::{self, FileError};
use crate::secret::hex;

const HEADER: &str = "acusight-credential 1";
/// More than any answer that is accepted can make, with every character of it escaped.
const CAP: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct FramedFile {
    live: PathBuf,
    backup: PathBuf,
}

impl FramedFile {
    pub(super) fn new(live: PathBuf) -> FramedFile {
        let mut backup = live.clone().into_os_string();
        backup.push(".bak");
        FramedFile {
            live,
            backup: backup.into(),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.live
    }

    pub(super) fn put(&self, secret: &str) -> Result<(), CredentialError> {
        let framed = frame(secret);
        files::write_private(&self.live, framed.as_bytes())?;
        let read = files::read_private(&self.live, CAP)?;
        if read.is_none_or(|file| file.bytes != framed.as_bytes()) {
            return Err(CredentialError::NotAsWritten {
                path: self.live.clone(),
            });
        }
        // The secret is safe by now; a missing second copy is worth a word, not a failure.
        if let Err(error) = files::write_private(&self.backup, framed.as_bytes()) {
            let error = crate::error::chain(&error);
            tracing::warn!(error, "no second copy of the credential was kept");
        }
        Ok(())
    }

    /// The first intact one of: a new file that a crash kept from being put in place (it is
    /// never older than the live one), the live file, the second copy. Writes nothing.
    pub(super) fn get(
        &self,
        decode: impl Fn(&str) -> Option<Credential>,
    ) -> Result<Option<Stored>, CredentialError> {
        let mut trouble = None;
        let mut found: Option<(files::PrivateFile, Credential)> = None;
        let mut all_alike = true;
        for path in [&files::staging_of(&self.live), &self.live, &self.backup] {
            let is_staging = path != &self.live && path != &self.backup;
            let file = match files::read_private(path, CAP) {
                Ok(Some(file)) => file,
                Ok(None) => {
                    all_alike &= is_staging;
                    continue;
                }
                // Somebody has been at it: that is for a person to look into.
                Err(error @ FileError::Untrusted { .. }) => return Err(error.into()),
                Err(error) => {
                    trouble.get_or_insert(error.into());
                    all_alike = false;
                    continue;
                }
            };
            match (&found, unframe(&file.bytes).and_then(&decode)) {
                (None, Some(credential)) => {
                    all_alike &= !is_staging;
                    found = Some((file, credential));
                }
                (Some((first, _)), _) => all_alike &= first.bytes == file.bytes,
                // A torn staging file is what a crash before the first success leaves.
                (None, None) if is_staging => {}
                (None, None) => {
                    all_alike = false;
                    trouble.get_or_insert(CredentialError::Damaged {
                        path: self.live.clone(),
                    });
                }
            }
        }
        match (found, trouble) {
            (Some((file, credential)), _) => Ok(Some(Stored {
                credential,
                was_exposed: file.was_exposed,
                needs_healing: !all_alike,
            })),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }

    /// Makes the file and its copy alike again.
    pub(super) fn heal(&self, secret: &str) -> Result<(), CredentialError> {
        // The copy first: writing the live file takes the staging file's place, and at every
        // moment one intact file must be there.
        let framed = frame(secret);
        files::write_private(&self.backup, framed.as_bytes())?;
        files::write_private(&self.live, framed.as_bytes())?;
        Ok(())
    }

    pub(super) fn delete(&self) -> Result<(), CredentialError> {
        for path in [&files::staging_of(&self.live), &self.backup, &self.live] {
            files::remove(path)?;
        }
        Ok(())
    }
}

fn frame(secret: &str) -> zeroize::Zeroizing<String> {
    let sum = hex(&Sha256::digest(secret.as_bytes()));
    zeroize::Zeroizing::new(format!("{HEADER}\n{secret}\nsha256 {sum}\n"))
}

fn unframe(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    let body = text.strip_prefix(HEADER)?.strip_prefix('\n')?;
    let (secret, trailer) = body.split_once('\n')?;
    let sum = trailer.strip_prefix("sha256 ")?.strip_suffix('\n')?;
    (sum == hex(&Sha256::digest(secret.as_bytes()))).then_some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ApiUrl;
    use crate::secret::DeviceKey;
    use proptest::prelude::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use uuid::Uuid;

    const KEY: &str = "adk_00112233445566778899aabbccddeeff";

    fn credential(key: &str) -> String {
        let server = ApiUrl::parse("https://acusight.io", false).expect("good");
        let credential = Credential {
            device_key: DeviceKey::parse(key).expect("good"),
            device_id: "d".into(),
            name: None,
            api_url: server.clone(),
            server,
            portainer_endpoint_id: None,
            edge_key: None,
            request_id: Uuid::nil(),
            provisioned_at: "2026-01-01T00:00:00Z".into(),
        };
        credential.encode().to_string()
    }

    fn framed(key: &str) -> Vec<u8> {
        frame(&credential(key)).as_bytes().to_vec()
    }

    struct Scratch {
        _dir: tempfile::TempDir,
        store: FramedFile,
    }

    fn scratch() -> Scratch {
        let dir = tempfile::tempdir().expect("a scratch directory");
        let store = FramedFile::new(dir.path().join("device-key"));
        Scratch { _dir: dir, store }
    }

    fn read(store: &FramedFile) -> Option<String> {
        let stored = store.get(Credential::decode).expect("readable");
        stored.map(|stored| stored.credential.device_key.expose().to_owned())
    }

    fn write_raw(path: &Path, bytes: &[u8]) {
        files::write_private(path, bytes).expect("written");
    }

    #[test]
    fn what_is_put_is_got_twice_over() {
        let Scratch { store, _dir } = scratch();
        assert_eq!(read(&store), None);
        store.put(&credential(KEY)).expect("stored");
        assert_eq!(read(&store).as_deref(), Some(KEY));
        assert_eq!(
            fs::read(&store.live).expect("live"),
            fs::read(&store.backup).expect("backup")
        );
    }

    #[test]
    fn an_empty_live_file_is_healed_from_the_staging_file_or_the_copy() {
        for copy in ["staging", "backup"] {
            let Scratch { store, _dir } = scratch();
            let path = match copy {
                "staging" => files::staging_of(&store.live),
                _ => store.backup.clone(),
            };
            write_raw(&path, &framed(KEY));
            fs::write(&store.live, b"").expect("an empty live file");
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(&store.live, mode).expect("private");
            let stored = store.get(Credential::decode).expect("readable");
            let stored = stored.expect("there");
            assert!(stored.needs_healing, "from {copy}");
            assert_eq!(
                fs::read(&store.live).expect("live"),
                b"",
                "reading writes nothing"
            );
            store.heal(&stored.credential.encode()).expect("healed");
            assert_eq!(fs::read(&store.live).expect("live"), framed(KEY));
            assert_eq!(read(&store).as_deref(), Some(KEY));
        }
    }

    #[test]
    fn a_torn_first_write_is_no_key_and_no_damage() {
        let Scratch { store, _dir } = scratch();
        for torn in [&b""[..], b"acusight-cred"] {
            fs::write(files::staging_of(&store.live), torn).expect("torn");
            assert_eq!(read(&store), None);
            store.put(&credential(KEY)).expect("stored");
            assert_eq!(read(&store).as_deref(), Some(KEY));
            store.delete().expect("deleted");
        }
    }

    #[test]
    fn a_live_file_that_cannot_be_read_does_not_hide_its_copy() {
        let Scratch { store, _dir } = scratch();
        store.put(&credential(KEY)).expect("stored");
        write_raw(&store.live, &[b'x'; CAP + 1]);
        assert_eq!(read(&store).as_deref(), Some(KEY));
    }

    #[test]
    fn damage_everywhere_is_an_error_and_nothing_is_reset() {
        let Scratch { store, _dir } = scratch();
        store.put(&credential(KEY)).expect("stored");
        for path in [&store.live, &store.backup] {
            let mut bytes = fs::read(path).expect("there");
            bytes[30] ^= 1;
            fs::write(path, &bytes).expect("damaged");
        }
        let before = fs::read(&store.live).expect("there");
        let error = store.get(Credential::decode).expect_err("damaged");
        assert!(matches!(error, CredentialError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&store.live).expect("there"), before);
    }

    #[test]
    fn a_new_key_that_a_crash_left_in_staging_beats_the_old_one() {
        let Scratch { store, _dir } = scratch();
        store.put(&credential(KEY)).expect("stored");
        write_raw(&files::staging_of(&store.live), &framed("adk_ff"));
        assert_eq!(read(&store).as_deref(), Some("adk_ff"));
        store.heal(&credential("adk_ff")).expect("healed");
        assert!(!files::staging_of(&store.live).exists());
        assert_eq!(read(&store).as_deref(), Some("adk_ff"));
    }

    proptest! {
        #[test]
        fn a_frame_holds_any_one_line_secret(secret in "[!-~]{1,200}") {
            let framed = frame(&secret);
            prop_assert_eq!(unframe(framed.as_bytes()), Some(secret.as_str()));
        }

        #[test]
        fn one_changed_or_missing_byte_is_noticed(at in 0..200_usize, flip in 1..=255_u8) {
            let framed = frame(KEY);
            let at = at % framed.len();
            let mut bytes = framed.as_bytes().to_vec();
            bytes[at] ^= flip;
            prop_assert_eq!(unframe(&bytes), None);
            prop_assert_eq!(unframe(&framed.as_bytes()[..at]), None);
        }
    }
}
