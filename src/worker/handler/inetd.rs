//! The handler `inetd`: one process per connection, with the socket as standard input and output.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use super::child::{HandlerProcess, HandlerProgram, ProcessExit};
use super::failure::RequestFailure;
use super::oneshot::{OneShotProgram, OneShotRun};
use crate::config::BackgroundMode;
use crate::ids::WorkerId;

/// The handler.
#[derive(Debug)]
pub(crate) struct Inetd(OneShotProgram);

impl Inetd {
    pub(super) fn new(program: HandlerProgram, worker: WorkerId, grace: Duration) -> Self {
        Self(OneShotProgram::new(program, worker, BackgroundMode::Kill, grace))
    }

    /// Runs the program with `connection`, which must be blocking as the program expects, until the process ends.
    /// `addresses` are those of the client and of this end, if the connection has any.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(super) async fn run(
        &self,
        connection: OwnedFd,
        addresses: Option<(SocketAddr, SocketAddr)>,
        lease: String,
    ) -> Result<ProcessExit, RequestFailure> {
        let name = self.0.program().name();
        let started = self.start(connection, addresses, lease);
        let started = started.map_err(|error| OneShotProgram::start_failure(name, &error));
        let (mut child, run) = started?;
        let exit = child.wait().await;
        run.exited();
        Ok(exit)
    }

    fn start(
        &self,
        connection: OwnedFd,
        addresses: Option<(SocketAddr, SocketAddr)>,
        lease: String,
    ) -> io::Result<(HandlerProcess, Arc<OneShotRun>)> {
        let mut command = self.0.program().command(Vec::new(), &[])?;
        command.env("PROTO", if addresses.is_some() { "TCP" } else { "UNIX" });
        if let Some((client, local)) = addresses {
            // The names of ucspi-tcp (tcp-environ(5)) and of systemd.socket(5) with Accept=yes.
            command.envs([
                ("TCPREMOTEIP", client.ip().to_string()),
                ("TCPREMOTEPORT", client.port().to_string()),
                ("TCPLOCALIP", local.ip().to_string()),
                ("TCPLOCALPORT", local.port().to_string()),
                ("REMOTE_ADDR", client.ip().to_string()),
                ("REMOTE_PORT", client.port().to_string()),
            ]);
        }
        command.stdin(connection.try_clone()?).stdout(connection).stderr(Stdio::piped());
        let mut child = HandlerProcess::spawn(&mut command)?;
        drop(command);
        let [_, _, stderr] = child.pipes();
        let run = self.0.started(stderr, Some(lease.into()))?;
        Ok((child, run))
    }

    /// Ends and reaps everything that the connection has started.
    pub(super) async fn end_connection(&self) {
        self.0.end_run().await;
    }

    pub(super) async fn stop(&self) {
        self.0.stop().await;
    }
}
