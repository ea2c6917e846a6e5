//! The one place that prints: data on standard output, talk on standard error.

use std::cell::RefCell;
use std::io::{self, IsTerminal, Write};
use std::rc::Rc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ColorChoice;
use serde_json::{Value, json};

use crate::api::client::ApiError;
use crate::env_vars::{self, Env};
use crate::error::{Failure, chain};
use crate::secret::redact;

#[derive(Clone)]
pub(super) struct Printer {
    out: Rc<RefCell<dyn Write>>,
    pub(super) json: bool,
    quiet: bool,
    color: bool,
    live: bool,
}

/// How the command line wants its output.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look {
    pub(super) json: bool,
    pub(super) quiet: bool,
    pub(super) color: ColorChoice,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Style {
    Good,
    Bad,
    Dim,
    Bold,
}

impl Printer {
    pub(super) fn new(out: Rc<RefCell<dyn Write>>, look: Look, env: &Env) -> Printer {
        let terminal = io::stderr().is_terminal();
        let Look { json, quiet, color } = look;
        Printer {
            out,
            json,
            quiet,
            live: terminal && !quiet,
            color: match color {
                ColorChoice::Always => true,
                ColorChoice::Never => false,
                ColorChoice::Auto => terminal && env.text(env_vars::NO_COLOR).is_none(),
            },
        }
    }

    /// Whether somebody watches, so that a line may be drawn over.
    pub(super) fn is_live(&self) -> bool {
        self.live
    }

    /// What was asked for: the text, or with `--json` the value, in one line.
    pub(super) fn data(&self, text: &str, value: &Value) -> anyhow::Result<()> {
        let mut out = self.out.borrow_mut();
        let written = if self.json {
            writeln!(out, "{value}")
        } else {
            out.write_all(plain(text).as_bytes())
        };
        written
            .and_then(|()| out.flush())
            .context("could not write to standard output")
    }

    pub(super) fn say(&self, line: &str) {
        if !self.quiet {
            self.talk(line);
        }
    }

    pub(super) fn warn(&self, text: &str) {
        self.talk(&format!("{} {text}", self.style(Style::Bold, "warning:")));
    }

    /// A passing failure, and when the next try is.
    pub(super) fn waiting(&self, error: &ApiError, delay: Duration) {
        self.say(&format!(
            "  {} {}; trying again in {} s",
            self.style(Style::Bad, "wait"),
            redact(&one_line(&chain(error))),
            delay.as_secs_f64().ceil()
        ));
    }

    pub(super) fn failure(&self, failure: &Failure) {
        let message = redact(&one_line(&failure.message));
        let hint = failure.hint.as_deref().map(|hint| redact(&plain(hint)));
        self.talk(&format!("{} {message}", self.style(Style::Bad, "error:")));
        if let Some(fate) = failure.token {
            self.talk(&format!(
                "{} {}",
                self.style(Style::Bold, "token:"),
                fate.sentence()
            ));
        }
        if let Some(hint) = &hint {
            self.talk(&format!("{} {hint}", self.style(Style::Bold, "hint:")));
        }
        if self.json {
            let value = json!({
                "schema": 1,
                "error": {
                    "code": failure.exit.code(),
                    "id": failure.id,
                    "message": message,
                    "hint": hint,
                    "retryable": failure.retryable,
                    "token": failure.token.map(|fate| fate.id()),
                }
            });
            // The exit code says it as well.
            self.data("", &value).ok();
        }
    }

    pub(super) fn style(&self, style: Style, text: &str) -> String {
        let code = match style {
            Style::Good => "32",
            Style::Bad => "1;31",
            Style::Dim => "2",
            Style::Bold => "1",
        };
        if self.color {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn talk(&self, line: &str) {
        // Talk that nobody hears must not stop the work.
        writeln!(io::stderr().lock(), "{line}").ok();
    }
}

/// A text that cannot draw on the terminal: servers have a say in some of what is printed.
pub(super) fn plain(text: &str) -> String {
    // They turn the reading direction, and with it what a line seems to say.
    let turns = |c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|c| {
            if (c.is_control() && c != '\n') || turns(c) {
                ' '
            } else {
                c
            }
        })
        .collect()
}

/// The same on one line.
pub(super) fn one_line(text: &str) -> String {
    plain(text).replace('\n', " ")
}

/// `label   value` lines, aligned; rows without a value are left out.
pub(super) fn table(rows: &[(&str, Option<String>)]) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    rows.iter()
        .filter_map(|(label, value)| {
            let value = value.as_ref()?;
            Some(format!("  {label:width$}   {}\n", one_line(value)))
        })
        .collect()
}
