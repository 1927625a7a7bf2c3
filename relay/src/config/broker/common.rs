//! What kinds of brokers have in common.

use std::time::Duration;

use crate::core::secret::MASK;

/// What every kind is told.
pub(in crate::config) struct Common {
    pub(in crate::config) relay_name: String,
    pub(in crate::config) topic_grace: Duration,
    pub(in crate::config) reserved_topics: Vec<String>,
}

/// Several addresses, with what stands before each `@` hidden: user and password, or a token. `bare`: what an address
/// without a scheme is shown as.
pub(super) fn without_secrets(urls: &str, bare: fn(&str) -> String) -> String {
    let one = |url: &str| match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{MASK}@{host}"),
            None => url.to_owned(),
        },
        None => bare(url),
    };
    urls.split(',').map(|url| one(url.trim())).collect::<Vec<_>>().join(",")
}
