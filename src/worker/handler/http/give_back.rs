//! What becomes of the process after an exchange.

use super::super::failure::RequestFailure;
use super::super::warm::{Borrowed, WarmProcess};
use super::request_body::SharedBody;
use super::server::{HttpServer, ServerFault};

/// Returns the process after a response.
pub(super) fn give_back(mut server: Borrowed<HttpServer>) -> Result<(), RequestFailure> {
    match server.end_exchange() {
        Ok(()) => {
            server.put_idle();
            Ok(())
        }
        Err(fault) => Err(broken(server, &fault)),
    }
}

/// Returns the process after a fault. Its own failures are those of the client's body as well, which come first.
pub(super) fn failure(server: Borrowed<HttpServer>, fault: &ServerFault, body: &SharedBody) -> RequestFailure {
    match body.failure() {
        Some(failure) => {
            server.put_starting();
            failure
        }
        None => broken(server, fault),
    }
}

/// Returns the process after a fault of its own.
pub(super) fn broken(server: Borrowed<HttpServer>, fault: &ServerFault) -> RequestFailure {
    match fault {
        ServerFault::Broken(reason) => {
            let handler = server.handler.clone();
            handler.fail(server, reason);
        }
        ServerFault::Closed(_) => server.put_starting(),
    }
    RequestFailure::bad_gateway(format!("the {} failed: {}", HttpServer::KIND, fault.reason()))
}
