//! HTTP/1.1 to the daemon, one connection a call. Calls that fail because the daemon is away or busy are repeated;
//! every call of the task API may be repeated safely.

use serde_json::Value;
use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::{Duration, Instant},
};

/// An upgrade of the daemon, or of its machine, takes less.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// For the first question, before the command has run: the daemon makes another container when this one gives up, and it may
/// be this one's network that is wrong.
const FIRST_PATIENCE: Duration = Duration::from_secs(3 * 60);
const CONNECT: Duration = Duration::from_secs(5);
/// A daemon that is silent for so long in the middle of a call is taken for gone.
const SILENCE: Duration = Duration::from_secs(120);
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A JSON answer, and a header block.
const MAX_ANSWER: u64 = 64 << 20;
const MAX_HEADERS: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("the address {0} is not like http://HOST:PORT/PATH")]
    Address(String),
    #[error("the daemon at {host} did not answer for {minutes} minutes: {source}")]
    Away {
        host: String,
        minutes: u64,
        #[source]
        source: io::Error,
    },
    #[error("the daemon refused: {message} (HTTP {status})")]
    Refused { status: u16, message: String },
    #[error("this attempt is not running any more")]
    Gone,
    #[error("the daemon's answer cannot be read: {0}")]
    Answer(String),
    #[error("{0}")]
    Local(#[source] io::Error),
}

/// How one try went.
enum Try {
    Done(u16, Vec<u8>),
    /// Worth another try.
    Passing(io::Error),
    /// Reading or writing on this side failed.
    Local(io::Error),
}

pub struct Client {
    host: String,
    base: String,
    token: String,
    /// One more line of each request's head, or nothing.
    credentials: String,
}

/// What the step's environment has for a store that the namespace opens `fromEnv`: the daemon uses it for this step's
/// artifacts alone, and keeps it no longer than a request.
const CREDENTIALS: [(&str, &str); 3] =
    [("access", "AWS_ACCESS_KEY_ID"), ("secret", "AWS_SECRET_ACCESS_KEY"), ("session", "AWS_SESSION_TOKEN")];
/// More is no key, and no header.
const MAX_CREDENTIAL: usize = 4096;

impl Client {
    pub fn new(url: &str, token: String) -> Result<Self, HttpError> {
        let bad = || HttpError::Address(url.to_owned());
        let rest = url.strip_prefix("http://").ok_or_else(bad)?;
        let (host, path) = rest.split_once('/').ok_or_else(bad)?;
        let clean = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_graphic());
        if !clean(host) || !clean(path) || !clean(&token) {
            return Err(bad());
        }
        let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
        Ok(Self { host, base: format!("/{}", path.trim_end_matches('/')), token, credentials: String::new() })
    }

    /// Shows the daemon what `variable` gives of the environment's credentials.
    pub fn with_credentials(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let found =
            CREDENTIALS.map(|(name, of)| (name, variable(of).filter(|v| !v.is_empty() && v.len() <= MAX_CREDENTIAL)));
        if matches!(&found, [(_, Some(_)), (_, Some(_)), _]) {
            let pairs = found.iter().filter_map(|(name, value)| Some(format!("{name}={}", encode(value.as_ref()?))));
            self.credentials = format!("X-Kfbox-S3: {}\r\n", pairs.collect::<Vec<_>>().join("&"));
        }
        self
    }

    pub fn get_json(&self, path: &str) -> Result<Value, HttpError> {
        let body = self.call_within(FIRST_PATIENCE, &|| self.exchange("GET", path, None, &mut None))?;
        serde_json::from_slice(&body).map_err(|e| HttpError::Answer(e.to_string()))
    }

    pub fn post_json(&self, path: &str, body: &Value) -> Result<(), HttpError> {
        let body = body.to_string();
        self.call(&|| self.exchange("POST", path, Some((body.len() as u64, &mut body.as_bytes())), &mut None)).map(drop)
    }

    /// Sends `size` bytes from a reader that `open` gives anew for each try.
    pub fn put(&self, path: &str, size: u64, open: &dyn Fn() -> io::Result<Box<dyn Read>>) -> Result<(), HttpError> {
        self.call(&|| match open() {
            Ok(mut body) => self.exchange("PUT", path, Some((size, &mut *body)), &mut None),
            Err(error) => Try::Local(error),
        })
        .map(drop)
    }

    /// Receives into a writer that `create` gives anew for each try.
    pub fn get_into(&self, path: &str, create: &dyn Fn() -> io::Result<Box<dyn Write>>) -> Result<(), HttpError> {
        self.call(&|| match create() {
            Ok(mut into) => self.exchange("GET", path, None, &mut Some(&mut *into)),
            Err(error) => Try::Local(error),
        })
        .map(drop)
    }

    fn call(&self, exchange: &dyn Fn() -> Try) -> Result<Vec<u8>, HttpError> {
        self.call_within(PATIENCE, exchange)
    }

    fn call_within(&self, patience: Duration, exchange: &dyn Fn() -> Try) -> Result<Vec<u8>, HttpError> {
        let started = Instant::now();
        let (mut wait, mut told) = (FIRST_WAIT, false);
        loop {
            let error = match exchange() {
                Try::Done(200..=299, body) => {
                    if told {
                        crate::say!("the daemon is back");
                    }
                    return Ok(body);
                }
                Try::Done(410, _) => return Err(HttpError::Gone),
                Try::Done(status @ (408 | 429 | 500..=599), body) => {
                    io::Error::other(format!("HTTP {status}: {}", message(&body)))
                }
                Try::Done(status, body) => return Err(HttpError::Refused { status, message: message(&body) }),
                Try::Local(error) => return Err(HttpError::Local(error)),
                Try::Passing(error) => error,
            };
            if started.elapsed() >= patience {
                let minutes = patience.as_secs() / 60;
                return Err(HttpError::Away { host: self.host.clone(), minutes, source: error });
            }
            if !told && started.elapsed() >= Duration::from_secs(2) {
                crate::say!("waiting for the daemon at {}: {error}", self.host);
                told = true;
            }
            std::thread::sleep(wait);
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host));
        for address in self.host.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, CONNECT) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(SILENCE))?;
                    stream.set_write_timeout(Some(SILENCE))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        body: Option<(u64, &mut dyn Read)>,
        into: &mut Option<&mut dyn Write>,
    ) -> Try {
        let mut stream = match self.connect() {
            Ok(stream) => stream,
            Err(error) => return Try::Passing(error),
        };
        let size = body.as_ref().map_or(0, |(size, _)| *size);
        let kind = if method == "POST" { "application/json" } else { "application/octet-stream" };
        let mut head = format!(
            "{method} {}{path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n{}Connection: close\r\n",
            self.base, self.host, self.token, self.credentials
        );
        if body.is_some() {
            head.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {size}\r\n"));
        }
        head.push_str("\r\n");
        let sent = stream.write_all(head.as_bytes()).map_err(Try::Passing).and_then(|()| match body {
            Some((size, from)) => send(&mut stream, from, size),
            None => Ok(()),
        });
        match sent {
            Ok(()) => {}
            Err(Try::Passing(error)) => {
                // A server that refuses early answers before it has read all: its answer says more than the broken pipe.
                return match receive(&stream, into) {
                    Try::Passing(_) => Try::Passing(error),
                    answered => answered,
                };
            }
            Err(other) => return other,
        }
        receive(&stream, into)
    }
}

