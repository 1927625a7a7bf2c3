//! The log: text for people or JSON for machines, on standard error.
//!
//! In text, each field is made [`printable`]: an event's id with an end of line in it must not forge
//! a line of the log, nor one of megabytes fill it. JSON has escapes of its own. A log that no one reads keeps
//! no one (`stderr`).

mod stderr;

use std::{
    fmt::{Debug, Result},
    io::IsTerminal,
};

use tracing::field::Field;
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt as _,
    fmt::{
        self,
        format::{Writer, debug_fn},
    },
    util::SubscriberInitExt,
};

use self::stderr::Stderr;
use crate::{
    config::{LogConfig, LogFormat},
    core::printable,
};

/// Characters of a message, and of any other field.
const MESSAGE_MAX: usize = 8_000;
/// A statement to type names up to twenty events.
const FIELD_MAX: usize = 4_000;

/// Libraries that tell of each attempt what the relay tells once; a filter that names one wins. The AWS SDK, all of
/// whose targets begin so, tells the ids of access keys.
const QUIET: [&str; 5] =
    ["librdkafka=error", "rdkafka=error", "hyper=warn", "tokio_postgres=warn", "aws=warn"];

/// Starts logging for this process. A second call, as in tests, changes nothing.
pub fn init(config: &LogConfig) {
    let log = fmt::fmt()
        .with_env_filter(EnvFilter::new(directives(&config.level)))
        .with_writer(|| Stderr);
    let started = match config.format {
        LogFormat::Json => {
            stderr::in_json();
            log.json().flatten_event(true).finish().try_init()
        }
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let log = log.with_ansi(colour).with_target(false);
            log.fmt_fields(debug_fn(field).delimited(" ")).finish().try_init()
        }
    };
    // Somebody else's subscriber is in place: their choice.
    drop(started);
}

/// The message, or `name=value`. What the bridge from the crate `log` adds is left out.
fn field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> Result {
    let value = as_shown(format!("{value:?}"));
    let max = if field.name() == "message" { MESSAGE_MAX } else { FIELD_MAX };
    let value = printable::cut(&value, max);
    let value = printable::line(&value);
    match field.name() {
        "message" => writer.write_str(&value),
        name if name.starts_with("log.") => Ok(()),
        name => write!(writer, "{name}={value}"),
    }
}

/// A text that is a field by itself comes in quotes, and with its own quotes and backslashes escaped; a statement
/// or a command that is copied from it would be another one. What is not visible stays spelled out.
fn as_shown(value: String) -> String {
    let Some(text) = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return value;
    };
    let mut shown = String::with_capacity(value.len());
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let escaped = rest.next_if(|next| character == '\\' && matches!(next, '\\' | '"' | '\''));
        shown.push(escaped.unwrap_or(character));
    }
    format!("\"{shown}\"")
}

fn directives(level: &str) -> String {
    let named = |quiet: &&str| {
        let target = quiet.split('=').next().unwrap_or(quiet);
        !level.split(',').any(|part| part.trim().starts_with(target))
    };
    let quiet: Vec<&str> = QUIET.into_iter().filter(named).collect();
    if quiet.is_empty() { level.to_owned() } else { format!("{level},{}", quiet.join(",")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    /// Where a test reads the log.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one thread").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_row_holds_can_neither_forge_a_line_of_the_log_nor_steer_a_terminal() {
        let (lines, hostile) = (Lines::default(), "e\n2026 ERROR forged\x1b[2J");
        let writer = lines.clone();
        let log = fmt::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let log = log.without_time().with_target(false);
        let log = log.fmt_fields(debug_fn(field).delimited(" ")).finish();
        tracing::subscriber::with_default(log, || {
            tracing::warn!(event_id = %hostile, topic = hostile, n = 7, "refused {hostile}");
        });
        let logged = String::from_utf8(lines.0.lock().expect("one thread").clone()).expect("text");
        let shown = r"e\n2026 ERROR forged\u{1b}[2J";
        let expected = format!(" WARN refused {shown} event_id={shown} topic=\"{shown}\" n=7\n");
        assert_eq!(logged, expected);
    }

    #[test]
    fn a_statement_in_a_field_is_logged_as_it_is_to_be_typed() {
        let statement = r#"rollback prepared E'it''s\n\\x' -- "me""#;
        assert_eq!(as_shown(format!("{statement:?}")), format!("\"{statement}\""));
        assert_eq!(as_shown("7".to_owned()), "7");
        assert_eq!(as_shown(format!("{:?}", "a\nb")), r#""a\nb""#);
    }

    #[test]
    fn what_has_megabytes_makes_no_line_of_megabytes() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = fmt::fmt().with_writer(move || writer.clone()).with_ansi(false);
        let log = log.fmt_fields(debug_fn(field).delimited(" ")).finish();
        let long = "x".repeat(3_000_000);
        tracing::subscriber::with_default(log, || {
            tracing::warn!(topic = long, error = %long, "refused {long}");
        });
        let logged = lines.0.lock().expect("one thread").len();
        assert!(logged < 20_000, "{logged}");
    }

    #[test]
    fn libraries_are_quiet_unless_they_are_named() {
        assert_eq!(
            directives("info"),
            "info,librdkafka=error,rdkafka=error,hyper=warn,tokio_postgres=warn,aws=warn"
        );
        assert_eq!(
            directives("debug, librdkafka=debug"),
            "debug, librdkafka=debug,rdkafka=error,hyper=warn,tokio_postgres=warn,aws=warn"
        );
        assert!(EnvFilter::try_new(directives("debug")).is_ok());
    }
}
