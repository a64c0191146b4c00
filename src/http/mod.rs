//! What browsers and monitoring systems are told, off unless `http.listen` is set: [`metrics`], whether the collector is
//! alive and ready, and how the servers are, as JSON and as a page for people.
//!
//! Whoever can connect may read all of it, and nobody can change anything. Each answer is made of an [`Overview`] that
//! the dispatcher gives when it is asked: no other state is shared, and a dispatcher that stands still is noticed.
//! Clients may be slow, silent or many: how many are served, and how long, is limited.

mod metrics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::overview::Overview;
use crate::schedule;

/// Asks the dispatcher how all goes.
pub type Question = oneshot::Sender<Overview>;

/// How long the dispatcher has for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a client has for the head of a request, and a connection may idle before the next one.
const HEAD: Duration = Duration::from_secs(10);
/// After so long a connection is closed, when its present answer is out.
const CONNECTION: Duration = Duration::from_secs(300);
/// How long that answer may take.
const LAST_ANSWER: Duration = Duration::from_secs(10);
/// So many connections at a time: each may hold an answer of some megabytes.
pub const CONNECTIONS: usize = 16;
/// Before a failed accept is tried again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Of a request's head, in bytes.
const HEAD_BYTES: usize = 16 << 10;

/// Scripts, styles and pictures come from here alone, and none stands in the page itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Pages that are being served, until they are stopped.
#[derive(Debug)]
pub struct Pages {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Pages {
    /// Serves pages at an address as soon as that is free. `before`: what was served so far, which ends.
    pub fn serve(address: SocketAddr, questions: mpsc::Sender<Question>, before: Option<Pages>) -> Self {
        let stop = CancellationToken::new();
        let until = stop.clone();
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.stop.cancel();
                // The address may be the same. It has either ended, or was broken off by a fault of its own.
                let _ = before.task.await;
            }
            until.run_until_cancelled(run(address, questions)).await;
        });
        Self { stop, task }
    }

    /// Closes the address and all connections.
    pub fn end(self) {
        self.stop.cancel();
    }
}

async fn run(address: SocketAddr, questions: mpsc::Sender<Question>) {
    let listener = bind(address).await;
    match listener.local_addr() {
        Ok(address) => tracing::info!("http: serves pages at http://{address}/"),
        Err(error) => tracing::warn!("http: the address of {address} cannot be read: {error}"),
    }
    let pages = router(questions);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // They end with this task.
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
        let stream = accept(&listener).await;
        let pages = pages.clone();
        connections.spawn(async move {
            serve(stream, pages).await;
            drop(place);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Waits until the address is free.
async fn bind(address: SocketAddr) -> TcpListener {
    let mut attempt = 0;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) if attempt == 0 => {
                tracing::error!(
                    "http.listen: {address}: {error}; no pages are served; trying again until it works"
                );
            }
            Err(error) => tracing::debug!("http.listen: {address}: {error}"),
        }
        attempt += 1;
        sleep(schedule::backoff(attempt, rand::random())).await;
    }
}

/// The next connection. Where there is none to be had, as when no more files can be opened, that is said once.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut is_failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) if std::mem::replace(&mut is_failing, true) => {
                tracing::debug!("http: accept: {error}")
            }
            Err(error) => tracing::warn!("http: a client cannot be served: accept: {error}; trying again"),
        }
        sleep(AFTER_FAILURE).await;
    }
}

/// Answers what comes over one connection.
async fn serve(stream: TcpStream, pages: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(pages));
    tokio::pin!(connection);
    // What clients do wrong is theirs to notice.
    if timeout(CONNECTION, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_ANSWER, connection).await;
    }
}

fn router(questions: mpsc::Sender<Question>) -> Router {
    let file = |kind: &'static str, text: &'static str| get(([(CONTENT_TYPE, kind)], text));
    Router::new()
        .route("/", file("text/html; charset=utf-8", include_str!("page/index.html")))
        .route("/page.js", file("text/javascript; charset=utf-8", include_str!("page/page.js")))
        .route("/page.css", file("text/css; charset=utf-8", include_str!("page/page.css")))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .layer(middleware::map_response(with_headers))
        .with_state(questions)
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The dispatcher does not answer.
struct Silent;

impl IntoResponse for Silent {
    fn into_response(self) -> Response {
        let text = format!("the collector does not answer within {} s\n", ANSWER.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn overview(questions: &mpsc::Sender<Question>) -> Result<Overview, Silent> {
    let asking = async {
        let (question, answer) = oneshot::channel();
        questions.send(question).await.ok()?;
        answer.await.ok()
    };
    timeout(ANSWER, asking).await.ok().flatten().ok_or(Silent)
}

async fn status(State(questions): State<mpsc::Sender<Question>>) -> Result<Json<Overview>, Silent> {
    overview(&questions).await.map(Json)
}

async fn healthz(State(questions): State<mpsc::Sender<Question>>) -> Result<&'static str, Silent> {
    overview(&questions).await.map(|_| "ok\n")
}

async fn readyz(State(questions): State<mpsc::Sender<Question>>) -> Result<Response, Silent> {
    Ok(match overview(&questions).await?.unready() {
        None => "ready\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason + "\n").into_response(),
    })
}

async fn metrics(
    State(questions): State<mpsc::Sender<Question>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Silent> {
    let overview = overview(&questions).await?;
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = metrics::Format::accepted(accepted);
    Ok(([(CONTENT_TYPE, format.content_type())], metrics::text(overview, format)))
}
