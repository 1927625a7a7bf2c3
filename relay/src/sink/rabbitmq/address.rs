//! Where a broker is, and as whom to log in: `amqp://user:password@host:5672/vhost`. Pure.

use percent_encoding::percent_decode_str;

/// One broker.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) vhost: String,
}

/// All that a text names, separated by commas.
///
/// # Errors
/// What is wrong; without what is secret.
pub(super) fn all(text: &str) -> Result<Vec<Address>, &'static str> {
    text.split(',').map(|one| one.trim().parse()).collect()
}

impl std::str::FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) =
            text.split_once("://").ok_or("has no amqp:// or amqps:// before it")?;
        let (tls, port) = match scheme {
            "amqp" => (false, 5672),
            "amqps" => (true, 5671),
            _ => return Err("begins with neither amqp:// nor amqps://"),
        };
        if rest.contains(['?', '#']) {
            return Err("has options behind ? or #, which are not read");
        }
        let (place, vhost) = match rest.split_once('/') {
            // As RabbitMQ has it: an empty name is one, `%2f` is the default's.
            Some((place, vhost)) if !vhost.is_empty() => (place, decoded(vhost)?),
            Some((place, _)) => (place, "/".to_owned()),
            None => (rest, "/".to_owned()),
        };
        let (login, place) = place.rsplit_once('@').unwrap_or(("guest:guest", place));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = host_and_port(place, port)?;
        let (user, password) = (decoded(user)?, decoded(password)?);
        if vhost.len() > 255 {
            return Err("names a virtual host of more than 255 bytes");
        }
        Ok(Address { tls, host, port, user, password, vhost })
    }
}

fn host_and_port(place: &str, default: u16) -> Result<(String, u16), &'static str> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) =
                rest.split_once(']').ok_or("an IPv6 address lacks its closing ]")?;
            (host, behind.strip_prefix(':'))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port =
        port.map_or(Ok(default), |port| port.parse().map_err(|_| "has no port behind the :"))?;
    if host.is_empty() {
        return Err("names no host");
    }
    Ok((host.to_owned(), port))
}

fn decoded(text: &str) -> Result<String, &'static str> {
    let decoded =
        percent_decode_str(text).decode_utf8().map_err(|_| "is not UTF-8 once decoded")?;
    Ok(decoded.into_owned())
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// Without what is secret.
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_rabbitmq_s_clients_do() {
        let read = |text: &str| text.parse::<Address>().expect("an address");
        let plain = read("amqp://localhost");
        assert_eq!((plain.tls, plain.port, &*plain.vhost), (false, 5672, "/"));
        assert_eq!((&*plain.user, &*plain.password), ("guest", "guest"));
        let whole = read("amqps://relay:se%40cret@rabbit:5673/%2fshop");
        assert_eq!((whole.tls, whole.port, &*whole.vhost), (true, 5673, "/shop"));
        assert_eq!((&*whole.user, &*whole.password), ("relay", "se@cret"));
        assert_eq!(whole.to_string(), "rabbit:5673");
        assert_eq!(read("amqp://[::1]:1/").to_string(), "[::1]:1");
        assert_eq!(all("amqp://a, amqp://b").map(|all| all.len()), Ok(2));
        assert!(!format!("{whole:?}").contains("se@cret"));
        for wrong in
            ["", "rabbit:5672", "http://a", "amqp://", "amqp://a:x", "amqp://[::1", "amqp://a?b"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
