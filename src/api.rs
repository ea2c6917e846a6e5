//! The Acusight API: its wire types, which the mock cloud shares, and the client that speaks it.
//!
//! Unknown fields are ignored on both sides; optional fields may be absent or null.

pub mod client;
pub mod http;
pub mod retry;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::secret::Secret;

pub const DEVICE_KEY_HEADER: &str = "x-device-key";
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// Error codes that mean something to a client. Servers may send others.
pub mod code {
    pub const VALIDATION_ERROR: &str = "VALIDATION_ERROR";
    pub const INVALID_TOKEN: &str = "INVALID_TOKEN";
    pub const TOKEN_EXPIRED: &str = "TOKEN_EXPIRED";
    pub const DEVICE_EXISTS: &str = "DEVICE_EXISTS";
    pub const UNAUTHORIZED: &str = "UNAUTHORIZED";
    pub const NOT_FOUND: &str = "NOT_FOUND";
}

/// Every answer has this shape.
#[derive(Debug, Serialize, Deserialize)]
pub struct Envelope<T> {
    pub success: bool,
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub data: Option<T>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "or_default"
    )]
    pub meta: Option<Meta>,
}

/// Read leniently: an odd detail must not turn a refusal into something else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    #[serde(default, deserialize_with = "or_default")]
    pub code: String,
    #[serde(default, deserialize_with = "or_default")]
    pub message: String,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "or_default"
    )]
    pub details: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    #[serde(default, deserialize_with = "or_default")]
    pub count: Option<u64>,
    #[serde(default, deserialize_with = "or_default")]
    pub limit: Option<u64>,
    #[serde(default, deserialize_with = "or_default")]
    pub offset: Option<u64>,
    #[serde(default, deserialize_with = "or_default")]
    pub total: Option<u64>,
}

/// `POST /provisioning-tokens`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateToken {
    pub name: String,
    #[serde(default)]
    pub expires_in_days: Lifetime,
    #[serde(default, deserialize_with = "null_as_default")]
    pub single_use: bool,
}

/// Days until a token expires. On the wire: a number, or null for never; absent means 30.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    Days(u32),
    Never,
}

impl Default for Lifetime {
    fn default() -> Lifetime {
        Lifetime::Days(30)
    }
}

impl Serialize for Lifetime {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Lifetime::Days(days) => serializer.serialize_u32(*days),
            Lifetime::Never => serializer.serialize_none(),
        }
    }
}

impl<'de> Deserialize<'de> for Lifetime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Lifetime, D::Error> {
        Ok(match Option::deserialize(deserializer)? {
            Some(days) => Lifetime::Days(days),
            None => Lifetime::Never,
        })
    }
}

/// The only answer that ever holds a provisioning token.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreatedToken {
    pub id: String,
    pub name: String,
    #[serde(serialize_with = "Secret::send")]
    pub token: Secret,
    pub single_use: bool,
    pub created_at: String,
    pub expires_at: Option<String>,
    /// Holds the token too.
    #[serde(serialize_with = "Secret::send")]
    pub setup_command: Secret,
}

/// One row of `GET /provisioning-tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    pub id: String,
    pub name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub single_use: bool,
    #[serde(default, deserialize_with = "null_as_default")]
    pub use_count: u64,
    pub created_at: String,
    pub expires_at: Option<String>,
    pub last_used_at: Option<String>,
    pub revoked_at: Option<String>,
}

/// `POST /devices/provision`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProvisionRequest {
    #[serde(serialize_with = "Secret::send")]
    pub token: Secret,
    pub device_info: DeviceInfo,
}

/// What a device tells of itself when it joins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    pub device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
}

