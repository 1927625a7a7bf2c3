//! A qualified table name, as written in the settings and as the server announces it.

use std::fmt;

/// Schema and table, unquoted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableName {
    /// Unquoted.
    pub schema: String,
    /// Unquoted.
    pub table: String,
}

impl TableName {
    /// Parses `schema.table` by SQL's rules: folded to lower case unless in double quotes, in
    /// which a quote is doubled.
    ///
    /// # Errors
    /// What is wrong, for a person.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (schema, rest) = identifier(text)?;
        let rest = rest
            .strip_prefix('.')
            .ok_or_else(|| format!("{text:?} has no schema; write it as schema.table"))?;
        let (table, rest) = identifier(rest)?;
        if !rest.is_empty() {
            return Err(format!("{text:?} is not of the form schema.table"));
        }
        Ok(TableName { schema, table })
    }

    /// Whether it is the table of that schema and name.
    pub fn is(&self, schema: &str, table: &str) -> bool {
        self.schema == schema && self.table == table
    }
}

/// As SQL: quoted where it has to be.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", quoted(&self.schema), quoted(&self.table))
    }
}

/// A name as SQL wants it: in quotes unless it is plain lower case. (A reserved word stays bare;
/// this is for people to read and paste, not for statements the relay sends.)
pub(crate) fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Takes one identifier from the front of `text`.
fn identifier(text: &str) -> Result<(String, &str), String> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        if name.is_empty() {
            return Err(format!("{text:?} begins with no table or schema name"));
        }
        return Ok((name.to_lowercase(), rest));
    };
    let mut name = String::new();
    loop {
        let (part, after) =
            rest.split_once('"').ok_or_else(|| format!("{text:?} lacks a closing quote"))?;
        name.push_str(part);
        let Some(doubled) = after.strip_prefix('"') else {
            if name.is_empty() {
                return Err("a quoted name is empty".to_owned());
            }
            return Ok((name, after));
        };
        name.push('"');
        rest = doubled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_printed_as_sql_has_them() {
        for (text, schema, table, printed) in [
            ("outbox.events", "outbox", "events", "outbox.events"),
            ("Outbox.Events", "outbox", "events", "outbox.events"),
            (r#""Outbox"."a.b""#, "Outbox", "a.b", r#""Outbox"."a.b""#),
            (r#""a""b".c"#, "a\"b", "c", r#""a""b".c"#),
        ] {
            let name = TableName::parse(text).unwrap();
            assert!(name.is(schema, table), "{name:?}");
            assert_eq!(name.to_string(), printed);
        }
    }

    #[test]
    fn what_is_no_qualified_name_is_refused() {
        for text in ["", "events", "a.", ".b", "a.b.c", "\"a.b", "\"\".b", "a b.c", "a.b "] {
            assert!(TableName::parse(text).is_err(), "{text:?}");
        }
    }
}
