//! `acusight-agent identity`

use clap::Args;
use serde_json::json;

use super::Context;
use super::printer::table;
use crate::device::DeviceFacts;
use crate::error::Failure;
use crate::records::{DeviceRecord, Journal};

#[derive(Debug, Args)]
pub(super) struct Flags {
    /// Name of the device in the dashboard [default: the host name]
    #[arg(long)]
    name: Option<String>,
}

pub(super) async fn run(context: Context, flags: Flags) -> Result<(), Failure> {
    let paths = &context.settings.paths;
    let facts = DeviceFacts::gather(&context.settings, flags.name).await;
    let record = DeviceRecord::load(&paths.device_record())?;
    let journal = Journal::load(&paths.journal())?;

    // As provisioning chooses: what this device was, is about to be, or is to Docker.
    let (device_id, origin) = match (record, journal.attempts.last(), &facts.docker_id) {
        (Some(record), _, _) => (Some(record.device_id), "as provisioned".to_owned()),
        (None, Some(open), _) => (
            Some(open.device_id.clone()),
            "of the attempt that is open".to_owned(),
        ),
        (None, None, Ok(id)) => (Some(id.clone()), "the Docker daemon's id".to_owned()),
        (None, None, Err(why)) => (None, format!("a random one, made when provisioning: {why}")),
    };
    let info = facts.info(device_id.as_deref().unwrap_or_default());
    let value = json!({
        "schema": 1,
        "device_id": device_id,
        "device_id_origin": origin,
        "name": info.name,
        "hardware_id": info.hardware_id,
        "ip_address": info.ip_address,
        "mac_address": info.mac_address,
        "interface": facts.interface,
        "agent_version": info.agent_version,
    });
    let rows = [
        (
            "device id",
            Some(match device_id {
                Some(id) => format!("{id} ({origin})"),
                None => origin,
            }),
        ),
        ("name", info.name),
        ("hardware", info.hardware_id),
        ("ip address", info.ip_address),
        ("mac address", info.mac_address),
        ("interface", facts.interface),
        ("agent", info.agent_version),
    ];
    Ok(context.printer.data(&table(&rows), &value)?)
}
