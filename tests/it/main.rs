//! The built binary and the library against the mock cloud, over real sockets and real files.
#![allow(
    clippy::disallowed_methods,
    reason = "tests play everybody else on the machine"
)]

mod api_calls;
mod client_faults;
mod contract;
mod identity;
mod mock_program;
mod preflight;
mod provision;
mod races;
mod resume;
mod secrecy;
mod settings;
mod status;
mod support;
mod sweeps;
mod tls;
mod token_admin;
mod token_sources;
