//! An axum router as a patou worker. In the configuration of the pool:
//!
//! ```toml
//! handler = { program = ["/path/to/axum_worker"] }
//! ```
//!
//! The router receives one request at a time, with the path that the client requested. `patou run` or systemd starts
//! the program; without them it only reports an error.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Extension, RawQuery, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use http_body::Frame;
use http_body_util::BodyExt;
use patou::worker::RequestContext;

// One thread is enough for one request at a time.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), patou::worker::ServeError> {
    let router = Router::new()
        .route("/hello", get(hello))
        // Sends the body back as it arrives, without buffering it.
        .route("/echo", post(|body: Body| async { body }))
        .route("/claims", post(claims))
        .route("/unsendable", get(unsendable))
        .route("/slow", get(slow))
        .route("/block", get(block))
        .route("/block/later", get(block_later))
        .route("/panic", get(panic))
        .route("/panic/late", get(panic_late))
        .route("/websocket", get(websocket))
        .route("/switch", get(|| async { StatusCode::SWITCHING_PROTOCOLS }));
    patou::worker::serve(router).await
}

/// What patou knows about the request is an extension.
async fn hello(Extension(context): Extension<RequestContext>) -> String {
    let peer = context.peer.map_or("a Unix socket".to_owned(), |peer| peer.ip().to_string());
    format!("hello from {} to {peer} under lease {}\n", context.worker, context.lease)
}

/// `Patou-*` headers are patou's alone: this handler gets none from its clients, and those that it sets are removed.
async fn claims(request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let received = body.collect().await.expect("the request body");
    let trailers = received.trailers().cloned().unwrap_or_default();
    let names: Vec<_> = parts.headers.keys().chain(trailers.keys()).map(HeaderName::as_str).collect();
    let claim = HeaderMap::from_iter([
        (HeaderName::from_static("patou-outcome"), HeaderValue::from_static("not-started")),
        (HeaderName::from_static("x-claim"), HeaderValue::from_static("harmless")),
    ]);
    let trailers = std::future::ready(Some(Ok(claim.clone())));
    // Trailers need chunks: the body hides its length.
    let body = Body::from(names.join("\n")).map_frame(|frame: Frame<Bytes>| frame).with_trailers(trailers);
    let mut response = Response::new(Body::new(body));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    *response.headers_mut() = claim;
    response.headers_mut().insert("trailer", HeaderValue::from_static("patou-outcome, x-claim"));
    response
}

/// A response that HTTP/1.1 cannot carry: the request ends with a reset.
async fn unsendable() -> Response {
    let mut response = Response::new(Body::from("never sent"));
    response.headers_mut().insert("transfer-encoding", HeaderValue::from_static("chunked"));
    response
}

/// Waits without blocking. After request_timeout the client gets 504, and this future is dropped.
async fn slow(query: RawQuery) -> &'static str {
    tokio::time::sleep(ms(query)).await;
    "slept\n"
}

/// Blocks the thread, as a handler should not. After request_timeout the client gets 504, and the worker is restarted.
async fn block(query: RawQuery) -> &'static str {
    std::thread::sleep(ms(query));
    "blocked\n"
}

/// Blocks the thread after the response, so that the next request is not served. After request_timeout the worker ends.
async fn block_later(query: RawQuery) -> &'static str {
    let time = ms(query);
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        eprintln!("blocking the thread for {time:?}");
        std::thread::sleep(time);
    });
    "later\n"
}

/// A panic is a 500 for this request and does not affect the next one.
async fn panic() {
    panic!("on request");
}

/// A panic in the body comes too late for a 500: the response is cut.
async fn panic_late() -> Body {
    Body::new(Body::from("never sent").map_frame(|_| -> Frame<Bytes> { panic!("on request, late") }))
}

/// Sends messages back. In the configuration of the pool: `upgrade = ["websocket"]`.
async fn websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket: WebSocket| {
        while let Some(Ok(message)) = socket.recv().await {
            // Pings have their responses already.
            if matches!(message, Message::Text(_) | Message::Binary(_)) && socket.send(message).await.is_err() {
                break;
            }
        }
    })
}

fn ms(RawQuery(query): RawQuery) -> Duration {
    let ms = query.as_deref().and_then(|query| query.strip_prefix("ms=")?.parse().ok());
    Duration::from_millis(ms.unwrap_or(100))
}
