//! A server that drips its answers byte by byte, and one that lies.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(u32::try_from(body.len() + 4).expect("short").to_be_bytes());
    bytes.extend(body);
    bytes
}

fn authentication(kind: u32, rest: &[u8]) -> Vec<u8> {
    let mut body = kind.to_be_bytes().to_vec();
    body.extend(rest);
    frame(b'R', &body)
}

/// Reads one message of the client's and returns its body.
async fn answer(server: &mut DuplexStream) -> Vec<u8> {
    assert_eq!(server.read_u8().await.expect("a tag"), b'p');
    let length = server.read_u32().await.expect("a length");
    let mut body = vec![0; usize::try_from(length).expect("short") - 4];
    server.read_exact(&mut body).await.expect("a body");
    body
}

async fn login(
    binding: ChannelBinding,
    end_point: Option<Vec<u8>>,
    server: impl AsyncFnOnce(&mut DuplexStream),
) -> Result<(), ConnectError> {
    // A buffer of one byte: every message arrives in pieces.
    let (mut theirs, ours) = duplex(1);
    let mut wire = Wire::new(ours);
    let password = Secret::new("sesame");
    let credentials = Credentials {
        user: "relay",
        password: Some(&password),
        channel_binding: binding,
        end_point,
    };
    let (result, ()) = tokio::join!(
        async {
            let result = log_in(&mut wire, credentials).await;
            drop(wire);
            result
        },
        async {
            server(&mut theirs).await;
            drop(theirs);
        }
    );
    result
}

#[tokio::test]
async fn an_md5_login_sends_the_salted_hash() {
    let result = login(ChannelBinding::Prefer, None, async |server: &mut DuplexStream| {
        server.write_all(&authentication(5, &[1, 2, 3, 4])).await.expect("written");
        let mut expected = md5_hash(b"relay", b"sesame", [1, 2, 3, 4]).into_bytes();
        expected.push(0);
        assert_eq!(answer(server).await, expected);
        server.write_all(&authentication(0, &[])).await.expect("written");
    });
    result.await.expect("logged in");
}

#[tokio::test]
async fn a_required_channel_binding_is_never_given_up() {
    let offers: [(Vec<u8>, Option<Vec<u8>>); 5] = [
        (authentication(0, &[]), None),
        (authentication(3, &[]), Some(vec![1])),
        (authentication(5, &[1, 2, 3, 4]), Some(vec![1])),
        (authentication(10, b"SCRAM-SHA-256\0\0"), Some(vec![1])),
        (authentication(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0"), None),
    ];
    for (offer, end_point) in offers {
        let result =
            login(ChannelBinding::Require, end_point, async |server: &mut DuplexStream| {
                server.write_all(&offer).await.expect("written");
                // Nothing may be sent, the password least of all.
                assert!(server.read_u8().await.is_err());
            });
        let error = result.await.expect_err("refused");
        assert!(!error.is_transient() && error.to_string().contains("channel_binding"), "{error}");
    }
}

#[tokio::test]
async fn the_first_message_says_how_scram_is_bound() {
    let both = b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0".as_slice();
    let alone = b"SCRAM-SHA-256\0\0".as_slice();
    for (offer, binding, end_point, mechanism, header) in [
        (
            both,
            ChannelBinding::Prefer,
            Some(vec![7]),
            "SCRAM-SHA-256-PLUS",
            "p=tls-server-end-point,,",
        ),
        (
            both,
            ChannelBinding::Require,
            Some(vec![7]),
            "SCRAM-SHA-256-PLUS",
            "p=tls-server-end-point,,",
        ),
        (both, ChannelBinding::Disable, Some(vec![7]), "SCRAM-SHA-256", "n,,"),
        (both, ChannelBinding::Prefer, None, "SCRAM-SHA-256", "n,,"),
        (alone, ChannelBinding::Prefer, Some(vec![7]), "SCRAM-SHA-256", "y,,"),
    ] {
        let result = login(binding, end_point, async |server: &mut DuplexStream| {
            server.write_all(&authentication(10, offer)).await.expect("written");
            let body = String::from_utf8(answer(server).await).expect("text");
            assert!(body.starts_with(&format!("{mechanism}\0")), "{body:?}");
            assert!(body.contains(&format!("{header}n=,r=")), "{body:?}");
            // Then a server that answers with a nonce that is not the client's.
            let first = b"r=not-yours,s=AAAA,i=4096";
            server.write_all(&authentication(11, first)).await.expect("written");
        });
        let error = result.await.expect_err("refused");
        assert!(error.to_string().contains("SCRAM failed"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_skips_scram_s_proof_is_refused() {
    let result = login(ChannelBinding::Prefer, None, async |server: &mut DuplexStream| {
        server.write_all(&authentication(10, b"SCRAM-SHA-256\0\0")).await.expect("written");
        answer(server).await;
        server.write_all(&authentication(0, &[])).await.expect("written");
    });
    assert!(result.await.is_err());
}

#[tokio::test]
async fn a_refusal_keeps_its_sqlstate_and_hides_the_password() {
    let result = login(ChannelBinding::Prefer, None, async |server: &mut DuplexStream| {
        server.write_all(&authentication(3, &[])).await.expect("written");
        assert_eq!(answer(server).await, b"sesame\0");
        let fields = b"SFATAL\0C28P01\0Mpassword authentication failed\0\0";
        server.write_all(&frame(b'E', fields)).await.expect("written");
    });
    let error = result.await.expect_err("refused");
    assert_eq!((error.sqlstate(), error.is_transient()), (Some("28P01"), false));
    assert!(!format!("{error} {error:?}").contains("sesame"));
}
