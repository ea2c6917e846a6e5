//! The facts about this machine that the server is told.

mod docker;
mod hardware;
mod network;

use crate::api::DeviceInfo;
use crate::config::Settings;

pub use docker::DockerError;

#[derive(Debug)]
pub struct DeviceFacts {
    /// The Docker daemon's id, or why there is none.
    pub docker_id: Result<String, DockerError>,
    pub name: Option<String>,
    pub hardware_id: Option<String>,
    pub interface: Option<String>,
    pub ip_address: Option<String>,
    pub mac_address: Option<String>,
}

impl DeviceFacts {
    pub async fn gather(settings: &Settings, name: Option<String>) -> DeviceFacts {
        let proc = settings.paths.proc();
        let docker_id = docker::daemon_id(settings.docker_host.as_deref()).await;
        let uplink = network::uplink(&proc, &settings.paths.sys());
        let mut facts = DeviceFacts {
            docker_id,
            name: name.or_else(|| hardware::host_name(&proc)),
            hardware_id: hardware::id(&proc, &settings.paths.sys()),
            interface: None,
            ip_address: None,
            mac_address: None,
        };
        if let Some(uplink) = uplink {
            facts.ip_address = uplink.ip.map(|ip| ip.to_string());
            facts.mac_address = uplink.mac;
            facts.interface = Some(uplink.interface);
        }
        facts
    }

    /// As the provisioning call sends them.
    pub fn info(&self, device_id: &str) -> DeviceInfo {
        DeviceInfo {
            device_id: device_id.to_owned(),
            name: self.name.clone(),
            hardware_id: self.hardware_id.clone(),
            ip_address: self.ip_address.clone(),
            mac_address: self.mac_address.clone(),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        }
    }
}
