//! The text of replication commands, and the reading of their answers. Pure.
//!
//! The replication grammar has quotes of its own: a literal knows only the doubled quote, no
//! `E''`, and a list of names is a literal of identifiers. Used by `connect`.

use crate::core::{charset::Charset, lsn::Lsn};

/// What pgoutput is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Names as they are, unquoted; not empty.
    pub publications: Vec<String>,
    /// Values in the types' binary form.
    pub binary: bool,
    /// WAL messages too (`pg_logical_emit_message`).
    pub messages: bool,
    /// The server's, in which it is to send its texts.
    pub charset: Charset,
}

/// What PostgreSQL takes for a slot's name; anything else would be refused there, later.
pub fn is_slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// A slot, and the snapshot that it begins with.
pub(super) fn create_slot(version: u32, slot: &str, failover: bool) -> String {
    let slot = identifier(slot);
    if version < 150_000 {
        return format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput EXPORT_SNAPSHOT");
    }
    // Before 17 the option is unknown, and so is the thing.
    let failover = if failover && version >= 170_000 { ", FAILOVER true" } else { "" };
    format!("CREATE_REPLICATION_SLOT {slot} LOGICAL pgoutput (SNAPSHOT 'export'{failover})")
}

pub(super) fn drop_slot(slot: &str) -> String {
    format!("DROP_REPLICATION_SLOT {}", identifier(slot))
}

pub(super) fn start_replication(slot: &str, start: Lsn, options: &StreamOptions) -> String {
    let names: Vec<_> = options.publications.iter().map(|name| identifier(name)).collect();
    let names = literal(&names.join(","));
    // Version 1: transactions come whole and in commit order, `two_phase` stays off.
    format!(
        "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names {names}, \
         binary '{}', messages '{}')",
        identifier(slot),
        options.binary,
        options.messages
    )
}

/// `server_version` as a number: 15.4 is 150004, 18beta1 is 180000.
pub(super) fn version_number(text: &str) -> Option<u32> {
    let number = |text: &str| -> Option<u32> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text.get(..end)?.parse().ok()
    };
    let mut parts = text.split('.');
    let major = parts.next().and_then(number)?;
    let minor = parts.next().and_then(number).unwrap_or(0);
    if major >= 10 {
        return major.checked_mul(10_000)?.checked_add(minor);
    }
    let patch = parts.next().and_then(number).unwrap_or(0);
    major.checked_mul(10_000)?.checked_add(minor.checked_mul(100)?)?.checked_add(patch)
}

/// The lines of a history file: each earlier timeline, and where it was left.
pub(super) fn timeline_history(content: &str) -> Option<Vec<(u32, Lsn)>> {
    let lines = content.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
        })
        .collect()
}

/// The process that the server names as the slot's user. The server's language doesn't matter:
/// it is the last number beside the slot's name.
pub(super) fn active_pid(message: &str, slot: &str) -> Option<i32> {
    let message = message.replace(slot, "");
    message.rsplit(|c: char| !c.is_ascii_digit()).find(|word| !word.is_empty())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_spelled_for_the_server_they_go_to() {
        for (version, failover, expected) in [
            (140_009, true, "EXPORT_SNAPSHOT"),
            (150_004, true, "(SNAPSHOT 'export')"),
            (170_000, true, "(SNAPSHOT 'export', FAILOVER true)"),
            (180_000, false, "(SNAPSHOT 'export')"),
        ] {
            let expected = format!("CREATE_REPLICATION_SLOT \"s\" LOGICAL pgoutput {expected}");
            assert_eq!(create_slot(version, "s", failover), expected);
        }
    }

    #[test]
    fn names_of_publications_are_quoted_twice() {
        let options = StreamOptions {
            publications: vec!["outbox".into(), r#"o'Brien "x", \y"#.into()],
            binary: true,
            messages: false,
            charset: Charset::AsItIs,
        };
        assert_eq!(
            start_replication("s", Lsn::new(0x1_0000_00FF), &options),
            "START_REPLICATION SLOT \"s\" LOGICAL 1/FF (proto_version '1', publication_names \
             '\"outbox\",\"o''Brien \"\"x\"\", \\y\"', binary 'true', messages 'false')"
        );
    }

    #[test]
    fn versions_are_numbers() {
        for (text, expected) in [
            ("15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("18beta1", Some(180_000)),
            ("9.6.24", Some(90_624)),
            ("17", Some(170_000)),
            ("EnterpriseDB", None),
            ("", None),
            ("4294967295.1", None),
        ] {
            assert_eq!(version_number(text), expected, "{text}");
        }
    }

    #[test]
    fn histories_are_read_and_malformed_ones_refused() {
        let content = "1\t0/3000110\tno recovery target specified\n\n# comment\n2 1/A0\tbefore x\n";
        let expected = vec![(1, Lsn::new(0x300_0110)), (2, Lsn::new(0x1_0000_00A0))];
        assert_eq!(timeline_history(content), Some(expected));
        assert_eq!(timeline_history(""), Some(vec![]));
        assert_eq!(timeline_history("1 nonsense"), None);
    }

    #[test]
    fn the_process_that_uses_a_slot_is_found_in_the_text() {
        let text = "replication slot \"outbox_2\" is active for PID 4711";
        assert_eq!(active_pid(text, "outbox_2"), Some(4711));
        assert_eq!(active_pid("PID 4711 uses slot outbox_2", "outbox_2"), Some(4711));
        assert_eq!(active_pid("no number", "outbox_2"), None);
    }

    #[test]
    fn slot_names_are_what_postgresql_takes() {
        assert!(is_slot_name("outbox_2") && is_slot_name(&"a".repeat(63)));
        for name in ["", "Outbox", "a-b", "a\"b", &"a".repeat(64)] {
            assert!(!is_slot_name(name), "{name}");
        }
    }
}
