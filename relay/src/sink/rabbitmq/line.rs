//! A connection with one channel on which every message is confirmed, and what the broker answers there.

use std::{fs, path::Path, sync::Arc, time::Duration};

use amqprs::{
    Ack, BasicProperties, Cancel, Close, CloseChannel, Nack, Return,
    callbacks::{ChannelCallback, ConnectionCallback},
    channel::{Channel, ConfirmSelectArguments},
    connection::{Connection, OpenConnectionArguments},
    security::SecurityCredentials,
    tls::TlsAdaptor,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{sync::mpsc, time::timeout};

use super::{address::Address, settings::Settings};
use crate::sink::{BoxError, SinkError, unavailable};

/// Of the network, the login and the first channel together.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A line without a word for twice as long is dead; deliveries have a limit of their own.
const HEARTBEAT_S: u16 = 10;

/// What a broker says of what was published, in its own order.
#[derive(Debug)]
pub(super) enum Answer {
    /// Of the message of this number, and of all before it where `multiple`.
    Confirmed { tag: u64, multiple: bool, stored: bool },
    /// No queue takes it. It is confirmed afterwards, as if it were stored.
    Returned(Returned),
    /// The broker has ended the channel or the connection: of what is not confirmed nothing is known.
    Closed { code: u16, text: String },
}

/// A message that came back.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) message_id: Option<String>,
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) text: String,
}

/// A connection that is used until something is uncertain.
pub(super) struct Line {
    pub(super) channel: Channel,
    pub(super) answers: mpsc::UnboundedReceiver<Answer>,
    /// How many messages were published: the number of the last one.
    pub(super) published: u64,
    connection: Connection,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Line").field("published", &self.published).finish_non_exhaustive()
    }
}

impl Line {
    /// Connects to the first broker that lets it, and has messages confirmed.
    pub(super) async fn open(settings: &Settings, purpose: &str) -> Result<Line, SinkError> {
        let connection = connect(settings, purpose).await?;
        let doing = || format!("opening a channel at {}", settings.name());
        let opened = timeout(CONNECT_LIMIT, async {
            // One at a time is handed on: the broker has no more to say than messages are in flight.
            let (answers_tx, answers) = mpsc::unbounded_channel();
            connection.register_callback(Told(answers_tx.clone())).await?;
            let channel = connection.open_channel(None).await?;
            channel.register_callback(Told(answers_tx)).await?;
            channel.confirm_select(ConfirmSelectArguments::default()).await?;
            Ok::<_, amqprs::error::Error>((channel, answers))
        })
        .await;
        match opened {
            Ok(Ok((channel, answers))) => Ok(Line { channel, answers, published: 0, connection }),
            Ok(Err(error)) => Err(unavailable(doing(), error)),
            Err(_) => Err(unavailable(doing(), format!("no answer within {CONNECT_LIMIT:?}"))),
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What key and headers of a message may have together.
    pub(super) fn frame_bytes(&self) -> usize {
        usize::try_from(self.connection.frame_max()).unwrap_or(usize::MAX)
    }
}

/// A connection; it ends when it is dropped.
pub(super) async fn connect(settings: &Settings, purpose: &str) -> Result<Connection, SinkError> {
    let mut last: BoxError = "no address is given".into();
    for address in settings.renewed().await {
        let mut arguments = OpenConnectionArguments::new(
            &address.host,
            address.port,
            &address.user,
            &address.password,
        );
        arguments
            .virtual_host(&address.vhost)
            .connection_name(&format!("outbox-relay {}{purpose}", settings.relay_name))
            .heartbeat(HEARTBEAT_S)
            .credentials(SecurityCredentials::new_plain(&address.user, &address.password));
        if address.tls {
            arguments.tls_adaptor(TlsAdaptor::new(tls(settings)?, address.host.clone()));
        }
        match timeout(CONNECT_LIMIT, Connection::open(&arguments)).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(error)) => last = explained(&address, &error, settings),
            Err(_) => last = format!("{address}: no answer within {CONNECT_LIMIT:?}").into(),
        }
    }
    Err(unavailable(format!("connecting to {}", settings.name()), last))
}

