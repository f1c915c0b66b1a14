//! `patou call`: one request through the dispatcher; writes the response body to standard output.

mod default_target;
mod output;
mod progress;

use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::BodyExt;

pub(super) use self::default_target::default_target;
use self::output::BodyOutput;
use self::progress::{UploadBar, write_step};
use super::duration_arg::duration;
use crate::client::{CallError, Client, ClientResponse, FailureCause, Payload, Problem, Target};

#[derive(Args, Debug)]
pub(super) struct CallArgs {
    /// Show the seven steps with the time since the start
    #[arg(short, long)]
    verbose: bool,

    /// Body of the request: the text itself, @FILE for the content of a file, @- for standard input
    #[arg(short, long, value_name = "DATA|@FILE")]
    data: Option<String>,

    /// Method of the request [default: GET, with --data POST]
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<Method>,

    /// Header to add to the request, may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,

    /// Write the response body to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write no body when the status is 400 or more
    #[arg(short, long)]
    fail: bool,

    /// The dispatcher, http://HOST:PORT or unix:/PATH [default: the first redirect listener of the configuration]
    #[arg(long, value_name = "URL")]
    target: Option<Target>,

    /// Retry this long while no worker has started the request, 0s for one attempt
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    retry: Duration,

    /// Path and query of the request
    #[arg(default_value = "/", value_parser = path)]
    path: Uri,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write 'Name: value'")?;
    let name = name.parse().map_err(|_| format!("{name:?} is not a header name"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} is not a header value"))?;
    Ok((name, value))
}

fn path(text: &str) -> Result<Uri, String> {
    if !text.starts_with('/') {
        return Err("a path starts with a slash".into());
    }
    // Parsed as path and query alone: as a URI, `//host/path` would name a host.
    let path: http::uri::PathAndQuery = text.parse().map_err(|e| format!("{e}; percent-encode it"))?;
    Ok(path.into())
}

/// Sends the request. `default_target` names the dispatcher if `--target` does not.
///
/// # Errors
/// The message to print when there is no response, the response is truncated or cannot be written, or its status is
/// 400 or more.
pub(super) fn run(args: &CallArgs, default_target: impl FnOnce() -> Result<Target, String>) -> Result<(), String> {
    let target = match &args.target {
        Some(target) => target.clone(),
        None => default_target()?,
    };
    let request = request(args)?;
    let mut client = Client::new(target.clone()).retry_for(args.retry);
    let mut bar = None;
    if args.verbose {
        client = client.observe(|at, step| write_step(&mut io::stderr().lock(), at, step));
    } else if io::stderr().is_terminal() {
        let upload = UploadBar::default();
        bar = Some(upload.clone());
        client = client.observe(move |_, step| upload.update(step));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start: {e}"))?;
    let result = runtime.block_on(async {
        let received = client.call(request).await.map_err(|error| explain(&error, &target))?;
        write_response(args, received).await
    });
    if let Some(bar) = bar {
        bar.clear();
    }
    result
}

/// The error's message, with a remedy where the client library cannot know it.
fn explain(error: &CallError, target: &Target) -> String {
    match error {
        CallError::NotStarted { cause: FailureCause::Connect { to, .. }, .. } if to == target.address() => {
            format!("{error}: is the set running (patou status), and is this its listener?")
        }
        _ => error.to_string(),
    }
}

fn request(args: &CallArgs) -> Result<Request<Payload>, String> {
    let payload = match args.data.as_deref().map(|data| data.strip_prefix('@').ok_or(data)) {
        None => Payload::Empty,
        Some(Err(text)) => Payload::Bytes(text.to_owned().into()),
        Some(Ok("-")) => Payload::Bytes(read_stdin()?),
        Some(Ok(file)) => Payload::File(file.into()),
    };
    let default_method = if args.data.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::new(payload);
    *request.method_mut() = args.request.clone().unwrap_or(default_method);
    *request.uri_mut() = args.path.clone();
    for (name, value) in &args.headers {
        request.headers_mut().append(name, value.clone());
    }
    Ok(request)
}

fn read_stdin() -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|e| format!("standard input: {e}"))?;
    Ok(bytes.into())
}

/// How much of a problem body (RFC 9457) is kept for the error message, in bytes.
const PROBLEM_MAX: usize = 64 * 1024;

async fn write_response(args: &CallArgs, received: ClientResponse) -> Result<(), String> {
    let (head, body) = received.response.into_parts();
    let is_error = head.status.is_client_error() || head.status.is_server_error();
    let has_problem = is_error && Problem::is_announced(&head.headers);
    let mut output =
        if is_error && args.fail { BodyOutput::discard() } else { BodyOutput::open(args.output.as_deref())? };
    let mut problem = Vec::new();
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else { continue };
        if has_problem && problem.len() + data.len() <= PROBLEM_MAX {
            problem.extend_from_slice(&data);
        }
        if output.write(&data)? {
            break;
        }
    }
    output.flush()?;
    if !is_error {
        return Ok(());
    }
    let from = received.lease.map_or_else(|| "the dispatcher".to_owned(), |lease| lease.worker.to_string());
    let detail = Problem::read(&head.headers, &problem.into()).unwrap_or_default().after_colon();
    let attempts = if received.attempts > 1 { format!(" ({} attempts)", received.attempts) } else { String::new() };
    Err(format!("{from} responded {}{detail}{attempts}", head.status))
}

#[cfg(test)]
mod tests;
