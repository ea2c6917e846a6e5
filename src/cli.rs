//! The command line: what it understands, who answers, and what becomes of errors.
#![allow(
    rustdoc::bare_urls,
    reason = "the comments of clap's types are help texts"
)]

mod conceal;
mod identity;
mod printer;
mod progress;
mod provision;
mod status;
mod token;

use std::cell::RefCell;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;

use anyhow::Context as _;
use clap::error::ErrorKind;
use clap::{Args, ColorChoice, Parser, Subcommand, ValueEnum as _};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::Level;

use crate::clock::Clock;
use crate::config::{Overrides, Settings};
use crate::env_vars::{self, Env};
use crate::error::{Exit, Failure, TokenFate};
use crate::logging::{self, LogFormat};
use crate::paths::Paths;
use printer::{Look, Printer};

const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("ACUSIGHT_COMMIT"),
    ", ",
    env!("ACUSIGHT_TARGET"),
    ")"
);

/// Onboards this device to Acusight with one token, and keeps it running.
#[derive(Debug, Parser)]
#[command(name = "acusight-agent", version = VERSION, max_term_width = 100)]
#[command(after_help = exit_codes())]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Globals {
    /// Keep all files below DIR instead of /
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where")]
    root: Option<PathBuf>,
    /// Keep files in your own home directory; needs no root
    #[arg(long, global = true, conflicts_with = "root", help_heading = "Where")]
    user: bool,
    /// Keep the device's identity and key in DIR [default: /var/lib/acusight]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where")]
    state_dir: Option<PathBuf>,
    /// Address of the Acusight API [default: https://acusight.io/api]
    #[arg(long, global = true, value_name = "URL", help_heading = "Server")]
    api_url: Option<String>,
    /// Allow plain http to another machine (your own server on a network you trust)
    #[arg(long, global = true, help_heading = "Server")]
    allow_http: bool,
    /// Trust the certificate authorities in FILE (PEM) as well
    #[arg(long, global = true, value_name = "FILE", help_heading = "Server")]
    ca_cert: Option<PathBuf>,
    /// Go on trying for so long when the network or the server fails [default: 300]
    #[arg(long, global = true, value_name = "SECONDS", help_heading = "Server")]
    retry_for: Option<u64>,
    /// Print one JSON object on standard output
    #[arg(long, global = true, help_heading = "Output")]
    json: bool,
    /// Say only what went wrong
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        help_heading = "Output"
    )]
    quiet: bool,
    /// Log what happens; twice for every exchange, three times for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Output")]
    verbose: u8,
    /// When to use colour
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Output"
    )]
    color: ColorChoice,
    /// Form of the log lines on standard error [default: human, or journald under systemd]
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Output")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make this machine a device of your organisation
    Provision(provision::Flags),
    /// Show who this device is and whether the server accepts it
    Status,
    /// Show what provisioning would tell the server of this machine
    Identity(identity::Flags),
    /// Create, list and revoke provisioning tokens (for administrators)
    Token(token::Flags),
}

fn exit_codes() -> String {
    let rows = Exit::ALL.map(|exit| format!("  {:>3}  {}", exit.code(), exit.meaning()));
    format!("Exit codes:\n{}", rows.join("\n"))
}

/// What every command has at hand.
struct Context {
    settings: Settings,
    env: Env,
    clock: Clock,
    printer: Printer,
}

pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let env = Env::of_process();
    conceal::visible_token(&args, &env);
    let exit = run(args, env, std::io::stdout());
    ExitCode::from(exit.code())
}

/// From here on no core file, and no debugger but root's. Not earlier than a descriptor was read:
/// a process that is closed like this can no longer open its own `/proc/self/fd` without root.
fn close_to_debuggers() {
    let nothing = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    // Both are a second line of defence, and may be refused by a sandbox.
    rustix::process::setrlimit(Resource::Core, nothing).ok();
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
}

/// Runs one command line to its end. What was asked for goes to `out`, talk to standard error.
pub fn run(args: Vec<OsString>, env: Env, out: impl Write + 'static) -> Exit {
    let out = Rc::new(RefCell::new(out));
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(answer) => return answer_of_clap(&answer, &args, out),
    };
    let look = Look {
        json: cli.globals.json,
        quiet: cli.globals.quiet,
        color: cli.globals.color,
    };
    let printer = Printer::new(out, look, &env);
    match dispatch(cli, env, printer.clone()) {
        Ok(()) => Exit::Done,
        Err(failure) => {
            printer.failure(&failure);
            failure.exit
        }
    }
}

