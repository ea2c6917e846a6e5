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
use crate::config::{ApiUrl, BadApiUrl, Settings};
use crate::credential::CredentialStore;
use crate::device::{DeviceFacts, DockerError};
use crate::files::Lock;
use crate::records::{Attempt, DeviceRecord, Journal};
use crate::secret::{DeviceKey, EdgeKey};
use crate::token::{self, Found, Source, TokenError};

pub use error::{Failed, ProvisionError};
pub use preflight::NotReady;

#[derive(Debug)]
pub struct Request {
    /// What was found without asking anybody. If a token is needed and there is none, the
    /// terminal is asked.
    pub token: Result<Option<Found>, TokenError>,
    pub name: Option<String>,
    /// Do not be the device that this machine was, or that Docker says it is.
    pub new_identity: bool,
    /// Losing the key with the next restart is fine.
    pub allow_volatile_state: bool,
}

/// What happens meanwhile, for whoever watches.
#[derive(Debug)]
pub enum Event<'a> {
    /// An attempt of an earlier run is open: its token may be spent already.
    Resuming,
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
) -> Result<Outcome, Failed> {
    // What cannot be read will be an error of its own further on.
    let journal = Journal::load(&settings.paths.journal()).unwrap_or_default();
    let earlier_attempt = match &request.token {
        Ok(Some(found)) => journal.has_token(&found.token.fingerprint()),
        Ok(None) | Err(_) => !journal.attempts.is_empty(),
    };
    if earlier_attempt {
        report(Event::Resuming);
    }
    let story = async {
        // A machine that was never provisioned is not touched for the sake of a bad token.
        let token = match request.token {
            Err(error) if !settings.paths.state_dir().exists() => return Err(error.into()),
            token => token,
        };
        let run = Run::begin(settings, clock, report)?;
        run.tell(Request { token, ..request }).await
    };
    story.await.map_err(|error| Failed {
        error,
        earlier_attempt,
    })
}

/// One run, with the state directory to itself.
struct Run<'a> {
    settings: &'a Settings,
    clock: &'a Clock,
    http: Http,
    store: CredentialStore,
    journal: Journal,
    record: Option<DeviceRecord>,
    report: &'a mut dyn FnMut(Event<'_>),
    _lock: Lock,
}

/// The device that the stored key stands for, says the server at `base`.
struct Known {
    base: ApiUrl,
    server: DeviceSelf,
}

/// An attempt that is in the journal.
struct Opened {
    attempt: Attempt,
    /// An earlier run has opened it, and may have spent its token and made its device.
    resumed: bool,
}

/// The provisioning answer, understood.
struct Issued {
    request_id: Uuid,
    device_id: String,
    key: DeviceKey,
    answer: Provisioned,
}

/// What is on the disk now.
struct Stored {
    record: DeviceRecord,
    /// The server named an address for its devices that must not be used; the one that the
    /// administrator named stands in.
    refused_address: Option<BadApiUrl>,
}