fn send(stream: &mut TcpStream, from: &mut dyn Read, size: u64) -> Result<(), Try> {
    let mut chunk = [0; 64 * 1024];
    let mut left = size;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(chunk.len()).min(chunk.len());
        match from.read(&mut chunk[..want]) {
            Ok(0) => {
                return Err(Try::Local(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file became shorter while it was uploaded",
                )));
            }
            Ok(n) => {
                stream.write_all(&chunk[..n]).map_err(Try::Passing)?;
                left -= n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Try::Local(error)),
        }
    }
    Ok(())
}

fn receive(stream: &TcpStream, into: &mut Option<&mut dyn Write>) -> Try {
    let cut = |why: &str| Try::Passing(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    let mut read_line = |reader: &mut BufReader<&TcpStream>| -> io::Result<String> {
        line.clear();
        if reader.by_ref().take(16 * 1024).read_line(&mut line)? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the connection"));
        }
        Ok(line.trim_end().to_owned())
    };
    let status = match read_line(&mut reader) {
        Ok(line) => line,
        Err(error) => return Try::Passing(error),
    };
    let Some(status) = status.strip_prefix("HTTP/1.").and_then(|l| l.split(' ').nth(1)?.parse::<u16>().ok()) else {
        return cut("the answer is no HTTP");
    };
    let mut length = None;
    for count in 0.. {
        let header = match read_line(&mut reader) {
            Ok(line) if line.is_empty() => break,
            Ok(line) => line,
            Err(error) => return Try::Passing(error),
        };
        if count >= MAX_HEADERS {
            return cut("the answer has too many headers");
        }
        if let Some((name, value)) = header.split_once(':') {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse::<u64>().ok();
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                return cut("the answer is chunked, which the task API never is");
            }
        }
    }
    let length = length.unwrap_or(0);
    if let (Some(into), 200..=299) = (into.as_mut(), status) {
        return copy(&mut reader, *into, length).map_or_else(|e| e, |()| Try::Done(status, Vec::new()));
    }
    if length > MAX_ANSWER {
        return cut("the answer is too large");
    }
    let mut body = Vec::new();
    match reader.take(length).read_to_end(&mut body) {
        Ok(_) if body.len() as u64 == length => Try::Done(status, body),
        Ok(_) => cut("the answer was cut off"),
        Err(error) => Try::Passing(error),
    }
}

fn copy(reader: &mut impl Read, into: &mut dyn Write, length: u64) -> Result<(), Try> {
    let mut chunk = [0; 64 * 1024];
    let mut left = length;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(chunk.len()).min(chunk.len());
        match reader.read(&mut chunk[..want]) {
            Ok(0) => return Err(Try::Passing(io::Error::new(io::ErrorKind::UnexpectedEof, "the file was cut off"))),
            Ok(n) => {
                into.write_all(&chunk[..n]).map_err(Try::Local)?;
                left -= n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Try::Passing(error)),
        }
    }
    into.flush().map_err(Try::Local)
}

fn message(body: &[u8]) -> String {
    let parsed: Option<Value> = serde_json::from_slice(body).ok();
    let told = parsed.as_ref().and_then(|v| v.get("message")?.as_str()).map(str::to_owned);
    told.unwrap_or_else(|| String::from_utf8_lossy(body).chars().take(300).collect())
}

/// One value of a query string.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
