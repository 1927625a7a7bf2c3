//! A scripted HTTP server in front of one that speaks as SQS does. It lets requests pass, throttles them, or lets a part of
//! a request pass and says of the rest that it failed, as SQS does and no emulator can be made to.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::http::{self, Message};

/// What becomes of a `SendMessageBatch`.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It passes.
    Pass,
    /// As a whole: nothing passes.
    Throttle,
    /// Nothing passes, and this is the answer: a word, and a sentence.
    Refuse(&'static str, &'static str),
    /// The entries whose bodies are not here pass; of the others it says that they failed, and whether by the sender's
    /// fault.
    Fail(Vec<String>, bool),
}

/// By the key's id that a request is signed with, and the bodies of the entries.
type Script = Arc<Mutex<dyn FnMut(&str, &[String]) -> Verdict + Send>>;

/// Ends when it is dropped.
#[derive(Debug)]
pub struct Toll {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Toll {
    /// In front of `server`, `127.0.0.1:port`.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn before(
        server: &str,
        mut script: impl FnMut(&[String]) -> Verdict + Send + 'static,
    ) -> Self {
        Self::asking(server, move |_, bodies| script(bodies)).await
    }

    /// The same, by the id of the key, too.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn asking(
        server: &str,
        script: impl FnMut(&str, &[String]) -> Verdict + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (server, script): (_, Script) = (server.to_owned(), Arc::new(Mutex::new(script)));
        let server = tokio::spawn(async move {
            while let Ok((line, _)) = listener.accept().await {
                let (server, script) = (server.clone(), Arc::clone(&script));
                tokio::spawn(async move {
                    // Whoever asked is gone: no one is told.
                    let _gone = serve(line, &server, &script).await;
                });
            }
        });
        Toll { address, server }
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Toll {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(mut line: TcpStream, server: &str, script: &Script) -> Result<()> {
    loop {
        let asked = Message::read(&mut BufReader::new(&mut line)).await?;
        let Some(asked) = asked else { return Ok(()) };
        let (status, body) = answered(&asked, server, script).await?;
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        line.write_all(&[head.into_bytes(), body].concat()).await?;
    }
}

async fn answered(asked: &Message, server: &str, script: &Script) -> Result<(String, Vec<u8>)> {
    let target = asked.header("x-amz-target").unwrap_or_default().to_owned();
    if target != "AmazonSQS.SendMessageBatch" {
        return pass(asked, server, &asked.body).await;
    }
    let mut request: Value = serde_json::from_slice(&asked.body)?;
    let entries = request.get("Entries").and_then(Value::as_array).context("entries")?.clone();
    let body = |entry: &Value| {
        entry.get("MessageBody").and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let bodies: Vec<String> = entries.iter().map(body).collect();
    let signed = asked.header("authorization").unwrap_or_default();
    let key = signed.split_once("Credential=").and_then(|(_, rest)| rest.split_once('/'));
    let key = key.map_or("", |(key, _)| key);
    let verdict = (script.lock().expect("no test panics with it"))(key, &bodies);
    let said = |code: &str, text: &str| {
        let said = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": text });
        Ok(("400 Bad Request".to_owned(), serde_json::to_vec(&said)?))
    };
    let (failing, by_sender) = match verdict {
        Verdict::Pass => return pass(asked, server, &asked.body).await,
        Verdict::Throttle => return said("RequestThrottled", "Rate exceeded"),
        Verdict::Refuse(code, text) => return said(code, text),
        Verdict::Fail(failing, by_sender) => (failing, by_sender),
    };
    let (fail, keep): (Vec<Value>, Vec<Value>) =
        entries.into_iter().partition(|entry| failing.contains(&body(entry)));
    let mut answer = json!({ "Successful": [], "Failed": [] });
    if !keep.is_empty() {
        request.as_object_mut().context("an object")?.insert("Entries".into(), Value::Array(keep));
        let (status, body) = pass(asked, server, &serde_json::to_vec(&request)?).await?;
        if !status.starts_with("200") {
            return Ok((status, body));
        }
        answer = serde_json::from_slice(&body)?;
    }
    let (code, text) = match by_sender {
        true => ("InvalidMessageContents", "by the script"),
        false => ("InternalError", "by the script"),
    };
    let failed = fail.iter().map(|entry| {
        json!({ "Id": entry.get("Id"), "SenderFault": by_sender, "Code": code, "Message": text })
    });
    let mut all = answer.get("Failed").and_then(Value::as_array).cloned().unwrap_or_default();
    all.extend(failed);
    answer.as_object_mut().context("an object")?.insert("Failed".into(), Value::Array(all));
    Ok(("200 OK".to_owned(), serde_json::to_vec(&answer)?))
}

async fn pass(asked: &Message, server: &str, body: &[u8]) -> Result<(String, Vec<u8>)> {
    let mut headers = String::new();
    for name in ["content-type", "x-amz-target", "authorization"] {
        if let Some(value) = asked.header(name) {
            headers.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    let answer = http::ask(server, &headers, body).await?;
    let status = answer.first.split_once(' ').context("a status")?.1.to_owned();
    Ok((status, answer.body))
}
