//! Which authorities vouch for a broker, where the settings name none.
//!
//! librdkafka comes with an OpenSSL of its own, which looks where no one puts certificates. So the
//! system's are handed to it as they are found: by `SSL_CERT_FILE` and `SSL_CERT_DIR` if one of
//! them is set, as OpenSSL does it, else where this system keeps them.

use std::{collections::BTreeMap, fmt::Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// Trusted certificates.
#[derive(Debug)]
pub(super) struct Roots {
    /// As librdkafka takes them: PEM, one after the other.
    pub pem: String,
    pub count: usize,
}

/// Whose word is taken for a broker's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust<'a> {
    /// There is no TLS.
    Plain,
    /// What these properties name.
    Named(&'a str),
    /// Anybody's.
    Anybody,
    /// The system's authorities.
    System,
}

impl<'a> Trust<'a> {
    pub(super) fn of(properties: &'a BTreeMap<String, String>) -> Self {
        let given = |name: &str| properties.get(name).map(|value| value.trim());
        let protocol = given("security.protocol").unwrap_or_default();
        if !["ssl", "sasl_ssl"].iter().any(|tls| protocol.eq_ignore_ascii_case(tls)) {
            return Trust::Plain;
        }
        let off = |value: &str| ["false", "f", "0"].iter().any(|no| value.eq_ignore_ascii_case(no));
        if given("enable.ssl.certificate.verification").is_some_and(off) {
            return Trust::Anybody;
        }
        let named = ["ssl.ca.location", "ssl.ca.pem"];
        match named.into_iter().find(|name| given(name).is_some_and(|value| !value.is_empty())) {
            Some(name) => Trust::Named(name),
            None => Trust::System,
        }
    }
}

/// Where [`system`] looks.
pub(super) fn place() -> String {
    let named: Vec<String> = ["SSL_CERT_FILE", "SSL_CERT_DIR"]
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name).filter(|path| !path.is_empty())?)))
        .map(|(name, path)| format!("{name}={}", path.display()))
        .collect();
    if named.is_empty() { "this system's store".to_owned() } else { named.join(" and ") }
}

/// The system's trusted certificates.
///
/// # Errors
/// There are none, and why.
pub(super) fn system() -> Result<Roots, String> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let mut what = format!("no trusted certificate was found in {}", place());
        if let Some(error) = found.errors.first() {
            let _ = write!(what, " ({error})");
        }
        return Err(what);
    }
    let mut pem = String::new();
    for certificate in &found.certs {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(certificate);
        // PEM's lines have 64 characters; base64 is ASCII, so any cut is between two of them.
        for at in (0..text.len()).step_by(64) {
            pem.push_str(text.get(at..text.len().min(at + 64)).unwrap_or_default());
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    Ok(Roots { pem, count: found.certs.len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_s_authorities_are_asked_where_tls_is_wanted_and_none_is_named() {
        fn trust(pairs: &[(&str, &str)]) -> String {
            let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            format!("{:?}", Trust::of(&owned.collect()))
        }
        for (pairs, expected) in [
            (&[][..], "Plain"),
            (&[("security.protocol", "PLAINTEXT")], "Plain"),
            (&[("security.protocol", "sasl_plaintext")], "Plain"),
            (&[("security.protocol", "SSL")], "System"),
            (&[("security.protocol", " sasl_ssl ")], "System"),
            (&[("security.protocol", "ssl"), ("ssl.ca.location", "")], "System"),
            (
                &[("security.protocol", "ssl"), ("ssl.ca.location", "probe")],
                "Named(\"ssl.ca.location\")",
            ),
            (&[("security.protocol", "ssl"), ("ssl.ca.pem", "x")], "Named(\"ssl.ca.pem\")"),
            (
                &[("security.protocol", "ssl"), ("enable.ssl.certificate.verification", "False")],
                "Anybody",
            ),
        ] {
            assert_eq!(trust(pairs), expected, "{pairs:?}");
        }
    }
}
