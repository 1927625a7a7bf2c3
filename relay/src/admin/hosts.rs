//! Under which names the admin address answers.
//!
//! A page on the internet can have its own name resolve to this address (DNS rebinding), and then
//! its script reads what is answered as its own. It can't choose the name that the browser sends:
//! so a name that is not known is refused. An address is no name that anybody could point here.
//! Pure.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use axum::http::{HeaderMap, Uri, header, uri::Authority};

/// The names; addresses and `localhost` are always known.
#[derive(Clone, Debug)]
pub struct Hosts(Arc<[String]>);

/// The request was for another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this name is not one of the relay's: ask by IP address or as localhost, or add the name to \
     admin.hosts"
)]
pub struct UnknownHost;

impl Hosts {
    /// The name in `listen` (`host:port`), and those of the settings.
    pub fn new(listen: &str, names: &[String]) -> Self {
        let listen = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
        let names = names.iter().map(String::as_str).chain([listen]);
        Hosts(names.map(|name| name.to_ascii_lowercase()).collect())
    }

    /// Whether a request may be answered. One that names no host comes from no browser.
    ///
    /// # Errors
    /// `UnknownHost` if any name in it is not known.
    pub fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), UnknownHost> {
        let in_headers = headers.get_all(header::HOST).iter().map(|host| host.to_str().ok());
        let in_uri = uri.authority().map(|authority| Some(authority.as_str()));
        let mut named = in_headers.chain(in_uri);
        let known = named.all(|host| host.is_some_and(|host| self.knows(host)));
        if known { Ok(()) } else { Err(UnknownHost) }
    }

    fn knows(&self, host: &str) -> bool {
        if host.contains('@') {
            return false; // What is before it is no host, whoever takes it for one.
        }
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host();
        if name.starts_with('[') {
            return is_ipv6(host);
        }
        if name.parse::<IpAddr>().is_ok() {
            return true;
        }
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        name == "localhost" || name.ends_with(".localhost") || self.0.contains(&name)
    }
}

/// All of it is an address in brackets, perhaps with a port: a parser may stop reading at the bracket.
fn is_ipv6(host: &str) -> bool {
    let Some((address, port)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    let digits = port.strip_prefix(':').unwrap_or(if port.is_empty() { "0" } else { "" });
    address.parse::<Ipv6Addr>().is_ok() && digits.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    fn answers(hosts: &Hosts, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).expect("a header"));
        hosts.check(&Uri::from_static("/status"), &headers).is_ok()
    }

    #[test]
    fn addresses_localhost_and_the_names_of_the_settings_are_known_and_nothing_else() {
        let hosts = Hosts::new("Relay.internal:9464", &["metrics.example".to_owned()]);
        for known in [
            "127.0.0.1",
            "127.0.0.1:9464",
            "10.4.0.17:9464",
            "[::1]:9464",
            "[fe80::1]",
            "localhost",
            "LocalHost:80",
            "localhost.:80",
            "app.localhost",
            "relay.internal:9464",
            "metrics.example",
            "METRICS.example.:1",
        ] {
            assert!(answers(&hosts, known), "{known}");
        }
        for unknown in [
            "evil.example",
            "evil.example:9464",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "metrics.example.evil.example",
            "evil.example@127.0.0.1",
            "127.0.0.1@evil.example",
            "2130706433",
            "",
            "127.0.0.1, evil.example",
            "[::1].evil.example",
            "[::1].evil.example:9464",
            "[::1]evil.example",
            "[::1]:evil.example",
            "[127.0.0.1]",
        ] {
            assert!(!answers(&hosts, unknown), "{unknown}");
        }
    }

    #[test]
    fn every_name_in_a_request_must_be_known_and_none_is_no_browser() {
        let hosts = Hosts::new("127.0.0.1:9464", &[]);
        let mut headers = HeaderMap::new();
        assert_eq!(hosts.check(&Uri::from_static("/"), &headers), Ok(()));
        headers.append(header::HOST, HeaderValue::from_static("localhost"));
        let evil = Uri::from_static("http://evil.example/status");
        assert_eq!(hosts.check(&evil, &headers), Err(UnknownHost));
        headers.append(header::HOST, HeaderValue::from_static("evil.example"));
        assert_eq!(hosts.check(&Uri::from_static("/"), &headers), Err(UnknownHost));
    }
}
