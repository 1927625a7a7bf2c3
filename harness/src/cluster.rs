//! A primary and a streaming standby of a test's own, for what happens when one takes over.

use outbox_relay::throwaway::{LocalPostgres, Shutdown};

use crate::{
    database::{Database, Role},
    postgres::{Postgres, Session},
    postgres_version::Version,
    wait,
};

/// Two servers with one history, until the standby is promoted.
#[derive(Debug)]
pub struct Pair {
    primary: &'static Postgres,
    standby: &'static Postgres,
    /// The primary's, then the standby's.
    servers: [LocalPostgres; 2],
}

impl Pair {
    /// Starts both, the standby as a copy of the primary that it streams from.
    ///
    /// # Panics
    /// When there are no binaries, or one of them does not answer.
    pub async fn start() -> Self {
        Self::of(Postgres::private().await).await
    }

    /// Both of PostgreSQL 17, the standby with a copy of each slot that is made with `failover`; no
    /// such slot is ahead of the standby.
    ///
    /// # Panics
    /// As [`Pair::start`].
    pub async fn start_17() -> Self {
        let pair = Self::of(Postgres::private_version(Version::V17).await).await;
        let (primary, standby) = (session(pair.primary).await, session(pair.standby).await);
        for statement in [
            "select pg_create_physical_replication_slot('standby')",
            "alter system set synchronized_standby_slots = 'standby'",
            "select pg_reload_conf()",
        ] {
            primary.batch_execute(statement).await.expect("a setting");
        }
        let conninfo = "select current_setting('primary_conninfo')";
        let conninfo: String = standby.query_one(conninfo, &[]).await.expect("a setting").get(0);
        for statement in [
            "alter system set primary_slot_name = 'standby'",
            "alter system set hot_standby_feedback = on",
            "alter system set sync_replication_slots = on",
            &format!("alter system set primary_conninfo = '{conninfo} dbname=postgres'"),
            "select pg_reload_conf()",
        ] {
            standby.batch_execute(statement).await.expect("a setting");
        }
        pair
    }

    async fn of((primary, mut first): (&'static Postgres, LocalPostgres)) -> Self {
        let (standby, second) = Postgres::standby_of(&mut first).await;
        Pair { primary, standby, servers: [first, second] }
    }

    /// Waits until the standby has a copy of a slot that outlives a promotion, while the relay streams:
    /// until the primary's slot has moved on, the standby keeps only a temporary one.
    ///
    /// # Panics
    /// When it has none after [`wait::PATIENCE`].
    pub async fn wait_slot(&self, slot: &str) {
        let (primary, standby) = (session(self.primary).await, session(self.standby).await);
        let query =
            "select synced and not temporary from pg_replication_slots where slot_name = $1";
        wait::until("the slot is on the standby", wait::PATIENCE, || async {
            // What the primary's slot moves on to; else one is written every 15 s.
            let moved = primary.batch_execute("select pg_log_standby_snapshot()").await;
            moved.map_err(|error| error.to_string())?;
            let row = standby.query_opt(query, &[&slot]).await;
            match row.map(|row| row.map(|row| row.get::<_, bool>(0))) {
                Ok(Some(true)) => Ok(()),
                found => Err(format!("{found:?}")),
            }
        })
        .await
        .expect("the standby synchronizes it");
    }

    /// The server that writes, until the failover.
    pub fn primary(&self) -> &'static Postgres {
        self.primary
    }

    /// The server that writes after the failover.
    pub fn standby(&self) -> &'static Postgres {
        self.standby
    }

    /// A role's URL that names both, for whichever may be written to.
    pub fn url(&self, database: &Database, role: Role) -> String {
        let address = |(host, port)| format!("{host}:{port}");
        let (primary, standby) = (self.primary.address(), self.standby.address());
        let (primary, standby) = (address(primary), address(standby));
        let url = database.url(role);
        // Whichever of the two it is on by now.
        let url = url.replacen(&primary, "SERVERS", 1).replacen(&standby, "SERVERS", 1);
        let both = url.replacen("SERVERS", &format!("{primary},{standby}"), 1);
        format!("{both}?target_session_attrs=read-write")
    }

    /// Waits until the standby has everything that is committed by now.
    ///
    /// # Panics
    /// When it has not after [`wait::PATIENCE`].
    pub async fn catch_up(&self) {
        let (primary, standby) = (session(self.primary).await, session(self.standby).await);
        let end = "select pg_current_wal_flush_lsn()::text";
        let end: String = primary.query_one(end, &[]).await.expect("an LSN").get(0);
        let query = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        wait::until("the standby has caught up", wait::PATIENCE, || async {
            let row = standby.query_one(query, &[&end]).await.map_err(|e| e.to_string())?;
            if row.get::<_, Option<bool>>(0) == Some(true) { Ok(()) } else { Err(end.clone()) }
        })
        .await
        .expect("it streams");
    }

    /// From now on the standby gets nothing more.
    ///
    /// # Panics
    /// When it continues streaming.
    pub async fn cut(&self) {
        let standby = session(self.standby).await;
        for statement in ["alter system set primary_conninfo = ''", "select pg_reload_conf()"] {
            standby.batch_execute(statement).await.expect("a setting");
        }
        wait::until("the standby is cut off", wait::PATIENCE, || async {
            let row = standby.query_one("select count(*) from pg_stat_wal_receiver", &[]).await;
            match row.map(|row| row.get::<_, i64>(0)) {
                Ok(0) => Ok(()),
                found => Err(format!("{found:?}")),
            }
        })
        .await
        .expect("it stops streaming");
    }

    /// The former primary answers again, with what it had.
    ///
    /// # Panics
    /// When it does not.
    pub async fn revive(&mut self) {
        let [primary, _] = &mut self.servers;
        primary.restart().expect("it starts");
        let config = self.primary.superuser("postgres");
        let connected =
            wait::until("it answers", wait::PATIENCE, || self.primary.connect(&config)).await;
        drop(connected.expect("a session"));
    }

    /// The primary is gone, as in a crash; the standby is promoted to a new timeline.
    ///
    /// # Panics
    /// When it is not.
    pub async fn fail_over(&mut self) {
        let [primary, _] = &mut self.servers;
        primary.stop(Shutdown::Immediate).expect("it ends");
        let standby = session(self.standby).await;
        let promoted = standby.query_one("select pg_promote(true, 60)", &[]).await;
        assert!(promoted.expect("an answer").get::<_, bool>(0), "it was promoted");
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // The guardian ends it otherwise; one that has ended is no error.
            let _ended = server.stop(Shutdown::Immediate);
        }
    }
}

async fn session(postgres: &Postgres) -> Session {
    postgres.connect(&postgres.superuser("postgres")).await.expect("a superuser's session")
}
