//! What the cloud knows: tokens, devices, faults to come, requests that were made.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::faults::{Fault, FaultPlan, Route};
use super::portainer;
use crate::api::{
    Action, Checkin, CheckinReply, CreateToken, CreatedToken, DeviceInfo, DeviceSelf, Lifetime,
    Meta, ProvisionRequest, Provisioned, TokenInfo, code,
};
use crate::clock::{Clock, rfc3339};
use crate::secret::{DeviceKey, EdgeKey, MalformedSecret, ProvisioningToken, Secret, hex, redact};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const REPLAY_FOR: Duration = DAY;
const NAME_MAX: usize = 255;
const DEVICE_ID_MAX: usize = 255;
const LIFETIME_MAX_DAYS: u32 = 3650;
const RECORDED_MAX: usize = 100_000;
pub(super) const ORGANIZATION: &str = "0d9f7a52-6f0e-4f5e-9d3c-5b1f1f0e7a11";

#[derive(Debug)]
pub(super) struct Options {
    pub(super) admin_token: Secret,
    pub(super) idempotency: bool,
    pub(super) portainer: bool,
    pub(super) public_origin: Option<String>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            admin_token: Secret::new(super::ADMIN_TOKEN),
            idempotency: true,
            portainer: true,
            public_origin: None,
        }
    }
}

/// A refusal of the API's own.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: &'static str,
    pub(super) details: Option<String>,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &'static str, message: &'static str) -> Refusal {
        Refusal {
            status,
            code,
            message,
            details: None,
        }
    }

    pub(super) fn invalid(details: impl Into<String>) -> Refusal {
        Refusal {
            details: Some(details.into()),
            ..Refusal::new(400, code::VALIDATION_ERROR, "the request is not valid")
        }
    }

    fn unauthorized() -> Refusal {
        Refusal::new(401, code::UNAUTHORIZED, "authentication failed")
    }
}

