//! What a column of the outbox is for, and the setting that says which one it is.

/// A purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Id,
    Topic,
    Key,
    Type,
    Payload,
    Headers,
    Partition,
    CreatedAt,
    /// Becomes a header.
    Header,
}

impl Role {
    /// The setting that names its column.
    pub(super) fn setting(self) -> &'static str {
        match self {
            Role::Id => "outbox.columns.id",
            Role::Topic => "outbox.columns.topic",
            Role::Key => "outbox.columns.key",
            Role::Type => "outbox.columns.type",
            Role::Payload => "outbox.columns.payload",
            Role::Headers => "outbox.columns.headers",
            Role::Partition => "outbox.columns.partition",
            Role::CreatedAt => "outbox.columns.created_at",
            Role::Header => "outbox.header_columns",
        }
    }

    /// The type to suggest.
    pub(super) fn sql_type(self) -> &'static str {
        match self {
            Role::Id => "uuid",
            Role::Topic | Role::Key | Role::Type | Role::Header => "text",
            Role::Payload | Role::Headers => "jsonb",
            Role::Partition => "int",
            Role::CreatedAt => "timestamptz",
        }
    }

    pub(super) fn is_required(self) -> bool {
        matches!(self, Role::Id | Role::Topic | Role::Payload)
    }
}
