//! Whom to trust: rustls configurations for libpq's `sslmode`s.
//!
//! The crypto provider is passed explicitly, so nothing depends on what the process installed.
//! Files are read again for each connection: a renewed certificate needs no restart. When TLS is
//! asked for, and what happens if it fails, is decided in `dial`.

use std::{fs, os::unix::fs::MetadataExt, path::Path, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{
        CryptoProvider, verify_tls12_signature, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, SignatureVerificationAlgorithm,
        SubjectPublicKeyInfoDer, UnixTime, pem::PemObject,
    },
    server::ParsedCertificate,
};

use super::{
    certificate::Fields,
    conninfo::{ClientCertificate, Roots, SslMode, TlsSettings},
};

/// The protocol's name in ALPN, which `sslnegotiation=direct` requires.
pub(crate) const ALPN: &[u8] = b"postgresql";

/// The settings name certificates or keys that can't be used. Only a person can correct it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TlsError(String);

/// Makes the client's side of a handshake. Reads files: not for the event loop.
pub(crate) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Verifier::new(settings, Arc::clone(&provider))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| TlsError(format!("no version of TLS can be used: {error}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match &settings.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let (chain, key) = client_certificate(client)?;
            let path = client.certificate.display();
            builder.with_client_auth_cert(chain, key).map_err(|error| {
                TlsError(format!(
                    "the client certificate {path} and its key can't be used: {error}"
                ))
            })?
        }
    };
    if settings.direct {
        config.alpn_protocols = vec![ALPN.to_vec()];
    }
    Ok(config)
}

fn client_certificate(
    client: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let chain = certificates(&client.certificate)?;
    let path = client.key.display();
    let unreadable = |error: &dyn std::fmt::Display| {
        TlsError(format!("the private key {path} can't be read: {error}"))
    };
    let metadata = fs::metadata(&client.key).map_err(|error| unreadable(&error))?;
    // As libpq: a key of root's may be readable by the group it is handed to.
    let too_open = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & too_open != 0 {
        return Err(TlsError(format!(
            "the private key {path} can be read by others; chmod 600 fixes it"
        )));
    }
    // PKCS#8, PKCS#1 or SEC1.
    let key = PrivateKeyDer::from_pem_file(&client.key)
        .map_err(|error| unreadable(&format!("{error}; it must be PEM without a passphrase")))?;
    Ok((chain, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let shown = path.display();
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| {
            TlsError(format!("the certificate file {shown} can't be read: {error}"))
        })?;
    if certificates.is_empty() {
        return Err(TlsError(format!("the file {shown} holds no PEM certificate")));
    }
    Ok(certificates)
}

fn roots(
    settings: &TlsSettings,
) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let mut store = RootCertStore::empty();
    match &settings.roots {
        Roots::File(path) => {
            let certificates = certificates(path)?;
            for certificate in &certificates {
                // One that can't be read is skipped, as a system's store would.
                drop(store.add(certificate.clone()));
            }
            if store.is_empty() {
                return Err(TlsError(format!(
                    "no certificate of sslrootcert {} can be used",
                    path.display()
                )));
            }
            Ok((store, certificates))
        }
        Roots::System => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                return Err(TlsError(
                    "this system has no trusted certificates; set sslrootcert, \
                     or install ca-certificates"
                        .into(),
                ));
            }
            Ok((store, Vec::new()))
        }
    }
}

