//! TLS as the place says.

use std::{fmt::Display, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{Place, Said};

#[derive(Clone)]
pub(super) struct Connector(TlsConnector);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    pub(super) async fn over(
        &self,
        stream: TcpStream,
        host: &str,
    ) -> Result<TlsStream<TcpStream>, Said> {
        let broken = |error: String| Said::uncertain(format!("TLS: {error}"));
        let name =
            ServerName::try_from(host.to_owned()).map_err(|error| broken(error.to_string()))?;
        self.0.connect(name, stream).await.map_err(|error| broken(error.to_string()))
    }
}

/// # Errors
/// A file can't be read.
pub(super) fn connector(place: &Place) -> Result<Connector, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(file) = &place.ca_file {
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|error| unusable(file, error))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has what these versions need")
        .with_root_certificates(roots);
    let config = match &place.certificate {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => {
            let read = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key, error))?;
            let config = builder.with_client_auth_cert(certificates(certificate)?, read);
            config.map_err(|error| unusable(key, error))?
        }
    };
    Ok(Connector(Arc::new(config).into()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(file).map_err(|error| unusable(file, error))?;
    let all = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>();
    all.map_err(|error| unusable(file, error))
}

fn unusable(file: &Path, error: impl Display) -> String {
    format!("{} can't be used: {error}", file.display())
}
