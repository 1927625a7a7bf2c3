//! Values that must not be seen: they print as `***` wherever they go.

use std::fmt;

/// What stands for a secret in every print.
pub const MASK: &str = "***";

/// Text that prints as `***`, also with `{:?}`; [`Secret::expose`] is the only way in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the library that needs it; never for a print.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

/// Whether the value of a setting of this name must not be seen: a librdkafka property, or a
/// parameter of a connection string. By words rather than by a list: what a later version has is
/// masked too, and one mask too many harms no one. `name` as it is meant, nothing encoded in it.
pub fn is_secret_name(name: &str) -> bool {
    const WORDS: [&str; 10] = [
        "password",
        "passphrase",
        "secret",
        "token",
        "credential",
        "private.key",
        "key.pem",
        "jaas",
        "oauthbearer.config",
        "kinit.cmd",
    ];
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word)) || name == "basic.auth.user.info"
}

#[cfg(test)]
mod tests {
    use crate::core::secret::*;

    #[test]
    fn a_secret_never_prints() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn settings_that_carry_secrets_are_known_by_their_words() {
        for name in [
            "sasl.password",
            "ssl.key.password",
            "ssl.keystore.password",
            "ssl.key.pem",
            "sasl.oauthbearer.client.secret",
            "sasl.oauthbearer.config",
            "sasl.oauthbearer.assertion.private.key.pem",
            "sasl.kerberos.kinit.cmd",
            "SASL.PASSWORD",
            "sslpassword",
            "oauth_client_secret",
        ] {
            assert!(is_secret_name(name), "{name}");
        }
        for name in
            ["bootstrap.servers", "sasl.username", "ssl.key.location", "linger.ms", "passfile"]
        {
            assert!(!is_secret_name(name), "{name}");
        }
    }
}
