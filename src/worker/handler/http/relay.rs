//! A session with the server: its bytes in both directions, until one side ends it.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, copy_buf, split};
use tokio::time::timeout;

use super::super::session::Session;
use super::super::warm::Borrowed;
use super::server::{DEATH_AFTER_CLOSE, HttpServer};

/// The buffer for each direction, in bytes. Nothing more is read before it is written.
const BUFFER: usize = 32 << 10;
/// How long a client may send after the server has ended its own direction: nothing of that is of use in a WebSocket (RFC
/// 6455, section 7.1.1).
const REST_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes the head of a message one that switches to WebSocket, or requests it.
pub(super) fn set_upgrade(headers: &mut HeaderMap) {
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
}

/// Starts to relay, as soon as both connections have switched. Then the process is returned.
pub(super) fn start(mut server: Borrowed<HttpServer>, session: Arc<Session>, client: OnUpgrade, switched: OnUpgrade) {
    tokio::spawn(async move {
        let ended = server.ended();
        let (client, connection) = match (client.await, switched.await) {
            (Ok(client), Ok(connection)) => (TokioIo::new(client), connection),
            // The client has disconnected before it has got the response.
            _ => {
                server.close();
                return server.put_starting();
            }
        };
        let (end, client) = relay(client, connection, &session, ended).await;
        server.close();
        // The process before the client's connection, whose end is the end of the request.
        match end {
            RelayEnd::Closed => server.put_idle(),
            RelayEnd::Cut => server.put_starting(),
            RelayEnd::ProcessEnded => {
                session.fail();
                let exit = server.exit_reason().await;
                let handler = server.handler.clone();
                handler.fail(server, &format!("it {exit} within a session"));
            }
        }
        drop(client);
    });
}

/// How a session has ended.
enum RelayEnd {
    /// By its client or its server.
    Closed,
    /// By the worker.
    Cut,
    /// With the process of the server.
    ProcessEnded,
}

/// Relays until the end. Returns the client's connection, too.
async fn relay(
    client: TokioIo<Upgraded>,
    server: Upgraded,
    session: &Session,
    process_ended: impl Future<Output = ()>,
) -> (RelayEnd, impl Sized) {
    let (mut from_client, mut to_client) = split(client);
    let (from_server, to_server) = split(TokioIo::new(server));
    let end = {
        let mut down = pin!(pass(from_server, &mut to_client));
        let mut up = pin!(pass(&mut from_client, to_server));
        let both = async {
            tokio::select! {
                sent = &mut down => if sent.is_ok() {
                    let _ = timeout(REST_TIMEOUT, &mut up).await;
                },
                // A client may end its direction, and still read. After an error of the client nothing arrives
                // any more; after one of the server, what it has sent before.
                received = &mut up => match received {
                    Ok(()) => drop((&mut down).await),
                    Err(_) => drop(timeout(REST_TIMEOUT, &mut down).await),
                },
            }
        };
        let mut both = pin!(both);
        tokio::select! {
            () = session.is_cut() => RelayEnd::Cut,
            () = &mut both => RelayEnd::Closed,
            // What the process has sent before is there.
            () = process_ended => {
                let _ = timeout(DEATH_AFTER_CLOSE, &mut both).await;
                RelayEnd::ProcessEnded
            }
        }
    };
    (end, (from_client, to_client))
}

/// Passes bytes until the end of the direction, and the end itself.
async fn pass(from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    copy_buf(&mut BufReader::with_capacity(BUFFER, from), &mut to).await?;
    to.shutdown().await
}
