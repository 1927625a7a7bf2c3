use std::collections::HashMap;

use super::*;

fn parse_with(
    url: &str,
    variables: &[(&str, &str)],
    files: &[&str],
) -> Result<ConnectSettings, ConnInfoError> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let environment = Environment {
        variable: &|name| variables.get(name).map(|value| (*value).to_owned()),
        os_user: Some("me".into()),
        home: Some("/home/me".into()),
        exists: &|path| files.iter().any(|file| path == Path::new(file)),
    };
    ConnectSettings::parse_in(url, &environment)
}

fn parse(url: &str) -> ConnectSettings {
    parse_with(url, &[], &[]).expect(url)
}

#[test]
fn hosts_ports_and_addresses_are_paired() {
    for (url, expected) in [
        ("postgres://db.internal/app", "db.internal:5432/app"),
        ("postgres://h1:1,h2,[::1]:3/app", "h1:1,h2:5432,[::1]:3/app"),
        ("host=h1,h2 port=7", "h1:7,h2:7/me"),
        ("host=h1,h2 port=,7 dbname=d", "h1:5432,h2:7/d"),
        ("hostaddr=10.0.0.1 dbname=d", "10.0.0.1:5432/d"),
        ("postgres://%2Frun%2Fpg/app", "/run/pg/.s.PGSQL.5432/app"),
        ("host=/run/pg port=7 dbname=d", "/run/pg/.s.PGSQL.7/d"),
        ("postgres:///app", "/var/run/postgresql/.s.PGSQL.5432,/tmp/.s.PGSQL.5432/app"),
    ] {
        assert_eq!(parse(url).describe(), expected, "{url}");
    }
    let named = parse("host=db hostaddr=10.0.0.1");
    assert_eq!(named.endpoints.first().and_then(|e| e.address), Some([10, 0, 0, 1].into()));
}

#[test]
fn what_is_not_given_comes_from_the_environment() {
    let variables = [
        ("PGHOST", "/run/pg"),
        ("PGPORT", "7"),
        ("PGUSER", "relay"),
        ("PGPASSWORD", "sesame"),
        ("PGSSLMODE", "disable"),
    ];
    let settings = parse_with("", &variables, &[]).expect("settings");
    assert_eq!(settings.describe(), "/run/pg/.s.PGSQL.7/relay");
    assert_eq!(settings.password, Some(Secret::new("sesame")));
    assert_eq!(settings.tls.mode, SslMode::Disable);
    let settings = parse_with("postgres://u@h/d?sslmode=require", &variables, &[]).expect("given");
    assert_eq!((settings.describe().as_str(), settings.user()), ("h:7/d", "u"));
    assert_eq!(settings.tls.mode, SslMode::Require);
}

#[test]
fn every_parameter_of_tokio_postgres_is_read() {
    let settings = parse(
        "host=h hostaddr=10.0.0.1 port=1 dbname=d user=u password=p options='-c a=b' \
         application_name=n connect_timeout=3 tcp_user_timeout=4000 keepalives=1 \
         keepalives_idle=5 keepalives_interval=6 keepalives_retries=7 sslmode=require \
         sslnegotiation=direct target_session_attrs=read-write channel_binding=require \
         load_balance_hosts=random",
    );
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!(settings.connect_timeout, seconds(3));
    assert_eq!(
        settings.tcp,
        TcpSettings {
            user_timeout: seconds(4),
            keepalive: true,
            keepalive_idle: seconds(5),
            keepalive_interval: seconds(6),
            keepalive_retries: Some(7),
        }
    );
    assert_eq!(settings.options.as_deref(), Some("-c a=b"));
    assert_eq!(settings.application_name.as_deref(), Some("n"));
    assert_eq!(settings.target, TargetSession::ReadWrite);
    assert_eq!(settings.channel_binding, ChannelBinding::Require);
    assert!(settings.tls.direct && settings.load_balance);
    assert_eq!(parse("host=h connect_timeout=0").connect_timeout, seconds(30));
}

#[test]
fn sslmode_follows_libpq() {
    let root = "/home/me/.postgresql/root.crt";
    let own = Roots::File("ca".into());
    for (query, files, mode, roots) in [
        ("", &[][..], SslMode::Prefer, Roots::System),
        ("sslmode=disable", &[], SslMode::Disable, Roots::System),
        ("sslmode=allow", &[], SslMode::Allow, Roots::System),
        ("sslmode=require", &[], SslMode::Require, Roots::System),
        ("sslmode=require&sslrootcert=ca", &[], SslMode::VerifyCa, own.clone()),
        ("sslmode=require", &[root], SslMode::VerifyCa, Roots::File(root.into())),
        ("sslmode=verify-ca&sslrootcert=ca", &[root], SslMode::VerifyCa, own.clone()),
        ("sslmode=verify-full", &[], SslMode::VerifyFull, Roots::System),
        ("sslmode=verify-full&sslrootcert=ca", &[], SslMode::VerifyFull, own),
        ("sslrootcert=system", &[], SslMode::VerifyFull, Roots::System),
    ] {
        let settings = parse_with(&format!("postgres://h/d?{query}"), &[], files).expect(query);
        assert_eq!((settings.tls.mode, settings.tls.roots), (mode, roots), "{query}");
    }
}

#[test]
fn only_hosts_beyond_this_machine_are_warned_of() {
    for (url, expected) in [
        ("postgres://db.internal/d", &["db.internal:5432"][..]),
        ("postgres://db/d?sslmode=require", &["db:5432"]),
        ("postgres://db/d?sslmode=verify-full", &[]),
        ("postgres://localhost,127.0.0.1,[::1],%2Ftmp/d", &[]),
        ("host=localhost,db hostaddr=10.0.0.1,127.0.0.1", &["localhost:5432"]),
    ] {
        assert_eq!(parse(url).unverified_hosts(), expected, "{url}");
    }
}

#[test]
fn every_problem_is_reported_at_once_with_its_key() {
    let error = parse_with(
        "host=a,b hostaddr=1.2.3.4 port=1,2,3 sslmode=maybe connect_timeout=soon service=x \
         channel_binding=yes gssencmode=require sslcert=c",
        &[],
        &[],
    )
    .expect_err("refused");
    let keys: Vec<_> = error.problems().iter().filter_map(|p| p.split(':').next()).collect();
    for key in [
        "hostaddr",
        "port",
        "sslmode",
        "connect_timeout",
        "service",
        "channel_binding",
        "gssencmode",
        "sslkey",
    ] {
        assert!(keys.contains(&key), "{key} in {error}");
    }
    for text in [
        "postgres://h?sslmode=verify-ca",
        "postgres://h?sslmode=require&sslrootcert=system",
        "postgres://h?sslnegotiation=direct",
        "postgres://h?sslmode=disable&channel_binding=require",
        "postgres://u:pass/word@h/d",
    ] {
        assert!(parse_with(text, &[], &[]).is_err(), "{text}");
    }
}

#[test]
fn the_password_is_never_shown() {
    let settings = parse("postgres://u:sesame@h/d");
    assert!(!format!("{settings:?} {settings}").contains("sesame"));
    let error = parse_with("postgres://u:ses/ame@h/d", &[], &[]).expect_err("refused");
    assert!(!error.to_string().contains("ses"), "{error}");
}
