//! A question to the catalogs that was not answered.

/// A question about the server was not answered.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The query failed.
    #[error("reading {what}")]
    Query {
        /// The catalog.
        what: &'static str,
        /// The cause.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The answer has another shape than any known version's.
    #[error("reading {what}: this version of PostgreSQL answers in an unknown shape")]
    Shape {
        /// The catalog.
        what: &'static str,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
}
