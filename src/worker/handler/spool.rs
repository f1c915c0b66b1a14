//! The spool: a request body that is stored before its program gets the request, so that its length is known, and so that
//! the program waits for no client. In memory at first, then in a file without a name.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use nix::errno::Errno;
use nix::libc;
use tokio::task::spawn_blocking;

use super::body::{self, Body, BoxError};
use super::context::{RequestContext, RequestStart};
use super::failure::RequestFailure;
use super::limited_body::LimitedBody;
use crate::config::{PoolConfig, RequestBodyMode};

/// The most bytes of a body in memory: one that is larger is in a file. Also the size of one write.
const MEMORY_MAX: usize = 1 << 20;
/// The size of one read.
const PIECE: u64 = 256 << 10;

/// Whether a program needs the length of a request body before the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LengthNeed {
    Needed,
    NotNeeded,
}

/// How a pool spools request bodies.
#[derive(Clone, Debug)]
pub(crate) struct Spool {
    /// Those of known length, too.
    every_body: bool,
    /// The largest body in bytes; 0: unlimited.
    max: u64,
    dir: PathBuf,
}

impl Spool {
    /// Without a directory in the configuration the one for temporary files, which is private in a unit.
    pub(super) fn new(pool: &PoolConfig) -> Self {
        let dir = Some(&pool.spool_dir).filter(|dir| !dir.is_empty()).map_or_else(std::env::temp_dir, PathBuf::from);
        Self { every_body: pool.request_body == RequestBodyMode::Spool, max: pool.spool_max, dir }
    }

    /// The body of a request for a program, under the limits of `context`. It is stored first if the pool says so, or if
    /// its length is needed and not known; then no byte of the request has reached the program when this fails.
    ///
    /// # Errors
    /// 400, 408 and 413 as for a body that is read; 413 beyond `spool_max`; 507 if the directory has no space, 500 if it
    /// cannot be used.
    pub(super) async fn receive(
        &self,
        body: Body,
        context: &RequestContext,
        start: &RequestStart,
        need: LengthNeed,
    ) -> Result<LimitedBody, RequestFailure> {
        let body = LimitedBody::new(body, context)?;
        let is_unknown = body.size_hint().exact().is_none();
        if body.is_end_stream() || !(self.every_body || is_unknown && need == LengthNeed::Needed) {
            return Ok(body);
        }
        let stored = start.precede(self.store(body)).await.map_err(RequestFailure::not_started)?;
        Ok(LimitedBody::stored(Body::new(stored)))
    }

    /// Trailers are discarded: a message with a length has none.
    async fn store(&self, mut body: LimitedBody) -> Result<StoredBody, RequestFailure> {
        let (mut length, mut unwritten, mut file) = (0, Vec::new(), None);
        self.check_length(body.size_hint().lower())?;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            length += data.len() as u64;
            self.check_length(length)?;
            if unwritten.len() + data.len() > MEMORY_MAX {
                let full = std::mem::replace(&mut unwritten, Vec::with_capacity(MEMORY_MAX));
                file = Some(self.append(file, full).await?);
            }
            unwritten.extend_from_slice(&data);
        }
        let pieces = match file {
            None => Full::from(unwritten).map_err(|never| match never {}).boxed_unsync(),
            Some(file) => pieces(self.append(Some(file), unwritten).await?, length),
        };
        Ok(StoredBody { pieces, remaining: length })
    }

    fn check_length(&self, length: u64) -> Result<(), RequestFailure> {
        if self.max == 0 || length <= self.max {
            return Ok(());
        }
        let reason = format!("the request body is larger than spool_max, {} bytes", self.max);
        Err(RequestFailure::new(StatusCode::PAYLOAD_TOO_LARGE, reason))
    }

    /// Appends to the file, or to a new one. A disk can make this wait, which must not stop the serving task.
    async fn append(&self, file: Option<File>, data: Vec<u8>) -> Result<File, RequestFailure> {
        let dir = self.dir.clone();
        let written = spawn_blocking(move || {
            let mut file = file.map_or_else(|| unnamed_file(&dir), Ok)?;
            file.write_all(&data)?;
            Ok(file)
        });
        written.await.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &io::Error) -> RequestFailure {
        let dir = self.dir.display();
        match error.raw_os_error().map(Errno::from_raw) {
            // A limit of the process, too (RLIMIT_FSIZE).
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => RequestFailure::new(
                StatusCode::INSUFFICIENT_STORAGE,
                format!("no space for the request body in {dir} (spool_dir): {error}"),
            ),
            _ => RequestFailure::cannot_start(
                format!("cannot store the request body in {dir} (spool_dir): {error}"),
                Some(error),
            ),
        }
    }
}

/// A file in `dir` without a name: it is gone when it is closed, however this process ends.
fn unnamed_file(dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let opened = options.clone().custom_flags(libc::O_TMPFILE | libc::O_EXCL).open(dir);
    match opened.as_ref().err().and_then(io::Error::raw_os_error).map(Errno::from_raw) {
        // open(2): the file system does not support it.
        Some(Errno::EOPNOTSUPP | Errno::EISDIR) => removed_file(dir, options.create_new(true)),
        _ => opened,
    }
}

