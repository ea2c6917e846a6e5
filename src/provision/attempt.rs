//! The call that spends the token, under one request id however often it is made, and what its
//! refusal proves.

use uuid::Uuid;

use super::{Event, NotReady, ProvisionError, Run, Step};
use crate::api::client::ApiError;
use crate::api::{ProvisionRequest, Provisioned};
use crate::config::ApiUrl;
use crate::device::{DeviceFacts, DockerError};
use crate::records::{Attempt, DeviceRecord};
use crate::secret::{DeviceKey, EdgeKey};
use crate::token::Found;

/// An attempt that is in the journal.
pub(super) struct Opened {
    attempt: Attempt,
    /// An earlier run has opened it, and may have spent its token and made its device.
    resumed: bool,
}

/// The provisioning answer, understood.
pub(super) struct Issued {
    pub(super) request_id: Uuid,
    pub(super) server: ApiUrl,
    pub(super) key: DeviceKey,
    pub(super) device_id: String,
    pub(super) api_endpoint: Option<String>,
    pub(super) portainer_endpoint_id: Option<i64>,
    pub(super) edge_key: Option<EdgeKey>,
    /// What about the answer should be said.
    pub(super) odd: Option<String>,
}

impl Run<'_> {
    /// Where to go with this token: to the server that was asked for; if none was, to the one
    /// where an attempt with it is open, or that this device belonged to.
    pub(super) fn choose_server(&self, found: &Found) -> Result<ApiUrl, ProvisionError> {
        let asked = &self.settings.api_url;
        let open = self.journal.with_token(&found.token.fingerprint());
        match open {
            Some(open) if self.settings.api_url_given && !open.api_url.has_same_origin(asked) => {
                Err(ProvisionError::AttemptElsewhere {
                    open_at: open.api_url.clone(),
                })
            }
            _ if self.settings.api_url_given => Ok(asked.clone()),
            Some(open) => Ok(open.api_url.clone()),
            None => Ok(self
                .credential
                .as_ref()
                .map_or(asked, |credential| &credential.server)
                .clone()),
        }
    }

    /// The attempt to go on with, or a new one, which is on the disk from now on.
    pub(super) fn open_attempt(
        &mut self,
        server: &ApiUrl,
        found: &Found,
        facts: &DeviceFacts,
        new_identity: bool,
    ) -> Result<Opened, ProvisionError> {
        let fingerprint = found.token.fingerprint();
        let earlier = self.journal.attempts.iter().find(|open| {
            open.token_fingerprint == fingerprint && (open.new_identity || !new_identity)
        });
        let opened = match earlier.cloned() {
            Some(attempt) => Opened {
                attempt,
                resumed: true,
            },
            None => Opened {
                attempt: Attempt {
                    request_id: Uuid::new_v4(),
                    device_id: self.choose_identity(facts, new_identity)?,
                    new_identity,
                    api_url: server.clone(),
                    token_fingerprint: fingerprint,
                    started_at: self.clock.timestamp(),
                },
                resumed: false,
            },
        };
        if !opened.resumed {
            self.journal.attempts.push(opened.attempt.clone());
            self.journal
                .save(&self.settings.paths.journal())
                .map_err(NotReady::StateDir)?;
        }
        let device_id = opened.attempt.device_id.clone();
        (self.report)(Event::Done(Step::Device, device_id));
        Ok(opened)
    }

    /// Who this device was, is about to be, or is to Docker; else somebody new.
    fn choose_identity(
        &mut self,
        facts: &DeviceFacts,
        new_identity: bool,
    ) -> Result<String, ProvisionError> {
        if new_identity {
            return Ok(Uuid::new_v4().to_string());
        }
        if let Some(credential) = &self.credential {
            return Ok(credential.device_id.clone());
        }
        let record = DeviceRecord::load(&self.settings.paths.device_record());
        if let Some(record) = record.map_err(ProvisionError::BadRecord)? {
            return Ok(record.device_id);
        }
        if let Some(open) = self.journal.attempts.last() {
            return Ok(open.device_id.clone());
        }
        match &facts.docker_id {
            Ok(id) => return Ok(id.clone()),
            Err(DockerError::NoSocket(_)) => {}
            Err(error) => self.warn(format!(
                "{error}; the device gets a random id instead of Docker's"
            )),
        }
        Ok(Uuid::new_v4().to_string())
    }

    pub(super) async fn exchange(
        &mut self,
        opened: Opened,
        found: &Found,
        facts: &DeviceFacts,
    ) -> Result<Issued, ProvisionError> {
        (self.report)(Event::Began(Step::Exchange));
        let Opened { attempt, resumed } = opened;
        // What an attempt that was cut off may have done: spent this token, made this device.
        let others: Vec<&Attempt> = (self.journal.attempts.iter())
            .filter(|open| open.request_id != attempt.request_id)
            .collect();
        let token_at_risk = resumed
            || (others.iter()).any(|open| open.token_fingerprint == attempt.token_fingerprint);
        let device_at_risk = resumed
            || others
                .iter()
                .any(|open| open.device_id == attempt.device_id);

        let (outcome, carried_out) = self.call(&attempt, found, facts).await;
        let error = match outcome {
            Ok(issued) => {
                (self.report)(Event::Done(Step::Exchange, issued.device_id.clone()));
                return Ok(issued);
            }
            Err(error) => error,
        };
        let at_risk = match error.refusal() {
            Some((409, _)) => device_at_risk,
            _ => token_at_risk,
        };
        if carried_out || at_risk {
            return Err(ProvisionError::unsettled(error, &attempt.device_id));
        }
        self.journal.forget(attempt.request_id);
        self.save_journal();
        Err(ProvisionError::settled(error, &attempt.device_id))
    }

    /// Makes the call until there is an answer; and whether the server may have carried it out.
    async fn call(
        &mut self,
        attempt: &Attempt,
        found: &Found,
        facts: &DeviceFacts,
    ) -> (Result<Issued, ApiError>, bool) {
        let client = match self.client(&attempt.api_url) {
            Ok(client) => client,
            Err(error) => return (Err(error), false),
        };
        let request = ProvisionRequest {
            token: found.token.as_secret().clone(),
            device_info: facts.info(&attempt.device_id),
        };
        let mut carried_out = false;
        let exchange = async || {
            let answer = client.provision(&request, attempt.request_id).await;
            let answer = answer.and_then(|answer| understand(attempt, answer));
            if let Err(error) = &answer {
                carried_out |= error.may_have_been_carried_out();
            }
            answer
        };
        let outcome = self.retrying(exchange, ApiError::worth).await;
        (outcome, carried_out)
    }
}

/// Strict about the key, and about nothing else: it is the one thing that cannot be had again.
fn understand(attempt: &Attempt, answer: Provisioned) -> Result<Issued, ApiError> {
    let key = DeviceKey::parse(answer.api_key.expose()).map_err(|reason| ApiError::BadReply {
        what: format!("api_key: {reason}"),
    })?;
    let usable = |id: &String| !id.is_empty() && !id.chars().any(char::is_control);
    let device_id = answer.device_id.filter(usable);
    let edge_key = answer.edge_key.filter(|key| !key.expose().is_empty());
    let edge_key = edge_key.map(|key| EdgeKey::parse(key.expose())).transpose();
    Ok(Issued {
        request_id: attempt.request_id,
        server: attempt.api_url.clone(),
        key,
        device_id: device_id.unwrap_or_else(|| attempt.device_id.clone()),
        api_endpoint: answer.api_endpoint,
        portainer_endpoint_id: answer.portainer_endpoint_id,
        odd: edge_key
            .as_ref()
            .err()
            .map(|reason| format!("the edge key that the server sent cannot be used: {reason}")),
        edge_key: edge_key.unwrap_or(None),
    })
}
