//! Log lines on stderr, in one of three forms. Programs that talk through `tracing` below us
//! (none must tell secrets, and ours are redacted types) end up here too.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::time::SystemTime;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::clock::{Clock, rfc3339};
use crate::secret::redact;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// `2026-01-31T12:00:00Z WARN message key=value`
    Human,
    /// The same without the time, with the priority prefix that journald understands.
    Journald,
    /// One JSON object a line.
    Json,
}

/// Starts logging for this process. A second call changes nothing: the demo calls the command
/// line several times in one process.
pub fn init(format: LogFormat, level: Level, clock: Clock) {
    let logger = Logger {
        format,
        level,
        clock,
    };
    tracing::subscriber::set_global_default(logger).ok();
}

/// A subscriber without spans: nothing here needs them, and they cost memory.
struct Logger {
    format: LogFormat,
    level: Level,
    clock: Clock,
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.is_span() && *metadata.level() <= self.level
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = render(
            self.format,
            event.metadata().level(),
            self.clock.now(),
            fields,
        );
        // A log that cannot be written has nowhere to complain to.
        std::io::stderr()
            .lock()
            .write_all(redact(&line).as_bytes())
            .unwrap_or_default();
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            name => self.others.push((name, text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = value.to_owned(),
            name => self.others.push((name, value.to_owned())),
        }
    }
}

fn render(format: LogFormat, level: &Level, now: SystemTime, fields: Fields) -> String {
    match format {
        LogFormat::Human => format!("{} {level} {}\n", rfc3339(now), plain(&fields)),
        LogFormat::Journald => format!("<{}>{}\n", priority(level), plain(&fields)),
        LogFormat::Json => {
            let mut object = Map::new();
            object.insert("time".into(), rfc3339(now).into());
            object.insert("level".into(), level.to_string().to_lowercase().into());
            object.insert("message".into(), fields.message.into());
            for (name, value) in fields.others {
                object.insert(name.into(), value.into());
            }
            format!("{}\n", Value::Object(object))
        }
    }
}

/// One line, whatever the values hold: a server's words must not forge a log entry.
fn plain(fields: &Fields) -> String {
    let mut line = fields.message.clone();
    for (name, value) in &fields.others {
        if value.contains([' ', '"']) {
            write!(line, " {name}={value:?}").unwrap_or_default();
        } else {
            write!(line, " {name}={value}").unwrap_or_default();
        }
    }
    line.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let kept = (!c.is_control()).then_some(c);
            escaped.into_iter().flatten().chain(kept)
        })
        .collect()
}

/// syslog's numbers.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: LogFormat) -> String {
        let fields = Fields {
            message: "check-in failed".into(),
            others: vec![
                ("cause", "a \"b\"\n<0>forged".into()),
                ("tries", "3".into()),
            ],
        };
        render(format, &Level::WARN, SystemTime::UNIX_EPOCH, fields)
    }

    #[test]
    fn each_form_is_one_line_even_with_hostile_values() {
        insta::assert_snapshot!(line(LogFormat::Human), @r#"1970-01-01T00:00:00Z WARN check-in failed cause="a \"b\"\n<0>forged" tries=3"#);
        insta::assert_snapshot!(line(LogFormat::Journald), @r#"<4>check-in failed cause="a \"b\"\n<0>forged" tries=3"#);
        insta::assert_snapshot!(line(LogFormat::Json), @r#"{"cause":"a \"b\"\n<0>forged","level":"warn","message":"check-in failed","time":"1970-01-01T00:00:00Z","tries":"3"}"#);
        for format in [LogFormat::Human, LogFormat::Journald, LogFormat::Json] {
            assert_eq!(line(format).matches('\n').count(), 1);
        }
    }
}
