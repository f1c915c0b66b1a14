//! One process of an `http` handler, and the exchange with it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, USER_AGENT};
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};

use super::super::child::HandlerProcess;
use super::super::output_log::LogPipe;
use super::super::warm::{Launch, NotFinished, WarmProcess, WarmSettings, await_exit};
use super::address::PrivateAddress;
use super::connection::{PendingResponse, ServerConnection};
use super::request_body::SharedBody;
use crate::net::SharedStream;

/// How long a server whose connection has ended may take to die before it counts as one that only closed it.
pub(super) const DEATH_AFTER_CLOSE: Duration = Duration::from_millis(100);
/// How long the rest of a response may take after its client has left. One that never ends, of server-sent events for
/// example, would keep its worker until `request_timeout`.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause after the first attempt to reach a server that starts; it doubles up to the second.
const PROBE_PAUSE: Duration = Duration::from_millis(5);
const PROBE_PAUSE_MAX: Duration = Duration::from_millis(100);

/// A running server.
#[derive(Debug)]
pub(crate) struct HttpServer {
    child: HandlerProcess,
    address: PrivateAddress,
    exchange: Option<ServerExchange>,
    /// After the exchange, which must not be polled without it.
    connection: Option<ServerConnection>,
    /// What the last probe has found, if the server was not ready.
    last_probe: Option<String>,
}

/// A request and its response.
struct ServerExchange {
    body: SharedBody,
    response: ResponseProgress,
}

enum ResponseProgress {
    Pending(PendingResponse),
    Body { incoming: Incoming, ends_with_connection: bool },
}

impl std::fmt::Debug for ServerExchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerExchange").field("body", &self.body).finish_non_exhaustive()
    }
}

/// Why there is no more of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ServerFault {
    /// The process cannot serve another request: it has died, or writes what is not HTTP.
    Broken(String),
    /// The connection cannot be used any more.
    Closed(String),
}

impl ServerFault {
    pub(super) fn reason(&self) -> &str {
        let (Self::Broken(reason) | Self::Closed(reason)) = self;
        reason
    }
}

impl HttpServer {
    /// Starts to send a request, on the connection of the last one if that is usable.
    pub(super) async fn send(&mut self, head: &Request<()>, body: &SharedBody) -> io::Result<()> {
        self.exchange = None;
        let is_reusable = match &mut self.connection {
            Some(connection) => connection.is_reusable().await,
            None => false,
        };
        if !is_reusable {
            self.connection = None; // first, because some servers accept one connection after the other
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(ServerConnection::open(&self.address).await?),
        };
        let response = ResponseProgress::Pending(connection.send(head.clone(), body));
        self.exchange = Some(ServerExchange { body: body.clone(), response });
        Ok(())
    }

    /// The head of the response.
    pub(super) async fn response_head(&mut self) -> Result<Response<()>, ServerFault> {
        let response = match &mut self.exchange {
            Some(ServerExchange { response: ResponseProgress::Pending(response), .. }) => response.await,
            _ => return Err(ServerFault::Closed("there is no request".to_owned())),
        };
        match response {
            Ok(response) => {
                let (head, incoming) = response.into_parts();
                let has_length = [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| head.headers.contains_key(name));
                let ends_with_connection = !has_length && !incoming.is_end_stream();
                if let Some(exchange) = &mut self.exchange {
                    exchange.response = ResponseProgress::Body { incoming, ends_with_connection };
                }
                Ok(Response::from_parts(head, ()))
            }
            Err(error) => {
                let was_sent = self.exchange.as_ref().is_some_and(|exchange| exchange.body.is_written());
                self.close();
                if !was_sent {
                    return Err(ServerFault::Closed(format!("its connection cannot take a request ({error})")));
                }
                Err(self.fault(&error, "before the end of a response head").await)
            }
        }
    }

