//! The little that settings need to know of a connection string: whose database it names, and
//! how to print it without its password. Opening it is the business of `postgres`.

use std::fmt::Write as _;

use super::secret::MASK;

/// Names found in a connection string.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ConnInfo {
    /// Database name, percent-decoded.
    pub(super) database: Option<String>,
    /// User, which libpq takes for the database's name when there is none.
    pub(super) user: Option<String>,
}

/// Parameters that hold a secret.
const SECRET_PARAMETERS: [&str; 3] = ["password", "sslpassword", "oauth_client_secret"];

/// Reads `postgres://…` or `host=… dbname=…`; `None` when it is neither.
pub(super) fn parse(text: &str) -> Option<ConnInfo> {
    let mut found = ConnInfo::default();
    let mut take = |key: &str, value: &str| match key {
        "dbname" if !value.is_empty() => found.database = Some(value.to_owned()),
        "user" if !value.is_empty() => found.user = Some(value.to_owned()),
        _ => {}
    };
    match after_scheme(text) {
        Some(rest) => {
            let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            if let Some((login, _hosts)) = authority.rsplit_once('@') {
                take("user", &percent_decoded(login.split(':').next().unwrap_or("")));
            }
            take("dbname", &percent_decoded(path));
            for (key, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
                take(key, &percent_decoded(value));
            }
        }
        None => {
            for (key, value) in pairs(text)? {
                take(&key, &value);
            }
        }
    }
    Some(found)
}

/// The connection string with `***` for what is secret. Masks too much rather than too little:
/// a string that can't be taken apart is masked whole.
pub(super) fn masked(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let Some(rest) = after_scheme(text) else {
        return pairs(text).map_or_else(|| MASK.to_owned(), |pairs| masked_pairs(&pairs));
    };
    let scheme = text.strip_suffix(rest).unwrap_or("");
    // The last `@`, wherever it is: an unescaped `@`, `/` or `?` in a password is still masked.
    let (login, rest) = match rest.rsplit_once('@') {
        Some((login, rest)) => match login.split_once(':') {
            Some((user, _)) => (format!("{user}:{MASK}@"), rest),
            None => (format!("{login}@"), rest),
        },
        None => (String::new(), rest),
    };
    let (place, query) = match rest.split_once('?') {
        Some((place, query)) => (place, format!("?{}", masked_query(query))),
        None => (rest, String::new()),
    };
    format!("{scheme}{login}{place}{query}")
}

fn masked_query(query: &str) -> String {
    let parts: Vec<String> = query
        .split('&')
        .map(|pair| match pair.split_once('=') {
            Some((key, _)) if SECRET_PARAMETERS.contains(&key) => format!("{key}={MASK}"),
            _ => pair.to_owned(),
        })
        .collect();
    parts.join("&")
}

fn masked_pairs(pairs: &[(String, String)]) -> String {
    let mut out = String::new();
    for (key, value) in pairs {
        let gap = if out.is_empty() { "" } else { " " };
        let secret = SECRET_PARAMETERS.contains(&key.as_str());
        let plain = !value.is_empty() && !value.contains([' ', '\'', '\\']);
        // Writing to a string can't fail.
        let _ = match (secret, plain) {
            (true, _) => write!(out, "{gap}{key}={MASK}"),
            (false, true) => write!(out, "{gap}{key}={value}"),
            (false, false) => {
                write!(out, "{gap}{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
            }
        };
    }
    out
}

fn after_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://"))
}

/// libpq's `key = 'value'` form, with its quotes and backslashes; `None` when malformed or empty.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim();
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return None;
        }
        let (value, after) = value(after.trim_start())?;
        found.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    (!found.is_empty()).then_some(found)
}

/// One value, and what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut chars = text.char_indices().skip(usize::from(quoted));
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            '\'' if quoted => return Some((value, text.get(at + 1..)?)),
            c if c.is_whitespace() && !quoted => return Some((value, text.get(at..)?)),
            c => value.push(c),
        }
    }
    (!quoted).then_some((value, ""))
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'%')
            .then(|| tail.split_at_checked(2))
            .flatten()
            .and_then(|(hex, after)| Some((std::str::from_utf8(hex).ok()?, after)))
            .and_then(|(hex, after)| Some((u8::from_str_radix(hex, 16).ok()?, after)));
        match escaped {
            Some((byte, after)) => {
                bytes.push(byte);
                rest = after;
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_and_user_are_found_in_both_forms() {
        for (text, database, user) in [
            ("postgres://relay:pw@db.internal:5432/app", Some("app"), Some("relay")),
            ("postgresql://relay@a,b:5433/my%20app?sslmode=require", Some("my app"), Some("relay")),
            ("postgres://db", None, None),
            ("postgres:///app?host=/run/pg&user=u", Some("app"), Some("u")),
            ("postgres://u@db/app?dbname=other", Some("other"), Some("u")),
            (r"host=db dbname = 'my \'app' user=u", Some("my 'app"), Some("u")),
        ] {
            let found = parse(text).expect(text);
            assert_eq!((found.database.as_deref(), found.user.as_deref()), (database, user));
        }
        for text in ["", "db.internal", "mysql://a/b", "host='open", "host"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_password_is_masked_in_every_form_even_when_it_is_not_escaped() {
        for (text, printed) in [
            ("postgres://u:pw@db/app", "postgres://u:***@db/app"),
            ("postgres://u@db/app", "postgres://u@db/app"),
            ("postgres://u:p@w/x?y@db/app", "postgres://u:***@db/app"),
            (
                "postgres://db/app?user=u&password=pw&sslmode=require",
                "postgres://db/app?user=u&password=***&sslmode=require",
            ),
            ("host=db password='p w' dbname=app", "host=db password=*** dbname=app"),
            ("host=db options='-c a=b'", "host=db options='-c a=b'"),
            ("pw pw pw", "***"),
            ("", ""),
        ] {
            assert_eq!(masked(text), printed);
        }
    }
}
