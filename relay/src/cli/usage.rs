//! What is said to somebody who typed something that is no command line.
//!
//! What was typed may hold a password: a connection string without its flag, for one. So nothing of
//! it is repeated but the names of flags, and words that the command line itself has, in whatever place.

use std::{collections::BTreeSet, ffi::OsString};

use clap::{Command, CommandFactory as _, error::ErrorKind};

use super::arguments::Cli;

/// Prints help, the version, or what is wrong; returns the exit code.
pub(super) fn explain(error: &clap::Error, arguments: impl Iterator<Item = OsString>) -> u8 {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        super::print(&text);
        return 0;
    }
    let typed: Vec<String> =
        arguments.skip(1).map(|typed| typed.to_string_lossy().into_owned()).collect();
    let told = masked(text, &typed);
    match typed.iter().any(|typed| typed == "--json") {
        true => super::output::eprint_lines(&format!(
            "{}\n",
            serde_json::json!({ "error": told.trim().trim_start_matches("error: ") })
        )),
        false => super::output::eprint_lines(&told),
    }
    2
}

/// The text without what was typed, where it is quoted.
fn masked(mut text: String, typed: &[String]) -> String {
    let known = words(&Cli::command());
    let values = typed.iter().map(|typed| match typed.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") => value,
        _ => typed,
    });
    let is_secret = |value: &&str| !value.starts_with('-') && !known.contains(*value);
    let mut values: Vec<&str> = values.filter(is_secret).collect();
    // The longest first: one may be a part of another.
    values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    for value in values.into_iter().filter(|value| !value.is_empty()) {
        for quoted in [format!("'{value}'"), format!("{value:?}")] {
            text = text.replace(&quoted, "'***'");
        }
    }
    text
}

/// The words of a command line: commands, flags and the values that these take, at any depth.
fn words(command: &Command) -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for argument in command.get_arguments() {
        words.extend(argument.get_long().map(str::to_owned));
        let values = argument.get_possible_values();
        words.extend(values.iter().map(|value| value.get_name().to_owned()));
    }
    for below in command.get_subcommands() {
        words.insert(below.get_name().to_owned());
        words.extend(self::words(below));
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn told(arguments: &[&str]) -> String {
        let typed: Vec<String> = arguments.iter().map(|&typed| typed.to_owned()).collect();
        let all = ["outbox-relay"].iter().chain(arguments);
        let error = Cli::try_parse_from(all).map(drop).expect_err("no command line");
        masked(error.render().to_string(), &typed)
    }

    #[test]
    fn what_may_be_a_password_is_not_repeated() {
        const SECRET: &str = "postgres://relay:hunter2@db/app";
        for arguments in [
            &["run", SECRET][..],
            &["run", "--postgres", "host=db", "hunter2"],
            &["check", SECRET],
            &["migrate", SECRET],
            &["migrate", "--set", SECRET],
            &["status", SECRET],
            &["config", SECRET],
            &["resume", "--skip", SECRET],
            &["resume", "--at", SECRET],
            &["dead-letters", SECRET],
            &["dead-letters", "list", SECRET],
            &["dead-letters", "list", "--limit", SECRET],
            &["dead-letters", "show", SECRET],
            &["dead-letters", "edit", "1", "--timestamp=hunter2"],
            &["inbox", "dead-letters", "list", SECRET],
            &["inbox", SECRET],
            &["demo", SECRET],
            &["demo", "--events", SECRET],
            &[SECRET],
            &["--postgress", SECRET, "run"],
            &["run", "--postgress=hunter2"],
            &["run", "-phunter2"],
        ] {
            let told = told(arguments);
            assert!(!told.contains("hunter2"), "{arguments:?}: {told}");
        }
    }

    #[test]
    fn a_word_of_the_command_line_in_the_wrong_place_is_no_secret() {
        let said = told(&["dead-letters", "list", "--by", "topic"]);
        assert!(said.contains("invalid value 'topic' for '--by <BY>'"), "{said}");
        let said = told(&["dead-letters", "list", "--by", "lane", "reason"]);
        assert!(said.contains("unexpected argument 'reason' found"), "{said}");
        assert!(told(&["dead-letters", "list", "--by", "hunter2"]).contains("'***'"));
    }

    #[test]
    fn a_mistyped_flag_or_command_is_told_with_what_there_is() {
        assert!(told(&["run", "--postgress", "x"]).contains("--postgres"));
        assert!(told(&["chek"]).contains("'check'"));
        assert!(told(&["migrate", "--set", "both"]).contains("outbox, inbox"));
    }
}
