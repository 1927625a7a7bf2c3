//! What the NATS sink can be told.

use std::{path::PathBuf, time::Duration};

use super::subject::Template;
use crate::{
    core::{finding::Finding, printable, progress_home::ProgressHome, secret::Secret},
    sink::files,
};

/// Progress of all relays of a stream is below this subject, unless a setting says otherwise.
pub const PROGRESS_PREFIX: &str = "outbox-relay-progress";

/// Which server, which stream, and how records are named there.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the relay; a part of the subject of its progress.
    pub relay_name: String,
    /// Servers, separated by commas: `nats://host:4222` or `tls://host:4222`; user and password, or a
    /// token, may be in it.
    pub url: Secret,
    /// The stream that takes records and progress.
    pub stream: String,
    /// Of records.
    pub subject: Template,
    /// How many a topic has.
    pub partitions: i32,
    /// Of the relay's progress.
    pub progress_subject: Option<String>,
    /// A file that `nsc` or `nats auth` made.
    pub credentials_file: Option<PathBuf>,
    /// A file with an nkey's seed.
    pub nkey_file: Option<PathBuf>,
    /// Certificates that are trusted, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// The relay's own certificate, and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whether what a server has lost after it confirmed it is published again; otherwise the relay halts.
    pub repairs_broker_loss: bool,
    /// How long a subject that the stream lacks is watched for.
    pub topic_grace: Duration,
    /// Patterns of topics that are no destination.
    pub reserved_topics: Vec<String>,
}

impl Settings {
    /// The subject of this relay's progress.
    pub fn progress_subject(&self) -> String {
        match &self.progress_subject {
            Some(subject) => subject.clone(),
            None => format!("{PROGRESS_PREFIX}.{}", self.relay_name),
        }
    }

    /// What a person can do at the subject of the progress.
    pub(in crate::sink) fn progress_home(&self) -> ProgressHome {
        let (stream, subject) = (&self.stream, self.progress_subject());
        ProgressHome {
            name: format!("the stream {stream}"),
            guard: format!("let the relay's user alone publish to {subject}"),
            empty: format!(
                "remove the records of progress: `nats stream purge {stream} --subject {subject} --force`"
            ),
            is_outside: true,
            has_events: true,
        }
    }

    /// The broker, in a sentence; without what is secret.
    pub fn name(&self) -> String {
        format!("NATS at {}", self.servers().join(", "))
    }

    /// Where a login that a server rejects is corrected.
    pub(super) fn login(&self) -> String {
        const SERVER: &str = "or let the server accept it. Events wait in PostgreSQL meanwhile";
        let file = [("credentials_file", &self.credentials_file), ("nkey_file", &self.nkey_file)];
        match file.into_iter().find_map(|(name, file)| Some((name, file.as_ref()?))) {
            Some((name, file)) => format!(
                "correct {} (sink.nats.{name}), which is read again within ten seconds, {SERVER}",
                file.display()
            ),
            None if self.url.expose().contains('@') => format!(
                "correct the user and password, or the token, in sink.nats.url, and restart the relay, {SERVER}"
            ),
            None => "the relay has no login: set sink.nats.credentials_file or sink.nats.nkey_file, or write user and \
                     password, or a token, into sink.nats.url, and restart it"
                .to_owned(),
        }
    }

    /// Host and port of each server.
    fn servers(&self) -> Vec<String> {
        let host = |url: &str| {
            let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
            printable::short(rest.rsplit_once('@').map_or(rest, |(_, host)| host)).to_string()
        };
        self.url.expose().split(',').map(|url| host(url.trim())).collect()
    }

    /// What can be seen beforehand. Connects to nothing.
    pub fn problems(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut problem = |key: &str, what: String, remedy: &str| {
            found.push(Finding { key: key.into(), what, remedy: remedy.into() });
        };
        for server in self.url.expose().split(',') {
            if server.trim().parse::<async_nats::ServerAddr>().is_err() {
                let remedy =
                    "write nats://host:4222 or tls://host:4222, several with commas between";
                problem("sink.nats.url", "names no server".into(), remedy);
            }
        }
        if self.stream.is_empty()
            || self.stream.contains(|c: char| c.is_whitespace() || ".*>/\\".contains(c))
        {
            let what = format!("{:?} is no name of a stream", printable::short(&self.stream));
            problem(
                "sink.nats.stream",
                what,
                "name the stream that takes the records, such as ORDERS",
            );
        }
        let subject = self.progress_subject();
        if !super::subject::is_valid(&subject) {
            let what = format!("{:?} is no subject", printable::short(&subject));
            problem(
                "sink.nats.progress_subject",
                what,
                "write tokens with dots between, without wildcards",
            );
        }
        let (certificate, key) = self.certificate.as_ref().map(|(a, b)| (a, b)).unzip();
        found.extend(files::unreadable(
            "sink.nats",
            [
                ("credentials_file", self.credentials_file.as_ref()),
                ("nkey_file", self.nkey_file.as_ref()),
                ("ca_file", self.ca_file.as_ref()),
                ("certificate_file", certificate),
                ("key_file", key),
            ],
        ));
        found
    }
}

#[cfg(test)]
pub(super) fn of_a_test() -> Settings {
    Settings {
        relay_name: "relay".into(),
        url: Secret::new("nats://relay:secret@a:4222,tls://b"),
        stream: "ORDERS".into(),
        subject: Template::default(),
        partitions: 1,
        progress_subject: None,
        credentials_file: None,
        nkey_file: None,
        ca_file: None,
        certificate: None,
        repairs_broker_loss: true,
        topic_grace: Duration::ZERO,
        reserved_topics: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::{of_a_test as settings, *};

    #[test]
    fn where_progress_is_and_how_it_is_removed_is_told_in_words_of_nats() {
        let home = settings().progress_home();
        assert_eq!(home.name, "the stream ORDERS");
        let purge = "`nats stream purge ORDERS --subject outbox-relay-progress.relay --force`";
        assert!(home.empty.ends_with(purge), "{home:?}");
    }

    #[test]
    fn a_file_that_can_not_be_read_is_named() {
        let gone = Some(PathBuf::from("/nowhere/relay.creds"));
        let found = Settings { credentials_file: gone, ..settings() }.problems();
        let keys: Vec<_> = found.iter().map(|finding| finding.key.as_str()).collect();
        assert_eq!(keys, ["sink.nats.credentials_file"]);
        assert!(found.iter().all(|finding| finding.what.contains("/nowhere/relay.creds")));
    }

    #[test]
    fn a_rejected_login_is_corrected_where_it_was_set() {
        assert!(settings().login().contains("in sink.nats.url"));
        let nkey = Settings { nkey_file: Some("/etc/relay.nk".into()), ..settings() };
        assert!(nkey.login().starts_with("correct /etc/relay.nk (sink.nats.nkey_file)"));
        let none = Settings { url: Secret::new("nats://a"), ..settings() };
        assert!(none.login().starts_with("the relay has no login"));
    }

    #[test]
    fn neither_user_nor_password_is_in_a_sentence() {
        assert_eq!(settings().name(), "NATS at a:4222, b");
        assert_eq!(settings().problems(), []);
    }

    #[test]
    fn names_that_are_none_are_told_all_at_once() {
        let wrong = Settings {
            url: Secret::new("ftp://a"),
            stream: "a stream".into(),
            progress_subject: Some("a.*".into()),
            ..settings()
        };
        let found = wrong.problems();
        let keys: Vec<_> = found.iter().map(|finding| finding.key.as_str()).collect();
        assert_eq!(keys, ["sink.nats.url", "sink.nats.stream", "sink.nats.progress_subject"]);
    }
}
