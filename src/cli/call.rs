//! `patou call`: one request through the dispatcher, the answer on standard output.

mod narration;

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::BodyExt;

use crate::client::{Answer, CallError, Cause, Client, Payload, Problem, Target};

/// Send one request to a worker, by lease
#[derive(Args, Debug)]
pub struct Call {
    /// Show the seven steps with the time since the start
    #[arg(short, long)]
    pub verbose: bool,

    /// Body of the request: the text itself, @FILE for a file's content, @- for standard input
    #[arg(short, long, value_name = "DATA|@FILE")]
    pub data: Option<String>,

    /// Method of the request [default: GET, with --data POST]
    #[arg(short = 'X', long, value_name = "METHOD")]
    pub request: Option<Method>,

    /// Header to add to the request, may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(HeaderName, HeaderValue)>,

    /// Write the answer's body to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Write no body when the status is 400 or more
    #[arg(short, long)]
    pub fail: bool,

    /// The dispatcher, http://HOST:PORT or unix:/PATH [default: the first redirect listener of the configuration]
    #[arg(long, value_name = "URL")]
    pub target: Option<Target>,

    /// For how long to try again while no worker has begun the request, 0s for one attempt
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = super::duration)]
    pub retry: Duration,

    /// Path and query of the request
    #[arg(default_value = "/", value_parser = path)]
    pub path: Uri,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write 'Name: value'")?;
    let name = name.parse().map_err(|_| format!("{name:?} is not a header's name"))?;
    let value = value.trim().parse().map_err(|_| format!("{value:?} cannot stand in a header"))?;
    Ok((name, value))
}

fn path(text: &str) -> Result<Uri, String> {
    if !text.starts_with('/') {
        return Err("a path begins with a slash".into());
    }
    // Parsed as path and query alone: as a URI, `//host/path` would name a host.
    let path: http::uri::PathAndQuery = text.parse().map_err(|e| format!("{e}; percent-encode it"))?;
    Ok(path.into())
}

/// Carries out the call. `default_target` names the dispatcher if `--target` does not.
///
/// # Errors
/// The message to print when there is no answer, the answer is cut short, cannot be written, or its status is
/// 400 or more. Its exit code is 1.
pub fn run(call: &Call, default_target: impl FnOnce() -> Result<Target, String>) -> Result<(), String> {
    let target = match &call.target {
        Some(target) => target.clone(),
        None => default_target()?,
    };
    let request = request(call)?;
    let mut client = Client::new(target.clone()).retry_for(call.retry);
    let mut bar = None;
    if call.verbose {
        client = client.observe(|at, step| narration::tell(&mut io::stderr().lock(), at, step));
    } else if io::stderr().is_terminal() {
        let upload = narration::Bar::default();
        bar = Some(upload.clone());
        client = client.observe(move |_, step| upload.show(step));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start: {e}"))?;
    let result = runtime.block_on(async {
        let answer = client.call(request).await.map_err(|error| explain(&error, &target))?;
        deliver(call, answer).await
    });
    if let Some(bar) = bar {
        bar.clear();
    }
    result
}

/// The error's own message, with the remedy where the client library cannot know it.
fn explain(error: &CallError, target: &Target) -> String {
    match error {
        CallError::NotStarted { cause: Cause::Connect { to, .. }, .. } if to == target.address() => {
            format!("{error}: is the set running (patou status), and is this its listener?")
        }
        _ => error.to_string(),
    }
}

fn request(call: &Call) -> Result<Request<Payload>, String> {
    let payload = match call.data.as_deref().map(|data| data.strip_prefix('@').ok_or(data)) {
        None => Payload::Empty,
        Some(Err(text)) => Payload::Bytes(text.to_owned().into()),
        Some(Ok("-")) => Payload::Bytes(standard_input()?),
        Some(Ok(file)) => Payload::File(file.into()),
    };
    let usual = if call.data.is_some() { Method::POST } else { Method::GET };
    let mut request = Request::new(payload);
    *request.method_mut() = call.request.clone().unwrap_or(usual);
    *request.uri_mut() = call.path.clone();
    for (name, value) in &call.headers {
        request.headers_mut().append(name, value.clone());
    }
    Ok(request)
}

fn standard_input() -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|e| format!("standard input: {e}"))?;
    Ok(bytes.into())
}

/// The part of a refusal's body that is kept for its message.
const PROBLEM_MAX: usize = 64 * 1024;

async fn deliver(call: &Call, answer: Answer) -> Result<(), String> {
    let (head, body) = answer.response.into_parts();
    let refused = head.status.is_client_error() || head.status.is_server_error();
    let explained = refused && Problem::announced(&head.headers);
    let mut output = if refused && call.fail { Output::none() } else { Output::open(call.output.as_deref())? };
    let mut kept = Vec::new();
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| e.to_string())?.into_data() else { continue };
        if explained && kept.len() + data.len() <= PROBLEM_MAX {
            kept.extend_from_slice(&data);
        }
        if output.write(&data)? {
            break; // what follows is not wanted
        }
    }
    output.end()?;
    if !refused {
        return Ok(());
    }
    let from = answer.lease.map_or_else(|| "the dispatcher".to_owned(), |lease| lease.worker.to_string());
    let detail = Problem::read(&head.headers, &kept.into()).unwrap_or_default().after_colon();
    let tries = if answer.attempts > 1 { format!(" (tried {} times)", answer.attempts) } else { String::new() };
    Err(format!("{from} answered {}{detail}{tries}", head.status))
}

/// Where the body goes, with the name that its errors carry.
struct Output {
    writer: Box<dyn Write>,
    name: String,
}

impl Output {
    /// A file is created only now that there is an answer: a call that fails leaves the old one as it was.
    fn open(file: Option<&Path>) -> Result<Self, String> {
        let Some(path) = file else {
            return Ok(Self { writer: Box::new(io::stdout()), name: "standard output".into() });
        };
        let name = path.display().to_string();
        let file = File::create(path).map_err(|e| format!("{name}: {e}"))?;
        Ok(Self { writer: Box::new(file), name })
    }

    fn none() -> Self {
        Self { writer: Box::new(io::sink()), name: String::new() }
    }

    /// Whether nobody reads any more.
    fn write(&mut self, data: &[u8]) -> Result<bool, String> {
        let result = self.writer.write_all(data);
        self.told(result)
    }

    fn end(&mut self) -> Result<bool, String> {
        let result = self.writer.flush();
        self.told(result)
    }

    fn told(&self, result: io::Result<()>) -> Result<bool, String> {
        match result {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }
}

#[cfg(test)]
mod tests;
