//! Who asks.

use std::path::PathBuf;

use super::{
    PROTOCOL,
    proto::{Command, Connect, FeatureFlags, Kind},
};
use crate::{Said, What};

/// By what a client is known. The file is read each time: tokens expire, and are replaced there.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) client_name: String,
    pub(super) token_file: Option<PathBuf>,
    pub(super) has_certificate: bool,
}

impl Login {
    pub(super) fn method(&self) -> Option<&'static str> {
        match (&self.token_file, self.has_certificate) {
            (Some(_), _) => Some("token"),
            (None, true) => Some("tls"),
            (None, false) => None,
        }
    }

    pub(super) fn data(&self) -> Result<Vec<u8>, Said> {
        let Some(file) = &self.token_file else { return Ok(vec![]) };
        let text = std::fs::read_to_string(file).map_err(|error| {
            Said::new(
                What::Unknown,
                format!("the token can't be read from {}: {error}", file.display()),
            )
        })?;
        Ok(text.trim().as_bytes().to_vec())
    }

    pub(super) fn hello(&self, proxied_to: Option<String>) -> Result<Command, Said> {
        let method = self.method();
        let connect = Connect {
            client_version: self.client_name.clone(),
            auth_data: method.map(|_| self.data()).transpose()?,
            protocol_version: Some(PROTOCOL),
            auth_method_name: method.map(str::to_owned),
            proxy_to_broker_url: proxied_to,
            feature_flags: Some(FeatureFlags {
                supports_auth_refresh: Some(true),
                supports_looking: Some(true),
            }),
        };
        Ok(Command { kind: Kind::Connect.into(), connect: Some(connect), ..Command::default() })
    }
}
