//! As much of Portainer as an Edge agent needs to be content: a key of the real form, and the
//! poll that it is asked for every few seconds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::json;

use super::routes::{Call, Cloud, Reply};
use super::world::Refusal;
use crate::secret::Secret;

/// Nobody listens there: the tunnel is opened only when somebody looks at the device.
const TUNNEL_PORT: u16 = 8000;
const FINGERPRINT: &str = "c5:3a:9d:01:77:4e:aa:10:2b:6f:84:e2:19:d0:5c:33";

/// `portainerURL|tunnelHost:port|fingerprint|endpointID`, in unpadded base64.
pub(super) fn edge_key(origin: &str, endpoint_id: i64) -> Secret {
    let authority = origin.split("://").nth(1).unwrap_or(origin);
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let plain = format!("{origin}|{host}:{TUNNEL_PORT}|{FINGERPRINT}|{endpoint_id}");
    Secret::new(STANDARD_NO_PAD.encode(plain))
}

/// `GET /api/endpoints/{id}/edge/status`, in Portainer's own form, without the envelope.
pub(super) fn edge_status(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    let endpoint = call.path.split('/').nth(3).unwrap_or_default();
    let polled = endpoint
        .parse()
        .map_err(|_| Refusal::new(400, "", "invalid environment identifier"))
        .and_then(|id| {
            cloud
                .world
                .edge_poll(id, call.header("x-portaineragent-edgeid"))
        });
    Ok(match polled {
        Ok(()) => Reply::plain_json(
            200,
            &json!({
                "status": "IDLE",
                "port": 0,
                "schedules": [],
                "checkin": 5,
                "credentials": "",
                "stacks": [],
            }),
        ),
        Err(refusal) => Reply::plain_json(
            refusal.status,
            &json!({ "message": refusal.message, "details": refusal.message }),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_key_has_portainers_four_parts() {
        let key = edge_key("http://127.0.0.1:8089", 5);
        assert!(!key.expose().contains('='));
        let plain = STANDARD_NO_PAD.decode(key.expose()).expect("base64");
        let plain = String::from_utf8(plain).expect("text");
        let parts: Vec<&str> = plain.split('|').collect();
        assert_eq!(
            parts,
            ["http://127.0.0.1:8089", "127.0.0.1:8000", FINGERPRINT, "5"]
        );
    }
}
