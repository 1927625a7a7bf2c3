use super::*;
use crate::{
    core::{lsn::Lsn, position::Position},
    state::{Board, Phase, status::Status},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

struct Server {
    address: String,
    board: Board,
    stop: CancellationToken,
    task: JoinHandle<io::Result<()>>,
}

async fn server() -> Server {
    let listener = bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let board = Board::new("orders", "outbox_orders", "1.2.3");
    let stop = CancellationToken::new();
    let hosts = Hosts::new(&address, &[]);
    let task = tokio::spawn(serve(listener, hosts, board.clone().into(), stop.clone()));
    Server { address, board, stop, task }
}

impl Server {
    async fn get(&self, path: &str) -> (u16, String) {
        client::get(&self.address, path).await.expect("an answer")
    }
}

#[tokio::test]
async fn health_follows_the_board() {
    let server = server().await;
    assert_eq!(server.get("/livez").await, (200, "ok\n".into()));
    assert_eq!(server.get("/readyz").await, (503, "starting: reading settings\n".into()));
    server.board.heard();
    server.board.phase(Phase::Streaming);
    assert_eq!(server.get("/readyz").await, (200, "ok\n".into()));
}

#[tokio::test]
async fn status_reads_back_as_it_was() {
    let server = server().await;
    server.board.delivered(
        Some(Position::UpTo(Lsn::new(16))),
        2,
        10,
        Duration::from_millis(3),
        None,
    );
    server.board.error("the broker was away".into());
    let (code, body) = server.get("/status").await;
    let read: Status = serde_json::from_str(&body).expect("the documented shape");
    let now = server.board.status();
    assert_eq!(code, 200);
    let comparable = |s: Status| Status { uptime_seconds: 0.0, lag_seconds: None, ..s };
    assert_eq!(comparable(read), comparable(now));
    assert!(body.contains(r#""delivered":{"up_to":"0/10"}"#), "{body}");
    assert!(body.contains(r#""parked_lanes":null"#), "{body}");
}

#[tokio::test]
async fn metrics_the_page_and_a_wrong_path_answer() {
    let server = server().await;
    let (code, metrics) = server.get("/metrics").await;
    assert!(code == 200 && metrics.contains("outbox_relay_ready 0\n"), "{metrics}");
    let (code, page) = server.get("/").await;
    assert!(code == 200 && page.starts_with("<!doctype html>") && !page.contains("{nonce}"));
    assert!(!page.contains("http://") && !page.contains("https://"), "no external assets");
    assert_eq!(server.get("/admin").await.0, 404);
}

/// The whole answer to a request as it stands.
async fn ask(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(&server.address).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer and its end");
    answer
}

#[tokio::test]
async fn health_answers_while_hundreds_of_others_are_connected() {
    let server = server().await;
    let mut others = Vec::new();
    for sent in ["", "GET /livez HT", "GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        for _ in 0..100 {
            let mut other = TcpStream::connect(&server.address).await.expect("connected");
            other.write_all(sent.as_bytes()).await.expect("sent");
            others.push(other);
        }
        assert_eq!(server.get("/livez").await.0, 200, "after {sent:?}");
    }
}

/// Each probe is asked once and must be answered; how long that takes is the machine's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_probe_is_dropped_while_a_thousand_connections_are_opened_as_quickly_as_possible() {
    let server = server().await;
    for sent in ["", "GET /livez HT", "GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let address = server.address.clone();
        let flood = tokio::spawn(async move {
            let mut others = Vec::new();
            for _ in 0..1_000 {
                let mut other = TcpStream::connect(&address).await.expect("connected");
                // It may have been closed by then: it makes room.
                let _ = other.write_all(sent.as_bytes()).await;
                others.push(other);
            }
            others
        });
        let mut probes = 0;
        while !flood.is_finished() || probes == 0 {
            assert_eq!(server.get("/livez").await.0, 200, "after {probes} probes beside {sent:?}");
            probes += 1;
        }
        drop(flood.await.expect("no panic"));
    }
}

#[tokio::test]
async fn a_name_that_is_not_the_relays_is_answered_nowhere() {
    let server = server().await;
    for path in ["/", "/livez", "/readyz", "/metrics", "/status", "/nothing"] {
        let rebound = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        let refused = ask(&server, &rebound).await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        assert!(refused.contains("admin.hosts") && !refused.contains("orders"), "{refused}");
    }
    // As a kubelet asks: by the pod's address.
    let probe = ask(&server, "GET /livez HTTP/1.1\r\nHost: 10.4.0.17:9464\r\n\r\n").await;
    assert!(probe.starts_with("HTTP/1.1 200 "), "{probe}");
}

#[tokio::test]
async fn every_answer_forbids_what_a_strange_page_could_do_with_it() {
    let server = server().await;
    for path in ["/", "/livez", "/readyz", "/metrics", "/status", "/nothing"] {
        let answer = ask(&server, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_ascii_lowercase();
        for line in [
            "connection: close",
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "x-frame-options: deny",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(head.contains(line), "{path}: {line}: {head}");
        }
        assert!(!head.contains("access-control-allow"), "{head}");
    }
}

#[tokio::test]
async fn an_address_in_use_names_the_setting() {
    let server = server().await;
    let error = bind(&server.address).await.expect_err("it is taken").to_string();
    assert!(error.contains(&server.address) && error.contains("admin.listen"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_said_with_the_address() {
    let listener = bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let error = client::get(&address, "/status").await.expect_err("nobody").to_string();
    assert!(error.contains(&address), "{error}");
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_does_not_hold_up_a_stop() {
    let server = server().await;
    let mut slow = TcpStream::connect(&server.address).await.expect("connected");
    slow.write_all(b"GET /status HTTP/1.1\r\n").await.expect("sent");
    assert_eq!(server.get("/livez").await.0, 200);
    server.stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), server.task).await;
    assert!(matches!(ended, Ok(Ok(Ok(())))), "{ended:?}");
}
