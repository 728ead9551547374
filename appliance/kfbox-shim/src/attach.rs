//! Who watches a running container's output or types into it: clients of a Unix socket that speaks [`super::frames`].
//!
//! Invariant: a slow client is dropped; it never holds up the container or its log.

use super::frames::{Channel, Decoder, HEADER, MAX_PAYLOAD, header};
use nix::poll::PollFlags;
use std::{
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
};

/// What a client may leave unread before it is dropped: some screens of output.
const MAX_QUEUED: usize = 1 << 20;
/// More than a handful of people at one terminal is a mistake.
const MAX_CLIENTS: usize = 16;

pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    queued: Vec<u8>,
    gone: bool,
}

/// What clients asked for.
pub enum Input {
    Stdin(Vec<u8>),
    StdinEnd,
    Resize { columns: u16, rows: u16 },
    Request(Vec<u8>),
}

impl Client {
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, decoder: Decoder::default(), queued: Vec::new(), gone: false })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn interest(&self) -> PollFlags {
        if self.queued.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT }
    }

    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// True while so much is queued that a producer should wait.
    pub fn is_full(&self) -> bool {
        self.queued.len() > MAX_QUEUED / 2
    }

    pub fn send(&mut self, channel: Channel, bytes: &[u8]) {
        for part in bytes.chunks(MAX_PAYLOAD) {
            self.queued.extend_from_slice(&header(channel, part.len()));
            self.queued.extend_from_slice(part);
        }
        self.flush();
        if self.queued.len() > MAX_QUEUED {
            self.gone = true;
        }
    }

    pub fn flush(&mut self) {
        while !self.queued.is_empty() && !self.gone {
            match self.stream.write(&self.queued) {
                Ok(0) => self.gone = true,
                Ok(n) => {
                    self.queued.drain(..n);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.gone = true,
            }
        }
    }

    /// Writes everything, waiting for the reader: for the last words of a process that is about to end.
    pub fn finish(&mut self) {
        if self.stream.set_nonblocking(false).is_ok() {
            let _ = self.stream.set_write_timeout(Some(std::time::Duration::from_secs(5)));
            let _ = self.stream.write_all(&self.queued);
            self.queued.clear();
        }
    }

    /// Reads what is there. A client that sends nonsense is gone.
    pub fn receive(&mut self) -> Vec<Input> {
        let mut buffer = [0; 16 * 1024 + HEADER];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.gone = true,
            Ok(n) => self.decoder.push(&buffer[..n]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
        let mut inputs = Vec::new();
        loop {
            match self.decoder.take() {
                Ok(Some((Channel::Stdin, bytes))) => inputs.push(Input::Stdin(bytes)),
                Ok(Some((Channel::StdinEnd, _))) => inputs.push(Input::StdinEnd),
                Ok(Some((Channel::Request, bytes))) => inputs.push(Input::Request(bytes)),
                Ok(Some((Channel::Resize, bytes))) => {
                    if let [a, b, c, d] = bytes[..] {
                        let (columns, rows) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                        inputs.push(Input::Resize { columns, rows });
                    }
                }
                Ok(Some(_)) | Err(_) => {
                    self.gone = true;
                    return inputs;
                }
                Ok(None) => return inputs,
            }
        }
    }
}

/// The listening socket and its clients.
pub struct Clients {
    listener: UnixListener,
    pub clients: Vec<Client>,
}

impl Clients {
    pub fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: Vec::new() })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    pub fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < MAX_CLIENTS
                && let Ok(client) = Client::new(stream)
            {
                self.clients.push(client);
            }
        }
    }

    pub fn broadcast(&mut self, channel: Channel, bytes: &[u8]) {
        for client in &mut self.clients {
            client.send(channel, bytes);
        }
    }

    pub fn drop_gone(&mut self) {
        self.clients.retain(|client| !client.gone);
    }
}
