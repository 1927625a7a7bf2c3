//! A pooler between the consumer and its database.

use outbox_harness::database::{self, Role};
use outbox_idempotency::{Inbox, InboxError};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf},
};

use super::effects::database;

/// A message of the protocol; the first one of a client has no type.
async fn message(from: &mut OwnedReadHalf, head: usize) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; head];
    from.read_exact(&mut message).await?;
    let len = from.read_u32().await?;
    let mut rest = vec![0; usize::try_from(len).expect("a size").saturating_sub(4)];
    from.read_exact(&mut rest).await?;
    message.extend(len.to_be_bytes());
    message.extend(rest);
    Ok(message)
}

async fn pass(client: TcpStream, server: TcpStream) -> std::io::Result<()> {
    let ((mut asks, mut told), (mut answers, mut asked)) =
        (client.into_split(), server.into_split());
    let requests = async {
        asked.write_all(&message(&mut asks, 0).await?).await?;
        loop {
            let mut message = message(&mut asks, 1).await?;
            // What is prepared has another name where it is asked for, as in another session.
            let name = match (message.first(), message.get(5)) {
                (Some(b'P'), _) => 5,
                (Some(b'D'), Some(b'S')) => 6,
                _ => usize::MAX,
            };
            if let Some(first @ 1..) = message.get_mut(name) {
                *first = b'x';
            }
            asked.write_all(&message).await?;
        }
    };
    let answers = tokio::io::copy(&mut answers, &mut told);
    tokio::select! {
        ended = requests => ended,
        ended = answers => ended.map(drop),
    }
}

/// As PgBouncer with `pool_mode = transaction` and without `max_prepared_statements`: the session that
/// runs a statement is not the one that prepared it.
async fn pooler(server: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&server).await.expect("the server listens");
            tokio::spawn(pass(client, server));
        }
    });
    address
}

#[tokio::test]
async fn behind_a_pooler_that_keeps_no_prepared_statements_the_inbox_says_what_to_set() {
    let database = database().await;
    let (host, port) = database.postgres().address();
    let server = format!("{host}:{port}");
    let pooled = pooler(server.clone()).await;
    let url = database.url(Role::Consumer).replace(&server, &pooled);
    let pool = database::pool(url.parse().expect("a URL"), 2);
    let error = Inbox::open(pool, "billing").await.expect_err("nothing could be handled");
    assert!(matches!(error, InboxError::Session(_)), "{error:?}");
    let text = error.to_string();
    for words in ["PgBouncer", "max_prepared_statements", "pool_mode = session"] {
        assert!(text.contains(words), "{text}");
    }
    assert!(!text.contains("migrat"), "{text}");
}
