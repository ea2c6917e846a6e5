//! From a token to a device with a key of its own.
//!
//! The key is returned only once, and a single-use token is spent by the call that returns it:
//! whatever goes wrong between the two loses the device. Hence the order of things. Everything
//! that can fail is tried before the token leaves the machine; a journal is on the disk before
//! the call; every repetition of the call carries the same request id; and the first thing that
//! happens after the answer is that the key is stored. Run again after any interruption, it
//! finishes the work.

mod attempt;
mod error;
mod known;
mod preflight;

use std::path::PathBuf;
use std::time::Duration;

use crate::api::DeviceSelf;
use crate::api::client::{ApiError, Client};
use crate::api::http::Http;
use crate::api::retry::{Backoff, Policy, Worth, with_retries};
use crate::clock::Clock;
use crate::config::{ApiUrl, BadApiUrl, Settings};
use crate::credential::{Credential, CredentialStore};
use crate::device::DeviceFacts;
use crate::files::Lock;
use crate::records::{DeviceRecord, Journal};
use crate::token::{self, Found, Source, TokenError};

use attempt::Issued;
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
    pub credential: Credential,
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
    let earlier_attempt = match (Journal::load(&settings.paths.journal()), &request.token) {
        (Ok(journal), Ok(Some(found))) => journal.with_token(&found.token.fingerprint()).is_some(),
        (Ok(journal), _) => !journal.attempts.is_empty(),
        // Nobody can tell; that it cannot be read is an error of its own further on.
        (Err(_), _) => true,
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
    credential: Option<Credential>,
    report: &'a mut dyn FnMut(Event<'_>),
    _lock: Lock,
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
        if let Some(stored) = store.in_refuge().map_err(ProvisionError::StoredKey)? {
            store
                .leave_refuge(&stored.credential)
                .map_err(|cause| ProvisionError::NotStored {
                    cause,
                    refuge: Some(paths.refuge()),
                })?;
        }
        let mut run = Run {
            settings,
            clock,
            http,
            store,
            journal: Journal::load(&paths.journal()).map_err(ProvisionError::BadRecord)?,
            credential: None,
            report,
            _lock: lock,
        };
        run.credential = run.stored_credential()?;
        Ok(run)
    }

    async fn tell(mut self, request: Request) -> Result<Outcome, ProvisionError> {
        if let Some(known) = self.known(request.new_identity).await? {
            return self.finish_known(known, request.token);
        }
        let found = self.token(request.token).await?;
        preflight::try_out_state_dir(&self.settings.paths, request.allow_volatile_state)?;
        preflight::check_clock(self.clock)?;
        let state_dir = self.settings.paths.state_dir().display().to_string();
        (self.report)(Event::Done(Step::Machine, state_dir));
        let server = self.choose_server(&found)?;
        self.reach(&server).await?;
        let facts = self.facts(request.name).await;
        let attempt = self.open_attempt(&server, &found, &facts, request.new_identity)?;
        let issued = self.exchange(attempt, &found, &facts).await?;
        let (credential, refused_address) = self.keep(issued, facts.name)?;
        let seen = self.verify(&credential).await?;
        self.journal = Journal::default();
        self.save_journal();
        self.consume(&found);
        match refused_address {
            Some(reason) => Err(ProvisionError::BadEndpoint { reason }),
            None => Ok(self.outcome(credential, seen, &Ok(Some(found)), false)),
        }
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

    async fn reach(&mut self, server: &ApiUrl) -> Result<(), ProvisionError> {
        (self.report)(Event::Began(Step::Server));
        let client = self
            .client(server)
            .map_err(ProvisionError::ServerNotReached)?;
        // Something else answering there will go on doing so: waiting would not help.
        let worth = |error: &ApiError| match error {
            ApiError::Foreign { status: ..500, .. } => Worth::Nothing,
            error => error.worth(),
        };
        self.retrying(async || client.probe().await, worth)
            .await
            .map_err(ProvisionError::ServerNotReached)?;
        (self.report)(Event::Done(Step::Server, server.to_string()));
        Ok(())
    }

    async fn facts(&mut self, name: Option<String>) -> DeviceFacts {
        (self.report)(Event::Began(Step::Device));
        DeviceFacts::gather(self.settings, name).await
    }

    /// Stores the key, with all that came with it, before anything else happens. Returns also why
    /// the server's own address for its devices is not used, if so.
    fn keep(
        &mut self,
        issued: Issued,
        name: Option<String>,
    ) -> Result<(Credential, Option<BadApiUrl>), ProvisionError> {
        (self.report)(Event::Began(Step::Store));
        let named = match &issued.api_endpoint {
            Some(named) => issued.server.endpoint(named, self.settings.allow_http),
            None => Ok(issued.server.clone()),
        };
        let credential = Credential {
            device_key: issued.key,
            device_id: issued.device_id,
            name,
            api_url: named.as_ref().unwrap_or(&issued.server).clone(),
            server: issued.server,
            portainer_endpoint_id: issued.portainer_endpoint_id,
            edge_key: issued.edge_key,
            request_id: issued.request_id,
            provisioned_at: self.clock.timestamp(),
        };
        if let Err(cause) = self.store.put(&credential) {
            let refuge = self.store.put_in_refuge(&credential);
            return Err(ProvisionError::NotStored {
                cause,
                refuge: refuge.ok().map(PathBuf::from),
            });
        }
        let path = self.settings.paths.device_key().display().to_string();
        (self.report)(Event::Done(Step::Store, path));
        if let Some(odd) = issued.odd {
            self.warn(odd);
        }
        self.write_record(&credential)?;
        Ok((credential, named.err()))
    }

    async fn verify(&mut self, credential: &Credential) -> Result<DeviceSelf, ProvisionError> {
        (self.report)(Event::Began(Step::Verify));
        let seen = self
            .ask(&credential.api_url, credential)
            .await
            .map_err(ProvisionError::Unverified)?;
        let accepted = format!("{} accepts the key", credential.api_url.host());
        (self.report)(Event::Done(Step::Verify, accepted));
        Ok(seen)
    }

    fn outcome(
        &self,
        credential: Credential,
        seen: DeviceSelf,
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
            credential,
            status: seen.status,
            key_path: self.settings.paths.device_key(),
            already,
            token_left_in,
        }
    }

    /// `device.json` follows the credential; whatever else stood there is out of date.
    fn write_record(&self, credential: &Credential) -> Result<(), ProvisionError> {
        let path = self.settings.paths.device_record();
        let record = credential.record();
        if DeviceRecord::load(&path).is_ok_and(|found| found.as_ref() == Some(&record)) {
            return Ok(());
        }
        record.save(&path).map_err(ProvisionError::Record)
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

    async fn ask(
        &mut self,
        base: &ApiUrl,
        credential: &Credential,
    ) -> Result<DeviceSelf, ApiError> {
        let client = self.client(base)?;
        let ask = async || client.device_self(&credential.device_key).await;
        self.retrying(ask, ApiError::worth).await
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
