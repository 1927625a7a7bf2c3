//! What operators see of a relay: health, metrics, status and a page, over HTTP.
//!
//! Promises answers that cost the relay nothing: all of them come from the [`Boards`], none waits
//! for a database or a broker, and no client keeps another from its answer (`limited`). Reading
//! only; nothing can be changed here, so there is no login. A web page that the operator's browser
//! shows reads nothing here either (`hosts`). Started by `daemon`; the board is written by
//! `daemon`, `pipeline` and `source`.

pub mod client;
mod hosts;
mod limited;
mod taken;

use std::{io, iter, time::Duration};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use rand::Rng;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use hosts::Hosts;
use limited::Limited;
pub use taken::serve_when_free;

use crate::{core::printable, state::boards::Boards};

const PAGE: &str = include_str!("page.html");
/// How long answers under way may still take after a stop.
const GRACE: Duration = Duration::from_secs(1);

/// The admin address can't be used.
#[derive(Debug, thiserror::Error)]
#[error("can't listen on {listen}: set admin.listen to an address that is free, or to \"off\"")]
pub struct BindError {
    listen: String,
    source: io::Error,
}

impl BindError {
    /// Another program has the address now.
    pub fn is_taken(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrInUse
    }
}

/// Takes the address, so that a mistake in it ends the start and not a task later.
///
/// # Errors
/// The address is in use, or is not one of this machine.
pub async fn bind(listen: &str) -> Result<TcpListener, BindError> {
    let error = |source| BindError { listen: listen.to_owned(), source };
    TcpListener::bind(listen).await.map_err(error)
}

/// Serves until `stop`, then for at most a second more. Dropping it ends it at once.
///
/// # Errors
/// None that a caller can correct; failed accepts are waited out.
pub async fn serve(
    listener: TcpListener,
    hosts: Hosts,
    boards: Boards,
    stop: CancellationToken,
) -> io::Result<()> {
    let serving = axum::serve(Limited::new(listener), router(hosts, boards))
        .with_graceful_shutdown(stop.clone().cancelled_owned())
        .into_future();
    let patience = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        result = serving => result,
        () = patience => Ok(()),
    }
}

fn router(hosts: Hosts, boards: Boards) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .fallback(nothing_there)
        .with_state(boards)
        .layer(middleware::from_fn_with_state(hosts, only_known_hosts))
        .layer(middleware::map_response(for_every_answer))
}

type Headers<const N: usize> = [(HeaderName, &'static str); N];

/// On whatever is answered, refusals too.
const EVERYWHERE: Headers<6> = [
    // One answer a connection: who asks often is not in the way of who asks once.
    (header::CONNECTION, "close"),
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

async fn for_every_answer(mut answer: Response) -> Response {
    for (name, value) in EVERYWHERE {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer
}

async fn only_known_hosts(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    match hosts.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refused) => (StatusCode::FORBIDDEN, format!("{refused}\n")).into_response(),
    }
}

async fn livez(State(boards): State<Boards>) -> Response {
    health_answer(boards.liveness().map(|()| Vec::new()))
}

async fn readyz(State(boards): State<Boards>) -> Response {
    health_answer(boards.readiness())
}

fn health_answer(health: Result<Vec<String>, Vec<String>>) -> Response {
    match health {
        Ok(concerns) => {
            let but = concerns.iter().map(|concern| format!("but {}\n", printable::line(concern)));
            iter::once("ok\n".to_owned()).chain(but).collect::<String>().into_response()
        }
        // Read in terminals; there may be text from rows in it.
        Err(why) => {
            let why: String = why.iter().map(|why| format!("{}\n", printable::line(why))).collect();
            (StatusCode::SERVICE_UNAVAILABLE, why).into_response()
        }
    }
}

async fn metrics(State(boards): State<Boards>) -> Response {
    const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, TYPE)], boards.render_metrics()).into_response()
}

async fn status(State(boards): State<Boards>) -> Response {
    Json(boards.status()).into_response()
}

async fn nothing_there() -> Response {
    let here = "there is /livez /readyz /metrics /status and a page at /\n";
    (StatusCode::NOT_FOUND, here).into_response()
}

/// The page runs one inline script, named by a nonce; it may talk to its own origin alone.
async fn page() -> Response {
    let nonce = format!("{:032x}", rand::rng().random::<u128>());
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [(header::CONTENT_SECURITY_POLICY, policy)];
    (headers, Html(PAGE.replace("{nonce}", &nonce))).into_response()
}

#[cfg(test)]
mod tests;
