//! An operator's commands that end at a point, in their own processes.

use std::os::unix::process::ExitStatusExt;

use outbox_harness::{Harness, database::Role, relay::Settings, wait};

use super::story::REACHED;

/// Commands of each kind end half-way: whatever they changed is announced, or is not changed.
pub(super) async fn commands_end_at(t: &Harness, settings: &Settings, point: &str) {
    let operator = settings
        .clone()
        .set("postgres.url", &t.database().url(Role::Operator))
        .without("sink.properties.\"bootstrap.servers\"")
        .without("sink.delivery")
        .fault(point);
    for _ in 0..3 {
        wait::until(&format!("{point} is passed"), REACHED, || async {
            let output = operator.command(&["dead-letters", "release", "--all"]).await;
            match output.status.signal() {
                Some(libc::SIGKILL) => Ok(()),
                // Nothing was parked at this moment.
                _ if output.status.success() => Err("nothing to release".to_owned()),
                // The relay has not made its slot yet.
                _ if said(&output).contains("no relay of the name") => Err(said(&output)),
                _ => panic!("{}", said(&output)),
            }
        })
        .await
        .expect("it is passed");
    }
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
