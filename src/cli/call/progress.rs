//! Progress of `patou call` on standard error: numbered steps with `-v`, otherwise a bar for a long upload.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::client::Step;
use crate::sync::lock;

/// Writes one step of `-v`, numbered like the steps of a redirected request in patou(7).
///
/// Steps 2 and 3 happen between dispatcher and worker; the client learns of them from the lease.
pub(super) fn write_step(to: &mut impl Write, at: Duration, step: &Step) {
    let mut line = |number: &str, text: String| {
        let at = format!("+{:.1}", at.as_secs_f64() * 1000.0);
        // A closed standard error does not end the call.
        let _ = writeln!(to, "{number:>3}  {at:>8} ms  {text}");
    };
    match step {
        Step::Connected { to } => line("1", format!("connected to {to}")),
        Step::Requesting => line("", "requesting a lease".into()),
        Step::Leased { worker, address } => {
            line("2", format!("the dispatcher offered the request to {worker} (known from the lease)"));
            line("3", format!("{worker} accepted (known from the lease)"));
            line("4", format!("leased {worker} at {address}"));
        }
        Step::Sending { address, length: 0 } => line("5", format!("sending the request to {address}")),
        Step::Sending { address, length } => line("5", format!("sending the request to {address}, {length} bytes")),
        Step::Continue => line("", "the worker requests the body (100 Continue)".into()),
        Step::Progress { bytes, of } if bytes == of => line("", format!("{bytes} bytes sent")),
        Step::Progress { .. } => {}
        Step::Responded { status, worker: Some(worker) } => line("6", format!("{worker} responds {status}")),
        Step::Responded { status, worker: None } => line("3", format!("no lease: {status}")),
        Step::Finished { bytes } => line("7", format!("finished, {bytes} bytes read")),
        Step::Retrying { reason, after } => {
            line("", format!("{reason}; retrying in {:.0} ms", after.as_secs_f64() * 1000.0));
        }
    }
}

/// A shorter upload shows no bar.
const BAR_MIN_BYTES: u64 = 1024 * 1024;

/// The progress bar of an upload.
#[derive(Clone, Default)]
pub(super) struct UploadBar(Arc<Mutex<Option<ProgressBar>>>);

impl UploadBar {
    /// Updates the bar, which is visible from the first to the last byte of a long upload.
    pub(super) fn update(&self, step: &Step) {
        match step {
            Step::Progress { bytes, of } if bytes < of && *of > BAR_MIN_BYTES => {
                let mut bar = lock(&self.0);
                let bar = bar.get_or_insert_with(|| {
                    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta}");
                    ProgressBar::new(*of).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                });
                bar.set_position(*bytes);
            }
            Step::Progress { .. } | Step::Retrying { .. } => self.clear(),
            _ => {}
        }
    }

    /// Removes the bar from the terminal.
    pub(super) fn clear(&self) {
        if let Some(bar) = lock(&self.0).take() {
            bar.finish_and_clear();
        }
    }
}
