//! Provisioning as its watcher sees it: a spinner on a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::printer::{Printer, Style, one_line};
use crate::error::TokenFate;
use crate::provision::{Event, Step};

pub(super) struct Progress {
    printer: Printer,
    spinner: Option<ProgressBar>,
    fate: TokenFate,
}

impl Progress {
    pub(super) fn new(printer: Printer) -> Progress {
        Progress {
            printer,
            spinner: None,
            fate: TokenFate::Unused,
        }
    }

    /// What became of the token so far, for an interruption's message.
    pub(super) fn token_fate(&self) -> TokenFate {
        self.fate
    }

    pub(super) fn observe(&mut self, event: Event<'_>) {
        match event {
            Event::Resuming => {
                self.fate = TokenFate::MaybeSpent;
                self.line("  ..   going on where an earlier run stopped");
            }
            Event::Began(step) => self.began(step),
            Event::Done(step, detail) => self.done(step, &detail),
            Event::Retrying { error, delay } => {
                self.above_spinner(|| self.printer.waiting(error, delay));
            }
            Event::Warning(text) => self.above_spinner(|| self.printer.warn(&one_line(&text))),
        }
    }

    pub(super) fn stop(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    fn began(&mut self, step: Step) {
        self.stop();
        if step == Step::Exchange {
            self.fate = TokenFate::MaybeSpent;
        }
        // A question on the terminal and a spinner would write over each other.
        if self.printer.is_live() && step != Step::Token {
            let style = ProgressStyle::with_template("  {spinner}   {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner().with_style(style);
            spinner.set_message(doing(step));
            spinner.enable_steady_tick(Duration::from_millis(100));
            self.spinner = Some(spinner);
        }
    }

    fn done(&mut self, step: Step, detail: &str) {
        self.stop();
        if step == Step::Store {
            self.fate = TokenFate::Spent;
        }
        self.line(&format!(
            "  {}   {:<13} {}",
            self.printer.style(Style::Good, "ok"),
            done(step),
            self.printer.style(Style::Dim, &one_line(detail))
        ));
    }

    fn line(&self, text: &str) {
        self.above_spinner(|| self.printer.say(text));
    }

    fn above_spinner(&self, print: impl FnOnce()) {
        match &self.spinner {
            Some(spinner) => spinner.suspend(print),
            None => print(),
        }
    }
}

fn doing(step: Step) -> &'static str {
    match step {
        Step::Machine => "looking at this machine",
        Step::Server => "looking for the server",
        Step::Token => "finding the token",
        Step::Device => "gathering facts about this device",
        Step::Exchange => "provisioning",
        Step::Store => "storing the key",
        Step::Verify => "asking the server whether it accepts the key",
    }
}

fn done(step: Step) -> &'static str {
    match step {
        Step::Machine => "machine ready",
        Step::Server => "server found",
        Step::Token => "token found",
        Step::Device => "device",
        Step::Exchange => "provisioned",
        Step::Store => "key stored",
        Step::Verify => "key verified",
    }
}
