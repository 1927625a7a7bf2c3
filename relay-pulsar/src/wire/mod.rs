//! Pulsar's binary protocol, as much of it as a producer needs, on a connection for each broker.
//!
//! `proto` has the commands, `frame` their bytes, `connection` who waits for which answer, `producer` the order of receipts.

mod connection;
pub mod frame;
mod producer;
pub mod proto;
#[cfg(test)]
mod tests;
mod tls;
mod token;

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{net::TcpStream, sync::Mutex, time::timeout};

use self::{
    connection::Connection,
    producer::WireProducer,
    proto::{Command, Kind, Lookup, LookupResponse, PartitionedMetadata},
    tls::Connector,
    token::Login,
};
use crate::{Access, Address, Cluster, Held, Place, Producer, Said, What};

/// The protocol's version: 19 and later know what is asked here; a broker answers with its own.
const PROTOCOL: i32 = 21;
/// Of the network, TLS and the handshake together.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A broker that does not serve a topic names another one, and that one may as well.
const REDIRECTS_MAX: usize = 8;

/// An address, and the broker behind it where it is a proxy's.
type Line = (String, Option<String>);

/// A cluster, by its protocol. Its connections end when it is dropped, and its producers with them.
#[derive(Debug)]
pub struct Wire {
    place: Place,
    connector: Option<Connector>,
    /// By address; a proxy's have the broker behind it as well.
    connections: Mutex<HashMap<Line, Arc<Connection>>>,
}

impl Wire {
    /// # Errors
    /// A file can't be read.
    pub fn new(place: Place) -> Result<Self, String> {
        // A broker may name an address with TLS only to a client that came with TLS.
        let has_tls = place.addresses.iter().any(|address| address.tls);
        let connector = has_tls.then(|| tls::connector(&place)).transpose()?;
        Ok(Wire { place, connector, connections: Mutex::default() })
    }

    /// The broker or proxy that is asked first.
    async fn service(&self) -> Result<(Arc<Connection>, &Address), Said> {
        let mut last = Said::uncertain("no address is given");
        for address in &self.place.addresses {
            match self.connected(address, None).await {
                Ok(connection) => return Ok((connection, address)),
                Err(said) => last = said,
            }
        }
        Err(last)
    }

    async fn connected(
        &self,
        address: &Address,
        proxied_to: Option<&str>,
    ) -> Result<Arc<Connection>, Said> {
        let key = (shown(address), proxied_to.map(str::to_owned));
        // Held while it connects: a second one who needs it has the same one.
        let mut connections = self.connections.lock().await;
        if let Some(open) = connections.get(&key).filter(|it| it.is_open()) {
            return Ok(Arc::clone(open));
        }
        let fresh = timeout(CONNECT_LIMIT, self.connect(address, proxied_to)).await;
        let fresh = fresh
            .unwrap_or_else(|_| Err(Said::uncertain(format!("no answer within {CONNECT_LIMIT:?}"))))
            .map_err(|said| Said { text: format!("{}: {}", key.0, said.text), ..said })?;
        let fresh = Arc::new(fresh);
        connections.insert(key, Arc::clone(&fresh));
        Ok(fresh)
    }

    async fn connect(
        &self,
        address: &Address,
        proxied_to: Option<&str>,
    ) -> Result<Connection, Said> {
        let broken = |error: std::io::Error| Said::uncertain(error.to_string());
        let login = Login {
            client_name: self.place.client_name.clone(),
            token_file: self.place.token_file.clone(),
            has_certificate: self.place.certificate.is_some(),
        };
        let stream =
            TcpStream::connect((address.host.as_str(), address.port)).await.map_err(broken)?;
        stream.set_nodelay(true).map_err(broken)?;
        let proxied_to = proxied_to.map(str::to_owned);
        match (address.tls, &self.connector) {
            (false, _) => Connection::over(stream, login, proxied_to).await,
            (true, Some(connector)) => {
                let stream = connector.over(stream, &address.host).await?;
                Connection::over(stream, login, proxied_to).await
            }
            (true, None) => {
                Err(Said::uncertain("the cluster names an address with TLS; write pulsar+ssl://"))
            }
        }
    }