fn dispatch(cli: Cli, env: Env, printer: Printer) -> Result<(), Failure> {
    let clock = clock(&env);
    let format = log_format(cli.globals.log_format, &env)?;
    logging::init(format, level(&cli.globals), clock.clone());
    let settings = settle(cli.globals, &env)?;
    let context = Context {
        settings,
        env,
        clock,
        printer,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start")?;
    let outcome = runtime.block_on(async {
        match cli.command {
            // It knows what an interruption means for the token.
            Command::Provision(flags) => provision::run(context, flags).await,
            Command::Status => unless_interrupted(status::run(context)).await,
            Command::Identity(flags) => unless_interrupted(identity::run(context, flags)).await,
            Command::Token(flags) => unless_interrupted(token::run(context, flags)).await,
        }
    });
    // A name look-up that hangs in the system's resolver must not keep the process.
    runtime.shutdown_background();
    outcome
}

async fn unless_interrupted(
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    close_to_debuggers();
    tokio::select! {
        outcome = work => outcome,
        () = interrupted() => Err(interruption(None)),
    }
}

/// Ctrl-C, or the polite form of kill. What is dropped then gives the terminal back.
async fn interrupted() {
    let listen = |kind| signal(kind).ok();
    let (Some(mut interrupt), Some(mut terminate)) = (
        listen(SignalKind::interrupt()),
        listen(SignalKind::terminate()),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

fn interruption(token: Option<TokenFate>) -> Failure {
    let hint = match token {
        None | Some(TokenFate::Unused) => "run the same command again",
        Some(TokenFate::MaybeSpent | TokenFate::Spent) => {
            "run the same command again with the same token: it goes on where this one stopped"
        }
    };
    Failure {
        exit: Exit::Interrupted,
        id: "interrupted",
        message: "interrupted".into(),
        hint: Some(hint.into()),
        retryable: true,
        token,
    }
}

fn settle(globals: Globals, env: &Env) -> Result<Settings, Failure> {
    let paths = match (globals.root, globals.user) {
        (Some(root), _) => Paths::system(&root),
        (None, true) => Paths::user()?,
        (None, false) => Paths::system("/".as_ref()),
    };
    let state_dir = globals.state_dir.or_else(|| env.path(env_vars::STATE_DIR));
    let overrides = Overrides {
        api_url: globals.api_url,
        allow_http: globals.allow_http,
        ca_cert: globals.ca_cert,
        retry_for: globals.retry_for,
    };
    let paths = paths.with_state_dir(state_dir, env);
    Ok(Settings::resolve(overrides, env, paths)?)
}

#[cfg(not(feature = "mock"))]
fn clock(_: &Env) -> Clock {
    Clock::system()
}

#[cfg(feature = "mock")]
fn clock(env: &Env) -> Clock {
    let shown = env.text(env_vars::CLOCK);
    match shown.and_then(|time| humantime::parse_rfc3339(&time).ok()) {
        Some(time) => Clock::showing(time),
        None => Clock::system(),
    }
}

fn log_format(flag: Option<LogFormat>, env: &Env) -> Result<LogFormat, Failure> {
    if let Some(format) = flag {
        return Ok(format);
    }
    match env.text(env_vars::LOG_FORMAT) {
        Some(name) => LogFormat::from_str(&name, false).map_err(|_| {
            let message = format!("{} must be human, journald or json", env_vars::LOG_FORMAT);
            Failure::usage(message, Some("set it so, or unset it".into()))
        }),
        None if env.text(env_vars::JOURNAL_STREAM).is_some() => Ok(LogFormat::Journald),
        None => Ok(LogFormat::Human),
    }
}

fn level(globals: &Globals) -> Level {
    match (globals.quiet, globals.verbose) {
        (true, _) => Level::ERROR,
        (false, 0) => Level::WARN,
        (false, 1) => Level::INFO,
        (false, 2) => Level::DEBUG,
        (false, _) => Level::TRACE,
    }
}

/// Help and version are answers; anything else is wrong usage, told without repeating a secret.
fn answer_of_clap(
    answer: &clap::Error,
    args: &[OsString],
    out: Rc<RefCell<impl Write + 'static>>,
) -> Exit {
    if matches!(
        answer.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        let text = answer.render();
        // Nobody left to read it is no failure.
        write!(out.borrow_mut(), "{text}").ok();
        return Exit::Done;
    }
    let text = answer.render().to_string();
    let (message, hint) = match text.trim().split_once("\n\n") {
        Some((message, rest)) => (message, Some(rest)),
        None => (text.trim(), None),
    };
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let hint = hint.map(|rest| rest.trim().replace("\n\n", "\n"));
    let look = Look {
        json: args.iter().any(|arg| arg == "--json"),
        quiet: false,
        color: ColorChoice::Auto,
    };
    let printer = Printer::new(out, look, &Env::default());
    printer.failure(&Failure::usage(message, hint));
    Exit::Usage
}
