//! From a token to a device with a key of its own.
//!
//! The key is returned only once, and a single-use token is spent by the call that returns it:
//! whatever goes wrong between the two loses the device. Hence the order of things. Everything
//! that can fail is tried before the token leaves the machine; a journal is on the disk before
//! the call; every repetition of the call carries the same request id; and the first thing that
//! happens after the answer is that the key is stored. Run again after any interruption, it
//! finishes the work.

mod error;
mod preflight;

use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use crate::api::client::{ApiError, Client};
use crate::api::http::Http;
use crate::api::retry::{Backoff, Policy, Worth, with_retries};
use crate::api::{DeviceSelf, ProvisionRequest, Provisioned, code};
use crate::clock::Clock;
use crate::config::{ApiUrl, Settings};
use crate::credential::CredentialStore;
use crate::device::DeviceFacts;
use crate::files::Lock;
use crate::records::{Attempt, DeviceRecord, Journal};
use crate::secret::{DeviceKey, EdgeKey};
use crate::token::{self, Found, Source};

pub use error::ProvisionError;
pub use preflight::NotReady;

#[derive(Debug)]
pub struct Request {
    /// If none was found, and one is needed, the terminal is asked.
    pub token: Option<Found>,
    pub name: Option<String>,
    /// Do not be the device that this machine was, or that Docker says it is.
    pub new_identity: bool,
}

/// What happens meanwhile, for whoever watches.
#[derive(Debug)]
pub enum Event<'a> {
    Began(Step),
    Done(Step, String),
    Retrying {
        error: &'a ApiError,
        delay: Duration,
    },
    Warning(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Machine,
    Server,
    Token,
    Device,
    Exchange,
    Store,
    Verify,
}

#[derive(Debug)]
pub struct Outcome {
    pub record: DeviceRecord,
    /// As the server sees it: `pending`, `approved` or `rejected`.
    pub status: String,
    pub key_path: PathBuf,
    /// Nothing had to be done, and the token was not used.
    pub already: bool,
    /// A token file that still holds the token, and is its owner's to remove.
    pub token_left_in: Option<PathBuf>,
}

pub async fn provision(
    settings: &Settings,
    clock: &Clock,
    request: Request,
    report: &mut dyn FnMut(Event<'_>),
) -> Result<Outcome, ProvisionError> {
    let http = Http::new(
        settings.ca_cert.as_deref(),
        &settings.api_url,
        clock.clone(),
    )?;
    report(Event::Began(Step::Machine));
    let lock = preflight::claim_state_dir(&settings.paths)?;
    let mut run = Run {
        settings,
        clock,
        http,
        store: CredentialStore::new(&settings.paths),
        report,
        _lock: lock,
    };

    if !request.new_identity
        && let Some(outcome) = run.already_provisioned(&request).await?
    {
        return Ok(outcome);
    }
    let found = run.token(request.token)?;
    preflight::try_out_state_dir(&settings.paths)?;
    let state_dir = settings.paths.state_dir().display().to_string();
    (run.report)(Event::Done(Step::Machine, state_dir));
    run.reach_server().await?;
    let facts = run.facts(request.name).await;

    let mut journal = run.open_journal(&facts, &found, request.new_identity)?;
    let answer = run.exchange(&mut journal, &found, &facts).await?;
    let record = run.store(&answer, facts.name)?;
    let server = run.verify(&record, &answer.key).await?;
    run.finish(&found)?;
    let token_left_in = match found.source {
        Source::File(path) => Some(path),
        _ => None,
    };
    Ok(Outcome {
        record,
        status: server.status,
        key_path: settings.paths.device_key(),
        already: false,
        token_left_in,
    })
}

struct Run<'a> {
    settings: &'a Settings,
    clock: &'a Clock,
    http: Http,
    store: CredentialStore,
    report: &'a mut dyn FnMut(Event<'_>),
    _lock: Lock,
}

/// The provisioning answer, understood.
struct Issued {
    key: DeviceKey,
    edge_key: Option<EdgeKey>,
    answer: Provisioned,
}

