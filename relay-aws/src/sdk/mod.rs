//! The services through the AWS SDK. It looks for credentials where it always does: variables, files, a web identity's
//! token, a container's, an instance's. TLS is rustls with ring, and checked; requests are tried once.

mod errors;
mod sns;
mod sqs;

use std::{sync::Arc, time::Duration};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_types::{retry::RetryConfig, timeout::TimeoutConfig};

use self::{sns::Topics, sqs::Queues};
use crate::{Kind, Place, Said, Service};

/// To open a connection. A request's own time is the caller's.
const CONNECT: Duration = Duration::from_secs(5);

pub(crate) async fn open(place: &Place) -> Result<Arc<dyn Service>, String> {
    let config = config(place).await?;
    if config.region().is_none() {
        return Err("no region is known: AWS_REGION is not set, and no profile has one".into());
    }
    Ok(match place.kind {
        Kind::Sqs => Arc::new(Queues::new(&config, place)),
        Kind::Sns => Arc::new(Topics::new(&config, place)),
    })
}

async fn config(place: &Place) -> Result<SdkConfig, String> {
    let mut trusted = TrustStore::empty().with_native_roots(true);
    if let Some(pem) = &place.trusted {
        trusted = trusted.with_pem_certificate(pem.as_slice());
    }
    let tls = TlsContext::builder().with_trust_store(trusted).build();
    let tls = tls.map_err(|error| format!("the certificates can't be used: {error}"))?;
    let http = Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https();
    // What is asked for credentials by HTTP may be tried again.
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http)
        .timeout_config(TimeoutConfig::builder().connect_timeout(CONNECT).build());
    if let Some(file) = &place.credentials_file {
        let files = EnvConfigFiles::builder().with_file(EnvConfigFileKind::Credentials, file);
        loader = loader.profile_files(files.include_default_config_file(true).build());
    }
    if let Some(region) = &place.region {
        loader = loader.region(Region::new(region.clone()));
    }
    Ok(loader.load().await)
}

/// An outcome that is uncertain is for the caller to judge.
fn once() -> RetryConfig {
    RetryConfig::disabled()
}

/// What became of each message of a request, by their ids: which are their places in it.
///
/// # Errors
/// Of some nothing was said: then nothing is certain.
fn each<'a>(
    count: usize,
    told: impl Iterator<Item = (&'a str, Result<(), Said>)>,
) -> Result<Vec<Result<(), Said>>, Said> {
    let mut all = vec![None; count];
    for (id, outcome) in told {
        let place = id.parse::<usize>().ok().and_then(|place| all.get_mut(place));
        *place.ok_or_else(|| Said::uncertain(format!("the answer names a message {id:?}")))? =
            Some(outcome);
    }
    let all: Option<Vec<_>> = all.into_iter().collect();
    all.ok_or_else(|| Said::uncertain("the answer leaves out messages of the request"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_leaves_out_a_message_is_no_answer() {
        let failed = Said::new("A", "b", true);
        let told = || [("1", Err(failed.clone())), ("0", Ok(()))].into_iter();
        assert_eq!(each(2, told()), Ok(vec![Ok(()), Err(failed.clone())]));
        assert!(each(3, told()).is_err(), "the third");
        assert!(each(1, told()).is_err(), "one that was not sent");
    }
}