    /// What an error of the connection means.
    pub(super) async fn fault(&mut self, error: &hyper::Error, when: &str) -> ServerFault {
        // A dying process closes its connections before it is dead.
        match timeout(DEATH_AFTER_CLOSE, self.child.wait()).await {
            Ok(exit) => ServerFault::Broken(format!("it {exit} {when}")),
            Err(_) if error.is_parse_too_large() => {
                ServerFault::Closed(format!("its response head has too many fields or bytes ({error})"))
            }
            Err(_) if error.is_parse() => ServerFault::Broken(format!("its response is not HTTP/1.1 ({error})")),
            Err(_) => ServerFault::Closed(format!("it closed the connection {when} ({error})")),
        }
    }

    /// The next frame of the response body.
    pub(super) fn poll_frame(&mut self, task: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        match &mut self.exchange {
            Some(ServerExchange { response: ResponseProgress::Body { incoming, .. }, .. }) => {
                Pin::new(incoming).poll_frame(task)
            }
            _ => Poll::Ready(None),
        }
    }

    /// The body of the response, as far as it is received.
    pub(super) fn incoming(&self) -> Option<&Incoming> {
        match &self.exchange {
            Some(ServerExchange { response: ResponseProgress::Body { incoming, .. }, .. }) => Some(incoming),
            _ => None,
        }
    }

    /// The response is complete, as far as the connection shows. The connection is kept unless the request is not
    /// written to its end.
    ///
    /// # Errors
    /// When the process has died, or dies, within a response that only the end of its connection ends.
    pub(super) fn end_exchange(&mut self) -> Result<(), ServerFault> {
        let Some(ServerExchange { body, response }) = self.exchange.take() else { return Ok(()) };
        let is_kept = |connection: &mut ServerConnection| body.is_complete() && connection.set_idle();
        if !self.connection.as_mut().is_some_and(is_kept) {
            self.connection = None;
        }
        let ends_with_connection = matches!(response, ResponseProgress::Body { ends_with_connection: true, .. });
        let ended = match self.child.try_wait() {
            _ if !ends_with_connection => None,
            Some(exit) => Some(exit.to_string()),
            // Its connections are closed before it is dead.
            None => self.child.is_exiting().then(|| "died".to_owned()),
        };
        ended.map_or(Ok(()), |ended| Err(ServerFault::Broken(format!("it {ended} within a response"))))
    }

    /// Completes when the process has ended.
    pub(super) fn ended(&self) -> impl Future<Output = ()> + Send + 'static {
        self.child.ended()
    }

    /// How the process has ended, after [`Self::ended`].
    pub(super) async fn exit_reason(&mut self) -> String {
        self.child.wait().await.to_string()
    }

    /// Reads the rest of a response without a client.
    async fn discard_body(&mut self) -> hyper::Result<()> {
        while let Some(frame) = poll_fn(|task| self.poll_frame(task)).await {
            frame?;
        }
        Ok(())
    }

    /// Ends the exchange together with its connection.
    pub(super) fn close(&mut self) {
        self.exchange = None;
        self.connection = None;
    }

    /// Waits until it is ready, or can never be reached.
    async fn reach(&mut self, path: Option<&str>) {
        let mut pause = PROBE_PAUSE;
        loop {
            self.last_probe = match probe(&self.address, path).await {
                Ok(None) => return,
                Ok(Some(status)) if status.is_success() => return,
                Ok(Some(status)) => Some(format!("GET {} returned {status}", path.unwrap_or_default())),
                Err(_) if self.is_lost() => return,
                Err(reason) => Some(reason),
            };
            sleep(pause).await;
            pause = (pause * 2).min(PROBE_PAUSE_MAX);
        }
    }
}

impl WarmProcess for HttpServer {
    const KIND: &'static str = "HTTP server";

    fn start(launch: &Launch<'_>) -> io::Result<(Self, Vec<Weak<LogPipe>>)> {
        let address = PrivateAddress::new(launch.program, &launch.settings.socket, launch.generation)?;
        let (placeholder, variable, value) = address.value();
        let mut command = launch.program.command(Vec::new(), &[(placeholder, &value)])?;
        if launch.program.variable(variable).is_none() {
            command.env(variable, &value);
        }
        let (child, log_pipes) = launch.spawn(command, Stdio::null())?;
        Ok((Self { child, address, exchange: None, connection: None, last_probe: None }, log_pipes))
    }

