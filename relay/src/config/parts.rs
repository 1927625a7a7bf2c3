//! From checked settings to what each module takes: the one place that knows all of them.

use super::{Column, Config, Delivery, HeaderStyle, Kind, Preset, Progress};
use crate::{
    core::finding::Finding,
    postgres::conninfo::ConnectSettings,
    route::{self, Mapping},
    sink::{any as sink, file, kafka},
};

/// What the relay's modules are made from.
#[derive(Clone, Debug)]
pub struct Parts {
    /// For `postgres`.
    pub connect: ConnectSettings,
    /// For `route`.
    pub mapping: Mapping,
    /// For `sink`.
    pub sink: sink::Settings,
}

impl Parts {
    /// The tables of its own that the relay needs with these settings.
    pub fn own_tables(&self) -> Vec<&'static str> {
        let mut tables = crate::rights::tables(&self.sink.grants());
        // For `check` alone.
        tables.retain(|table| *table != "outbox.migrations");
        tables
    }
}

/// What the modules find wrong with their settings; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|f| format!("{}: {}; {}", f.key, f.what, f.remedy)).collect::<Vec<_>>().join("; "))]
pub struct Findings(pub Vec<Finding>);

/// For [`config::load_relays`](super::load_relays): the checks that only the modules can make.
pub fn examine(config: &Config) -> Vec<Finding> {
    config.parts().err().map_or_else(Vec::new, |findings| findings.0)
}

impl Config {
    /// Makes the modules' settings, with the checks that only they can make.
    ///
    /// # Errors
    /// All that is wrong, each with its key.
    pub fn parts(&self) -> Result<Parts, Findings> {
        let mut problems = Vec::new();
        let connect = self.connect().map_err(|found| problems.extend(found.0));
        let mapping = self.route().validate().map_err(|found| problems.extend(found));
        let sink = self.sink(&mut problems);
        match (connect, mapping, problems.is_empty()) {
            (Ok(connect), Ok(mapping), true) => Ok(Parts { connect, mapping, sink }),
            _ => Err(Findings(problems)),
        }
    }

    fn sink(&self, problems: &mut Vec<Finding>) -> sink::Settings {
        let settings = match (&self.sink.broker, self.sink.kind) {
            (Some(broker), _) => broker.clone(),
            (None, Kind::Kafka) => sink::Settings::Kafka(self.kafka()),
            (None, _) => sink::Settings::File(file::Settings { path: self.sink.file_path.clone() }),
        };
        problems.extend(settings.problems());
        settings
    }

    /// How to reach the database.
    ///
    /// # Errors
    /// What is wrong with `postgres.url`.
    pub fn connect(&self) -> Result<ConnectSettings, Findings> {
        let file = self.postgres.url_file.clone();
        let settings = ConnectSettings::parse(self.postgres.url.expose());
        settings.map(|settings| settings.from_file(file)).map_err(|error| {
            let remedy =
                "write it as libpq does: postgres://user@host/database?sslmode=verify-full";
            let found = error.problems().iter().map(|what| Finding {
                key: "postgres.url".into(),
                what: what.clone(),
                remedy: remedy.into(),
            });
            Findings(found.collect())
        })
    }

    /// The parts, made again with what secrets' files hold by now; `None` where those of before stay in use.
    pub(crate) fn renewed(&self, before: &Parts) -> Option<Parts> {
        self.sink.properties_file.as_ref()?;
        let parts = self.parts().inspect_err(|error| {
            tracing::warn!(%error, "sink.properties_file can't be used now: the relay uses what it has read last");
        });
        let mut parts = parts.ok()?;
        // What is known of the brokers remains true.
        parts.sink.remember(&before.sink);
        Some(parts)
    }

    fn route(&self) -> route::Settings {
        let name = |column: &Column| match column {
            Column::Preset => None,
            Column::Named(name) => Some(name.clone()),
            Column::Absent => Some(String::new()),
        };
        let outbox = &self.outbox;
        let columns = &outbox.columns;
        route::Settings {
            relay_name: self.name.clone(),
            tables: outbox.tables.clone(),
            preset: match outbox.preset {
                Preset::Default => route::Preset::Default,
                Preset::Debezium => route::Preset::Debezium,
            },
            columns: route::Columns {
                id: name(&columns.id),
                topic: name(&columns.topic),
                key: name(&columns.key),
                event_type: name(&columns.r#type),
                payload: name(&columns.payload),
                headers: name(&columns.headers),
                partition: name(&columns.partition),
                created_at: name(&columns.created_at),
            },
            topic: outbox.topic.clone(),
            header_style: match outbox.headers {
                HeaderStyle::Outbox => route::HeaderStyle::Outbox,
                HeaderStyle::CloudEvents => route::HeaderStyle::CloudEvents,
            },
            header_columns: outbox.header_columns.clone().into_iter().collect(),
            former_columns: outbox.former_columns.clone().into_iter().collect(),
            record_bytes_max: self.batch.record_bytes_max,
            share: self.route.as_ref().map(|route| route::Share {
                ours: route.topics.clone(),
                others: route.elsewhere.clone(),
                takes_the_rest: route.parks_the_rest,
            }),
        }
    }

    fn kafka(&self) -> kafka::Settings {
        let sink = &self.sink;
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        kafka::Settings {
            relay_name: self.name.clone(),
            delivery: match (sink.delivery, sink.progress) {
                (Delivery::ExactlyOnce, _) => kafka::Delivery::ExactlyOnce,
                (Delivery::AtLeastOnce, Progress::Broker) => kafka::Delivery::AtLeastOnce,
                (Delivery::AtLeastOnce, Progress::Postgres) => kafka::Delivery::RecordsAlone,
            },
            properties: sink.renewed_properties().iter().map(owned).collect(),
            create_topics: sink.create_topics.map(|topics| kafka::TopicCreation {
                partitions: topics.partitions,
                replication_factor: topics.replication_factor,
            }),
            created_topics_max: sink.created_topics_max,
            topic_grace: sink.topic_grace,
            reserved_topics: sink.reserved_topics.clone(),
            records_max: self.batch.records_max,
            bytes_max: self.batch.bytes_max,
            record_bytes_max: self.batch.record_bytes_max,
            roots: kafka::SystemRoots::default(),
            reach: kafka::Reach::default(),
        }
    }
}
