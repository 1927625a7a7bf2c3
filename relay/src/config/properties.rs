//! librdkafka's properties: free names, some of them with secrets as values.

use std::{collections::BTreeMap, fmt, path::Path};

use crate::core::secret::{MASK, is_secret_name};

/// Properties by name. Prints `***` for the values of those that carry a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Name and value, by name. Values as they are: for librdkafka, not for a print.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Name and what may be shown of the value, by name.
    pub fn masked(&self) -> impl Iterator<Item = (&str, &str)> {
        self.iter().map(|(name, value)| (name, if is_secret_name(name) { MASK } else { value }))
    }

    pub(super) fn set(&mut self, name: String, value: String) {
        self.0.insert(name, value);
    }
}

impl FromIterator<(String, String)> for Properties {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Properties(pairs.into_iter().collect())
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.masked()).finish()
    }
}

/// Reads a file of `key=value` lines; empty lines and those that begin with `#` or `!` are
/// comments. Each line that is neither is an error with its number, never with its text.
pub(super) fn read_file(path: &Path) -> Result<Properties, Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|error| vec![error.to_string()])?;
    parse(&text)
}

fn parse(text: &str) -> Result<Properties, Vec<String>> {
    let mut found = Properties::default();
    let mut errors = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        match line.split_once('=').map(|(name, value)| (name.trim(), value.trim())) {
            Some((name, value)) if !name.is_empty() => found.set(name.to_owned(), value.to_owned()),
            _ => errors.push(format!("line {number} is not of the form key=value")),
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_properties_file_is_read_line_by_line() {
        let read = parse("# comment\n\n! too\nsasl.password = a=b \nbootstrap.servers=x:9092\n");
        let read = read.expect("well formed");
        assert_eq!(
            read.iter().collect::<Vec<_>>(),
            [("bootstrap.servers", "x:9092"), ("sasl.password", "a=b")]
        );
        assert_eq!(
            parse("a=1\nhunter2\n=x"),
            Err(vec![
                "line 2 is not of the form key=value".to_owned(),
                "line 3 is not of the form key=value".to_owned()
            ])
        );
    }

    #[test]
    fn a_print_shows_no_secret() {
        let properties: Properties = [("sasl.password", "pw"), ("acks", "all")]
            .map(|(n, v)| (n.into(), v.into()))
            .into_iter()
            .collect();
        assert_eq!(format!("{properties:?}"), r#"{"acks": "all", "sasl.password": "***"}"#);
    }
}
