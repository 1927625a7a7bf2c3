//! Who the relay is and which database it reads: the connection string, and the names that derive
//! from it.

use std::path::PathBuf;

use super::{
    Purpose,
    checker::Checker,
    problem::Origin,
    reader::{Given, Opt},
};
use crate::{core::secret::Secret, postgres::conninfo};

/// The name's length leaves room for the longest prefix, `outbox_`, in a slot's 63 bytes.
const NAME_CHARS_MAX: usize = 56;
/// PostgreSQL's `NAMEDATALEN` − 1.
const IDENTIFIER_BYTES_MAX: usize = 63;

impl Checker<'_> {
    /// The connection string, and the file that it came from.
    pub(super) fn url(
        &mut self,
        url: Opt<String>,
        file: Opt<PathBuf>,
        purpose: Purpose,
    ) -> (Secret, Option<PathBuf>) {
        let is_given = url.is_some() || file.is_some();
        let keys = ("postgres.url", "postgres.url_file");
        let Some((key, url, file)) = self.text_or_file(keys, url, file, "the connection string")
        else {
            if !is_given && purpose != Purpose::Admin && !self.is_reported(keys.1) {
                let remedy = "set it, or postgres.url_file, or give --postgres postgres://user@host/database";
                self.needed(keys.0, &Opt::<String>::None, remedy);
            }
            return (Secret::default(), None);
        };
        if conninfo::parameters(&url.value).is_none() {
            self.problem(
                key,
                &url.origin,
                "is not a connection string",
                "write postgres://user@host/database or host=… dbname=…",
            );
        }
        (Secret::new(url.value), file)
    }

    /// Of a text and a file that has it, the one that counts: which of the `keys` that is, the text, and its file. In one
    /// layer they contradict each other, and of two the later one wins. `holds` is what the file has.
    pub(super) fn text_or_file(
        &mut self,
        (key, file_key): (&'static str, &'static str),
        text: Opt<String>,
        file: Opt<PathBuf>,
        holds: &str,
    ) -> Option<(&'static str, Given<String>, Option<PathBuf>)> {
        match (text, file) {
            (Some(text), Some(file)) if file.origin.layer() <= text.origin.layer() => {
                if text.origin.layer() == file.origin.layer() {
                    let what = format!("contradicts {key}");
                    self.problem(file_key, &file.origin, what, "give one of the two");
                }
                Some((key, text, None))
            }
            (Some(text), None) => Some((key, text, None)),
            (_, Some(file)) => {
                let text = self.text_from(file_key, &file, holds)?;
                Some((file_key, text, Some(file.value)))
            }
            (None, None) => None,
        }
    }

    fn text_from(
        &mut self,
        key: &'static str,
        file: &Given<PathBuf>,
        holds: &str,
    ) -> Option<Given<String>> {
        // A connection string typed here by mistake is not to be shown with its password.
        let path = file.value.display().to_string();
        let path =
            if path.contains('=') || path.contains("://") { conninfo::masked(&path) } else { path };
        let problem = match std::fs::read_to_string(&file.value) {
            Ok(text) if !text.trim().is_empty() => {
                let value = text.trim().to_owned();
                return Some(Given { value, origin: file.origin.clone() });
            }
            Ok(_) => format!("{path} is empty"),
            Err(error) => format!("{path} can't be read: {error}"),
        };
        self.problem(key, &file.origin, problem, format!("name a file that holds {holds}"));
        None
    }

    pub(super) fn name(&mut self, given: Opt<String>, url: &Secret, purpose: Purpose) -> String {
        if let Some(name) = given {
            if !is_plain_name(&name.value, NAME_CHARS_MAX) {
                self.problem(
                    "name",
                    &name.origin,
                    format!("{:?} is not valid", name.value),
                    "use 1 to 56 of a-z, 0-9 and _: a slot's name is made of it",
                );
            }
            return name.value;
        }
        let mut found = conninfo::parameters(url.expose()).unwrap_or_default();
        found.retain(|_, value| !value.is_empty());
        // libpq takes the user for the database's name when there is none.
        let fitted = found.remove("dbname").or(found.remove("user")).map(|database| {
            let fit =
                |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
            database.chars().take(NAME_CHARS_MAX).map(fit).collect::<String>()
        });
        match fitted {
            Some(name) => name,
            None => {
                // Without a connection string that one is missed, not its consequence.
                let url_is_fine = !url.expose().is_empty()
                    && !self.is_reported("postgres.url")
                    && !self.is_reported("postgres.url_file");
                if url_is_fine && purpose == Purpose::Relay && !self.is_reported("name") {
                    self.problem(
                        "name",
                        &Origin::Default,
                        "is not set, and the connection string names no database to take it from",
                        "set it, such as name = \"orders\"",
                    );
                }
                "outbox".into()
            }
        }
    }

    /// `<name>_<route>`.
    pub(super) fn name_of_route(&mut self, name: &str, route: &str) -> String {
        let full = format!("{name}_{route}");
        if full.len() > NAME_CHARS_MAX && is_plain_name(name, NAME_CHARS_MAX) {
            let what = format!("{full:?} is not valid, which this route's relay is called");
            let remedy = "use a shorter name, or a shorter one for the route";
            self.problem("name", &Origin::Default, what, remedy);
        }
        full
    }

    pub(super) fn slot(&mut self, given: Opt<String>, name: &str) -> String {
        let Some(slot) = given else { return format!("outbox_{name}") };
        if !is_plain_name(&slot.value, IDENTIFIER_BYTES_MAX) {
            self.problem(
                "postgres.slot",
                &slot.origin,
                format!("{:?} is not a slot's name", slot.value),
                "use 1 to 63 of a-z, 0-9 and _",
            );
        }
        slot.value
    }

    pub(super) fn identifier(&mut self, key: &str, given: Opt<String>, default: &str) -> String {
        let Some(name) = given else { return default.to_owned() };
        if name.value.len() > IDENTIFIER_BYTES_MAX || name.value.contains('\0') {
            self.problem(
                key,
                &name.origin,
                "is longer than an identifier of PostgreSQL",
                "use at most 63 bytes",
            );
        }
        name.value
    }
}

fn is_plain_name(name: &str, max: usize) -> bool {
    (1..=max).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}
