//! A relay that freezes at a point, the standby that takes over, and who leads once it thaws.

use outbox_harness::{
    relay::{Relay, Settings},
    wait,
};
use serde_json::Value;

use super::Delivery;

/// Said by who finds the file locked by another process.
const LOCKED: &str = "has the file locked";

/// The first relay freezes, the second takes over, the first thaws and stands by.
pub(super) async fn frozen_at(
    settings: Settings,
    point: &str,
    passing: u64,
    delivery: Delivery,
) -> Vec<Relay> {
    let frozen = settings.clone().files("first").fault(&format!("{point}:{passing}:freeze"));
    let frozen = frozen.spawn();
    frozen.wait_log(&format!("fault: {point}")).await;
    let heir = settings.files("second").spawn();
    heir.wait_log("streaming").await;
    let relays = vec![heir, frozen];
    let [heir, frozen] = relays.as_slice() else { unreachable!("two") };
    delivers_or_meets_a_lock(heir).await;
    frozen.thaw();
    if delivery == Delivery::File {
        one_leads(heir, frozen).await;
    }
    // No one else lets go of the lead: nothing but a lock on the file keeps an heir from delivering.
    if !heir.logs_contain(LOCKED) {
        stands_by(frozen).await;
        delivers(heir).await;
        assert_eq!(heir.log_text().matches("streaming from").count(), 1, "{}", heir.log_text());
    }
    relays
}

/// What it thaws with, a relay still writes to its file, and holds the lock on it meanwhile. An heir that
/// meets the lock lets go of the lead, and either takes it next. The same where a relay freezes while it
/// writes: then no one can until it thaws.
async fn one_leads(heir: &Relay, frozen: &Relay) {
    let delivered = async || {
        let (heir, frozen) = (look(heir).await?, look(frozen).await?);
        let roles = [heir.role.as_str(), frozen.role.as_str()];
        match roles {
            ["leader", "standby"] | ["standby", "leader"] => Ok(heir.delivered + frozen.delivered),
            _ => Err(format!("{roles:?}")),
        }
    };
    let before = wait::until("one leads, and one stands by", wait::PATIENCE, &delivered).await;
    let before = before.expect("one leads");
    wait::until("the one that leads delivers", wait::PATIENCE, async || {
        match delivered().await? {
            now if now > before => Ok(()),
            now => Err(format!("{now} records, {before} before")),
        }
    })
    .await
    .expect("it delivers");
}

async fn stands_by(relay: &Relay) {
    wait::until("the thawed relay stands by", wait::PATIENCE, || async {
        let role = look(relay).await?.role;
        if role == "standby" { Ok(()) } else { Err(role) }
    })
    .await
    .expect("it stands by");
}

/// Waits until it has delivered more.
async fn delivers(relay: &Relay) {
    let before = look(relay).await.map_or(0, |look| look.delivered);
    wait::until("it delivers more", wait::PATIENCE, || async {
        match look(relay).await?.delivered {
            found if found > before => Ok(()),
            found => Err(format!("{found} records")),
        }
    })
    .await
    .expect("it delivers");
}

/// As [`delivers`], unless what it writes to is locked by the one that froze.
async fn delivers_or_meets_a_lock(relay: &Relay) {
    tokio::select! {
        () = delivers(relay) => {}
        () = relay.wait_log(LOCKED) => {}
    }
}

/// What a relay says of itself.
struct Look {
    role: String,
    delivered: u64,
}

async fn look(relay: &Relay) -> Result<Look, String> {
    let status = relay.try_status().await.map_err(|error| format!("{error:#}"))?;
    let role = status.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    let delivered = status.get("records_delivered").and_then(Value::as_u64).unwrap_or(0);
    Ok(Look { role, delivered })
}
