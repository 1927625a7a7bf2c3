//! Types of mapped columns: which one may serve which purpose, and in which format.

use std::borrow::Cow;

use super::role::Role;

/// A column's type, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Uuid,
    /// `text`, `varchar`, `char(n)`, `name`: the same bytes in both formats.
    Text,
    Json,
    Jsonb,
    Bytea,
    Int2,
    Int4,
    Int8,
    Xid8,
    Bool,
    Timestamp,
    Timestamptz,
    /// Anything else; usable by its text form.
    Other,
}

/// Whether a type may serve a purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// In both formats.
    Binary,
    /// By its text form only.
    TextOnly,
    Unfit,
}

impl Kind {
    /// OIDs of built-in types are fixed, see `pg_type.dat`.
    pub(super) fn from_oid(oid: u32) -> Self {
        match oid {
            16 => Kind::Bool,
            17 => Kind::Bytea,
            19 | 25 | 1042 | 1043 => Kind::Text,
            20 => Kind::Int8,
            21 => Kind::Int2,
            23 => Kind::Int4,
            114 => Kind::Json,
            1114 => Kind::Timestamp,
            1184 => Kind::Timestamptz,
            2950 => Kind::Uuid,
            3802 => Kind::Jsonb,
            5069 => Kind::Xid8,
            _ => Kind::Other,
        }
    }

    /// Whether it is the type that SQL names so.
    pub(super) fn is(self, wanted: &str) -> bool {
        matches!(
            (self, wanted),
            (Kind::Text, "text")
                | (Kind::Jsonb, "jsonb")
                | (Kind::Int4, "int")
                | (Kind::Timestamptz, "timestamptz")
                | (Kind::Uuid, "uuid")
        )
    }

    /// Whether PostgreSQL may have a cast to that type, as SQL names it.
    pub(super) fn casts_to(self, wanted: &str) -> bool {
        let is_int = |kind| matches!(kind, Kind::Int2 | Kind::Int4 | Kind::Int8);
        match wanted {
            "text" => true,
            _ if matches!(self, Kind::Text | Kind::Other) => true,
            "jsonb" => self == Kind::Json,
            "timestamptz" => self == Kind::Timestamp,
            "int" => is_int(self),
            _ => false,
        }
    }

    /// For messages: `type jsonb`.
    pub(super) fn name(self, oid: u32) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Kind::Uuid => "type uuid",
            Kind::Text => "type text",
            Kind::Json => "type json",
            Kind::Jsonb => "type jsonb",
            Kind::Bytea => "type bytea",
            Kind::Int2 => "type smallint",
            Kind::Int4 => "type int",
            Kind::Int8 => "type bigint",
            Kind::Xid8 => "type xid8",
            Kind::Bool => "type boolean",
            Kind::Timestamp => "type timestamp",
            Kind::Timestamptz => "type timestamptz",
            Kind::Other => return Cow::Owned(format!("the type with OID {oid}")),
        })
    }

    pub(super) fn is_json(self) -> bool {
        matches!(self, Kind::Json | Kind::Jsonb)
    }

    pub(super) fn fit(self, role: Role) -> Fit {
        use Kind::{
            Bytea, Int2, Int4, Int8, Json, Jsonb, Other, Text, Timestamp, Timestamptz, Uuid, Xid8,
        };
        match (role, self) {
            (Role::Id | Role::Topic | Role::Type, Uuid | Text | Int2 | Int4 | Int8 | Xid8) => {
                Fit::Binary
            }
            // A timestamp's text depends on the session; the server writes it, not the relay.
            (Role::Key | Role::Header, Timestamp | Timestamptz) => Fit::TextOnly,
            (Role::Key | Role::Header, kind) if kind != Other => Fit::Binary,
            (Role::Payload, Text | Json | Jsonb | Bytea) => Fit::Binary,
            (Role::Headers, Json | Jsonb) => Fit::Binary,
            (Role::Partition, Int2 | Int4 | Int8) => Fit::Binary,
            (Role::CreatedAt, Timestamp | Timestamptz) => Fit::Binary,
            // These are interpreted, so a type that is not known can't serve.
            (Role::Headers | Role::Partition | Role::CreatedAt, Other) => Fit::Unfit,
            (_, Other) => Fit::TextOnly,
            _ => Fit::Unfit,
        }
    }
}
