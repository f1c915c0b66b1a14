//! `probe.sock`: the serving loop answers for itself, and takes an operator's orders.

use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::desk::Desk;
use crate::log;
use crate::pool::Event;
use crate::probe::{Order, QUESTION_MAX, Question, Report};

/// Pause after a failed accept: out of descriptors, most likely, which only time mends.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub async fn serve(socket: UnixListener, desk: Rc<Desk>) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                tokio::task::spawn_local(converse(stream, desk.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, event = %log::Event::AcceptFailed, "probe.sock: accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, desk: Rc<Desk>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        match (&mut read).take(QUESTION_MAX as u64).read_until(b'\n', &mut line).await {
            Ok(n) if n > 0 && line.last() == Some(&b'\n') => {}
            _ => return, // gone, or not a question
        }
        let Ok(question) = serde_json::from_slice::<Question>(&line) else { return };
        // Reported first: whom the order has us ask owes nothing yet.
        let pools = desk.report();
        let refused = question.order.and_then(|order| obey(&desk, order));
        let (pid, epoch) = (std::process::id(), desk.epoch().get());
        let report = Report { nonce: question.nonce, pid, epoch, pools, refused };
        let Ok(mut answer) = serde_json::to_vec(&report) else { return };
        answer.push(b'\n');
        if write.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// Carries out an order; why not, if not.
fn obey(desk: &Desk, order: Order) -> Option<String> {
    match order {
        Order::Ping => desk.tell_all(Event::Probe),
        Order::Quiesce => desk.tell_all(Event::Quiesce),
        Order::Drain(id) | Order::Resume(id) if !desk.has(&id) => {
            return Some(format!("the configuration has no worker {id}"));
        }
        // Told again: nothing changes, and the worker may not have heard the first order.
        Order::Drain(id) if desk.is_drained(&id) => desk.tell(&id.pool, Event::Drain(id.number)),
        Order::Resume(id) if !desk.is_drained(&id) => {}
        Order::Drain(id) => {
            tracing::info!(worker = %id, event = %log::Event::WorkerDrained, "taken out of service by an operator");
            desk.tell(&id.pool, Event::Drain(id.number));
            let staff = desk.staff(&id.pool);
            if staff.drained == staff.workers {
                tracing::warn!(pool = %id.pool, "every worker of this pool is out of service: its clients are refused");
            }
        }
        Order::Resume(id) => {
            tracing::info!(worker = %id, event = %log::Event::WorkerResumed, "put back into service by an operator");
            desk.tell(&id.pool, Event::Resume(id.number));
        }
    }
    None
}
