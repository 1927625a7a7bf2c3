//! What somebody who may create in the database prepared before the owner came to migrate.

use outbox_harness::database::{Database, Role};
use outbox_migrations::{Set, apply};

/// A database in which `stranger` may create, and the error of the owner's migration after it did.
async fn refused(set: Set, prepared: &[&str]) -> (Database, String) {
    let database = Database::create_empty().await;
    let stranger = format!("stranger_{}", database.name());
    let superuser = database.superuser();
    let create = format!(
        "create role {stranger}; grant create on database {} to {stranger}; set role {stranger}",
        database.name()
    );
    superuser.batch_execute(&create).await.expect("a stranger");
    for statement in prepared {
        let statement = statement.replace("STRANGER", &stranger);
        superuser.batch_execute(&statement).await.expect("the stranger may");
    }
    superuser.batch_execute("reset role").await.expect("reset");
    let mut owner = database.connect(Role::Owner).await;
    let error = apply(&mut owner, set).await.expect_err("refused");
    let by_hand = owner.batch_execute(&set.print()).await.expect_err("refused by hand, too");
    let answer = by_hand.as_db_error().expect("an answer");
    let source = format!("{:?}", std::error::Error::source(&error));
    assert!(source.contains(answer.message()), "{source} and {answer:?}");
    let text = format!("{}; {}", answer.message(), answer.hint().unwrap_or_default());
    let text = text.replace(&stranger, "STRANGER");
    (database, text)
}

/// Removes the stranger, which is of the cluster and not of the database.
async fn leave(database: &Database) {
    let stranger = format!("stranger_{}", database.name());
    let drop = format!("drop owned by {stranger} cascade; drop role {stranger}");
    database.superuser().batch_execute(&drop).await.expect("dropped");
}

#[tokio::test]
async fn a_schema_that_a_stranger_made_first_is_refused_with_its_owner_and_what_to_do() {
    for &set in Set::ALL {
        let schema = format!("create schema {set}");
        let open = format!("grant all on schema {set} to public");
        let (database, text) = refused(set, &[&schema, &open]).await;
        let expected = format!("the schema {set} belongs to STRANGER, who can change whatever");
        assert!(text.contains(&expected), "{text}");
        assert!(text.contains(&format!("rename to {set}_of_a_stranger")), "{text}");

        // As it says.
        let rename = format!("alter schema {set} rename to {set}_of_a_stranger");
        database.superuser().batch_execute(&rename).await.expect("renamed");
        let mut owner = database.connect(Role::Owner).await;
        apply(&mut owner, set).await.expect("applied");
        leave(&database).await;
    }
}

#[tokio::test]
async fn whatever_a_stranger_put_into_the_schema_is_refused_by_its_name() {
    for (made, named) in [
        ("create table outbox.migrations (version int)", "table outbox.migrations of STRANGER"),
        (
            "create function outbox.publish(text, json) returns uuid language sql return null::uuid",
            "function outbox.publish(text,json) of STRANGER",
        ),
        ("create domain outbox.uuid as text", "type outbox.uuid of STRANGER"),
        ("create view outbox.events as select 1 as id", "view outbox.events of STRANGER"),
        (
            "create function public.same(text, text) returns bool language sql return true; \
             create operator outbox.= (function = public.same, leftarg = text, rightarg = text)",
            "operator outbox.=(text,text) of STRANGER",
        ),
    ] {
        let database = Database::create_empty().await;
        let stranger = format!("stranger_{}", database.name());
        let mut owner = database.connect(Role::Owner).await;
        owner.batch_execute("create schema outbox").await.expect("created");
        let superuser = database.superuser();
        let prepare = format!(
            "create role {stranger}; grant all on schema outbox, public to {stranger}; \
             set role {stranger}; {made}; reset role"
        );
        superuser.batch_execute(&prepare).await.expect(made);
        let open = apply(&mut owner, Set::Outbox).await.expect_err("refused");
        let text = format!("{:?}", std::error::Error::source(&open));
        assert!(text.replace(&stranger, "STRANGER").contains(named), "{text}");
        let drop = format!("drop owned by {stranger} cascade");
        superuser.batch_execute(&drop).await.expect("dropped");
        apply(&mut owner, Set::Outbox).await.expect("applied");
        leave(&database).await;
    }
}

#[tokio::test]
async fn a_schema_in_which_others_may_create_is_refused_until_that_is_revoked() {
    let database = Database::create().await;
    let mut owner = database.connect(Role::Owner).await;
    owner.batch_execute("grant create on schema outbox to public").await.expect("granted");
    let error = apply(&mut owner, Set::Outbox).await.expect_err("refused");
    let text = format!("{:?}", std::error::Error::source(&error));
    assert!(
        text.contains("others may create what they like in the schema outbox: public"),
        "{text}"
    );
    let revoke = "revoke create on schema outbox from public";
    assert!(text.contains(revoke), "{text}");
    owner.batch_execute(revoke).await.expect("revoked");
    apply(&mut owner, Set::Outbox).await.expect("nothing is left to do");
}

#[tokio::test]
async fn a_publication_that_a_stranger_made_first_is_refused() {
    let (database, text) =
        refused(Set::Outbox, &["create schema his", "create publication outbox"]).await;
    assert!(text.contains("a publication outbox exists that belongs to somebody else"), "{text}");
    database.superuser().batch_execute("drop publication outbox").await.expect("dropped");
    let mut owner = database.connect(Role::Owner).await;
    apply(&mut owner, Set::Outbox).await.expect("applied");
    leave(&database).await;
}

/// Dynamic credentials: each of their roles is a member of the owner, and gone tomorrow.
#[tokio::test]
async fn a_member_of_the_owning_role_may_migrate() {
    let database = Database::create_empty().await;
    let mut owner = database.connect(Role::Owner).await;
    apply(&mut owner, Set::Outbox).await.expect("applied");
    let me: String = owner.query_one("select current_user::text", &[]).await.expect("me").get(0);
    let member = format!("member_{}", database.name());
    let make = format!("create role {member} login password 'outbox-tests' in role {me}");
    database.superuser().batch_execute(&make).await.expect("made");
    let mut config = database.config(Role::Owner);
    config.user(&member);
    let mut session = database.postgres().connect(&config).await.expect("connected");
    apply(&mut session, Set::Outbox).await.expect("up to date");
    session.batch_execute(&Set::Outbox.print()).await.expect("by hand");
    apply(&mut owner, Set::Outbox).await.expect("what the member made is the owner's as well");
    drop(session);
    let drop = format!("drop owned by {member} cascade; drop role {member}");
    database.superuser().batch_execute(&drop).await.expect("dropped");
}
