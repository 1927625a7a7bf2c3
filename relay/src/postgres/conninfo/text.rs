//! The two ways of writing a connection: `postgres://…` and libpq's `key=value` list.
//!
//! Turns text into pairs as libpq does, without knowing what any key means: of two values for
//! one key the later counts, `%`-escapes are decoded once, several hosts stay one comma list.
//! Called by [`super::ConnectSettings::parse`] alone. Errors never quote the text: it may hold a
//! password.

/// Keys and values in the order they were written.
pub(super) type Pairs = Vec<(String, String)>;

/// Splits either form.
///
/// # Errors
/// What is wrong, in words that hold no part of the text but a key.
pub(super) fn pairs(text: &str) -> Result<Pairs, String> {
    match after_scheme(text) {
        Some(rest) => url(rest),
        None if text.contains("://") => {
            Err("the URL must begin with postgres:// or postgresql://".to_owned())
        }
        None => key_values(text),
    }
}

/// What follows `postgres://`; `None` where that is not how it begins.
pub(super) fn after_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"))
}

/// A URL's parts, as they are written.
pub(super) struct Url<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) password: Option<&'a str>,
    /// Hosts, and the database behind `/`.
    pub(super) place: &'a str,
    pub(super) parameters: Option<&'a str>,
}

impl<'a> Url<'a> {
    /// Takes apart what follows the scheme. An @ before the first / ends the credentials, whatever
    /// they hold.
    pub(super) fn split(rest: &'a str) -> Self {
        let authority = rest.split('/').next().unwrap_or(rest);
        let (credentials, rest) = match authority.split_once('@') {
            Some((credentials, _)) => {
                (Some(credentials), rest.split_once('@').map_or("", |(_, after)| after))
            }
            None => (None, rest),
        };
        let (user, password) = match credentials.map(|both| both.split_once(':')) {
            Some(Some((user, password))) => (Some(user), Some(password)),
            Some(None) => (credentials, None),
            None => (None, None),
        };
        let (place, parameters) = match rest.split_once('?') {
            Some((place, parameters)) => (place, Some(parameters)),
            None => (rest, None),
        };
        Url { user, password, place, parameters }
    }
}

fn url(rest: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let Url { user, password, place, parameters } = Url::split(rest);
    push_decoded(&mut pairs, "user", user.unwrap_or(""))?;
    push_decoded(&mut pairs, "password", password.unwrap_or(""))?;
    let (hosts, database) = place.split_once('/').unwrap_or((place, ""));
    if hosts.contains('@') {
        return Err("the URL has more than one @: write an @ in the password as %40".to_owned());
    }
    push_hosts(&mut pairs, hosts)?;
    push_decoded(&mut pairs, "dbname", database)?;
    for parameter in parameters.unwrap_or("").split('&').filter(|p| !p.is_empty()) {
        let (key, value) = parameter
            .split_once('=')
            .ok_or_else(|| "a parameter after ? has no value: write it as key=value".to_owned())?;
        let key = parameter_name(key)?;
        if value.contains('=') {
            return Err(format!("{key}: write an = in the value as %3D"));
        }
        let value = decode(&key, value)?;
        // As libpq does for the JDBC driver's spelling.
        if key == "ssl" && value == "true" {
            pairs.push(("sslmode".to_owned(), "require".to_owned()));
        } else {
            pairs.push((key, value));
        }
    }
    Ok(pairs)
}

/// The name of a parameter of a URL, as it is meant.
pub(super) fn parameter_name(written: &str) -> Result<String, String> {
    decode("the name of a parameter", written)
}

fn push_hosts(pairs: &mut Pairs, hosts: &str) -> Result<(), String> {
    if hosts.is_empty() {
        return Ok(());
    }
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = match host.strip_prefix('[') {
            Some(bracketed) => {
                let (address, rest) = bracketed
                    .split_once(']')
                    .ok_or_else(|| "host: an IPv6 address lacks its closing ]".to_owned())?;
                match (rest.is_empty(), rest.strip_prefix(':')) {
                    (true, _) => (address, ""),
                    (false, Some(port)) => (address, port),
                    (false, None) => return Err("host: only :port may follow ]".to_owned()),
                }
            }
            None => host.split_once(':').unwrap_or((host, "")),
        };
        names.push(decode("host", name)?);
        ports.push(decode("port", port)?);
    }
    pairs.push(("host".to_owned(), names.join(",")));
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    Ok(())
}