/// What is asked of a server's certificate.
#[derive(Debug)]
enum Trust {
    /// Nothing: the line is encrypted, but for whom is not known.
    Nobody,
    /// A chain to a root, and the host's name if `name`.
    Chain { roots: RootCertStore, pinned: Vec<CertificateDer<'static>>, name: bool },
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(settings: &TlsSettings, provider: Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let trust = if settings.mode.verifies() {
            let (roots, pinned) = roots(settings)?;
            Trust::Chain { roots, pinned, name: settings.mode == SslMode::VerifyFull }
        } else {
            Trust::Nobody
        };
        Ok(Verifier { trust, provider })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Chain { roots, pinned, name } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        let algorithms = self.provider.signature_verification_algorithms.all;
        let fields = Fields::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        if fields.is_version_1 {
            signed_by_a_root(&fields, end_entity, pinned, now, algorithms)?;
            if *name {
                common_name_fits(&fields, server_name)?;
            }
            return Ok(ServerCertVerified::assertion());
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        match verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            algorithms,
        ) {
            Err(
                error @ Error::InvalidCertificate(
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. },
                ),
            ) => return Err(error),
            // PostgreSQL's manual makes a self-signed certificate that serves as its own root,
            // which webpki takes for an authority only. The very certificate that was put into
            // sslrootcert is trusted; its dates were checked first.
            Err(_) if pinned.iter().any(|root| root == end_entity) => {}
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        if *name && fields.has_alternative_names {
            verify_server_name(&certificate, server_name)?;
        } else if *name {
            common_name_fits(&fields, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        let Some(fields) = Fields::read(cert).filter(|fields| fields.is_version_1) else {
            return verify_tls12_signature(message, cert, signature, algorithms);
        };
        let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == signature.scheme);
        let valid = of_scheme.flat_map(|(_, algorithms)| *algorithms).any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == fields.key_algorithm
                && algorithm.verify_signature(fields.key, message, signature.signature()).is_ok()
        });
        if valid {
            return Ok(HandshakeSignatureValid::assertion());
        }
        Err(CertificateError::BadSignature.into())
    }

    // Checked for an unverified server too: channel binding means something only if the server
    // holds the certificate's key.
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        match (&self.trust, Fields::read(cert)) {
            (trust, Some(fields)) if matches!(trust, Trust::Nobody) || fields.is_version_1 => {
                verify_tls13_signature_with_raw_key(
                    message,
                    &SubjectPublicKeyInfoDer::from(fields.key_info),
                    signature,
                    algorithms,
                )
            }
            _ => verify_tls13_signature(message, cert, signature, algorithms),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// As webpki does for later versions: PostgreSQL's manual, and many recipes, make certificates of
/// version 1, which it does not read. Only what stands in sslrootcert itself may have signed one.
fn signed_by_a_root(
    fields: &Fields<'_>,
    end_entity: &CertificateDer<'_>,
    pinned: &[CertificateDer<'static>],
    now: UnixTime,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> Result<(), Error> {
    in_time(fields, now)?;
    if pinned.iter().any(|root| root == end_entity) {
        return Ok(());
    }
    let roots = pinned.iter().filter_map(|root| Fields::read(root));
    for root in roots.filter(|root| root.is_version_1 || root.is_authority) {
        let signed = root.subject == fields.issuer
            && algorithms.iter().any(|algorithm| {
                algorithm.signature_alg_id().as_ref() == fields.algorithm
                    && algorithm.public_key_alg_id().as_ref() == root.key_algorithm
                    && algorithm.verify_signature(root.key, fields.signed, fields.signature).is_ok()
            });
        if signed {
            return in_time(&root, now);
        }
    }
    Err(CertificateError::UnknownIssuer.into())
}

fn in_time(fields: &Fields<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < fields.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > fields.not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// As libpq: where a certificate gives no alternative names, its common name counts, and a star
/// stands for the first label.
fn common_name_fits(fields: &Fields<'_>, server_name: &ServerName<'_>) -> Result<(), Error> {
    let host = server_name.to_str();
    let is_name = matches!(server_name, ServerName::DnsName(_));
    let fits = fields.common_name().is_some_and(|name| match name.strip_prefix("*.") {
        Some(domain) => {
            is_name
                && host.split_once('.').is_some_and(|(label, rest)| {
                    !label.is_empty() && rest.eq_ignore_ascii_case(domain)
                })
        }
        None => host.eq_ignore_ascii_case(name),
    });
    if fits { Ok(()) } else { Err(CertificateError::NotValidForName.into()) }
}

/// Whether an I/O error is TLS's own verdict, not the network's: waiting won't change it.
pub(crate) fn verdict(error: &std::io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>())
}

/// What a person can do about a handshake that failed.
pub(crate) fn remedy(error: &Error) -> &'static str {
    match error {
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "connect by a name in the certificate's subjectAltName (without one, its common name), or use \
           sslmode=verify-ca"
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "set sslrootcert to the certificate of the authority that signed the server's"
        }
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "renew the server's certificate",
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "compare this machine's clock with the server's",
        Error::InvalidCertificate(_) => {
            "have the certificate issued again; one between the server's and that in sslrootcert must be of \
             X.509 version 3"
        }
        Error::AlertReceived(_) => {
            "see the server's log; sslcert and sslkey may be missing or not trusted there"
        }
        _ => "see the server's log and its ssl settings",
    }
}
