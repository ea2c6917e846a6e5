//! Asking for a secret on the terminal, without echo.
//!
//! The terminal, not standard input: in `curl … | sh` that is the script. The keys are read one
//! by one with signals off, so that Ctrl-C ends the question with the terminal as it was before.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use thiserror::Error;
use zeroize::Zeroizing;

const TERMINAL: &str = "/dev/tty";
const CAP: usize = 4096;

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

pub fn secret(question: &str) -> Result<Zeroizing<String>, PromptError> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the terminal is written to, no file is"
    )]
    let mut terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open(TERMINAL)
        .map_err(|_| PromptError::NoTerminal)?;
    terminal.write_all(question.as_bytes())?;
    let answer = Quiet::make(&terminal)?.read_line();
    terminal.write_all(b"\n")?;
    answer
}

/// A terminal that does not echo, until dropped.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn make(terminal: &'a File) -> Result<Quiet<'a>, PromptError> {
        let before = tcgetattr(terminal).map_err(io::Error::from)?;
        let mut quiet = before.clone();
        quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(terminal, OptionalActions::Flush, &quiet).map_err(io::Error::from)?;
        Ok(Quiet { terminal, before })
    }

    fn read_line(&self) -> Result<Zeroizing<String>, PromptError> {
        let mut line = Zeroizing::new(Vec::with_capacity(CAP));
        let mut terminal = self.terminal;
        let mut byte = [0];
        // One at a time: what is typed after the line belongs to whoever reads next.
        while terminal.read(&mut byte)? == 1 {
            match byte[0] {
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
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // If the terminal is gone there is nothing to restore.
        tcsetattr(self.terminal, OptionalActions::Flush, &self.before).ok();
    }
}