/// One request as the cloud saw it. Secrets are masked.
#[derive(Debug, Clone, Serialize)]
pub struct Recorded {
    pub method: String,
    pub path: String,
    pub route: Option<Route>,
    /// The status it was answered with; `None` if a fault kept it from being answered.
    pub status: Option<u16>,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

/// A device as the dashboard shows it.
#[derive(Debug, Clone, Serialize)]
pub struct DeviceView {
    pub device_id: String,
    pub info: DeviceInfo,
    pub status: String,
    pub revoked: bool,
    pub checkins: u64,
    pub last_checkin: Option<Value>,
    pub edge_polls: u64,
    pub portainer_endpoint_id: Option<i64>,
}

#[derive(Debug)]
pub(super) struct World {
    options: Options,
    origin: String,
    clock: Clock,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    tokens: Vec<Token>,
    devices: BTreeMap<String, Device>,
    /// Key hash to device.
    keys: BTreeMap<[u8; 32], String>,
    replays: BTreeMap<String, Replay>,
    faults: Vec<FaultPlan>,
    requests: VecDeque<Recorded>,
    endpoints: i64,
}

#[derive(Debug)]
struct Token {
    info: TokenInfo,
    hash: [u8; 32],
    expires: Option<SystemTime>,
}

#[derive(Debug)]
struct Device {
    view: DeviceView,
    key_hash: [u8; 32],
    edge_key: Option<Secret>,
    edge_id: Option<String>,
    actions: Vec<Action>,
}

#[derive(Debug)]
struct Replay {
    token_hash: [u8; 32],
    device_id: String,
    answer: Provisioned,
    until: SystemTime,
}

impl World {
    pub(super) fn new(options: Options, origin: String) -> World {
        World {
            options,
            origin,
            clock: Clock::system(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    fn public_origin(&self) -> &str {
        self.options
            .public_origin
            .as_deref()
            .unwrap_or(&self.origin)
    }

    /// A test that panicked elsewhere must not make the cloud panic as well.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // -- administrators

    pub(super) fn authorize_admin(&self, header: Option<&str>) -> Result<(), Refusal> {
        let bearer = header.and_then(|value| value.strip_prefix("Bearer "));
        match bearer {
            Some(token) if hash(token) == hash(self.options.admin_token.expose()) => Ok(()),
            _ => Err(Refusal::unauthorized()),
        }
    }

    pub(super) fn validate_token(&self, request: &CreateToken) -> Result<(), Refusal> {
        let name = request.name.trim();
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(Refusal::invalid(format!(
                "name: 1 to {NAME_MAX} characters"
            )));
        }
        match request.expires_in_days {
            Lifetime::Days(1..=LIFETIME_MAX_DAYS) | Lifetime::Never => Ok(()),
            Lifetime::Days(_) => Err(Refusal::invalid(format!(
                "expires_in_days: 1 to {LIFETIME_MAX_DAYS}, or null for never"
            ))),
        }
    }

    pub(super) fn create_token(&self, request: CreateToken) -> CreatedToken {
        let token = random_secret(ProvisioningToken::PREFIX);
        let now = self.clock.now();
        let expires = match request.expires_in_days {
            Lifetime::Days(days) => Some(now + DAY * days),
            Lifetime::Never => None,
        };
        let info = TokenInfo {
            id: Uuid::new_v4().to_string(),
            name: request.name,
            single_use: request.single_use,
            use_count: 0,
            created_at: rfc3339(now),
            expires_at: expires.map(rfc3339),
            last_used_at: None,
            revoked_at: None,
        };
        let setup_command = format!(
            "curl -sSL {}/setup | sudo sh -s -- {}",
            self.public_origin(),
            token.expose()
        );
        let created = CreatedToken {
            id: info.id.clone(),
            name: info.name.clone(),
            single_use: info.single_use,
            created_at: info.created_at.clone(),
            expires_at: info.expires_at.clone(),
            setup_command: Secret::new(setup_command),
            token,
        };
        self.state().tokens.push(Token {
            info,
            hash: hash(created.token.expose()),
            expires,
        });
        created
    }

    /// Newest first.
    pub(super) fn tokens(&self) -> (Vec<TokenInfo>, Meta) {
        let state = self.state();
        let tokens: Vec<TokenInfo> = state
            .tokens
            .iter()
            .rev()
            .map(|token| token.info.clone())
            .collect();
        let count = tokens.len() as u64;
        let meta = Meta {
            count: Some(count),
            limit: Some(count.max(100)),
            offset: Some(0),
            total: Some(count),
        };
        (tokens, meta)
    }

    pub(super) fn revoke_token(&self, id: &str) -> Result<(), Refusal> {
        let now = self.clock.timestamp();
        let mut state = self.state();
        let token = state
            .tokens
            .iter_mut()
            .find(|token| token.info.id == id)
            .ok_or_else(|| Refusal::new(404, code::NOT_FOUND, "there is no such token"))?;
        token.info.revoked_at.get_or_insert(now);
        Ok(())
    }

    // -- devices

    pub(super) fn provision(
        &self,
        request: ProvisionRequest,
        idempotency_key: Option<&str>,
    ) -> Result<Provisioned, Refusal> {
        validate_device(&request.device_info)?;
        let idempotency_key = idempotency_key.filter(|_| self.options.idempotency);
        let now = self.clock.now();
        let token_hash = hash(request.token.expose());
        let mut guard = self.state();
        let state = &mut *guard;

        if let Some(replay) = idempotency_key
            .and_then(|key| state.replays.get(key))
            .filter(|replay| replay.until > now)
        {
            let same = replay.token_hash == token_hash
                && replay.device_id == request.device_info.device_id;
            return if same {
                Ok(replay.answer.clone())
            } else {
                Err(Refusal::invalid(
                    "Idempotency-Key: it was used for another request",
                ))
            };
        }

        let token = good_token(&mut state.tokens, &request.token, token_hash, now)?;
        let device_id = request.device_info.device_id.clone();
        if state.devices.contains_key(&device_id) {
            return Err(Refusal::new(
                409,
                code::DEVICE_EXISTS,
                "the device is registered already",
            ));
        }

        token.use_count += 1;
        token.last_used_at = Some(rfc3339(now));
        if token.single_use {
            token.revoked_at = Some(rfc3339(now));
        }
        state.endpoints += 1;
        let endpoint_id = self.options.portainer.then_some(state.endpoints);
        let answer = Provisioned {
            endpoint_id: Some(device_id.clone()),
            api_key: random_secret(DeviceKey::PREFIX),
            api_endpoint: Some(self.public_origin().to_owned()),
            edge_key: endpoint_id.map(|id| portainer::edge_key(self.public_origin(), id)),
            portainer_endpoint_id: endpoint_id,
            device_id: Some(device_id.clone()),
        };
        let key_hash = hash(answer.api_key.expose());
        state.keys.insert(key_hash, device_id.clone());
        state.devices.insert(
            device_id.clone(),
            Device {
                view: DeviceView {
                    device_id: device_id.clone(),
                    info: request.device_info,
                    status: "approved".into(),
                    revoked: false,
                    checkins: 0,
                    last_checkin: None,
                    edge_polls: 0,
                    portainer_endpoint_id: endpoint_id,
                },
                key_hash,
                edge_key: answer.edge_key.clone(),
                edge_id: None,
                actions: Vec::new(),
            },
        );
        if let Some(key) = idempotency_key {
            let replay = Replay {
                token_hash,
                device_id,
                answer: answer.clone(),
                until: now + REPLAY_FOR,
            };
            state.replays.insert(key.to_owned(), replay);
        }
        Ok(answer)
    }

    pub(super) fn device_self(&self, key: Option<&str>) -> Result<DeviceSelf, Refusal> {
        let mut state = self.state();
        let device = state.authorize_device(key)?;
        Ok(DeviceSelf {
            device_id: device.view.device_id.clone(),
            endpoint_id: Some(device.view.device_id.clone()),
            organization_id: Some(ORGANIZATION.into()),
            status: device.view.status.clone(),
            name: device.view.info.name.clone(),
        })
    }

    pub(super) fn authorize_device(&self, key: Option<&str>) -> Result<(), Refusal> {
        self.state().authorize_device(key).map(drop)
    }

    pub(super) fn checkin(
        &self,
        key: Option<&str>,
        checkin: &Checkin,
    ) -> Result<CheckinReply, Refusal> {
        let mut state = self.state();
        let device = state.authorize_device(key)?;
        device.view.checkins += 1;
        device.view.last_checkin = serde_json::to_value(checkin).ok();
        Ok(CheckinReply {
            actions: std::mem::take(&mut device.actions),
        })
    }

    /// Portainer's rule: the first edge id that an endpoint sees is its own, for good.
    pub(super) fn edge_poll(&self, endpoint_id: i64, edge_id: Option<&str>) -> Result<(), Refusal> {
        let refused = |message| Refusal::new(403, "", message);
        let edge_id = edge_id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| refused("missing Edge identifier"))?;
        let mut state = self.state();
        let device = state
            .devices
            .values_mut()
            .find(|device| device.view.portainer_endpoint_id == Some(endpoint_id))
            .ok_or_else(|| refused("unknown environment"))?;
        if device.edge_id.get_or_insert_with(|| edge_id.to_owned()) != edge_id {
            return Err(refused("invalid Edge identifier"));
        }
        device.view.edge_polls += 1;
        Ok(())
    }

    // -- from outside the API

    pub(super) fn devices(&self) -> Vec<DeviceView> {
        let state = self.state();
        state
            .devices
            .values()
            .map(|device| device.view.clone())
            .collect()
    }

    pub(super) fn revoke_device(&self, device_id: &str) -> bool {
        let mut state = self.state();
        let Some(device) = state.devices.get_mut(device_id) else {
            return false;
        };
        device.view.revoked = true;
        true
    }

    pub(super) fn delete_device(&self, device_id: &str) -> bool {
        let mut state = self.state();
        let Some(device) = state.devices.remove(device_id) else {
            return false;
        };
        state.keys.remove(&device.key_hash);
        state
            .replays
            .retain(|_, replay| replay.device_id != device_id);
        true
    }

    pub(super) fn queue_action(&self, device_id: &str, action: Action) -> bool {
        let mut state = self.state();
        let Some(device) = state.devices.get_mut(device_id) else {
            return false;
        };
        device.actions.push(action);
        true
    }

    pub(super) fn issued_edge_key(&self, device_id: &str, key: &EdgeKey) -> bool {
        let state = self.state();
        let device = state.devices.get(device_id);
        device.is_some_and(|device| device.edge_key.as_ref() == Some(key.as_secret()))
    }

    pub(super) fn inject(&self, plan: FaultPlan) {
        self.state().faults.push(plan);
    }

    pub(super) fn clear_faults(&self) {
        self.state().faults.clear();
    }

    pub(super) fn strike(&self, route: Route) -> Option<Fault> {
        let mut state = self.state();
        state.faults.iter_mut().find_map(|plan| plan.strike(route))
    }

    pub(super) fn record(&self, request: Recorded) {
        let mut state = self.state();
        if state.requests.len() == RECORDED_MAX {
            state.requests.pop_front();
        }
        state.requests.push_back(Recorded {
            body: redact(&request.body),
            path: redact(&request.path),
            ..request
        });
        drop(state);
        self.changed.notify_all();
    }

    pub(super) fn requests(&self) -> Vec<Recorded> {
        self.state().requests.iter().cloned().collect()
    }

    pub(super) fn wait_until(
        &self,
        deadline: Duration,
        seen: impl Fn(&[Recorded]) -> bool,
    ) -> bool {
        let until = Instant::now() + deadline;
        let mut state = self.state();
        loop {
            if seen(state.requests.make_contiguous()) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl State {
    fn authorize_device(&mut self, key: Option<&str>) -> Result<&mut Device, Refusal> {
        let device_id = key.and_then(|key| self.keys.get(&hash(key)));
        device_id
            .and_then(|id| self.devices.get_mut(id))
            .filter(|device| !device.view.revoked)
            .ok_or_else(Refusal::unauthorized)
    }
}

fn good_token<'a>(
    tokens: &'a mut [Token],
    sent: &Secret,
    sent_hash: [u8; 32],
    now: SystemTime,
) -> Result<&'a mut TokenInfo, Refusal> {
    let invalid = || {
        Refusal::new(
            401,
            code::INVALID_TOKEN,
            "the provisioning token is not valid",
        )
    };
    match ProvisioningToken::parse(sent.expose()) {
        Err(MalformedSecret::Empty) => return Err(Refusal::invalid("token: it is required")),
        Err(_) => return Err(invalid()),
        Ok(_) => {}
    }
    let token = tokens
        .iter_mut()
        .find(|token| token.hash == sent_hash)
        .filter(|token| token.info.revoked_at.is_none())
        .ok_or_else(invalid)?;
    if token.expires.is_some_and(|expires| expires <= now) {
        return Err(Refusal::new(
            401,
            code::TOKEN_EXPIRED,
            "the provisioning token has expired",
        ));
    }
    Ok(&mut token.info)
}

fn validate_device(info: &DeviceInfo) -> Result<(), Refusal> {
    let id = info.device_id.trim();
    if id.is_empty() || id.len() > DEVICE_ID_MAX {
        return Err(Refusal::invalid(format!(
            "device_info.device_id: 1 to {DEVICE_ID_MAX} characters"
        )));
    }
    if info.name.as_ref().is_some_and(|name| name.len() > NAME_MAX) {
        return Err(Refusal::invalid(format!(
            "device_info.name: at most {NAME_MAX} characters"
        )));
    }
    Ok(())
}

fn hash(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

fn random_secret(prefix: &str) -> Secret {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("the kernel gives random bytes");
    Secret::new(format!("{prefix}{}", hex(&bytes)))
}

/// What the clock route takes.
#[derive(Debug, Deserialize)]
pub(super) struct Advance {
    pub(super) advance_seconds: u64,
}
