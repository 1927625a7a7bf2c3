//! A relay that is led to the standby.

use outbox_harness::database::Role;

use super::Failover;

/// A relay that is given the standby's address alone says so, and what to write; the other one has it as it says.
pub(super) async fn is_told(f: Failover) -> Failover {
    let address = |(host, port)| format!("{host}:{port}");
    let (primary, standby) = (f.pair.primary().address(), f.pair.standby().address());
    let url = f.t.database().url(Role::Relay).replace(&address(primary), &address(standby));
    let settings = f.t.relay().files("astray").set("postgres.url", &url);
    settings.spawn().wait_log("add target_session_attrs=read-write to postgres.url").await;
    f
}