/// The same for every file system. A kill between the two steps leaves an empty file.
fn removed_file(dir: &Path, create_new: &OpenOptions) -> io::Result<File> {
    let path = dir.join(format!(".patou-spool-{:016x}", getrandom::u64().map_err(io::Error::other)?));
    let file = create_new.open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// The first `length` bytes of the file.
fn pieces(file: File, length: u64) -> Body {
    body::unfold((file, length), move |(file, remaining)| async move {
        if remaining == 0 {
            return Ok(None);
        }
        let mut data = vec![0; remaining.min(PIECE) as usize];
        let read = spawn_blocking(move || {
            file.read_exact_at(&mut data, length - remaining)?;
            Ok((Bytes::from(data), file))
        });
        let read = read.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let (data, file) = read.map_err(|error| {
            let reason = format!("cannot read the stored request body: {error}");
            RequestFailure::new(StatusCode::INTERNAL_SERVER_ERROR, reason)
        })?;
        let remaining = remaining - data.len() as u64;
        Ok(Some((data, (file, remaining))))
    })
}

/// A body whose length is known.
struct StoredBody {
    pieces: Body,
    /// How many bytes of it have not been read.
    remaining: u64,
}

impl http_body::Body for StoredBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.pieces).poll_frame(task));
        if let Some(Ok(frame)) = &frame {
            self.remaining -= frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_request::{full_body, request_context};
    use super::*;
    use std::time::Duration;

    fn spool(pool: PoolConfig) -> Spool {
        Spool::new(&pool)
    }

    /// Pieces of 100 kB, of unannounced size.
    fn chunks(count: usize) -> Body {
        body::unfold(0, move |n| async move { Ok((n < count).then(|| (Bytes::from(vec![n as u8; 100_000]), n + 1))) })
    }

    async fn receive(spool: &Spool, body: Body, need: LengthNeed) -> Result<LimitedBody, RequestFailure> {
        spool.receive(body, &request_context(), &RequestStart::default(), need).await
    }

    #[tokio::test]
    async fn body_of_unknown_length_has_one_and_its_bytes_afterwards() {
        let spool = spool(PoolConfig::default());
        for count in [0, 1, 10, 11, 37] {
            let stored = receive(&spool, chunks(count), LengthNeed::Needed).await.unwrap();
            assert_eq!(stored.size_hint().exact(), Some(count as u64 * 100_000));
            assert!(stored.is_stored() && stored.is_end_stream() == (count == 0));
            let (stored, sent) = (stored.collect().await.unwrap().to_bytes(), chunks(count).collect().await.unwrap());
            assert!(stored == sent.to_bytes(), "{count}");
        }
        assert!(!receive(&spool, chunks(2), LengthNeed::NotNeeded).await.unwrap().is_stored());
        assert!(!receive(&spool, full_body("known"), LengthNeed::Needed).await.unwrap().is_stored());
    }

    #[tokio::test]
    async fn pool_may_store_every_body_that_is_not_empty() {
        let spool =
            spool(PoolConfig { request_body: RequestBodyMode::Spool, spool_max: 150_000, ..PoolConfig::default() });
        for body in [full_body("known"), chunks(1)] {
            assert!(receive(&spool, body, LengthNeed::NotNeeded).await.unwrap().is_stored());
        }
        assert!(!receive(&spool, full_body(""), LengthNeed::NotNeeded).await.unwrap().is_stored());
        for body in [full_body(vec![0; 150_001]), chunks(2)] {
            let failure = receive(&spool, body, LengthNeed::NotNeeded).await.err().unwrap();
            assert_eq!((failure.status.as_u16(), failure.started), (413, false));
        }
    }

    #[tokio::test]
    async fn failures_before_the_start_say_so() {
        let spool = spool(PoolConfig { spool_dir: "/proc/self".into(), ..PoolConfig::default() });
        let failure = receive(&spool, chunks(11), LengthNeed::Needed).await.err().unwrap();
        assert_eq!((failure.status.as_u16(), failure.started), (500, false), "{failure}");
        let no_space = spool.failure(&io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(no_space.status, 507);
        assert_eq!(spool.failure(&io::Error::from_raw_os_error(libc::EMFILE)).status, 503);

        let short = RequestContext { body_timeout: Duration::from_millis(20), ..request_context() };
        let (silent, start) = (|| body::unfold((), |()| std::future::pending()), RequestStart::default());
        let failure = spool.receive(silent(), &short, &start, LengthNeed::Needed).await.err().unwrap();
        assert_eq!((failure.status.as_u16(), failure.started, start.is_pending()), (408, false, false));
        let context = request_context();
        let late = spool.receive(silent(), &context, &start, LengthNeed::Needed);
        assert!(tokio::time::timeout(Duration::from_millis(20), late).await.is_err() && start.is_pending());
    }

    #[test]
    fn file_has_no_name_in_any_file_system() {
        let dir = std::env::temp_dir().join(format!("patou-spool-test-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let removed = removed_file(&dir, OpenOptions::new().read(true).write(true).create_new(true)).unwrap();
        for mut file in [unnamed_file(&dir).unwrap(), removed] {
            file.write_all(b"data").unwrap();
            let mut data = [0; 4];
            file.read_exact_at(&mut data, 0).unwrap();
            assert_eq!((&data, std::fs::read_dir(&dir).unwrap().count()), (b"data", 0));
        }
        std::fs::remove_dir(&dir).unwrap();
    }
}
