//! `/_mock/…`: changing the cloud from outside, for tests that run it as a program.

use axum::http::Method;
use serde::Deserialize;
use serde_json::json;

use super::routes::{Call, Cloud, Reply};
use super::world::{Advance, Refusal};
use crate::api::{Action, code};

#[derive(Debug, Deserialize)]
struct QueueAction {
    device_id: String,
    action: Action,
}

pub(super) fn answer(cloud: &Cloud, call: &Call) -> Result<Reply, Refusal> {
    let world = &cloud.world;
    let path: Vec<&str> = call.path.trim_start_matches('/').split('/').collect();
    let done = |found: bool| {
        if found {
            Ok(Reply::data(200, json!({})))
        } else {
            Err(Refusal::new(
                404,
                code::NOT_FOUND,
                "there is no such device",
            ))
        }
    };
    match (&call.method, path.as_slice()) {
        (&Method::GET, ["_mock", "devices"]) => Ok(Reply::data(200, world.devices())),
        (&Method::DELETE, ["_mock", "devices", id]) => done(world.delete_device(id)),
        (&Method::POST, ["_mock", "devices", id, "revoke"]) => done(world.revoke_device(id)),
        (&Method::POST, ["_mock", "actions"]) => {
            let queued: QueueAction = call.json()?;
            done(world.queue_action(&queued.device_id, queued.action))
        }
        (&Method::GET, ["_mock", "requests"]) => Ok(Reply::data(
            200,
            json!({
                "requests": world.requests(),
                "counters": {
                    "connections": cloud.counters.connections(),
                    "requests": cloud.counters.requests(),
                    "bytes_in": cloud.counters.bytes_in(),
                    "bytes_out": cloud.counters.bytes_out(),
                },
            }),
        )),
        (&Method::POST, ["_mock", "faults"]) => {
            world.inject(call.json()?);
            done(true)
        }
        (&Method::DELETE, ["_mock", "faults"]) => {
            world.clear_faults();
            done(true)
        }
        (&Method::GET, ["_mock", "clock"]) => Ok(Reply::data(
            200,
            json!({ "now": world.clock().timestamp() }),
        )),
        (&Method::POST, ["_mock", "clock"]) => {
            let advance: Advance = call.json()?;
            world
                .clock()
                .advance(std::time::Duration::from_secs(advance.advance_seconds));
            Ok(Reply::data(
                200,
                json!({ "now": world.clock().timestamp() }),
            ))
        }
        _ => Err(Refusal::new(
            404,
            code::NOT_FOUND,
            "known: devices, devices/ID, devices/ID/revoke, actions, requests, faults, clock",
        )),
    }
}