/// The only answer that ever holds a device key. All the rest of it is read leniently: whatever is
/// odd about it, the key must not be lost.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Provisioned {
    #[serde(serialize_with = "Secret::send")]
    pub api_key: Secret,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "or_default"
    )]
    pub device_id: Option<String>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "or_default"
    )]
    pub endpoint_id: Option<String>,
    /// An origin; the device's calls go to `/api/…` below it.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "or_default"
    )]
    pub api_endpoint: Option<String>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "Secret::send_option",
        deserialize_with = "or_default"
    )]
    pub edge_key: Option<Secret>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "or_default"
    )]
    pub portainer_endpoint_id: Option<i64>,
}

/// `GET /device/self`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSelf {
    pub device_id: String,
    pub endpoint_id: Option<String>,
    pub organization_id: Option<String>,
    /// `pending`, `approved` or `rejected`.
    pub status: String,
    pub name: Option<String>,
}

/// `POST /device/checkin`
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checkin {
    pub status: Health,
    pub metrics: Metrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Healthy,
    Degraded,
    Error,
}

/// A value that could not be measured is left out, never sent as zero.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_usage: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_usage: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_usage: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uptime: Option<u64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct CheckinReply {
    #[serde(default, deserialize_with = "null_as_default")]
    pub actions: Vec<Action>,
}

/// Something the server wants done. The fields depend on the type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// A text or a number.
    pub id: Value,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(flatten)]
    pub fields: serde_json::Map<String, Value>,
}

/// A value of another type than expected counts as absent.
fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + serde::de::DeserializeOwned,
{
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(text: &str) -> CreateToken {
        serde_json::from_str(text).expect(text)
    }

    #[test]
    fn a_lifetime_that_is_absent_is_30_days_and_null_is_never() {
        assert_eq!(
            create(r#"{"name":"a"}"#).expires_in_days,
            Lifetime::Days(30)
        );
        assert_eq!(
            create(r#"{"name":"a","expires_in_days":null}"#).expires_in_days,
            Lifetime::Never
        );
        assert_eq!(
            create(r#"{"name":"a","expires_in_days":7}"#).expires_in_days,
            Lifetime::Days(7)
        );
    }

    #[test]
    fn the_documented_answer_to_a_provisioning_call_parses() {
        let text = r#"{"success":true,"data":{"device_id":"ABCD:1234:5678:EFGH","endpoint_id":"ABCD:1234:5678:EFGH",
            "api_key":"adk_a9b8c7d6e5f4","api_endpoint":"https://acusight.io","edge_key":"aGVsbG8","portainer_endpoint_id":5,"new":1}}"#;
        let envelope: Envelope<Provisioned> = serde_json::from_str(text).expect("parses");
        let data = envelope.data.expect("has data");
        assert_eq!(data.api_key.expose(), "adk_a9b8c7d6e5f4");
        assert_eq!(data.portainer_endpoint_id, Some(5));
        assert!(!format!("{data:?}").contains("a9b8c7d6e5f4"));
    }

    #[test]
    fn an_answer_without_portainer_parses_whether_the_fields_are_absent_or_null() {
        for text in [
            r#"{"device_id":"a","api_key":"adk_00","api_endpoint":"https://x.example"}"#,
            r#"{"device_id":"a","endpoint_id":null,"api_key":"adk_00","api_endpoint":"https://x.example","edge_key":null,"portainer_endpoint_id":null}"#,
            r#"{"device_id":7,"api_key":"adk_00","edge_key":{},"portainer_endpoint_id":"5"}"#,
        ] {
            let data: Provisioned = serde_json::from_str(text).expect(text);
            assert!(data.edge_key.is_none() && data.portainer_endpoint_id.is_none());
        }
    }

    #[test]
    fn an_action_keeps_what_it_does_not_know() {
        let text = r#"{"id":7,"type":"deploy_model","model_id":"m1","extra":{"a":[1]}}"#;
        let action: Action = serde_json::from_str(text).expect("parses");
        assert_eq!(action.kind, "deploy_model");
        let back = serde_json::to_value(&action).expect("serialises");
        let sent: Value = serde_json::from_str(text).expect("parses");
        assert_eq!(back, sent);
    }
}
