//! A stand-in for the Acusight cloud: stateful, on real sockets, sharing the client's wire types.
//!
//! In a test or the demo it runs in the process, on a thread of its own, until dropped:
//!
//! ```
//! let cloud = acusight_agent::mock::MockCloud::builder().start().unwrap();
//! let token = cloud.create_token("bench", true);
//! assert!(token.expose().starts_with("apt_"));
//! assert!(cloud.api_url().starts_with("http://127.0.0.1:"));
//! ```
//!
//! Faults are data ([`Fault`]), attached to the n-th call of a route; every request is recorded,
//! with secrets masked.

mod admin;
mod connection;
mod faults;
mod files;
mod portainer;
mod routes;
mod world;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::sync::oneshot;

use crate::api::{Action, CreateToken, Lifetime};
use crate::clock::Clock;
use crate::secret::{EdgeKey, Secret};

pub use connection::Counters;
pub use faults::{Fault, FaultPlan, Moment, Route};
pub use world::{DeviceView, Recorded};

use world::{Options, World};

/// The administrator's token of a cloud that was not told another.
pub const ADMIN_TOKEN: &str = "mock-admin-token";

#[derive(Debug)]
pub struct Builder {
    listen: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    admin_routes: bool,
    files: Option<PathBuf>,
    options: Options,
}

impl Builder {
    pub fn listen(mut self, address: SocketAddr) -> Builder {
        self.listen = address;
        self
    }

    /// Serves https with this certificate. Faults below HTTP are for plain connections only.
    pub fn tls(mut self, config: ServerConfig) -> Builder {
        self.tls = Some(Arc::new(config));
        self
    }

    pub fn admin_token(mut self, token: impl Into<String>) -> Builder {
        self.options.admin_token = Secret::new(token);
        self
    }

    /// Answers below `/_mock/`, which change the cloud from outside.
    pub fn admin_routes(mut self) -> Builder {
        self.admin_routes = true;
        self
    }

    /// Serves this directory's files to installers.
    pub fn files(mut self, dir: PathBuf) -> Builder {
        self.files = Some(dir);
        self
    }

    /// Does not know `Idempotency-Key`, as today's server may not.
    pub fn without_idempotency(mut self) -> Builder {
        self.options.idempotency = false;
        self
    }

    /// Answers without edge key and Portainer endpoint.
    pub fn without_portainer(mut self) -> Builder {
        self.options.portainer = false;
        self
    }

    /// The origin that devices are told to use, if not the one listened on.
    pub fn public_origin(mut self, origin: impl Into<String>) -> Builder {
        self.options.public_origin = Some(origin.into());
        self
    }

    pub fn start(self) -> io::Result<MockCloud> {
        let listener = TcpListener::bind(self.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let origin = format!("{scheme}://{address}");
        let world = Arc::new(World::new(self.options, origin.clone()));
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = oneshot::channel();
        let service = routes::Cloud {
            world: Arc::clone(&world),
            counters: Arc::clone(&counters),
            admin_routes: self.admin_routes,
            files: self.files,
        };
        let tls = self.tls;
        let thread = std::thread::Builder::new()
            .name("mock-cloud".into())
            .spawn(move || connection::serve(listener, tls, service, stopped))?;
        Ok(MockCloud {
            origin,
            world,
            counters,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

/// A running cloud; it stops when dropped.
#[derive(Debug)]
pub struct MockCloud {
    origin: String,
    world: Arc<World>,
    counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MockCloud {
    pub fn builder() -> Builder {
        Builder {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            tls: None,
            admin_routes: false,
            files: None,
            options: Options::default(),
        }
    }

    pub fn start() -> MockCloud {
        MockCloud::builder()
            .start()
            .expect("a loopback port to listen on")
    }

    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn api_url(&self) -> String {
        format!("{}/api", self.origin)
    }

    pub fn clock(&self) -> &Clock {
        self.world.clock()
    }

    /// Creates a token behind the API's back.
    pub fn create_token(&self, name: &str, single_use: bool) -> Secret {
        let request = CreateToken {
            name: name.into(),
            expires_in_days: Lifetime::default(),
            single_use,
        };
        self.world.create_token(request).token
    }

    /// Attaches a fault to one or more calls of a route.
    pub fn inject(&self, plan: FaultPlan) {
        self.world.inject(plan);
    }

    pub fn devices(&self) -> Vec<DeviceView> {
        self.world.devices()
    }

    pub fn revoke_device(&self, device_id: &str) -> bool {
        self.world.revoke_device(device_id)
    }

    /// As an administrator does in the dashboard.
    pub fn delete_device(&self, device_id: &str) -> bool {
        self.world.delete_device(device_id)
    }

    /// Lets the device's next check-in bring an action.
    pub fn queue_action(&self, device_id: &str, action: Action) -> bool {
        self.world.queue_action(device_id, action)
    }

    /// Whether the answer that `device_id` was given held this key.
    pub fn issued_edge_key(&self, device_id: &str, key: &EdgeKey) -> bool {
        self.world.issued_edge_key(device_id, key)
    }

    /// Every request so far, with secrets masked.
    pub fn requests(&self) -> Vec<Recorded> {
        self.world.requests()
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Waits until the cloud has seen what the predicate looks for; `false` after the deadline.
    pub fn wait_until(&self, deadline: Duration, seen: impl Fn(&[Recorded]) -> bool) -> bool {
        self.world.wait_until(deadline, seen)
    }
}

impl Drop for MockCloud {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself; then there is nobody to tell.
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}
