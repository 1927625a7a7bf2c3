//! A connection string for people: as it was written, with `***` for what is secret.

use std::fmt::Write as _;

use super::text::{self, Url};
use crate::core::secret::{MASK, is_secret_name};

/// The connection string without its secrets. Read as the relay itself reads it, so that what is a
/// password there is one here, however it is written; what can't be read is masked whole.
pub(crate) fn masked(text: &str) -> String {
    match (text::pairs(text), text::after_scheme(text)) {
        (Ok(_), Some(rest)) => {
            let scheme = text.strip_suffix(rest).unwrap_or_default();
            format!("{scheme}{}", masked_url(&Url::split(rest)))
        }
        (Ok(pairs), None) => masked_pairs(&pairs),
        (Err(_), _) => MASK.to_owned(),
    }
}

fn masked_url(url: &Url<'_>) -> String {
    let mut out = String::new();
    if let Some(user) = url.user {
        out.push_str(user);
        out.push_str(if url.password.is_some() { ":***@" } else { "@" });
    }
    out.push_str(url.place);
    if let Some(parameters) = url.parameters {
        let parameters: Vec<String> = parameters.split('&').map(masked_parameter).collect();
        out.push('?');
        out.push_str(&parameters.join("&"));
    }
    out
}

fn masked_parameter(parameter: &str) -> String {
    match parameter.split_once('=') {
        Some((name, _)) if text::parameter_name(name).is_ok_and(|name| is_secret_name(&name)) => {
            format!("{name}={MASK}")
        }
        _ => parameter.to_owned(),
    }
}

fn masked_pairs(pairs: &[(String, String)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        let gap = if out.is_empty() { "" } else { " " };
        let plain = !value.is_empty() && !value.contains([' ', '\'', '\\']);
        // Writing to a string can't fail.
        let _ = if is_secret_name(key) {
            write!(out, "{gap}{key}={MASK}")
        } else if plain {
            write!(out, "{gap}{key}={value}")
        } else {
            write!(out, "{gap}{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
        };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_password_is_masked_however_it_is_written() {
        for (text, printed) in [
            ("postgres://u:pw@db/app", "postgres://u:***@db/app"),
            ("postgres://u:@db/app", "postgres://u:***@db/app"),
            ("postgres://u@db/app", "postgres://u@db/app"),
            ("postgres://u:p?w@h1,h2:5433/app?a=b@c", "postgres://u:***@h1,h2:5433/app?a=b@c"),
            (
                "postgres://db/app?user=u&password=pw&sslmode=require",
                "postgres://db/app?user=u&password=***&sslmode=require",
            ),
            ("postgres://db/app?pass%77ord=pw", "postgres://db/app?pass%77ord=***"),
            (
                "postgres://db?password=a&%70%61ssword=b&sslpassword=c",
                "postgres://db?password=***&%70%61ssword=***&sslpassword=***",
            ),
            (
                "postgres://db/app?application_name=a@b&password=pw",
                "postgres://db/app?application_name=a@b&password=***",
            ),
            ("host=db password='p w' dbname=app", "host=db password=*** dbname=app"),
            ("password=a password=b", "password=*** password=***"),
            ("host=db options='-c a=b'", "host=db options='-c a=b'"),
            // What the relay refuses: a piece of it may be a password.
            ("postgres://u:p@w/x?y@db/app", "***"),
            ("postgres://db?password=a&b", "***"),
            ("password=p w", "***"),
            ("pw pw pw", "***"),
        ] {
            assert_eq!(masked(text), printed, "{text}");
        }
    }

    /// Each character as it is, or as `%xx`.
    fn encoded(text: &str, escape: &[bool]) -> String {
        let written = text.bytes().zip(escape.iter().chain(std::iter::repeat(&false)));
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        written
            .map(|(byte, escape)| {
                if *escape || !plain(byte) {
                    format!("%{byte:02X}")
                } else {
                    char::from(byte).to_string()
                }
            })
            .collect()
    }

    proptest! {
        /// Wherever the relay reads a secret from, and however its name and value are encoded, the
        /// print has neither the value nor its encoded form.
        #[test]
        fn no_secret_that_the_relay_can_read_is_ever_printed(
            name in prop::sample::select(vec!["password", "sslpassword", "oauth_client_secret"]),
            secret in "S[ -~]{8,16}S",
            name_escape in prop::collection::vec(any::<bool>(), 24),
            secret_escape in prop::collection::vec(any::<bool>(), 24),
            before in "([a-z]{1,8}(=[a-z@]{0,8})?&){0,2}",
            credentials in any::<bool>(),
        ) {
            let (key, value) = (encoded(name, &name_escape), encoded(&secret, &secret_escape));
            let quoted = secret.replace('\\', "\\\\").replace('\'', "\\'");
            let login = if credentials { format!("u:{value}@") } else { String::new() };
            for text in [
                format!("postgres://{login}db/app?{before}{key}={value}&sslmode=require"),
                format!("postgres://u:{value}@db"),
                format!("host=db {name} = '{quoted}' user=u {name}='{quoted}'"),
                format!("{name}='{quoted}' host=db"),
            ] {
                let printed = masked(&text);
                for part in [&secret, &value, &quoted] {
                    prop_assert!(!printed.contains(part.as_str()), "{text}: {printed}");
                }
            }
        }
    }
}
