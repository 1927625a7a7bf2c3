//! How the ids of rows are ordered and compared in a repair.

use super::sql::{hexadecimal, identifier};
use crate::postgres::catalog::table::Column;

/// `character(n)`.
const CHARACTER: u32 = 1042;
/// `name`, `text`, `character(n)`, `varchar`.
const TEXTS: [u32; 4] = [19, 25, CHARACTER, 1043];

/// The id of a table's rows, in SQL.
#[derive(Clone, Debug)]
pub(super) struct Id {
    order: Order,
    value: String,
    /// What a cursor's text is cast to.
    pub(super) cast: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Type,
    Bytes,
}

impl Id {
    /// Numbers and the like are ordered as such: an id that counts up tells the order of a
    /// transaction's rows. What is text goes by its bytes: to its collation or its type others may be
    /// equal to it, and a repair that resumes would leave them out. So do types of extensions, of which
    /// a session sees no operators.
    pub(super) fn of(column: &Column) -> Self {
        let (name, base) = (format!("t.{}", identifier(&column.name)), &column.type_name);
        if TEXTS.contains(&column.base_oid) || base.contains('.') {
            return Id { order: Order::Bytes, value: name, cast: "pg_catalog.text".to_owned() };
        }
        Id { order: Order::Type, value: format!("{name}::{base}"), cast: base.clone() }
    }

    /// In a database whose encoding is not UTF-8 (`raw`) bytes are written in hexadecimal digits, which
    /// have the same order.
    pub(super) fn sql(&self, raw: bool) -> String {
        let text = match (self.order, raw) {
            (Order::Type, _) => return self.value.clone(),
            (Order::Bytes, false) => format!("{}::pg_catalog.text", self.value),
            (Order::Bytes, true) => format!("({})", hexadecimal(&self.value)),
        };
        format!("({text} collate pg_catalog.\"C\")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_go_by_their_bytes_and_numbers_by_their_values() {
        let bytes = "(t.\"id\"::pg_catalog.text collate pg_catalog.\"C\")";
        for (base_oid, type_name, sql, cast) in [
            (2950, "uuid", "t.\"id\"::uuid", "uuid"),
            // A domain over it, too.
            (20, "bigint", "t.\"id\"::bigint", "bigint"),
            (CHARACTER, "bpchar", bytes, "pg_catalog.text"),
            (70_000, "public.citext", bytes, "pg_catalog.text"),
        ] {
            let (name, type_name) = ("id".to_owned(), type_name.to_owned());
            let id = Id::of(&Column { name, base_oid, type_name, ..Column::default() });
            assert_eq!((id.sql(false).as_str(), id.cast.as_str()), (sql, cast));
            assert_eq!(id.sql(true).contains("'hex'"), sql == bytes);
        }
    }
}
