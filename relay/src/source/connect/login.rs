//! From an open line to a session that takes replication commands.

use std::{collections::BTreeMap, io, sync::Arc};

use bytes::BytesMut;
use postgres_protocol::message::{backend::Message, frontend};

use super::{connection::ReplicationConnection, error::QueryError};
use crate::{
    postgres::{
        conninfo::ConnectSettings,
        dial::{CancelHandle, Line, Startup},
        error::{ConnectError, ServerError},
        pins,
        watch::Probe,
    },
    source::{
        auth::{self, Credentials},
        command,
        wire::{Wire, malformed},
    },
};

/// How [`ReplicationConnection::connect`] begins each line.
pub(super) struct ReplicationStartup<'a> {
    pub(super) settings: &'a ConnectSettings,
    pub(super) application_name: &'a str,
}

impl Startup for ReplicationStartup<'_> {
    type Session = ReplicationConnection;

    async fn start(&self, line: Line) -> Result<ReplicationConnection, ConnectError> {
        let Line { socket, route, password } = line;
        let end_point = socket.channel_binding();
        let mut wire = Wire::new(socket);
        let during = |error| ConnectError::io("during the start-up", error);
        wire.send(&self.packet().map_err(during)?).await.map_err(during)?;
        let credentials = Credentials {
            user: &self.settings.user,
            password: password.as_ref(),
            channel_binding: self.settings.channel_binding,
            end_point,
        };
        auth::log_in(&mut wire, credentials).await?;

        let (mut parameters, mut key) = (BTreeMap::new(), (0, 0));
        loop {
            match wire.message().await.map_err(during)? {
                Message::BackendKeyData(body) => key = (body.process_id(), body.secret_key()),
                Message::ParameterStatus(body) => {
                    let name = body.name().map_err(during)?.to_owned();
                    parameters.insert(name, body.value().map_err(during)?.to_owned());
                }
                Message::NoticeResponse(_) => {}
                Message::ErrorResponse(body) => {
                    let error = ServerError::read(body.fields()).map_err(during)?;
                    return Err(ConnectError::server(&error));
                }
                Message::ReadyForQuery(_) => break,
                _ => return Err(during(malformed("an unexpected message"))),
            }
        }
        let version = parameters.get("server_version").map_or("", String::as_str);
        let server_version_num = command::version_number(version).ok_or_else(|| {
            ConnectError::permanent(
                format!("the server reports its version as {version:?}"),
                "connect to PostgreSQL itself",
            )
        })?;
        let settings = Arc::new(self.settings.clone());
        let probe = Probe { settings, route: route.clone(), password, pid: key.0 };
        let mut connection = ReplicationConnection {
            wire,
            host: route.host.clone(),
            parameters,
            server_version_num,
            backend_pid: key.0,
            cancel: CancelHandle::new(route, key.0, key.1),
            probe,
            interrupted: false,
        };
        let row = connection.row("settling the session", &pins::settle()).await;
        let row = row.map_err(query_failed)?;
        let column = |index: usize| row.get(index).and_then(Option::as_deref);
        // Not what was announced at the start: a pooler makes that up.
        connection.backend_pid = pins::settled(column(0), column(1))?;
        connection.probe.pid = connection.backend_pid;
        Ok(connection)
    }

    async fn ask(
        &self,
        session: &mut ReplicationConnection,
        query: &'static str,
    ) -> Result<String, ConnectError> {
        let row = session.row("asking for the kind of server", query).await;
        Ok(row.map_err(query_failed)?.into_iter().next().flatten().unwrap_or_default())
    }
}

fn query_failed(error: QueryError) -> ConnectError {
    match error {
        QueryError::Refused { error, .. } => ConnectError::server(&error),
        error => ConnectError::transient(error.to_string()),
    }
}

impl ReplicationStartup<'_> {
    fn packet(&self) -> io::Result<BytesMut> {
        let settings = self.settings;
        let name = settings.application_name.as_deref().unwrap_or(self.application_name);
        let options = pins::options(settings.options.as_deref());
        let parameters = [
            ("user", settings.user.as_str()),
            ("database", &settings.database),
            ("replication", "database"),
            ("application_name", name),
            ("client_encoding", "UTF8"),
            ("options", &options),
        ];
        let mut packet = BytesMut::new();
        frontend::startup_message(parameters, &mut packet)?;
        Ok(packet)
    }
}
