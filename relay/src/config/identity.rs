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
        if let (Some(url), Some(file)) = (&url, &file)
            && url.origin.layer() == file.origin.layer()
        {
            self.problem(
                "postgres.url_file",
                &file.origin,
                "contradicts postgres.url",
                "give one of the two",
            );
        }
        let path = file.as_ref().map(|file| file.value.clone());
        let url = match (url, file) {
            (Some(url), Some(file)) if file.origin.layer() > url.origin.layer() => {
                self.url_from(&file)
            }
            (Some(url), _) => Some(("postgres.url", url)),
            (None, Some(file)) => self.url_from(&file),
            (None, None) => {
                let given = ["postgres.url", "postgres.url_file"];
                let silent = given.into_iter().any(|key| self.is_reported(key));
                if purpose != Purpose::Admin && !silent {
                    self.problem(
                        "postgres.url",
                        &Origin::Default,
                        "is not set",
                        "set it, or postgres.url_file, or give --postgres postgres://user@host/database",
                    );
                }
                None
            }
        };
        let Some((key, url)) = url else { return (Secret::default(), None) };
        if conninfo::parameters(&url.value).is_none() {
            self.problem(
                key,
                &url.origin,
                "is not a connection string",
                "write postgres://user@host/database or host=… dbname=…",
            );
        }
        (Secret::new(url.value), path.filter(|_| key == "postgres.url_file"))
    }

    fn url_from(&mut self, file: &Given<PathBuf>) -> Option<(&'static str, Given<String>)> {
        const KEY: &str = "postgres.url_file";
        // A connection string typed here by mistake is not to be shown with its password.
        let path = file.value.display().to_string();
        let path =
            if path.contains('=') || path.contains("://") { conninfo::masked(&path) } else { path };
        let problem = match std::fs::read_to_string(&file.value) {
            Ok(text) if !text.trim().is_empty() => {
                let value = text.trim().to_owned();
                return Some((KEY, Given { value, origin: file.origin.clone() }));
            }
            Ok(_) => format!("{path} is empty"),
            Err(error) => format!("{path} can't be read: {error}"),
        };
        self.problem(KEY, &file.origin, problem, "name a file that holds the connection string");
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