impl Run<'_> {
    /// A stored key that the server accepts wins over any token.
    async fn already_provisioned(
        &mut self,
        request: &Request,
    ) -> Result<Option<Outcome>, ProvisionError> {
        self.store
            .leave_refuge()
            .map_err(ProvisionError::StoredKey)?;
        let Some(stored) = self.store.device_key().map_err(ProvisionError::StoredKey)? else {
            return Ok(None);
        };
        if stored.was_exposed {
            self.warn(format!(
                "{} could be read by others on this machine; it is private again, but the key may be known",
                self.settings.paths.device_key().display()
            ));
        }
        let record = self.record()?;
        let base = self.base_of(record.as_ref())?;
        (self.report)(Event::Began(Step::Verify));
        let server = match self.device_self(&base, &stored.secret).await {
            Ok(server) => server,
            Err(error) if error.is_unauthorized() => {
                self.warn(
                    "the stored key was revoked by the server; provisioning this device again"
                        .into(),
                );
                self.store
                    .retire_device_key()
                    .map_err(ProvisionError::StoredKey)?;
                return Ok(None);
            }
            Err(error) => return Err(ProvisionError::Unconfirmed(error)),
        };
        let record = match record {
            Some(record) => record,
            None => self.recover_record(&base, &server)?,
        };
        self.forget_journal()?;
        let done = format!("{} knows this device", base.host());
        (self.report)(Event::Done(Step::Verify, done));
        Ok(Some(Outcome {
            status: server.status,
            key_path: self.settings.paths.device_key(),
            already: true,
            token_left_in: match request.token.as_ref().map(|found| &found.source) {
                Some(Source::File(path) | Source::DropIn(path)) => Some(path.clone()),
                _ => None,
            },
            record,
        }))
    }

    /// The server that this device belongs to.
    fn base_of(&self, record: Option<&DeviceRecord>) -> Result<ApiUrl, ProvisionError> {
        let asked = &self.settings.api_url;
        if let Some(record) = record {
            if self.settings.api_url_given && record.api_url.host() != asked.host() {
                return Err(ProvisionError::OtherServer {
                    belongs_to: record.api_url.clone(),
                    asked: asked.clone(),
                });
            }
            return Ok(record.api_url.clone());
        }
        let journal = self.journal()?;
        let attempt = journal.and_then(|journal| journal.attempts.into_iter().next_back());
        Ok(attempt.map_or_else(|| asked.clone(), |attempt| attempt.api_url))
    }

    /// The key was stored, and then the power went: the server knows the rest.
    fn recover_record(
        &self,
        base: &ApiUrl,
        server: &DeviceSelf,
    ) -> Result<DeviceRecord, ProvisionError> {
        let record = DeviceRecord::new(
            server.device_id.clone(),
            server.name.clone(),
            base.clone(),
            None,
            self.clock.timestamp(),
        );
        record
            .save(&self.settings.paths.device_record())
            .map_err(ProvisionError::Record)?;
        Ok(record)
    }

    fn token(&mut self, found: Option<Found>) -> Result<Found, ProvisionError> {
        (self.report)(Event::Began(Step::Token));
        let found = match found {
            Some(found) => found,
            None => token::prompt()?,
        };
        if found.source == Source::Argument {
            self.warn(
                "a token on the command line is visible to everybody on this machine while the command runs, and stays in the shell's history; --token-file or the prompt are safer".into(),
            );
        }
        (self.report)(Event::Done(Step::Token, format!("from {}", found.source)));
        Ok(found)
    }

    async fn reach_server(&mut self) -> Result<(), ProvisionError> {
        (self.report)(Event::Began(Step::Server));
        let client = self.client(&self.settings.api_url);
        // Something else answering there will go on doing so: waiting would not help.
        let worth = |error: &ApiError| match error {
            ApiError::Foreign { status: ..500, .. } => Worth::Nothing,
            error => error.worth(),
        };
        self.retrying(async || client.probe().await, worth)
            .await
            .map_err(ProvisionError::ServerNotReached)?;
        let reached = self.settings.api_url.to_string();
        (self.report)(Event::Done(Step::Server, reached));
        Ok(())
    }

    async fn facts(&mut self, name: Option<String>) -> DeviceFacts {
        (self.report)(Event::Began(Step::Device));
        DeviceFacts::gather(self.settings, name).await
    }

    /// The journal of this device, under the identity that it has had, or takes now.
    fn open_journal(
        &mut self,
        facts: &DeviceFacts,
        found: &Found,
        new_identity: bool,
    ) -> Result<Journal, ProvisionError> {
        let fingerprint = found.token.fingerprint();
        // Asking again for a new identity with the same token means the one that is still open.
        let resumes = |journal: &Journal| {
            journal.new_identity
                && (journal.attempts.iter()).any(|open| open.token_fingerprint == fingerprint)
        };
        let journal = match (self.journal()?, self.record()?) {
            (Some(journal), _) if !new_identity || resumes(&journal) => journal,
            (_, Some(record)) if !new_identity => Journal::new(record.device_id, false),
            _ => {
                let daemon_id = facts.docker_id.as_ref().ok().filter(|_| !new_identity);
                let device_id = daemon_id
                    .cloned()
                    .unwrap_or_else(|| Uuid::new_v4().to_string());
                Journal::new(device_id, new_identity)
            }
        };
        (self.report)(Event::Done(Step::Device, journal.device_id.clone()));
        Ok(journal)
    }

    async fn exchange(
        &mut self,
        journal: &mut Journal,
        found: &Found,
        facts: &DeviceFacts,
    ) -> Result<Issued, ProvisionError> {
        (self.report)(Event::Began(Step::Exchange));
        let base = self.settings.api_url.clone();
        let fingerprint = found.token.fingerprint();
        // An attempt that was cut off may have made the device: from then on no refusal is proof
        // that nothing happened.
        let mut unsettled = journal.attempts.iter().any(|open| open.api_url == base);
        let request_id = self.open_attempt(journal, &base, &fingerprint)?;

        let client = self.client(&base);
        let request = ProvisionRequest {
            token: found.token.as_secret().clone(),
            device_info: facts.info(&journal.device_id),
        };
        let exchange = async || {
            let answer = client.provision(&request, request_id).await;
            if let Err(error) = &answer {
                unsettled |= error.may_have_been_carried_out();
            }
            answer
        };
        let outcome = self.retrying(exchange, ApiError::worth).await;
        let error = match outcome.and_then(understand) {
            Ok(issued) => {
                let device = issued.answer.device_id.clone();
                (self.report)(Event::Done(Step::Exchange, device));
                return Ok(issued);
            }
            Err(error) => error,
        };
        if unsettled || error.may_have_been_carried_out() {
            return Err(ProvisionError::unsettled(error, &journal.device_id));
        }
        journal
            .attempts
            .retain(|open| open.request_id != request_id);
        journal
            .save(&self.settings.paths.journal())
            .map_err(ProvisionError::Record)?;
        Err(ProvisionError::settled(error, &journal.device_id))
    }

    /// The request id to send, which is on the disk from now on.
    fn open_attempt(
        &self,
        journal: &mut Journal,
        base: &ApiUrl,
        fingerprint: &str,
    ) -> Result<Uuid, ProvisionError> {
        let same = |open: &&Attempt| open.api_url == *base && open.token_fingerprint == fingerprint;
        if let Some(open) = journal.attempts.iter().find(same) {
            return Ok(open.request_id);
        }
        let request_id = Uuid::new_v4();
        journal.attempts.push(Attempt {
            request_id,
            api_url: base.clone(),
            token_fingerprint: fingerprint.to_owned(),
            started_at: self.clock.timestamp(),
        });
        journal
            .save(&self.settings.paths.journal())
            .map_err(|error| ProvisionError::NotReady(NotReady::StateDir(error)))?;
        Ok(request_id)
    }

    fn store(
        &mut self,
        issued: &Issued,
        name: Option<String>,
    ) -> Result<DeviceRecord, ProvisionError> {
        (self.report)(Event::Began(Step::Store));
        if let Err(cause) = self.store.put_device_key(&issued.key) {
            let refuge = self.store.put_in_refuge(&issued.key);
            return Err(ProvisionError::NotStored {
                cause,
                refuge: refuge.ok().map(PathBuf::from),
            });
        }
        if let Some(edge_key) = &issued.edge_key {
            self.store
                .put_edge_key(edge_key)
                .map_err(ProvisionError::KeyStored)?;
        }
        let asked = &self.settings.api_url;
        let named = asked.endpoint(&issued.answer.api_endpoint, self.settings.allow_http);
        let record = DeviceRecord::new(
            issued.answer.device_id.clone(),
            name,
            named.as_ref().unwrap_or(asked).clone(),
            issued.answer.portainer_endpoint_id,
            self.clock.timestamp(),
        );
        record
            .save(&self.settings.paths.device_record())
            .map_err(|error| ProvisionError::KeyStored(error.into()))?;
        named.map_err(|reason| ProvisionError::BadEndpoint { reason })?;
        let path = self.settings.paths.device_key().display().to_string();
        (self.report)(Event::Done(Step::Store, path));
        Ok(record)
    }

    async fn verify(
        &mut self,
        record: &DeviceRecord,
        key: &DeviceKey,
    ) -> Result<DeviceSelf, ProvisionError> {
        (self.report)(Event::Began(Step::Verify));
        let server = self
            .device_self(&record.api_url, key)
            .await
            .map_err(ProvisionError::Unverified)?;
        let accepted = format!("{} accepts the key", record.api_url.host());
        (self.report)(Event::Done(Step::Verify, accepted));
        Ok(server)
    }

    fn finish(&mut self, found: &Found) -> Result<(), ProvisionError> {
        self.forget_journal()?;
        if let Err(error) = found.consume() {
            self.warn(format!(
                "the token file is still there: {}",
                crate::error::chain(&error)
            ));
        }
        Ok(())
    }

    async fn device_self(
        &mut self,
        base: &ApiUrl,
        key: &DeviceKey,
    ) -> Result<DeviceSelf, ApiError> {
        let client = self.client(base);
        self.retrying(async || client.device_self(key).await, ApiError::worth)
            .await
    }

    async fn retrying<T>(
        &mut self,
        exchange: impl AsyncFnMut() -> Result<T, ApiError>,
        worth: impl Fn(&ApiError) -> Worth,
    ) -> Result<T, ApiError> {
        let policy = Policy::interactive(self.settings.retry_for);
        let report = &mut *self.report;
        with_retries(
            &mut Backoff::new(policy, fastrand::u64(..)),
            exchange,
            worth,
            |error, delay| report(Event::Retrying { error, delay }),
        )
        .await
    }

    fn client(&self, base: &ApiUrl) -> Client {
        Client::new(self.http.clone(), base.clone())
    }

    fn record(&self) -> Result<Option<DeviceRecord>, ProvisionError> {
        DeviceRecord::load(&self.settings.paths.device_record()).map_err(ProvisionError::BadRecord)
    }

    fn journal(&self) -> Result<Option<Journal>, ProvisionError> {
        Journal::load(&self.settings.paths.journal()).map_err(ProvisionError::BadRecord)
    }

    fn forget_journal(&self) -> Result<(), ProvisionError> {
        crate::files::remove(&self.settings.paths.journal()).map_err(ProvisionError::Record)
    }

    fn warn(&mut self, text: String) {
        (self.report)(Event::Warning(text));
    }
}

/// An answer whose secrets have the forms that ours must have.
fn understand(answer: Provisioned) -> Result<Issued, ApiError> {
    let bad = |what: String| ApiError::BadReply { what };
    let key = DeviceKey::parse(answer.api_key.expose())
        .map_err(|reason| bad(format!("api_key: {reason}")))?;
    let edge_key = match answer.edge_key.as_ref().map(|key| key.expose()) {
        None | Some("") => None,
        Some(text) => {
            Some(EdgeKey::parse(text).map_err(|reason| bad(format!("edge_key: {reason}")))?)
        }
    };
    if answer.device_id.is_empty() {
        return Err(bad("device_id is empty".into()));
    }
    Ok(Issued {
        key,
        edge_key,
        answer,
    })
}

/// Whether a refusal means that the token is no good, and which way.
fn token_refusal(error: &ApiError) -> Option<bool> {
    let (status, code) = error.refusal()?;
    matches!(status, 401 | 403).then_some(code == code::TOKEN_EXPIRED)
}
