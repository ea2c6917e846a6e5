//! Asking for a secret on the terminal, without echo.
//!
//! The terminal, not standard input: in `curl … | sh` that is the script. The question can be
//! dropped at any moment (a signal, say) and gives the terminal back as it was. Ctrl-C is read as
//! a key, so that it ends the question even where nobody listens to signals.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;

use rustix::fs::OFlags;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use zeroize::Zeroizing;

const TERMINAL: &str = "/dev/tty";
const CAP: usize = 64 * 1024;

const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const CTRL_U: u8 = 0x15;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];

#[derive(Debug, Error)]
pub enum PromptError {
    #[error("there is no terminal to ask on")]
    NoTerminal,
    #[error("interrupted")]
    Interrupted,
    #[error("the terminal failed")]
    Io(#[from] io::Error),
}

pub async fn secret(question: &str) -> Result<Zeroizing<String>, PromptError> {
    let mut terminal = open()?;
    terminal.write_all(question.as_bytes())?;
    let quiet = Quiet::make(terminal)?;
    let answer = quiet.read_line().await;
    drop(quiet);
    answer
}

fn open() -> Result<File, PromptError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the terminal is written to, no file is"
    )]
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(TERMINAL)
        .map_err(|_| PromptError::NoTerminal)
}

/// A terminal that does not echo, until dropped.
struct Quiet {
    terminal: AsyncFd<File>,
    before: Termios,
}

impl Quiet {
    fn make(terminal: File) -> Result<Quiet, PromptError> {
        #[expect(
            deprecated,
            reason = "sound for a File, which owns its descriptor; the successor is unsafe to call"
        )]
        let terminal = AsyncFd::with_interest(terminal, Interest::READABLE)?;
        let before = tcgetattr(terminal.get_ref()).map_err(io::Error::from)?;
        let mut modes = before.clone();
        modes.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        // From here on, whatever happens, the terminal is given back.
        let quiet = Quiet { terminal, before };
        tcsetattr(quiet.terminal.get_ref(), OptionalActions::Flush, &modes)
            .map_err(io::Error::from)?;
        Ok(quiet)
    }

    async fn read_line(&self) -> Result<Zeroizing<String>, PromptError> {
        let mut line = Zeroizing::new(Vec::with_capacity(4096));
        // One at a time: what is typed after the line belongs to whoever reads next.
        while let Some(byte) = self.read_byte().await? {
            match byte {
                b'\n' | b'\r' | CTRL_D => break,
                CTRL_C => return Err(PromptError::Interrupted),
                CTRL_U => line.clear(),
                byte if BACKSPACE.contains(&byte) => drop(line.pop()),
                byte if line.len() < CAP => line.push(byte),
                _ => {}
            }
        }
        Ok(Zeroizing::new(String::from_utf8_lossy(&line).into_owned()))
    }

    /// `None` when the terminal has gone.
    async fn read_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [0];
        let read = self
            .terminal
            .async_io(Interest::READABLE, |mut terminal| terminal.read(&mut byte))
            .await?;
        Ok((read == 1).then_some(byte[0]))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let mut terminal = self.terminal.get_ref();
        // If the terminal is gone there is nothing to restore.
        tcsetattr(terminal, OptionalActions::Flush, &self.before).ok();
        terminal.write_all(b"\n").ok();
    }
}