/// A broker that refuses a login closes the connection without a word, unless the client asks for one.
fn explained(address: &Address, error: &amqprs::error::Error, settings: &Settings) -> BoxError {
    let text = error.to_string();
    let at_login =
        matches!(error, amqprs::error::Error::NetworkError(_)) && !text.contains("refused");
    match at_login {
        true => format!(
            "{address}: {text}. A broker that refuses a login closes the connection so: check user, password and \
             virtual host in {}; user guest can't be used from another machine",
            settings.login()
        ),
        false => format!("{address}: {text}"),
    }
    .into()
}

fn tls(settings: &Settings) -> Result<tokio_rustls::TlsConnector, SinkError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = &settings.ca_file {
        const KEY: &str = "sink.rabbitmq.ca_file";
        for certificate in certificates(file, KEY)? {
            roots.add(certificate).map_err(|error| misread(KEY, file, error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what these versions need")
        .with_root_certificates(roots);
    let config = match &settings.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            const KEY: &str = "sink.rabbitmq.key_file";
            let chain = certificates(certificate, "sink.rabbitmq.certificate_file")?;
            let read =
                PrivateKeyDer::from_pem_file(key).map_err(|error| misread(KEY, key, error))?;
            let config = builder.with_client_auth_cert(chain, read);
            config.map_err(|error| misread(KEY, key, error))?
        }
    };
    Ok(Arc::new(config).into())
}

fn certificates(file: &Path, key: &'static str) -> Result<Vec<CertificateDer<'static>>, SinkError> {
    let text = fs::read(file).map_err(|error| misread(key, file, error))?;
    CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|e| misread(key, file, e))
}

fn misread(key: &'static str, file: &Path, error: impl std::fmt::Display) -> SinkError {
    SinkError::Misconfigured {
        what: format!("{key}: {} can't be used: {error}", file.display()),
        remedy: "name a readable file in PEM; events wait in PostgreSQL meanwhile".into(),
    }
}

/// Hands on what the broker says. Whoever waits may be gone.
struct Told(mpsc::UnboundedSender<Answer>);

impl Told {
    fn tell(&self, answer: Answer) {
        drop(self.0.send(answer));
    }
}

type Handled = Result<(), amqprs::error::Error>;

#[async_trait::async_trait]
impl ChannelCallback for Told {
    async fn close(&mut self, _: &Channel, close: CloseChannel) -> Handled {
        self.tell(Answer::Closed { code: close.reply_code(), text: close.reply_text().clone() });
        Ok(())
    }

    async fn cancel(&mut self, _: &Channel, _: Cancel) -> Handled {
        Ok(())
    }

    async fn flow(&mut self, _: &Channel, active: bool) -> Result<bool, amqprs::error::Error> {
        Ok(active)
    }

    async fn publish_ack(&mut self, _: &Channel, ack: Ack) {
        let (tag, multiple) = (ack.delivery_tag(), ack.mutiple());
        self.tell(Answer::Confirmed { tag, multiple, stored: true });
    }

    async fn publish_nack(&mut self, _: &Channel, nack: Nack) {
        let (tag, multiple) = (nack.delivery_tag(), nack.multiple());
        self.tell(Answer::Confirmed { tag, multiple, stored: false });
    }

    async fn publish_return(
        &mut self,
        _: &Channel,
        returned: Return,
        properties: BasicProperties,
        _: Vec<u8>,
    ) {
        self.tell(Answer::Returned(Returned {
            message_id: properties.message_id().cloned(),
            exchange: returned.exchange().clone(),
            routing_key: returned.routing_key().clone(),
            text: format!("{} {}", returned.reply_code(), returned.reply_text()),
        }));
    }
}

#[async_trait::async_trait]
impl ConnectionCallback for Told {
    async fn close(&mut self, _: &Connection, close: Close) -> Handled {
        self.tell(Answer::Closed { code: close.reply_code(), text: close.reply_text().clone() });
        Ok(())
    }

    async fn blocked(&mut self, _: &Connection, _: String) {}

    async fn unblocked(&mut self, _: &Connection) {}

    async fn secret_updated(&mut self, _: &Connection) {}
}
