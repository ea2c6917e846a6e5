//! The mock cloud as a program: for developers, for tests from outside, and for the demo.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers prints as it goes"
)]

mod demo;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use acusight_agent::mock::{ADMIN_TOKEN, MockCloud};
use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// A stand-in for the Acusight cloud, and a demo of the agent against it.
#[derive(Debug, Parser)]
#[command(name = "acusight-mock", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API until interrupted
    #[command(after_help = "\
When it is ready, one line of JSON on standard output says where: {\"api_url\":\"http://…/api\"}.

It is changed from outside with JSON below /_mock/:
  GET    /_mock/devices                 what the dashboard would show
  DELETE /_mock/devices/ID              delete a device, as in the dashboard
  POST   /_mock/devices/ID/revoke       revoke its key
  POST   /_mock/actions                 {\"device_id\":…,\"action\":{\"id\":1,\"type\":\"…\"}}
  GET    /_mock/requests                everything received, secrets masked, and counters
  POST   /_mock/faults                  {\"route\":\"provision\",\"fault\":{\"status\":{\"status\":503}},\"times\":2}
  DELETE /_mock/faults                  no more faults
  GET    /_mock/clock                   its time
  POST   /_mock/clock                   {\"advance_seconds\":86400}

What it does not check: whether the administrator's token is a real JWT, organisations and roles
(there is one of each), rate limits, the contents of metrics. It approves every device at once,
keeps nothing when it stops, and guards /_mock/ with nothing: keep it on loopback.")]
    Serve {
        #[arg(long, default_value = "127.0.0.1:8089", value_name = "ADDRESS")]
        listen: SocketAddr,
        /// What administrators must send as their bearer token
        #[arg(long, default_value = ADMIN_TOKEN, value_name = "TOKEN")]
        admin_token: String,
        /// Serve DIR/setup.sh at /setup and DIR's files at /download/
        #[arg(long, value_name = "DIR")]
        files: Option<PathBuf>,
        /// The origin that devices are told, if not the address listened on
        #[arg(long, value_name = "URL")]
        public_origin: Option<String>,
        /// Do not know Idempotency-Key
        #[arg(long)]
        without_idempotency: bool,
        /// Have no Portainer: answer without edge keys
        #[arg(long)]
        without_portainer: bool,
    },
    /// Tell the whole story on this machine, harmlessly, and clean up
    Demo,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Serve {
            listen,
            admin_token,
            files,
            public_origin,
            without_idempotency,
            without_portainer,
        } => {
            let mut cloud = MockCloud::builder()
                .listen(listen)
                .admin_token(admin_token)
                .admin_routes();
            if let Some(dir) = files {
                cloud = cloud.files(dir);
            }
            if let Some(origin) = public_origin {
                cloud = cloud.public_origin(origin);
            }
            if without_idempotency {
                cloud = cloud.without_idempotency();
            }
            if without_portainer {
                cloud = cloud.without_portainer();
            }
            cloud
                .start()
                .with_context(|| format!("could not listen on {listen}"))
                .and_then(|cloud| serve(&cloud))
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(cloud: &MockCloud) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Before the ready line: whoever reads it may stop us right away.
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        println!("{}", json!({ "api_url": cloud.api_url() }));
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}
