//! A token in the arguments or the environment can be read by others for as long as the program
//! runs. So it does not run on: the token goes into an anonymous file in memory, and the program
//! is executed anew, in the same process, without it.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use clap::Parser as _;
use rustix::fs::MemfdFlags;

use super::{Cli, Command as Verb};
use crate::env_vars::{self, Env};
use crate::token::HIDDEN;

/// Does not return if there was a token to hide, unless that is not possible here; then the
/// program goes on as it is.
pub(super) fn visible_token(args: &[OsString], env: &Env) {
    let Ok(Cli {
        command: Verb::Provision(flags),
        ..
    }) = Cli::try_parse_from(args)
    else {
        return;
    };
    let argument = flags
        .token_argument()
        .map(|token| token.expose().to_owned());
    let variable = env.text(env_vars::TOKEN);
    let is_visible =
        |token: &Option<String>| token.as_ref().is_some_and(|it| !it.starts_with(HIDDEN));
    if !is_visible(&argument) && !is_visible(&variable) {
        return;
    }
    let Err(error) = executed_anew(args, argument, variable);
    tracing::debug!(%error, "the token could not be hidden");
}

fn executed_anew(
    args: &[OsString],
    argument: Option<String>,
    variable: Option<String>,
) -> io::Result<Infallible> {
    // By its path, so that the process keeps its name.
    let mut anew = Command::new(std::env::current_exe()?);
    let (name, rest) = args.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    anew.arg0(name);
    // What stands in its place must live until the program is executed.
    let mut kept = Vec::new();
    match argument {
        None => drop(anew.args(rest)),
        Some(token) => {
            let hidden = hide(&token, &mut kept)?;
            let shown = |arg: &OsString| match arg == OsStr::new(&token) {
                true => OsString::from(&hidden),
                false => arg.clone(),
            };
            anew.args(rest.iter().map(shown));
        }
    }
    if let Some(token) = variable {
        anew.env(env_vars::TOKEN, hide(&token, &mut kept)?);
    }
    Err(anew.exec())
}

fn hide(token: &str, kept: &mut Vec<File>) -> io::Result<String> {
    // Inherited on purpose: no close-on-exec.
    let mut memory = File::from(rustix::fs::memfd_create("token", MemfdFlags::empty())?);
    memory.write_all(token.as_bytes())?;
    let hidden = format!("{HIDDEN}{}", memory.as_raw_fd());
    kept.push(memory);
    Ok(hidden)
}
