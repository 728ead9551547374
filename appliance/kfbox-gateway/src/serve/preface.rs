//! What a connection begins with, and that beginning put back for who reads the rest. HTTP/2 without TLS announces itself by
//! its preface alone (RFC 9113 sections 3.3 and 3.4), as gRPC clients do.
//!
//! Guarantees: what was read is read again, byte for byte; HTTP/1.1 costs no further system call, for its first read takes
//! what is there; a beginning that is neither whole nor wrong is waited for, which the caller bounds in time.

use bytes::{Buf as _, Bytes, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most requests' headers fit; what does not is read by who comes next.
const ROOM: usize = 2048;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    First,
    Second,
}

/// The error is of a connection that ended before it said what it speaks.
pub(super) async fn read<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Version, Rewound<S>)> {
    let mut first = BytesMut::with_capacity(ROOM);
    let version = loop {
        if stream.read_buf(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first.starts_with(PREFACE) {
            break Version::Second;
        }
        if !PREFACE.starts_with(&first) {
            break Version::First;
        }
    };
    Ok((version, Rewound { first: first.freeze(), stream }))
}

/// A connection whose beginning is read once more.
pub(super) struct Rewound<S> {
    first: Bytes,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let taken = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..taken]);
        self.first.advance(taken);
        if self.first.is_empty() {
            // Gives the memory back.
            self.first = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn a_beginning_is_told_however_it_is_cut_and_is_read_again() {
        let request: &[u8] = b"POST /PRI HTTP/1.1\r\nhost: x\r\n\r\n";
        let long = [b"GET /".as_slice(), &[b'x'; 3 * ROOM]].concat();
        let second = [PREFACE, b"and its frames"].concat();
        let near: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rx";
        for (text, version) in [
            (request, Version::First),
            (long.as_slice(), Version::First),
            (second.as_slice(), Version::Second),
            (PREFACE, Version::Second),
            (near, Version::First),
        ] {
            for cut in [1, 3, PREFACE.len() - 1, text.len()] {
                let (mut theirs, ours) = tokio::io::duplex(4 * ROOM);
                let (first, rest) = text.split_at(cut);
                let write = async {
                    theirs.write_all(first).await.unwrap();
                    tokio::task::yield_now().await;
                    theirs.write_all(rest).await.unwrap();
                    drop(theirs);
                };
                let (found, ()) = tokio::join!(read(ours), write);
                let (found, mut stream) = found.unwrap();
                assert_eq!(found, version, "{cut} of {}", String::from_utf8_lossy(text));
                let mut whole = Vec::new();
                stream.read_to_end(&mut whole).await.unwrap();
                assert!(whole == text, "{cut} of {}", String::from_utf8_lossy(text));
            }
        }
        let (mut theirs, ours) = tokio::io::duplex(64);
        theirs.write_all(&PREFACE[..10]).await.unwrap();
        drop(theirs);
        assert_eq!(read(ours).await.err().map(|e| e.kind()), Some(io::ErrorKind::UnexpectedEof));
    }
}