    fn child(&mut self) -> &mut HandlerProcess {
        &mut self.child
    }

    fn must_load(_: &WarmSettings) -> bool {
        true
    }

    async fn ready(&mut self, settings: &WarmSettings) -> Result<(), String> {
        self.close();
        if let Some(exit) = self.child.try_wait() {
            return Err(format!("it {exit}"));
        }
        let ended = self.child.ended();
        tokio::select! {
            () = self.reach(settings.ready_path.as_deref()) => {
                return if self.is_lost() { Err("its socket was removed".to_owned()) } else { Ok(()) };
            }
            () = ended => {}
        }
        Err(format!("it {}", self.child.wait().await))
    }

    fn is_lost(&self) -> bool {
        self.address.is_lost()
    }

    fn why_not_ready(&self) -> Option<&str> {
        self.last_probe.as_deref()
    }

    /// Any response shows that it is not frozen.
    async fn ping(&mut self, settings: &WarmSettings) -> Result<(), String> {
        self.close(); // some servers accept one connection after the other
        probe(&self.address, settings.ready_path.as_deref()).await.map(drop)
    }

    fn check_idle(&mut self) -> Result<(), String> {
        self.child.try_wait().map_or(Ok(()), |exit| Err(format!("it {exit}")))
    }

    async fn finish(&mut self) -> Result<bool, NotFinished> {
        // Without its client the server gets no more of the request.
        if self.exchange.as_ref().is_some_and(|exchange| !exchange.body.is_complete()) {
            self.close();
            return Ok(false);
        }
        if self.exchange.is_none() && self.connection.is_none() {
            return Ok(false); // the connection has failed, and why was not found out yet
        }
        if matches!(&self.exchange, Some(ServerExchange { response: ResponseProgress::Pending(_), .. })) {
            match self.response_head().await {
                Ok(_) => {}
                Err(ServerFault::Broken(reason)) => return Err(NotFinished::Fault(reason)),
                Err(ServerFault::Closed(_)) => return Ok(false),
            }
        }
        match timeout(DISCARD_TIMEOUT, self.discard_body()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.close();
                return match self.fault(&error, "within a response").await {
                    ServerFault::Broken(reason) => Err(NotFinished::Fault(reason)),
                    ServerFault::Closed(_) => Ok(false),
                };
            }
            Err(_) => {
                let limit = humantime::format_duration(DISCARD_TIMEOUT);
                return Err(NotFinished::Fault(format!("its response continues {limit} after its client has left")));
            }
        }
        self.end_exchange().map_err(|fault| NotFinished::Fault(fault.reason().to_owned()))?;
        Ok(true)
    }

    fn abandon(&mut self) -> bool {
        let is_clients = self.exchange.as_ref().is_some_and(|exchange| exchange.body.is_awaited());
        self.close();
        is_clients
    }

    /// Sends SIGTERM.
    async fn exit(mut self) {
        self.close();
        self.child.terminate();
        await_exit(self.child.wait()).await;
    }
}

/// Connects, and requests `path` if there is one. The status of the response; `None` without a path.
async fn probe(address: &PrivateAddress, path: Option<&str>) -> Result<Option<StatusCode>, String> {
    let stream = address.connect().await.map_err(|error| format!("it does not accept connections: {error}"))?;
    let Some(path) = path else { return Ok(None) };
    let no_response = |error: hyper::Error| format!("GET {path} got no response: {error}");
    let io = TokioIo::new(SharedStream(Arc::new(stream)));
    let (mut sender, connection) = http1::handshake(io).await.map_err(no_response)?;
    let request = Request::get(path).header(HOST, "localhost").header(USER_AGENT, "patou");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let mut response = std::pin::pin!(sender.send_request(request));
    let mut connection = std::pin::pin!(connection);
    let response = poll_fn(|task| {
        // The connection sends the response before it ends.
        let _ = connection.as_mut().poll(task).is_ready();
        response.as_mut().poll(task)
    });
    Ok(Some(response.await.map_err(no_response)?.status()))
}
