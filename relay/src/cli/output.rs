//! Standard output and standard error of the commands.

use std::io::Write;

use outbox_migrations::Set;
use serde_json::{Map, Value, json};

use crate::{
    cli::command::{
        check::{Finding, Verdict},
        migrate::{self, Migrated},
    },
    config::Problems,
    core::{halt::Halt, printable},
    dead_letter::DeadLetterError,
    postgres::ConnectError,
};

/// Prints to standard output. A reader that has gone away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let end = if text.ends_with('\n') { "" } else { "\n" };
    // Nothing is left to tell it to.
    let _ = write!(out, "{text}{end}").and_then(|()| out.flush());
}

/// Tells a person how it goes, on standard error.
pub(super) fn eprint(line: &str) {
    // Nothing is left to tell it to.
    let _ = std::io::stderr().lock().write_all(format!("{}\n", printable::line(line)).as_bytes());
}

/// Several lines for a person, on standard error.
pub(super) fn eprint_lines(text: &str) {
    // Nothing is left to tell it to.
    let _ = std::io::stderr().lock().write_all(printable::lines(text).as_bytes());
}

/// Prints what people read: texts that come from rows or servers can't steer the terminal. Within
/// one line, [`printable::line`] is to be used too.
pub(super) fn tell(text: &str) {
    print(&printable::lines(text));
}

/// All that is known of one thing, a member a line, or as JSON.
pub(super) fn members(thing: &Value, json: bool) -> String {
    if json {
        return serde_json::to_string_pretty(thing).expect("plain data has a JSON form");
    }
    let members = thing.as_object().into_iter().flatten();
    let width = members.clone().map(|(name, _)| name.len()).max().unwrap_or(0);
    members
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name:<width$}  {}\n", printable::line(text)),
            other => format!("{name:<width$}  {}\n", printable::line(&other.to_string())),
        })
        .collect()
}

/// What the doctor found, as a table or as JSON.
pub(super) fn findings(findings: &[Finding], json: bool) -> String {
    if json {
        return serde_json::to_string_pretty(findings).expect("plain data has a JSON form");
    }
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    let mut last = None;
    for Finding { name, verdict, seen, remedy, route } in findings {
        if let Some(route) = route.as_ref().filter(|_| *route != last) {
            text.push_str(&format!("route {route}\n"));
            last = Some(route.clone());
        }
        let (seen, remedy) = (printable::line(seen), printable::line(remedy));
        let mark = match verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
        };
        text.push_str(&format!(
            "{mark}  {name:width$}  {seen}
"
        ));
        if !remedy.is_empty() {
            text.push_str(&format!(
                "{:9}{:width$}  → {remedy}
",
                "", ""
            ));
        }
    }
    let count = |wanted, what: &str| {
        let found = findings.iter().filter(|finding| finding.verdict == wanted).count();
        printable::counted(found as u64, what)
    };
    let (problems, warnings) =
        (count(Verdict::Problem, "problem"), count(Verdict::Warning, "warning"));
    text.push_str(&format!("{problems}, {warnings}\n"));
    text
}

/// What a migration did.
pub(super) fn migrated(migrated: &Migrated, set: Set) -> String {
    let Migrated { applied, made_again, restored } = migrated;
    let mut text = String::new();
    if !made_again.is_empty() {
        let tables = made_again.join(", ");
        let meaning = migrate::meaning(set, made_again);
        text.push_str(&format!("{set}: {tables} had been dropped: {meaning}\n"));
    }
    for made in restored {
        let grants =
            if made.has_grants() { "; now grant what docs/ROLES.md lists on it" } else { "" };
        text.push_str(&format!("{set}: {made} was missing, and is put back{grants}\n"));
    }
    if !text.is_empty() {
        return text;
    }
    if applied.is_empty() {
        return format!(
            "{set}: up to date
"
        );
    }
    applied
        .iter()
        .map(|m| {
            format!(
                "{set}: applied V{} {}
",
                m.version, m.name
            )
        })
        .collect()
}

/// Prints an error as a JSON object: `error`, `remedy` where it is known, and `causes`.
pub(super) fn print_error_as_json(error: &anyhow::Error) {
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.dedup();
    let (what, remedy) = parts(error);
    let mut object = Map::from_iter([("error".to_owned(), json!(what))]);
    object.extend(remedy.map(|remedy| ("remedy".to_owned(), json!(remedy))));
    let known = |cause: &String| cause != "db error" && !what.contains(cause.as_str());
    let causes: Vec<String> = causes.into_iter().skip(1).filter(known).collect();
    if !causes.is_empty() {
        object.insert("causes".to_owned(), json!(causes));
    }
    let object = Value::from(object);
    let _ = std::io::stderr().lock().write_all(format!("{object}\n").as_bytes());
}

/// What has happened, and what is to be done, of the first error that tells these apart.
fn parts(error: &anyhow::Error) -> (String, Option<String>) {
    for cause in error.chain() {
        if let Some(Halt { reason, remedy }) = cause.downcast_ref() {
            return (reason.clone(), Some(remedy.clone()));
        }
        if let Some(ConnectError::Permanent { what, remedy, .. }) = cause.downcast_ref() {
            return (what.clone(), Some(remedy.clone()));
        }
        if let Some(DeadLetterError::Misconfigured { what, remedy }) = cause.downcast_ref() {
            return (what.clone(), Some(remedy.clone()));
        }
        if let Some(Problems(problems)) = cause.downcast_ref() {
            let remedies = problems.iter().map(|it| format!("{}: {}", it.key, it.remedy));
            let what = problems.iter().map(|it| format!("{}: {}", it.key, it.what));
            let joined = |texts: Vec<String>| texts.join("; ");
            return (joined(what.collect()), Some(joined(remedies.collect())));
        }
    }
    let said = error.to_string();
    // What is said in one piece has what is to be done behind the last semicolon, if it names a command.
    match said.rsplit_once("; ") {
        Some((what, remedy)) if remedy.contains('`') || remedy.contains("--") => {
            (what.to_owned(), Some(remedy.to_owned()))
        }
        _ => (said, None),
    }
}

/// Prints an error with its causes, one a line.
pub(super) fn print_error(error: &anyhow::Error) {
    let first = error.to_string();
    // Only the settings' problems have lines of their own.
    let first =
        if error.is::<Problems>() { printable::lines(&first) } else { printable::line(&first) };
    let mut text = format!("outbox-relay: {first}\n");
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // PostgreSQL's answer has lines of its own.
        let cause = cause.replace("\nDETAIL: ", "; detail: ").replace("\nHINT: ", "; hint: ");
        // Some errors name their cause themselves; and the client says `db error` before PostgreSQL's answer.
        if cause != "db error" && !text.contains(&cause) {
            text.push_str(&format!("  because: {}\n", printable::line(&cause)));
        }
    }
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