impl<'a> Run<'a> {
    /// Takes the state directory, and reads what earlier runs left in it.
    fn begin(
        settings: &'a Settings,
        clock: &'a Clock,
        report: &'a mut dyn FnMut(Event<'_>),
    ) -> Result<Run<'a>, ProvisionError> {
        let paths = &settings.paths;
        let http = Http::new(
            settings.ca_cert.as_deref(),
            &settings.api_url,
            clock.clone(),
        )?;
        report(Event::Began(Step::Machine));
        let lock = preflight::claim_state_dir(paths)?;
        let store = CredentialStore::new(paths);
        store.leave_refuge().map_err(ProvisionError::StoredKey)?;
        Ok(Run {
            settings,
            clock,
            http,
            store,
            journal: Journal::load(&paths.journal()).map_err(ProvisionError::BadRecord)?,
            record: DeviceRecord::load(&paths.device_record())
                .map_err(ProvisionError::BadRecord)?,
            report,
            _lock: lock,
        })
    }

    async fn tell(mut self, request: Request) -> Result<Outcome, ProvisionError> {
        if let Some(known) = self.known(request.new_identity).await? {
            return self.finish_known(known, request).await;
        }
        let found = self.token(request.token).await?;
        preflight::try_out_state_dir(&self.settings.paths, request.allow_volatile_state)?;
        preflight::check_clock(self.clock)?;
        let state_dir = self.settings.paths.state_dir().display().to_string();
        (self.report)(Event::Done(Step::Machine, state_dir));
        self.reach_server().await?;
        let facts = self.facts(request.name).await;
        let attempt = self.open_attempt(&found, &facts, request.new_identity)?;
        let issued = self.exchange(attempt, &found, &facts).await?;
        let Stored {
            record,
            refused_address,
        } = self.store(&issued, facts.name)?;
        let server = self.verify(&record, &issued.key).await?;
        self.close_attempts();
        self.consume(&found);
        if let Some(reason) = refused_address {
            return Err(ProvisionError::BadEndpoint { reason });
        }
        Ok(self.outcome(record, server, &Ok(Some(found)), false))
    }

    /// A stored key that the server accepts wins over any token.
    async fn known(&mut self, new_identity: bool) -> Result<Option<Known>, ProvisionError> {
        // Who wants to be a new device is interested in the stored key only if that is the
        // new device's.
        let wanted = |open: &Attempt| !new_identity || open.new_identity;
        if new_identity && !self.journal.attempts.iter().any(wanted) {
            return Ok(None);
        }
        let Some(stored) = self.store.device_key().map_err(ProvisionError::StoredKey)? else {
            return Ok(None);
        };
        if stored.from_copy {
            self.store.heal_device_key(&stored.secret);
        }
        if stored.was_exposed {
            self.warn(format!(
                "{} could be read by others on this machine; it is private again, but the key may be known",
                self.settings.paths.device_key().display()
            ));
        }
        (self.report)(Event::Began(Step::Verify));
        let mut unconfirmed = None;
        for base in self.homes(new_identity)? {
            match self.device_self(&base, &stored.secret).await {
                Ok(server) => {
                    let open = self.journal.of_device(&server.device_id);
                    let known = !new_identity || open.is_some_and(wanted);
                    return Ok(known.then_some(Known { base, server }));
                }
                Err(error) if error.is_unauthorized() => {}
                Err(error) => unconfirmed = unconfirmed.or(Some(error)),
            }
        }
        if let Some(error) = unconfirmed {
            return Err(ProvisionError::Unconfirmed(error));
        }
        // The attempt that brought this key would only bring it again.
        if let Some(spent) = self.record.as_ref().and_then(|record| record.request_id) {
            self.journal.forget(spent);
        }
        if !new_identity {
            self.warn("the server no longer accepts the stored key: it was revoked".into());
        }
        Ok(None)
    }

    /// The servers that the stored key may belong to, the likeliest first.
    fn homes(&self, new_identity: bool) -> Result<Vec<ApiUrl>, ProvisionError> {
        let asked = &self.settings.api_url;
        let mut homes: Vec<ApiUrl> = (self.journal.attempts.iter().rev())
            .map(|open| open.api_url.clone())
            .collect();
        if let Some(record) = &self.record {
            let elsewhere = self.settings.api_url_given
                && ![&record.server, &record.api_url]
                    .into_iter()
                    .any(|home| home.has_same_origin(asked));
            if elsewhere && !new_identity {
                return Err(ProvisionError::OtherServer {
                    belongs_to: record.server.clone(),
                    asked: asked.clone(),
                });
            }
            homes.push(record.api_url.clone());
        } else if homes.is_empty() {
            homes.push(asked.clone());
        }
        let mut seen = Vec::new();
        homes.retain(|home| {
            let is_new = !seen.contains(home);
            seen.push(home.clone());
            is_new
        });
        Ok(homes)
    }

    /// What an interrupted run left undone, for a device whose key is stored and accepted.
    async fn finish_known(
        mut self,
        known: Known,
        request: Request,
    ) -> Result<Outcome, ProvisionError> {
        let Known { base, server } = known;
        let device_id = &server.device_id;
        let done = format!("{} knows this device", base.host());
        (self.report)(Event::Done(Step::Verify, done));

        let open = self.journal.of_device(device_id).cloned();
        let on_record = self
            .record
            .take()
            .filter(|record| record.device_id == *device_id);
        let already = open.is_none() && on_record.is_some();
        let mut record = match on_record {
            Some(record) => record,
            None => self.record_of(&base, &server)?,
        };
        if let Some(attempt) = open {
            match &request.token {
                Ok(Some(found)) if found.token.fingerprint() == attempt.token_fingerprint => {
                    let facts = self.facts(request.name).await;
                    if let Some(completed) = self.complete(&attempt, found, &facts).await? {
                        record = completed;
                    }
                    self.consume(found);
                    self.close_attempts();
                }
                _ if self.store.edge_key().is_ok_and(|key| key.is_none()) => self.warn(
                    "the edge key may be missing; run this again with the same token to fetch it"
                        .into(),
                ),
                _ => self.close_attempts(),
            }
        } else if !self.journal.attempts.is_empty() {
            self.warn(
                "an attempt to make this machine another device is open; --new-identity with the same token goes on with it"
                    .into(),
            );
        }
        if let Err(error) = &request.token {
            self.warn(format!("no token is needed, but this one is bad: {error}"));
        }
        Ok(self.outcome(record, server, &request.token, already))
    }

    /// Asks for the same answer once more: the key is stored, but what came with it is not.
    async fn complete(
        &mut self,
        attempt: &Attempt,
        found: &Found,
        facts: &DeviceFacts,
    ) -> Result<Option<DeviceRecord>, ProvisionError> {
        match self.call(attempt, found, facts).await.0 {
            Ok(issued) => {
                let stored = self.store(&issued, facts.name.clone())?;
                if let Some(reason) = stored.refused_address {
                    self.warn(format!(
                        "the server's address for its devices is refused: {reason}"
                    ));
                }
                Ok(Some(stored.record))
            }
            Err(error) => {
                self.warn(format!(
                    "what the server sent along with the key is lost ({}); the key is not",
                    crate::error::chain(&error)
                ));
                Ok(None)
            }
        }
    }

    /// The key was stored, and then the power went: the server knows the rest.
    fn record_of(
        &self,
        base: &ApiUrl,
        server: &DeviceSelf,
    ) -> Result<DeviceRecord, ProvisionError> {
        let device_id = server.device_id.clone();
        let mut record = DeviceRecord::new(device_id, base.clone(), self.clock.timestamp());
        record.name.clone_from(&server.name);
        record
            .save(&self.settings.paths.device_record())
            .map_err(ProvisionError::Record)?;
        Ok(record)
    }

    async fn token(
        &mut self,
        given: Result<Option<Found>, TokenError>,
    ) -> Result<Found, ProvisionError> {
        (self.report)(Event::Began(Step::Token));
        let found = match given? {
            Some(found) => found,
            None => token::prompt().await?,
        };
        if found.source == Source::Argument {
            self.warn(
                "a token on the command line could be seen by everybody on this machine until now, may still be seen in the arguments of sudo and sh, and stays in the shell's history; safer: --token-file FILE, or no token and the prompt".into(),
            );
        }
        (self.report)(Event::Done(Step::Token, format!("from {}", found.source)));
        Ok(found)
    }

    async fn reach_server(&mut self) -> Result<(), ProvisionError> {
        (self.report)(Event::Began(Step::Server));
        let client = self
            .client(&self.settings.api_url)
            .map_err(ProvisionError::ServerNotReached)?;
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

    /// The attempt to go on with, or a new one, which is on the disk from now on.
    fn open_attempt(
        &mut self,
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
                    device_id: self.choose_identity(facts, new_identity),
                    new_identity,
                    api_url: self.settings.api_url.clone(),
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
    fn choose_identity(&mut self, facts: &DeviceFacts, new_identity: bool) -> String {
        if !new_identity {
            if let Some(record) = &self.record {
                return record.device_id.clone();
            }
            if let Some(open) = self.journal.attempts.last() {
                return open.device_id.clone();
            }
            match &facts.docker_id {
                Ok(id) => return id.clone(),
                Err(DockerError::NoSocket(_)) => {}
                Err(error) => self.warn(format!(
                    "{error}; the device gets a random id instead of Docker's"
                )),
            }
        }
        Uuid::new_v4().to_string()
    }

    async fn exchange(
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
                let device = issued.device_id.clone();
                (self.report)(Event::Done(Step::Exchange, device));
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
        let client = match self.client(&self.settings.api_url) {
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

    fn store(&mut self, issued: &Issued, name: Option<String>) -> Result<Stored, ProvisionError> {
        (self.report)(Event::Began(Step::Store));
        if let Err(cause) = self.store.put_device_key(&issued.key) {
            let refuge = self.store.put_in_refuge(&issued.key);
            return Err(ProvisionError::NotStored {
                cause,
                refuge: refuge.ok().map(PathBuf::from),
            });
        }
        match issued.answer.edge_key.as_ref().map(|key| key.expose()) {
            None | Some("") => {}
            Some(text) => match EdgeKey::parse(text) {
                Ok(key) => self
                    .store
                    .put_edge_key(&key)
                    .map_err(ProvisionError::KeyStored)?,
                Err(reason) => self.warn(format!("the edge key cannot be used: {reason}")),
            },
        }
        let asked = &self.settings.api_url;
        let named = match &issued.answer.api_endpoint {
            Some(named) => asked.endpoint(named, self.settings.allow_http),
            None => Ok(asked.clone()),
        };
        let device_id = issued.device_id.clone();
        let mut record = DeviceRecord::new(device_id, asked.clone(), self.clock.timestamp());
        record.name = name;
        record.api_url = named.as_ref().unwrap_or(asked).clone();
        record.portainer_endpoint_id = issued.answer.portainer_endpoint_id;
        record.request_id = Some(issued.request_id);
        record
            .save(&self.settings.paths.device_record())
            .map_err(|error| ProvisionError::KeyStored(error.into()))?;
        let path = self.settings.paths.device_key().display().to_string();
        (self.report)(Event::Done(Step::Store, path));
        Ok(Stored {
            record,
            refused_address: named.err(),
        })
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

    fn outcome(
        self,
        record: DeviceRecord,
        server: DeviceSelf,
        token: &Result<Option<Found>, TokenError>,
        already: bool,
    ) -> Outcome {
        let found = token.as_ref().ok().and_then(Option::as_ref);
        let token_left_in = found
            .and_then(|found| match &found.source {
                Source::File(path) | Source::DropIn(path) => Some(path.clone()),
                _ => None,
            })
            .filter(|path| path.exists());
        Outcome {
            record,
            status: server.status,
            key_path: self.settings.paths.device_key(),
            already,
            token_left_in,
        }
    }

    /// This machine is a device now: nothing that was open matters any more.
    fn close_attempts(&mut self) {
        self.journal = Journal::default();
        self.save_journal();
    }

    /// A journal that stays longer than it must costs the next run a question, no more.
    fn save_journal(&mut self) {
        if let Err(error) = self.journal.save(&self.settings.paths.journal()) {
            let error = crate::error::chain(&error);
            self.warn(format!("the journal could not be updated: {error}"));
        }
    }

    fn consume(&mut self, found: &Found) {
        if let Err(error) = found.consume() {
            let error = crate::error::chain(&error);
            self.warn(format!("the token file is still there: {error}"));
        }
    }

    async fn device_self(
        &mut self,
        base: &ApiUrl,
        key: &DeviceKey,
    ) -> Result<DeviceSelf, ApiError> {
        let client = self.client(base)?;
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

    fn client(&self, base: &ApiUrl) -> Result<Client, ApiError> {
        let http = if self.http.suits(base) {
            self.http.clone()
        } else {
            let ca_cert = self.settings.ca_cert.as_deref();
            Http::new(ca_cert, base, self.clock.clone())?
        };
        Ok(Client::new(http, base.clone()))
    }

    fn warn(&mut self, text: String) {
        (self.report)(Event::Warning(text));
    }
}

/// Strict about the key, and about nothing else: the rest can be had again.
fn understand(attempt: &Attempt, answer: Provisioned) -> Result<Issued, ApiError> {
    let key = DeviceKey::parse(answer.api_key.expose()).map_err(|reason| ApiError::BadReply {
        what: format!("api_key: {reason}"),
    })?;
    let named = answer.device_id.clone().filter(|id| !id.is_empty());
    Ok(Issued {
        request_id: attempt.request_id,
        device_id: named.unwrap_or_else(|| attempt.device_id.clone()),
        key,
        answer,
    })
}

/// Whether a refusal means that the token is no good, and which way.
fn token_refusal(error: &ApiError) -> Option<bool> {
    let (status, code) = error.refusal()?;
    matches!(status, 401 | 403).then_some(code == code::TOKEN_EXPIRED)
}
