//! The handler with real processes.

mod cleanup;
mod request;
mod response;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::request::Builder;

use super::super::body::{Body, BoxError, unfold};
use super::super::builtin::BuiltinHandler;
use super::super::failure::RequestFailure;
use super::super::test_request::{body_text, full_body, request_context, send, sized};
use crate::config::{HandlerConfig, PoolConfig, WatchdogConfig};
use crate::process_tree;

const PRINT_HEAD: &str = "printf 'Content-Type: text/plain\\n\\n';";
const PRINT_SIZED_HEAD: &str = "printf 'Content-Length: 4\\nContent-Type: a/b\\n\\n';";

fn sh(script: impl AsRef<str>) -> BuiltinHandler {
    start(script, |_| {})
}

/// A shell with this script, in a pool that `change` changes.
fn start(script: impl AsRef<str>, change: impl FnOnce(&mut PoolConfig)) -> BuiltinHandler {
    let argv = ["sh", "-c", script.as_ref()].map(str::to_owned).to_vec();
    let environment = BTreeMap::from([("MINE".to_owned(), "pool".to_owned())]);
    let mut pool = PoolConfig { handler: HandlerConfig::Exec(argv), environment, ..PoolConfig::default() };
    change(&mut pool);
    let worker = "default-1".parse().unwrap();
    BuiltinHandler::start(&pool, &worker, &WatchdogConfig::default(), PathBuf::new()).unwrap().unwrap()
}

/// One request and its cleanup: status and body.
async fn run(
    script: impl AsRef<str>,
    request: Builder,
    body: Body,
) -> Result<(u16, Result<String, BoxError>), RequestFailure> {
    let handler = sh(script);
    let response = send(&handler, request_context(), request, body).await;
    let result = match response {
        Ok(response) => Ok((response.status().as_u16(), body_text(response).await)),
        Err(failure) => Err(failure),
    };
    handler.end_request(Duration::ZERO).await;
    assert!(!process_tree::has_children());
    handler.stop().await;
    result
}

/// The response body to `GET /`.
async fn get(script: impl AsRef<str>) -> String {
    run(script, Request::get("/"), full_body("")).await.unwrap().1.unwrap()
}

/// A file name that no other test uses.
fn scratch_file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("patou-exec-{}-{name}", std::process::id()))
}

/// `count` pieces of a mebibyte.
fn mebibytes(count: usize) -> Body {
    sized(unannounced_mebibytes(count), count as u64 * (1 << 20))
}

/// The same without a size.
fn unannounced_mebibytes(count: usize) -> Body {
    unfold((count, Bytes::from(vec![7; 1 << 20])), |(remaining, piece)| async move {
        Ok((remaining > 0).then(|| (piece.clone(), (remaining - 1, piece))))
    })
}
