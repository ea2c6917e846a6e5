//! The four secrets, as types: no `Display`, no accidental `Serialize`, redacted `Debug`, memory
//! wiped on drop. `expose` is the word to search for when asking where a secret goes.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

/// A secret text of any form, as it travels on the wire.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(Zeroizing::new(text.into()))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Names the secret without telling it: the first 12 hex digits of its SHA-256.
    pub fn fingerprint(&self) -> String {
        hex(&Sha256::digest(self.0.as_bytes())[..6])
    }

    /// For the one place that means to send it: `#[serde(serialize_with = "Secret::send")]`.
    pub fn send<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.expose().serialize(serializer)
    }

    /// The same for a secret that may be absent.
    pub fn send_option<S: Serializer>(
        secret: &Option<Secret>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        secret.as_ref().map(Secret::expose).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        String::deserialize(deserializer).map(Secret::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum MalformedSecret {
    #[error("it is empty")]
    Empty,
    #[error("a {expected} starts with `{prefix}`")]
    Prefix {
        expected: &'static str,
        prefix: &'static str,
    },
    #[error("this is a device key (`adk_…`), not a provisioning token (`apt_…`)")]
    DeviceKeyAsToken,
    #[error("after `{prefix}` only hexadecimal digits may follow")]
    NotHex { prefix: &'static str },
    #[error("it holds a character that cannot be part of it")]
    BadCharacter,
}

macro_rules! secret_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name(Secret);

        impl $name {
            pub fn expose(&self) -> &str {
                self.0.expose()
            }

            pub fn fingerprint(&self) -> String {
                self.0.fingerprint()
            }

            pub fn as_secret(&self) -> &Secret {
                &self.0
            }

            /// See [`Secret::send`].
            pub fn send<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.send(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                let text = Zeroizing::new(String::deserialize(deserializer)?);
                $name::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "([redacted])"))
            }
        }
    };
}

secret_type! {
    /// `apt_` and hexadecimal digits: lets one device (or many) join.
    ProvisioningToken
}
secret_type! {
    /// `adk_` and hexadecimal digits: the device's own key, returned only once.
    DeviceKey
}
secret_type! {
    /// What the Portainer Edge agent is started with. Its form is Portainer's business.
    EdgeKey
}
secret_type! {
    /// The administrator's JWT.
    AdminToken
}

impl ProvisioningToken {
    pub const PREFIX: &'static str = "apt_";

    pub fn parse(text: &str) -> Result<ProvisioningToken, MalformedSecret> {
        if text.starts_with(DeviceKey::PREFIX) {
            return Err(MalformedSecret::DeviceKeyAsToken);
        }
        prefixed_hex(text, "provisioning token", Self::PREFIX).map(ProvisioningToken)
    }
}

impl DeviceKey {
    pub const PREFIX: &'static str = "adk_";

    pub fn parse(text: &str) -> Result<DeviceKey, MalformedSecret> {
        prefixed_hex(text, "device key", Self::PREFIX).map(DeviceKey)
    }
}

impl EdgeKey {
    /// See [`Secret::send`].
    pub fn send_option<S: Serializer>(
        key: &Option<EdgeKey>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        key.as_ref().map(EdgeKey::expose).serialize(serializer)
    }

    pub fn parse(text: &str) -> Result<EdgeKey, MalformedSecret> {
        one_word(text).map(EdgeKey)
    }
}

impl AdminToken {
    pub fn parse(text: &str) -> Result<AdminToken, MalformedSecret> {
        one_word(text).map(AdminToken)
    }
}

fn prefixed_hex(
    text: &str,
    expected: &'static str,
    prefix: &'static str,
) -> Result<Secret, MalformedSecret> {
    if text.is_empty() {
        return Err(MalformedSecret::Empty);
    }
    let digits = text
        .strip_prefix(prefix)
        .ok_or(MalformedSecret::Prefix { expected, prefix })?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(MalformedSecret::NotHex { prefix });
    }
    Ok(Secret::new(text))
}

/// Anything that can stand in a header and in a line of a file.
fn one_word(text: &str) -> Result<Secret, MalformedSecret> {
    if text.is_empty() {
        return Err(MalformedSecret::Empty);
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(MalformedSecret::BadCharacter);
    }
    Ok(Secret::new(text))
}

/// The second net: takes tokens and keys out of a text that should hold none.
pub fn redact(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, prefix)) = [ProvisioningToken::PREFIX, DeviceKey::PREFIX]
        .into_iter()
        .filter_map(|prefix| Some((rest.find(prefix)?, prefix)))
        .min()
    {
        let (before, found) = rest.split_at(at + prefix.len());
        let digits = found.bytes().take_while(u8::is_ascii_hexdigit).count();
        safe.push_str(before);
        if digits > 0 {
            safe.push('…');
        }
        rest = &found[digits..];
    }
    safe.push_str(rest);
    safe
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_a_secret() {
        let token = ProvisioningToken::parse("apt_00c0ffee").expect("a good token");
        let key = DeviceKey::parse("adk_00c0ffee").expect("a good key");
        let edge = EdgeKey::parse("c2VjcmV0").expect("a good edge key");
        let admin = AdminToken::parse("eyJh.x.y").expect("a good JWT");
        insta::assert_snapshot!(
            format!("{token:?} {key:?} {edge:?} {admin:?} {:?}", Secret::new("plain")),
            @"ProvisioningToken([redacted]) DeviceKey([redacted]) EdgeKey([redacted]) AdminToken([redacted]) [redacted]"
        );
    }

    #[test]
    fn a_malformed_token_says_what_is_wrong_without_repeating_it() {
        let reason = |text| ProvisioningToken::parse(text).expect_err(text).to_string();
        insta::assert_snapshot!(reason(""), @"it is empty");
        insta::assert_snapshot!(reason("hello"), @"a provisioning token starts with `apt_`");
        insta::assert_snapshot!(reason("adk_12ab"), @"this is a device key (`adk_…`), not a provisioning token (`apt_…`)");
        insta::assert_snapshot!(reason("apt_"), @"after `apt_` only hexadecimal digits may follow");
        insta::assert_snapshot!(reason("apt_12 34"), @"after `apt_` only hexadecimal digits may follow");
    }

    #[test]
    fn redaction_takes_out_every_secret_and_nothing_else() {
        insta::assert_snapshot!(
            redact("sent apt_00ff11 for adk_aa, apt_ and apt_…, adk_xyz; é apt_1"),
            @"sent apt_… for adk_…, apt_ and apt_…, adk_xyz; é apt_…"
        );
    }

    #[test]
    fn a_fingerprint_tells_tokens_apart_and_holds_none_of_the_secret() {
        let one = ProvisioningToken::parse("apt_01").expect("a good token");
        let other = ProvisioningToken::parse("apt_02").expect("a good token");
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert_eq!(one.fingerprint().len(), 12);
    }
}
