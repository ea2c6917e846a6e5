//! A machine that has a key already: does the server still accept it?

use super::{Event, Outcome, ProvisionError, Run, Step};
use crate::api::DeviceSelf;
use crate::credential::Credential;
use crate::token::{Found, TokenError};

/// The stored key, and what the server says of its device.
pub(super) struct Known {
    credential: Credential,
    seen: DeviceSelf,
}

impl Run<'_> {
    pub(super) fn stored_credential(&mut self) -> Result<Option<Credential>, ProvisionError> {
        let Some(stored) = self.store.get().map_err(ProvisionError::StoredKey)? else {
            return Ok(None);
        };
        if stored.needs_healing {
            self.store.heal(&stored.credential);
        }
        if let Some(warning) = stored.warning(&self.settings.paths) {
            self.warn(warning);
        }
        Ok(Some(stored.credential))
    }

    /// A stored key that the server accepts wins over any token.
    pub(super) async fn known(
        &mut self,
        new_identity: bool,
    ) -> Result<Option<Known>, ProvisionError> {
        let Some(mut credential) = self.credential.clone() else {
            return Ok(None);
        };
        // Who wants to be a new device is interested in this key only if it is the new one's.
        let brought_by = self.journal.with_request(credential.request_id);
        if new_identity && !brought_by.is_some_and(|open| open.new_identity) {
            return Ok(None);
        }
        let asked = &self.settings.api_url;
        let is_home = [&credential.server, &credential.api_url]
            .into_iter()
            .any(|home| home.has_same_origin(asked));
        if self.settings.api_url_given && !is_home && !new_identity {
            return Err(ProvisionError::OtherServer {
                belongs_to: credential.server,
                asked: asked.clone(),
            });
        }
        (self.report)(Event::Began(Step::Verify));
        let mut answer = self.ask(&credential.api_url.clone(), &credential).await;
        let elsewhere = credential.server != credential.api_url;
        if elsewhere && answer.as_ref().is_err_and(|error| !error.is_unauthorized()) {
            // The server may have named an address that only it can reach.
            let server = credential.server.clone();
            let second = self.ask(&server, &credential).await;
            if second.is_ok() {
                credential.api_url = server;
                self.store.heal(&credential);
                answer = second;
            }
        }
        match answer {
            Ok(seen) => Ok(Some(Known { credential, seen })),
            Err(error) if error.is_unauthorized() => {
                self.warn("the server no longer accepts the stored key: it was revoked".into());
                // The attempt that brought it would only bring it again.
                self.journal.forget(credential.request_id);
                Ok(None)
            }
            Err(error) => Err(ProvisionError::Unconfirmed(error)),
        }
    }

    /// What an interrupted run may have left undone after the key was stored.
    pub(super) fn finish_known(
        mut self,
        known: Known,
        token: Result<Option<Found>, TokenError>,
    ) -> Result<Outcome, ProvisionError> {
        let Known { credential, seen } = known;
        let done = format!("{} knows this device", credential.api_url.host());
        (self.report)(Event::Done(Step::Verify, done));
        self.write_record(&credential)?;

        let brought_by = self.journal.with_request(credential.request_id);
        let fingerprint = brought_by.map(|open| open.token_fingerprint.clone());
        if let Some(fingerprint) = &fingerprint {
            // Attempts for the same device ended with it; those for another are another matter.
            (self.journal.attempts).retain(|open| open.device_id != credential.device_id);
            self.journal.forget(credential.request_id);
            self.save_journal();
            if let Ok(Some(found)) = &token
                && found.token.fingerprint() == *fingerprint
            {
                self.consume(found);
            }
        }
        if !self.journal.attempts.is_empty() {
            self.warn(
                "an attempt to make this machine another device is open; --new-identity with the same token goes on with it"
                    .into(),
            );
        }
        if let Err(error) = &token {
            self.warn(format!("no token is needed, but this one is bad: {error}"));
        }
        Ok(self.outcome(credential, seen, &token, fingerprint.is_none()))
    }
}
