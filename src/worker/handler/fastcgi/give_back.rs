//! What becomes of the process after an exchange.

use http::StatusCode;

use super::super::failure::RequestFailure;
use super::super::warm::{Borrowed, WarmProcess};
use super::application::{AfterExchange, ApplicationFault, FastcgiApplication};
use crate::net::fastcgi::ProtocolStatus;

/// Returns the process after a response.
pub(super) fn give_back(mut application: Borrowed<FastcgiApplication>) {
    match application.end_exchange() {
        AfterExchange::Idle => application.put_idle(),
        // It is not ready any more, and its end is awaited.
        AfterExchange::Ends => application.put_starting(),
    }
}

/// Returns the process after a fault.
pub(super) fn failure(mut application: Borrowed<FastcgiApplication>, fault: ApplicationFault) -> RequestFailure {
    let failed = |reason: &str| format!("the {} failed: {reason}", FastcgiApplication::KIND);
    match fault {
        ApplicationFault::Client(failure) => {
            application.lose();
            failure
        }
        ApplicationFault::Broken(reason) => {
            let handler = application.handler.clone();
            handler.fail(application, &reason);
            RequestFailure::bad_gateway(failed(&reason))
        }
        ApplicationFault::Closed(reason) => {
            application.close();
            application.put_starting();
            RequestFailure::bad_gateway(failed(&reason))
        }
        ApplicationFault::NotStarted(reason) => {
            application.close();
            application.put_starting();
            RequestFailure::bad_gateway(failed(&reason)).not_started()
        }
        ApplicationFault::Refused(status) => {
            application.close();
            application.put_starting();
            let (code, reason) = match status {
                ProtocolStatus::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, "is overloaded (FCGI_OVERLOADED)"),
                ProtocolStatus::CannotMultiplex => {
                    (StatusCode::SERVICE_UNAVAILABLE, "serves another request (FCGI_CANT_MPX_CONN)")
                }
                _ => (StatusCode::BAD_GATEWAY, "does not serve HTTP requests (FCGI_UNKNOWN_ROLE)"),
            };
            RequestFailure::new(code, format!("the {} {reason}", FastcgiApplication::KIND)).not_started()
        }
    }
}
