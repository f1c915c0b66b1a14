//! `patou record FILE`: the handler of a drill. It records the start of each request durably before it does anything
//! else, and answers with the request's body.
//!
//! The path is `/REQUEST/ATTEMPT`, two numbers; `?ms=N` makes it think for so long. As `exec` it speaks CGI/1.1
//! (RFC 3875), as `coprocess` the framing on descriptors 3 and 4, as `inetd` so much of HTTP/1.1 as the drill's clients
//! need. `patou record --spin DURATION` keeps a core busy.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::stat::{SFlag, fstat};

use crate::cli::duration_arg::duration;
use crate::cli::error::{CommandError, failed};

#[derive(Debug, Args)]
pub struct Record {
    /// Where starts are recorded, a line each
    #[arg(required_unless_present = "spin")]
    file: Option<PathBuf>,
    /// Only keep a core busy for so long
    #[arg(long, value_parser = duration)]
    spin: Option<Duration>,
}

pub fn run(record: &Record) -> Result<(), CommandError> {
    if let Some(time) = record.spin {
        let end = Instant::now() + time;
        while Instant::now() < end {}
        return Ok(());
    }
    let file = record.file.as_deref().unwrap_or(Path::new("")); // clap has seen to it
    let named = |error: io::Error| failed(format!("{}: {error}", file.display()));
    let mut file = File::options().append(true).create(true).open(file).map_err(named)?;
    let is_socket = fstat(io::stdin()).is_ok_and(|stdin| SFlag::from_bits_truncate(stdin.st_mode) == SFlag::S_IFSOCK);
    match std::env::var("GATEWAY_INTERFACE") {
        Ok(_) => as_program(&mut file).map_err(named),
        Err(_) if is_socket => as_server(&mut file).map_err(named),
        Err(_) => as_coprocess(&mut file).map_err(named),
    }
}

/// What a path asks for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    request: u64,
    attempt: u32,
    think: Duration,
}

fn wanted(path: &str, query: &str) -> Option<Wanted> {
    let (request, attempt) = path.strip_prefix('/')?.split_once('/')?;
    let ms = query.split('&').find_map(|pair| pair.strip_prefix("ms=")?.parse().ok()).unwrap_or(0);
    Some(Wanted { request: request.parse().ok()?, attempt: attempt.parse().ok()?, think: Duration::from_millis(ms) })
}

/// One write to a file that is only ever appended to: whole lines, also from several processes (write(2)).
fn note(file: &mut File, wanted: &Wanted) -> io::Result<()> {
    file.write_all(format!("{} {}\n", wanted.request, wanted.attempt).as_bytes())?;
    file.sync_data()
}

/// What was recorded. A line that is none is an error: nobody else writes there.
pub fn read(file: &Path) -> io::Result<Vec<(u64, u32)>> {
    let text = match std::fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let line = |line: &str| {
        let (request, attempt) = line.split_once(' ')?;
        Some((request.parse().ok()?, attempt.parse().ok()?))
    };
    text.lines().map(|text| line(text).ok_or_else(|| io::Error::other(format!("`{text}` is no record")))).collect()
}

/// What is answered to a request without a body.
pub fn words(request: u64, attempt: u32) -> String {
    format!("{request} {attempt}\n")
}

/// The rest of an answer, of which `head` is the first: the body of `length` bytes comes back, or words in its place.
fn answer(out: &mut impl Write, head: &str, wanted: &Wanted, length: u64, body: impl Read) -> io::Result<()> {
    std::thread::sleep(wanted.think);
    if length == 0 {
        let words = words(wanted.request, wanted.attempt);
        write!(out, "{head}Content-Length: {}\r\n\r\n{words}", words.len())?;
    } else {
        write!(out, "{head}Content-Length: {length}\r\n\r\n")?;
        io::copy(&mut body.take(length), out)?;
    }
    out.flush()
}

fn as_program(file: &mut File) -> io::Result<()> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let mut out = io::stdout().lock();
    let Some(wanted) = wanted(&variable("PATH_INFO"), &variable("QUERY_STRING")) else {
        return out.write_all(b"Status: 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    note(file, &wanted)?;
    let length = variable("CONTENT_LENGTH").parse().unwrap_or(0);
    answer(&mut out, "Content-Type: application/octet-stream\r\n", &wanted, length, io::stdin().lock())
}

/// One request of a connection that is standard input and output.
fn as_server(file: &mut File) -> io::Result<()> {
    let (mut client, mut out) = (io::stdin().lock(), io::stdout().lock());
    let (mut first, mut length, mut expects, mut line) = (String::new(), 0, false, String::new());
    client.read_line(&mut first)?;
    loop {
        line.clear();
        if client.read_line(&mut line)? == 0 {
            return Ok(()); // it has left
        }
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().map_err(io::Error::other)?,
            Some(("Expect", _)) => expects = true,
            Some(_) => {}
            None => break,
        }
    }
    let target = first.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some(wanted) = wanted(path, query) else {
        return out.write_all(b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    };
    note(file, &wanted)?;
    if expects {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        out.flush()?;
    }
    answer(&mut out, "HTTP/1.1 200 OK\r\nConnection: close\r\n", &wanted, length, client)
}

fn as_coprocess(file: &mut File) -> io::Result<()> {
    // By their names in /proc, since a number alone is nobody's to own; both are pipes.
    let mut requests = BufReader::new(File::open("/proc/self/fd/3")?);
    let mut answers = File::options().write(true).open("/proc/self/fd/4")?;
    loop {
        let (mut length, mut target, mut line) = (0, String::new(), String::new());
        loop {
            line.clear();
            if requests.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().map_err(io::Error::other)?,
                Some(("Target", value)) => target = value.to_owned(),
                Some(_) => {}
                None => break,
            }
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match wanted(path, query) {
            None => {
                io::copy(&mut (&mut requests).take(length), &mut io::sink())?;
                answers.write_all(b"Status: 404\r\nContent-Length: 0\r\n\r\n")?;
            }
            Some(wanted) => {
                note(file, &wanted)?;
                answer(&mut answers, "", &wanted, length, &mut requests)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_request_and_attempt() {
        let ms = Duration::from_millis;
        assert_eq!(wanted("/7/2", ""), Some(Wanted { request: 7, attempt: 2, think: ms(0) }));
        assert_eq!(wanted("/7/2", "a=b&ms=20").unwrap().think, ms(20));
        for none in ["", "/", "/7", "/7/", "/x/1", "7/1", "/7/1/2", "/-7/1"] {
            assert_eq!(wanted(none, ""), None, "{none}");
        }
    }

    #[test]
    fn what_is_noted_is_read_back_and_nothing_else() {
        let path = std::env::temp_dir().join(format!("patou-record-{}", std::process::id()));
        let mut file = File::options().append(true).create(true).open(&path).unwrap();
        for attempt in [1, 2] {
            note(&mut file, &Wanted { request: 7, attempt, think: Duration::ZERO }).unwrap();
        }
        assert_eq!(read(&path).unwrap(), [(7, 1), (7, 2)]);
        file.write_all(b"7 \n").unwrap();
        assert!(read(&path).is_err());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read(&path).unwrap(), []);
    }
}
