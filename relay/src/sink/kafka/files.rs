//! Files that librdkafka reads when a client is made: which of them can't be read, in words that name it. A secret
//! that is mounted may be away for a while, and each attempt makes new clients.

use std::fs::File;

use crate::core::finding::Finding;

/// Properties that name a file, or a folder of files.
const PROPERTIES: &[&str] = &[
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.keystore.location",
    "ssl.crl.location",
    "https.ca.location",
];

/// What librdkafka takes for "look for one yourself".
const PROBE: &str = "probe";

/// What is wrong with the file that the property names, if it names one.
pub(super) fn unreadable(name: &str, value: &str) -> Option<Finding> {
    if !PROPERTIES.contains(&name) || [PROBE, ""].contains(&value) {
        return None;
    }
    let error = File::open(value).err()?;
    Some(Finding {
        key: format!("sink.properties.{name}"),
        what: format!("{value} can't be read: {error}"),
        remedy: "name a file that the relay may read, or put it back: a running relay looks again within ten seconds; \
                 events wait in PostgreSQL meanwhile"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_named_with_its_property() {
        let found = unreadable("ssl.ca.location", "/nowhere/root.crt").expect("it is not there");
        assert_eq!(found.key, "sink.properties.ssl.ca.location");
        assert!(found.what.contains("/nowhere/root.crt can't be read"), "{found:?}");
        for (name, value) in
            [("ssl.ca.location", PROBE), ("ssl.ca.location", "/"), ("client.id", "/nowhere")]
        {
            assert_eq!(unreadable(name, value), None, "{name} = {value}");
        }
    }
}
