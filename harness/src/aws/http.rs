//! As much of HTTP as these services need: a request, an answer, on a connection of their own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};

use super::account::REGION;

const ASK: Duration = Duration::from_secs(20);

/// A message of HTTP, of either side.
#[derive(Debug)]
pub(super) struct Message {
    /// The request's or the status line.
    pub(super) first: String,
    /// In lower case, with their values.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Message {
    /// `None` where the other side is gone.
    pub(super) async fn read(from: &mut BufReader<&mut TcpStream>) -> Result<Option<Self>> {
        let mut first = String::new();
        if from.read_line(&mut first).await? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length");
        let length = length.map_or(Ok(0), |(_, value)| value.parse())?;
        let mut body = vec![0; length];
        from.read_exact(&mut body).await?;
        Ok(Some(Message { first: first.trim_end().to_owned(), headers, body }))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }
}

/// Sends a request, and reads the answer.
pub(super) async fn ask(address: &str, headers: &str, body: &[u8]) -> Result<Message> {
    let asked = async {
        let mut line = TcpStream::connect(address).await?;
        let head = format!(
            "POST / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        line.write_all(&[head.as_bytes(), body].concat()).await?;
        Message::read(&mut BufReader::new(&mut line)).await?.context("no answer")
    };
    timeout(ASK, asked).await.context("no answer in time")?
}

/// An action of SQS.
pub(super) async fn sqs(address: &str, action: &str, body: &Value) -> Result<Value> {
    let headers = format!(
        "content-type: application/x-amz-json-1.0\r\nx-amz-target: AmazonSQS.{action}\r\n{}",
        authorization("sqs")
    );
    let answer = ask(address, &headers, &serde_json::to_vec(body)?).await?;
    let text = String::from_utf8_lossy(&answer.body);
    if !answer.first.contains(" 200 ") {
        bail!("{action}: {}: {text}", answer.first);
    }
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).with_context(|| format!("{action}: {text}"))
}

/// An action of SNS; its answer is XML.
pub(super) async fn sns(
    address: &str,
    action: &str,
    parameters: &[(&str, &str)],
) -> Result<String> {
    let encoded = |text: &str| {
        text.bytes().fold(String::new(), |mut all, byte| {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => all.push(char::from(byte)),
                other => all.push_str(&format!("%{other:02X}")),
            }
            all
        })
    };
    let mut body = format!("Action={action}&Version=2010-03-31");
    for (name, value) in parameters {
        body.push_str(&format!("&{name}={}", encoded(value)));
    }
    let headers =
        format!("content-type: application/x-www-form-urlencoded\r\n{}", authorization("sns"));
    let answer = ask(address, &headers, body.as_bytes()).await?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    if !answer.first.contains(" 200 ") {
        bail!("{action}: {}: {text}", answer.first);
    }
    Ok(text)
}

/// No one checks it; moto reads the service and the region from it.
fn authorization(service: &str) -> String {
    format!(
        "authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{}/{service}/aws4_request, SignedHeaders=host, \
         Signature=0\r\n",
        REGION
    )
}
