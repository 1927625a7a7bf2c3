//! The roles of `docs/ROLES.md` and what it gives them, with the names that they have in this run.

use std::fmt;

use anyhow::{Context, Result};

/// The statements of `docs/ROLES.md`, in its order: cluster, database, schema.
const ROLES: &str = include_str!("../../docs/ROLES.md");

/// One right of one role on one object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// `select`, `usage`, `execute`, ….
    pub right: String,
    /// As GRANT names it, in one line: `schema outbox`, `outbox.events`, `function …`.
    pub object: String,
    /// Its name in this run.
    pub role: String,
}

impl Grant {
    /// All that one statement gives.
    pub(crate) fn parse(statement: &str) -> Vec<Grant> {
        let statement = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        if statement.is_empty() {
            return Vec::new();
        }
        let parts = statement.strip_prefix("grant ").and_then(|rest| {
            let (rights, rest) = rest.split_once(" on ")?;
            let (objects, roles) = rest.rsplit_once(" to ")?;
            Some((rights, objects, roles))
        });
        let (rights, objects, roles) = parts.unwrap_or_else(|| panic!("a grant: {statement}"));
        let (kind, objects) = match objects.strip_prefix("function ") {
            Some(functions) => ("function ", functions.split_inclusive(')').collect::<Vec<_>>()),
            None => ("", objects.split(", ").collect()),
        };
        let mut grants = Vec::new();
        for role in roles.split(", ") {
            for object in &objects {
                let object = format!("{kind}{}", object.trim_start_matches(", "));
                grants.extend(single(rights).into_iter().map(|right| Grant {
                    right,
                    object: object.clone(),
                    role: role.to_owned(),
                }));
            }
        }
        grants
    }

    /// The statement that takes it away.
    pub fn revoke(&self) -> String {
        format!("revoke {} on {} from {}", self.right, self.object, self.role)
    }
}

/// `select, insert (a, b)` as `select`, `insert (a)` and `insert (b)`.
fn single(rights: &str) -> Vec<String> {
    let (mut all, mut of) = (Vec::new(), String::new());
    for part in rights.split(", ") {
        let part = match part.split_once(" (") {
            Some((right, column)) => {
                of = right.to_owned();
                column
            }
            None => part,
        };
        let column = part.trim_end_matches(')');
        all.push(if of.is_empty() { part.to_owned() } else { format!("{of} ({column})") });
        if part.ends_with(')') {
            of.clear();
        }
    }
    all
}

/// As GRANT has it.
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "grant {} on {} to {}", self.right, self.object, self.role)
    }
}

/// Whose rights a session has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Owns the schema `outbox`.
    Owner,
    /// Adds events.
    Writer,
    /// Streams and reads events, and parks them.
    Relay,
    /// Looks after parked events.
    Operator,
    /// Takes messages over.
    Consumer,
}

impl Role {
    pub(crate) const ALL: [Role; 5] =
        [Role::Owner, Role::Writer, Role::Relay, Role::Operator, Role::Consumer];

    /// As `docs/ROLES.md` calls it.
    const fn documented_name(self) -> &'static str {
        match self {
            Role::Owner => "outbox_owner",
            Role::Writer => "outbox_writer",
            Role::Relay => "outbox_relay",
            Role::Operator => "outbox_operator",
            Role::Consumer => "inbox_consumer",
        }
    }

    /// Its name in this run: another run may use the same cluster.
    pub(crate) fn name(self) -> String {
        format!("{}_{}", self.documented_name(), std::process::id())
    }
}

/// The `index`-th SQL block of `docs/ROLES.md`, with this run's names.
pub(crate) fn documented(index: usize, database: &str) -> Result<String> {
    let block = ROLES
        .split("```sql\n")
        .nth(index + 1)
        .and_then(|rest| rest.split("```").next())
        .context("docs/ROLES.md has three SQL blocks")?;
    Ok(named(block, database))
}

pub(crate) fn named(sql: &str, database: &str) -> String {
    Role::ALL
        .iter()
        .fold(sql.replace("database app", &format!("database {database}")), |sql, role| {
            sql.replace(role.documented_name(), &role.name())
        })
}
