//! The handler `echo`: the response body is the request body, or `METHOD target` without one.

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};

use super::body::Body;
use super::context::RequestContext;
use super::failure::RequestFailure;
use super::limited_body::LimitedBody;

/// Responds when the first bytes of the body have arrived: a client that waits for `100 Continue` gets it before the
/// response. The response body is streamed, with the length (if known) and the type of the request body.
pub(super) async fn call(request: Request<Body>) -> Result<Response<Body>, RequestFailure> {
    let context = RequestContext::from_extensions(request.extensions())?;
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
    if let Some(content_type) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, content_type.clone());
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::super::builtin::BuiltinHandler;
    use super::super::test_request::{body_text, full_body, request_context, send};
    use super::*;

    #[tokio::test]
    async fn response_has_body_and_type_of_request() {
        let request = Request::post("/x").header("Content-Type", "a/b");
        let response = send(&BuiltinHandler::Echo, request_context(), request, full_body("hello")).await.unwrap();
        assert_eq!(response.headers()["content-type"], "a/b");
        assert_eq!(response.body().size_hint().exact(), Some(5));
        assert_eq!(body_text(response).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn request_without_body_gets_method_and_target() {
        let request = Request::get("/a%20b?c");
        let response = send(&BuiltinHandler::Echo, request_context(), request, full_body("")).await.unwrap();
        assert_eq!(body_text(response).await.unwrap(), "GET /a%20b?c\n");
    }

    #[tokio::test]
    async fn too_large_body_is_rejected() {
        let small = RequestContext { max_body: 4, ..request_context() };
        let failure = send(&BuiltinHandler::Echo, small, Request::post("/"), full_body("hello")).await.unwrap_err();
        assert_eq!((failure.status.as_u16(), failure.started), (413, false));
    }
}