    /// The connection to the broker that serves a topic.
    async fn serving(&self, topic: &str) -> Result<Arc<Connection>, Said> {
        let (service, address) = self.service().await?;
        let (mut asked, mut authoritative) = (Arc::clone(&service), false);
        for _ in 0..REDIRECTS_MAX {
            let id = asked.id();
            let lookup = Lookup {
                topic: topic.to_owned(),
                request_id: id,
                authoritative: Some(authoritative),
            };
            let command =
                Command { kind: Kind::Lookup.into(), lookup: Some(lookup), ..Command::default() };
            let answer = asked.ask(id, &command).await?.lookup_response.ok_or_else(another)?;
            if self.place.one_broker {
                return Ok(service);
            }
            let broker = named(address.tls, &answer)?;
            let next = match answer.proxy_through_service_url {
                Some(true) => {
                    let behind = format!("{}:{}", broker.host, broker.port);
                    self.connected(address, Some(&behind)).await?
                }
                _ => self.connected(&broker, None).await?,
            };
            if answer.response == Some(1) {
                return Ok(next);
            }
            (asked, authoritative) = (next, answer.authoritative());
        }
        Err(Said::new(What::NotNow, "brokers name one another as the topic's"))
    }
}

#[async_trait::async_trait]
impl Cluster for Wire {
    async fn version(&self) -> Result<String, Said> {
        let (service, _) = self.service().await?;
        let ping =
            self.partitions_at(&service, "persistent://public/default/outbox-relay-probe").await;
        match ping {
            // Of this one nothing is asked but that it answers.
            Err(said) if matches!(said.what, What::Uncertain | What::Unknown) => Err(said),
            _ => Ok(service.server.version.clone()),
        }
    }

    async fn partitions(&self, topic: &str) -> Result<Option<u32>, Said> {
        let (service, _) = self.service().await?;
        self.partitions_at(&service, topic).await
    }

    async fn producer(&self, topic: &str, access: Access) -> Result<Box<dyn Producer>, Said> {
        let connection = self.serving(topic).await?;
        let mode = match access {
            Access::Shared => producer::Mode::Shared,
            Access::Fencing => producer::Mode::Fencing,
        };
        Ok(Box::new(WireProducer::open(connection, topic, mode).await?))
    }

    async fn is_fenced(&self, topic: &str, held: &Held) -> bool {
        let Ok(connection) = self.serving(topic).await else { return false };
        let mode = producer::Mode::Again(held.epoch);
        let opened = WireProducer::open(connection, topic, mode).await;
        // A broker may not have noticed yet that the line of this very producer is cut; then it names it.
        opened.is_err_and(|said| {
            said.what == What::Fenced && !said.text.ends_with(&format!(": {}", held.name))
        })
    }
}

impl Wire {
    async fn partitions_at(&self, asked: &Connection, topic: &str) -> Result<Option<u32>, Said> {
        let id = asked.id();
        let creates = asked.server.is_asked_only.then_some(false);
        let question = PartitionedMetadata { topic: topic.to_owned(), request_id: id, creates };
        let command = Command {
            kind: Kind::PartitionedMetadata.into(),
            partitioned_metadata: Some(question),
            ..Command::default()
        };
        let answer = asked.ask(id, &command).await?.partitioned_metadata_response;
        Ok(answer.ok_or_else(another)?.partitions.filter(|count| *count > 0))
    }
}

fn shown(address: &Address) -> String {
    match address.host.contains(':') {
        true => format!("[{}]:{}", address.host, address.port),
        false => format!("{}:{}", address.host, address.port),
    }
}

/// To a question of this number.
fn another() -> Said {
    Said::uncertain("the broker answers with something else")
}

/// The broker that a lookup names. With TLS never one without: a token would go there.
fn named(tls: bool, answer: &LookupResponse) -> Result<Address, Said> {
    let wrong = |text: String| Said::new(What::NotNow, text);
    let url = if tls { &answer.url_tls } else { &answer.url };
    let url = url.as_ref().filter(|url| !url.is_empty()).ok_or_else(|| {
        wrong("the cluster names no address of the topic's broker for this scheme".into())
    })?;
    let broker = parsed(url).ok_or_else(|| {
        wrong(format!("the cluster names a broker at {url:?}, which is no address"))
    })?;
    if tls && !broker.tls {
        return Err(wrong(format!("the cluster names a broker at {url:?}, which is without TLS")));
    }
    Ok(broker)
}

/// An address that a broker gives.
fn parsed(url: &str) -> Option<Address> {
    let (scheme, place) = url.split_once("://")?;
    let tls = match scheme {
        "pulsar" => false,
        "pulsar+ssl" => true,
        _ => return None,
    };
    let (host, port) = place.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some(Address { tls, host: host.to_owned(), port: port.parse().ok()? })
}
