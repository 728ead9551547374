//! The one call that device plugins make of this node, `v1beta1.Registration/Register`, over HTTP/2 on a socket.
//!
//! Of HTTP/2 only what that takes: no header of a request is read, since there is one method and a socket that only root
//! reaches. That is the reason for it: gRPC clients in use name a socket's path as `:authority`, which is none, and a server
//! that reads it must refuse them.
//! Assumption: a request fits the windows that HTTP/2 begins with, 64 KiB; plugins' names are short.
//! Upstream: RFC 9113, RFC 7541 (literals without indexing alone), and gRPC's `PROTOCOL-HTTP2.md`.

use std::{collections::BTreeMap, future::Future, io};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tonic::{Code, Status};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame and the largest request, and how many requests one connection may have open.
const MAX_FRAME: usize = 16_384;
const MAX_MESSAGE: usize = 32 << 10;
const MAX_OPEN: usize = 16;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Answers the requests of one connection until it ends. `answer` is given each message and yields the answer's bytes.
pub async fn serve<F, A>(mut stream: UnixStream, answer: F) -> io::Result<()>
where
    F: Fn(Vec<u8>) -> A,
    A: Future<Output = Result<Vec<u8>, Status>>,
{
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if preface != PREFACE {
        return Err(bad("this is not HTTP/2"));
    }
    send(&mut stream, SETTINGS, 0, 0, &[]).await?;
    let mut open: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    loop {
        let mut head = [0; 9];
        match stream.read_exact(&mut head).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let [a, b, c, kind, flags, d, e, f, g] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let id = u32::from_be_bytes([d, e, f, g]) & 0x7fff_ffff;
        if length > MAX_FRAME {
            return Err(bad("a frame is longer than was allowed"));
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        match kind {
            SETTINGS if flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await?,
            PING if flags & ACK == 0 => send(&mut stream, PING, ACK, 0, &payload).await?,
            GO_AWAY => return Ok(()),
            RESET => drop(open.remove(&id)),
            HEADERS if open.len() >= MAX_OPEN => return Err(bad("too many requests at once")),
            HEADERS => drop(open.entry(id).or_default()),
            DATA => {
                let body = open.get_mut(&id).ok_or_else(|| bad("data of a request that was not begun"))?;
                body.extend_from_slice(unpadded(&payload, flags)?);
                if body.len() > MAX_MESSAGE {
                    return Err(bad("a request is too long"));
                }
            }
            _ => {}
        }
        if matches!(kind, DATA | HEADERS)
            && flags & END_STREAM != 0
            && let Some(body) = open.remove(&id)
        {
            let result = match message(&body) {
                Ok(message) => answer(message.to_vec()).await,
                Err(status) => Err(status),
            };
            respond(&mut stream, id, result).await?;
        }
    }
}

fn unpadded(payload: &[u8], flags: u8) -> io::Result<&[u8]> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let (padding, rest) = payload.split_first().ok_or_else(|| bad("padding is missing"))?;
    let length =
        rest.len().checked_sub(usize::from(*padding)).ok_or_else(|| bad("padding is longer than its frame"))?;
    Ok(&rest[..length])
}

/// The one message of a request, without gRPC's five bytes before it.
fn message(body: &[u8]) -> Result<&[u8], Status> {
    match body {
        [0, a, b, c, d, rest @ ..] if u32::from_be_bytes([*a, *b, *c, *d]) as usize == rest.len() => Ok(rest),
        [1, ..] => Err(Status::unimplemented("messages are not compressed here")),
        _ => Err(Status::invalid_argument("there must be one message")),
    }
}

async fn respond(stream: &mut UnixStream, id: u32, result: Result<Vec<u8>, Status>) -> io::Result<()> {
    // `:status: 200` is entry 8 of the static table, and `content-type` the name of entry 31.
    let mut head = vec![0x88, 0x0f, 0x10];
    text(&mut head, "application/grpc");
    send(stream, HEADERS, END_HEADERS, id, &head).await?;
    let status = match result {
        Ok(answer) => {
            let length = u32::try_from(answer.len()).unwrap_or(0).to_be_bytes();
            let body = [&[0][..], &length, &answer].concat();
            send(stream, DATA, 0, id, &body).await?;
            Status::new(Code::Ok, "")
        }
        Err(status) => status,
    };
    let mut trailers = vec![0];
    text(&mut trailers, "grpc-status");
    text(&mut trailers, &i32::from(status.code()).to_string());
    if !status.message().is_empty() {
        trailers.push(0);
        text(&mut trailers, "grpc-message");
        text(&mut trailers, &escaped(status.message()));
    }
    send(stream, HEADERS, END_HEADERS | END_STREAM, id, &trailers).await
}

/// As gRPC wants it: printable ASCII without `%`.
fn escaped(message: &str) -> String {
    let one =
        |b: u8| if (0x20..0x7f).contains(&b) && b != b'%' { (b as char).to_string() } else { format!("%{b:02X}") };
    message.bytes().map(one).collect()
}

/// A string literal without Huffman's code.
fn text(block: &mut Vec<u8>, value: &str) {
    let mut left = value.len();
    if left < 0x7f {
        block.push(u8::try_from(left).unwrap_or(0));
    } else {
        block.push(0x7f);
        left -= 0x7f;
        while left >= 0x80 {
            block.push(u8::try_from(left % 0x80).unwrap_or(0) | 0x80);
            left /= 0x80;
        }
        block.push(u8::try_from(left).unwrap_or(0));
    }
    block.extend_from_slice(value.as_bytes());
}

async fn send(stream: &mut UnixStream, kind: u8, flags: u8, id: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    let head = [&length[1..], &[kind, flags], &id.to_be_bytes()].concat();
    stream.write_all(&[&head, payload].concat()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_damaged_is_refused() {
        assert_eq!(message(&[0, 0, 0, 0, 2, 7, 8]).unwrap(), [7, 8]);
        for body in [&[][..], &[0, 0, 0, 0, 3, 7, 8], &[1, 0, 0, 0, 0], &[0, 255, 255, 255, 255, 1]] {
            assert!(message(body).is_err(), "{body:?}");
        }
        assert_eq!(unpadded(&[2, 7, 0, 0], PADDED).unwrap(), [7]);
        assert!(unpadded(&[9, 7], PADDED).is_err() && unpadded(&[], PADDED).is_err());
    }

    #[test]
    fn long_texts_have_long_lengths() {
        let mut block = Vec::new();
        text(&mut block, &"x".repeat(300));
        // 300 = 127 + 45 + 128
        assert_eq!(&block[..4], [0x7f, 0xad, 0x01, b'x']);
        assert_eq!(escaped("100 %\nü"), "100 %25%0A%C3%BC");
    }
}
