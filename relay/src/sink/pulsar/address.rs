//! Where a cluster is: `pulsar://host:6650,host:6650`, or `pulsar+ssl://`. Pure.

use outbox_relay_pulsar::Address;

/// All that a text names; the scheme stands before the first of them, or before each.
///
/// # Errors
/// What is wrong.
pub(super) fn all(text: &str) -> Result<Vec<Address>, &'static str> {
    const NO_SCHEME: &str = "begins with neither pulsar:// nor pulsar+ssl://";
    let mut tls = None;
    let mut found = Vec::new();
    for one in text.split(',').map(str::trim) {
        let place = match one.split_once("://") {
            Some(("pulsar", place)) => {
                tls = Some(false);
                place
            }
            Some(("pulsar+ssl", place)) => {
                tls = Some(true);
                place
            }
            Some(_) => return Err(NO_SCHEME),
            None => one,
        };
        let tls = tls.ok_or(NO_SCHEME)?;
        let place = place.strip_suffix('/').unwrap_or(place);
        if place.contains(['/', '?', '#', '@']) {
            return Err("has more than hosts and ports");
        }
        let default = if tls { 6651 } else { 6650 };
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
        found.push(Address { tls, host: host.to_owned(), port });
    }
    Ok(found)
}

/// For a sentence.
pub(super) fn shown(address: &Address) -> String {
    match address.host.contains(':') {
        true => format!("[{}]:{}", address.host, address.port),
        false => format!("{}:{}", address.host, address.port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_pulsar_s_clients_do() {
        let read = |text: &str| {
            let all = all(text).expect("addresses");
            all.iter().map(|it| (it.tls, shown(it))).collect::<Vec<_>>()
        };
        assert_eq!(
            read("pulsar://a:1,b, c:2"),
            [(false, "a:1".into()), (false, "b:6650".into()), (false, "c:2".into())]
        );
        assert_eq!(read("pulsar+ssl://[::1]/"), [(true, "[::1]:6651".into())]);
        for wrong in [
            "",
            "a:1",
            "http://a",
            "pulsar://",
            "pulsar://a:x",
            "pulsar://[::1",
            "pulsar://a/b",
            "pulsar://u@a",
        ] {
            assert!(all(wrong).is_err(), "{wrong}");
        }
    }
}
