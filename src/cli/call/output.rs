//! Where `patou call` writes the response body.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// A writer and the name that its errors carry.
pub(super) struct BodyOutput {
    writer: Box<dyn Write>,
    name: String,
}

impl BodyOutput {
    /// Creates the file, or uses standard output. Called once there is a response, so that a call that fails earlier
    /// leaves an existing file as it was.
    pub(super) fn open(file: Option<&Path>) -> Result<Self, String> {
        let Some(path) = file else {
            return Ok(Self { writer: Box::new(io::stdout()), name: "standard output".into() });
        };
        let name = path.display().to_string();
        let file = File::create(path).map_err(|e| format!("{name}: {e}"))?;
        Ok(Self { writer: Box::new(file), name })
    }

    /// Discards the body.
    pub(super) fn discard() -> Self {
        Self { writer: Box::new(io::sink()), name: String::new() }
    }

    /// Returns whether the reader has closed the pipe, which is not an error.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<bool, String> {
        let result = self.writer.write_all(data);
        self.is_closed(result)
    }

    /// As [`BodyOutput::write`].
    pub(super) fn flush(&mut self) -> Result<bool, String> {
        let result = self.writer.flush();
        self.is_closed(result)
    }

    fn is_closed(&self, result: io::Result<()>) -> Result<bool, String> {
        match result {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }
}
