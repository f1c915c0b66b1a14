//! The handler `echo`: the request body back as it comes. Without one: `METHOD target`.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};

use super::{Body, Context, Failure, LimitedBody};

/// Answers as soon as the first bytes are there: a client that waits for `100 Continue` gets it before the
/// answer, as it should. The body follows the request's, with its length if that is known, and its type.
pub async fn call(request: Request<Body>) -> Result<Response<Body>, Failure> {
    let context = Context::of(request.extensions())?;
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        let target = parts.uri.path_and_query().map_or("*", |target| target.as_str());
        let text = Full::from(format!("{} {target}\n", parts.method));
        let mut response = Response::new(text.map_err(|never| match never {}).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        return Ok(response);
    }
    let mut body = LimitedBody::new(body, &context)?;
    std::future::poll_fn(|task| body.poll_ready(task)).await?;
    let mut response = Response::new(body.map_err(Into::into).boxed_unsync());
    if let Some(kind) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::super::Builtin;
    use super::super::tests::{context, full, send, text};
    use super::*;

    #[tokio::test]
    async fn gives_back_what_came() {
        let request = Request::post("/x").header("Content-Type", "a/b");
        let response = send(&Builtin::Echo, context(), request, full("hello")).await.unwrap();
        assert_eq!(response.headers()["content-type"], "a/b");
        assert_eq!(response.body().size_hint().exact(), Some(5));
        assert_eq!(text(response).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn without_a_body_it_names_the_request() {
        let response = send(&Builtin::Echo, context(), Request::get("/a%20b?c"), full("")).await.unwrap();
        assert_eq!(text(response).await.unwrap(), "GET /a%20b?c\n");
    }

    #[tokio::test]
    async fn limits_hold_for_it_too() {
        let small = Context { max_body: 4, ..context() };
        let refused = send(&Builtin::Echo, small, Request::post("/"), full("hello")).await.unwrap_err();
        assert_eq!((refused.status.as_u16(), refused.started), (413, false));
    }
}