fn push_decoded(pairs: &mut Pairs, key: &str, value: &str) -> Result<(), String> {
    if !value.is_empty() {
        pairs.push((key.to_owned(), decode(key, value)?));
    }
    Ok(())
}

fn decode(key: &str, text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
        let decoded = digit()
            .zip(digit())
            .and_then(|(high, low)| u8::try_from(high << 4 | low).ok())
            .ok_or_else(|| {
                format!("{key}: a % is not followed by two hex digits: write a % as %25")
            })?;
        if decoded == 0 {
            return Err(format!("{key}: %00 can't be part of a value"));
        }
        bytes.push(decoded);
    }
    String::from_utf8(bytes).map_err(|_| format!("{key}: the decoded value is not UTF-8"))
}

fn key_values(text: &str) -> Result<Pairs, String> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let value = after.trim_start().strip_prefix('=').ok_or_else(|| {
            // The word may be a piece of a password with a space in it: not to be repeated.
            "a word is not followed by =: write key=value, with quotes around spaces".to_owned()
        })?;
        if key.is_empty() {
            return Err("an = has no key before it".to_owned());
        }
        let (value, after) = value_of(key, value.trim_start())?;
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// Reads one value, quoted or bare, and returns what follows it.
fn value_of<'a>(key: &str, text: &'a str) -> Result<(String, &'a str), String> {
    let quoted = text.strip_prefix('\'');
    let body = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut chars = body.chars();
    loop {
        let before = chars.as_str();
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted.is_some() => return Ok((value, chars.as_str())),
            Some(c) if quoted.is_none() && c.is_whitespace() => return Ok((value, before)),
            Some(c) => value.push(c),
            None if quoted.is_some() => return Err(format!("{key}: the closing quote is missing")),
            None => return Ok((value, "")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_of(pairs: &Pairs) -> String {
        pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn both_forms_are_read_as_libpq_reads_them() {
        for (text, expected) in [
            ("postgres://", ""),
            ("postgresql://h", "host=h"),
            ("postgres://u@h/d", "user=u|host=h|dbname=d"),
            ("postgres://u:p%40%3A%25@h:1/d", "user=u|password=p@:%|host=h|port=1|dbname=d"),
            ("postgres://u:p?w@h?user=v", "user=u|password=p?w|host=h|user=v"),
            ("postgres://u:a:b@h", "user=u|password=a:b|host=h"),
            ("postgres://h1:1,h2,[::1]:3/d", "host=h1,h2,::1|port=1,,3|dbname=d"),
            ("postgres://%2Frun%2Fpg/d", "host=/run/pg|dbname=d"),
            ("postgres:///d?host=/run/pg&user=x", "dbname=d|host=/run/pg|user=x"),
            ("postgres://h?options=-c%20a%3Db", "host=h|options=-c a=b"),
            ("postgres://h/?application_name=a@b", "host=h|application_name=a@b"),
            ("postgres://h?ssl=true", "host=h|sslmode=require"),
            ("postgres://h?", "host=h"),
            ("host=h port=1", "host=h|port=1"),
            ("  host = h  user=\tu ", "host=h|user=u"),
            (r"password='a b\'c\\d' user=u\ v", r"password=a b'c\d|user=u v"),
            ("password='' user=u", "password=|user=u"),
            ("user=", "user="),
        ] {
            assert_eq!(text_of(&pairs(text).expect(text)), expected, "{text}");
        }
    }

    #[test]
    fn malformed_text_is_refused_without_repeating_it() {
        for text in [
            "mysql://u:sesame@h",
            "postgres://u:sesame%4@h",
            "postgres://u:sesame%zz@h",
            "postgres://u:sesame%00@h",
            "postgres://u:sesame%ff@h",
            "postgres://u:ses@me@h",
            "postgres://u:sesame@[::1",
            "postgres://u:sesame@[::1]x",
            "postgres://u:sesame@h?sslmode",
            "postgres://u:sesame@h?options=a=b",
            "password=open sesame",
            "password='sesame",
            "=sesame",
        ] {
            let error = pairs(text).expect_err(text);
            assert!(!error.contains("sesame") && !error.contains("ses@"), "{text}: {error}");
        }
    }
}
