//! The question whether an application accepts connections, which `FCGI_GET_VALUES` asks (section 4.1 of the
//! specification).

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::sleep;

use super::super::child::HandlerProcess;
use super::connection::{ApplicationConnection, Arrival};
use super::listener::ApplicationListener;
use crate::net::fastcgi::{FastcgiRecord, MAX_CONNS, MAX_REQS, MPXS_CONNS, RecordContent, encode_pair};

/// The pause between two looks whether the application has accepted a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(5);
/// How long an application that has accepted may take to reply to `FCGI_GET_VALUES` before it counts as one that does not
/// support it.
const VALUES_TIMEOUT: Duration = Duration::from_millis(20);

/// Connects, and asks for variables. Returns when the application has replied, or has accepted the connection and does not
/// reply. `is_unreached` is set until then.
pub(super) async fn probe(
    listener: &ApplicationListener,
    child: &mut HandlerProcess,
    is_unreached: &mut bool,
) -> Result<(), String> {
    *is_unreached = true;
    let no_connection = |error: io::Error| format!("it cannot be connected to: {error}");
    let mut connection = ApplicationConnection::open(listener).map_err(no_connection)?;
    connection.write_now(&encode_question()).map_err(no_connection)?;
    let accepted = async {
        while listener.has_pending() {
            sleep(ACCEPT_PAUSE).await;
        }
        *is_unreached = false;
        sleep(VALUES_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        arrival = connection.receive(child) => if arrival == Arrival::Ended {
            return Err(format!("it {}", child.wait().await));
        },
        () = accepted => {}
    }
    *is_unreached = false;
    Ok(())
}

fn encode_question() -> BytesMut {
    let (mut pairs, mut question) = (BytesMut::new(), BytesMut::new());
    [MAX_CONNS, MAX_REQS, MPXS_CONNS].iter().for_each(|name| encode_pair(name, b"", &mut pairs));
    FastcgiRecord { request_id: 0, content: RecordContent::GetValues(pairs.freeze()) }.encode(&mut question);
    question
}
