//! Port-forward: SPDY/3.1 frames tunnelled in a WebSocket, as kubectl does since 1.31 (KEP-4006). Only what that client
//! uses of SPDY is here: streams that it opens with a header block, data both ways, ping, goaway and reset.
//!
//! Guarantees: memory is bounded by the queues below; a malformed frame ends the session. Assumption: neither side counts
//! windows, as the library of all Kubernetes clients (moby/spdystream) does not; what holds a sender back is TCP. A pod
//! that does not read therefore holds back the other connections of the same kubectl.
//! Source: <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.

use crate::kubelet::{Duplex, Kubelet};
use axum::extract::ws::{Message, WebSocket};
use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use futures::{SinkExt as _, StreamExt as _};
use kfbox_base::Tasks;
use std::{collections::HashMap, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

pub const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;

const FLAG_FIN: u8 = 1;

/// The largest frame taken; kubectl writes 32 KiB of data at once.
const FRAME_LIMIT: usize = 1 << 20;

/// What a header block may inflate to; port-forward's are some hundred bytes.
const HEADERS_LIMIT: usize = 16 << 10;

/// Streams at once: two for each forwarded connection.
const STREAMS: usize = 1000;

/// Chunks queued for one connection to the pod.
const QUEUE: usize = 64;

/// Frames queued for the client by all streams together.
const OUTGOING: usize = 64;

/// Bytes read from the pod at once.
const CHUNK: usize = 32 << 10;

/// The dictionary that both sides prime their zlib streams with: a constant of the protocol, in an unusual form. Each
/// word is preceded by its length in 32 bits, as in a header block; then follow the values found in headers.
fn dictionary() -> Vec<u8> {
    const WORDS: [&str; 46] = [
        "options",
        "head",
        "post",
        "put",
        "delete",
        "trace",
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "accept-ranges",
        "age",
        "allow",
        "authorization",
        "cache-control",
        "connection",
        "content-base",
        "content-encoding",
        "content-language",
        "content-length",
        "content-location",
        "content-md5",
        "content-range",
        "content-type",
        "date",
        "etag",
        "expect",
        "expires",
        "from",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "last-modified",
        "location",
        "max-forwards",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "retry-after",
        "server",
        "te",
    ];
    const MORE: [&str; 17] = [
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "vary",
        "via",
        "warning",
        "www-authenticate",
        "method",
        "get",
        "status",
        "200 OK",
        "version",
        "HTTP/1.1",
        "url",
        "public",
        "set-cookie",
    ];
    const LAST: [&str; 2] = ["keep-alive", "origin"];
    const VALUES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
                          203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 \
                          Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service \
                          UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, \
                          Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml\
                          +xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=\
                          iso-8859-1,utf-,*,enq=0.";
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.iter().chain(&MORE).chain(&LAST) {
        out.extend_from_slice(&u32::try_from(word.len()).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(VALUES.as_bytes());
    out
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("a malformed SPDY frame")]
    Frame,
    #[error("a malformed SPDY header block")]
    Headers,
}

type Headers = HashMap<String, String>;

/// The client's header blocks are one zlib stream with a preset dictionary. The inflater at hand knows no dictionaries;
/// one that has just inflated the dictionary, given as a stored block, is in the same state.
struct Inflate {
    raw: Decompress,
    started: bool,
}

impl Inflate {
    fn new() -> Self {
        Self { raw: Decompress::new(false), started: false }
    }

    fn block(&mut self, mut input: &[u8]) -> Result<Headers, Broken> {
        if !self.started {
            self.started = true;
            let (head, rest) = input.split_at_checked(2).ok_or(Broken::Headers)?;
            input = rest;
            // The second byte's bit 5 says that the checksum of the dictionary follows.
            if head[1] & 0x20 != 0 {
                input = input.get(4..).ok_or(Broken::Headers)?;
                let dictionary = dictionary();
                let length = u16::try_from(dictionary.len()).map_err(|_| Broken::Headers)?;
                let mut stored = vec![0];
                stored.extend_from_slice(&length.to_le_bytes());
                stored.extend_from_slice(&(!length).to_le_bytes());
                stored.extend_from_slice(&dictionary);
                self.inflate(&stored)?;
            }
        }
        let block = self.inflate(input)?;
        parse_headers(&block)
    }

    fn inflate(&mut self, mut input: &[u8]) -> Result<Vec<u8>, Broken> {
        let mut out = Vec::with_capacity(2048);
        loop {
            let mut chunk = [0; 2048];
            let (read, written) = (self.raw.total_in(), self.raw.total_out());
            let status = self.raw.decompress(input, &mut chunk, FlushDecompress::Sync).map_err(|_| Broken::Headers)?;
            let consumed = usize::try_from(self.raw.total_in() - read).map_err(|_| Broken::Headers)?;
            let made = usize::try_from(self.raw.total_out() - written).map_err(|_| Broken::Headers)?;
            input = input.get(consumed..).ok_or(Broken::Headers)?;
            out.extend_from_slice(&chunk[..made]);
            if out.len() > HEADERS_LIMIT || status == Status::StreamEnd {
                return Err(Broken::Headers);
            }
            // Output that just filled the chunk may have more behind it.
            if input.is_empty() && made < chunk.len() {
                return Ok(out);
            }
            if consumed == 0 && made == 0 {
                return Err(Broken::Headers);
            }
        }
    }
}

/// A count, then names and values, each text after its length; all numbers have 32 bits.
fn parse_headers(block: &[u8]) -> Result<Headers, Broken> {
    fn number(block: &mut &[u8]) -> Result<usize, Broken> {
        let (number, rest) = block.split_first_chunk::<4>().ok_or(Broken::Headers)?;
        *block = rest;
        usize::try_from(u32::from_be_bytes(*number)).map_err(|_| Broken::Headers)
    }
    fn text(block: &mut &[u8]) -> Result<String, Broken> {
        let length = number(block)?;
        let (text, rest) = block.split_at_checked(length).ok_or(Broken::Headers)?;
        *block = rest;
        String::from_utf8(text.to_vec()).map_err(|_| Broken::Headers)
    }
    let mut block = block;
    let mut headers = Headers::new();
    for _ in 0..number(&mut block)? {
        let name = text(&mut block)?.to_ascii_lowercase();
        headers.insert(name, text(&mut block)?);
    }
    Ok(headers)
}

#[derive(Debug, PartialEq, Eq)]
enum Frame {
    Open {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Data {
        stream: u32,
        fin: bool,
        data: Bytes,
    },
    /// Settings, windows and the like.
    Other,
}

/// Takes one whole frame off the buffer.
fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, Broken> {
    let Some(head) = buffer.first_chunk::<8>() else { return Ok(None) };
    let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let flags = head[4];
    let length = usize::try_from(u32::from_be_bytes([0, head[5], head[6], head[7]])).map_err(|_| Broken::Frame)?;
    if length > FRAME_LIMIT {
        return Err(Broken::Frame);
    }
    if buffer.len() < 8 + length {
        return Ok(None);
    }
    buffer.advance(8);
    let mut body = buffer.split_to(length).freeze();
    let fin = flags & FLAG_FIN != 0;
    if first >> 31 == 0 {
        return Ok(Some(Frame::Data { stream: first, fin, data: body }));
    }
    if (first >> 16) & 0x7fff != 3 {
        return Err(Broken::Frame);
    }
    let number = |body: &mut Bytes| -> Result<u32, Broken> {
        if body.len() < 4 { Err(Broken::Frame) } else { Ok(body.get_u32()) }
    };
    let kind = u16::try_from(first & 0xffff).map_err(|_| Broken::Frame)?;
    Ok(Some(match kind {
        SYN_STREAM => {
            let stream = number(&mut body)? & 0x7fff_ffff;
            number(&mut body)?;
            if body.len() < 2 {
                return Err(Broken::Frame);
            }
            body.advance(2);
            Frame::Open { stream, fin, block: body }
        }
        RST_STREAM => Frame::Reset { stream: number(&mut body)? & 0x7fff_ffff },
        PING => Frame::Ping { id: number(&mut body)? },
        GOAWAY => Frame::GoAway,
        _ => Frame::Other,
    }))
}

fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(8 + body.len());
    frame.extend_from_slice(&(0x8003_0000 | u32::from(kind)).to_be_bytes());
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    frame.extend_from_slice(body);
    frame.into()
}

fn data(stream: u32, fin: bool, data: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(8 + data.len());
    frame.extend_from_slice(&stream.to_be_bytes());
    let length = u32::try_from(data.len()).unwrap_or(0) | (u32::from(if fin { FLAG_FIN } else { 0 }) << 24);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(data);
    frame.into()
}

/// Accepts a stream. Our header blocks are empty: a zlib stream of stored blocks, which needs no deflater. The empty block
/// at the end is zlib's sync flush, without which Go's inflater waits for more.
fn reply(stream: u32, first: bool) -> Bytes {
    let mut body = stream.to_be_bytes().to_vec();
    if first {
        body.extend_from_slice(&[0x78, 0x01]);
    }
    body.extend_from_slice(&[0x00, 0x04, 0x00, 0xfb, 0xff, 0, 0, 0, 0, 0x00, 0x00, 0x00, 0xff, 0xff]);
    control(SYN_REPLY, &body)
}

/// One forwarded connection while its two streams open.
#[derive(Default)]
struct Half {
    error: Option<u32>,
    data: Option<u32>,
}

struct Session {
    kubelet: Arc<dyn Kubelet>,
    namespace: String,
    pod: String,
    tasks: Tasks,
    out: mpsc::Sender<Bytes>,
    inflate: Inflate,
    replied: bool,
    opening: HashMap<String, Half>,
    /// Data streams that are connected; an empty chunk is the end.
    running: HashMap<u32, Running>,
    streams: usize,
}

struct Running {
    input: mpsc::Sender<Bytes>,
    reset: CancellationToken,
}

pub async fn serve(socket: WebSocket, kubelet: Arc<dyn Kubelet>, namespace: String, pod: String, tasks: Tasks) {
    let (mut sink, mut source) = socket.split();
    let (out, mut outgoing) = mpsc::channel::<Bytes>(OUTGOING);
    let mut session = Session {
        kubelet,
        namespace,
        pod,
        tasks,
        out,
        inflate: Inflate::new(),
        replied: false,
        opening: HashMap::new(),
        running: HashMap::new(),
        streams: 0,
    };
    let reading = async {
        let mut buffer = BytesMut::new();
        while let Some(Ok(message)) = source.next().await {
            match message {
                Message::Binary(bytes) => buffer.extend_from_slice(&bytes),
                Message::Close(_) => break,
                _ => continue,
            }
            loop {
                match take_frame(&mut buffer) {
                    Ok(Some(Frame::GoAway)) => return,
                    Ok(Some(frame)) => {
                        if let Err(error) = session.frame(frame).await {
                            tracing::debug!(%error, "a port-forward session ended");
                            return;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "a port-forward session ended");
                        return;
                    }
                }
            }
        }
    };
    let writing = async {
        while let Some(frame) = outgoing.recv().await {
            if sink.send(Message::Binary(frame)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
    // Connections to the pod end with the session.
    for running in session.running.values() {
        running.reset.cancel();
    }
}

impl Session {
    async fn send(&self, frame: Bytes) {
        // Fails only when the socket is gone, which ends the session by itself.
        drop(self.out.send(frame).await);
    }

    async fn frame(&mut self, frame: Frame) -> Result<(), Broken> {
        match frame {
            Frame::Open { stream, block, .. } => {
                let headers = self.inflate.block(&block)?;
                self.streams += 1;
                if self.streams > STREAMS {
                    self.send(control(RST_STREAM, &[&stream.to_be_bytes()[..], &3u32.to_be_bytes()].concat())).await;
                    return Ok(());
                }
                let first = !std::mem::replace(&mut self.replied, true);
                self.send(reply(stream, first)).await;
                self.open(stream, &headers).await;
            }
            Frame::Data { stream, fin, data } => {
                let Some(running) = self.running.get(&stream) else { return Ok(()) };
                if !data.is_empty() {
                    drop(running.input.send(data).await);
                }
                if fin {
                    drop(running.input.send(Bytes::new()).await);
                }
            }
            Frame::Reset { stream } => {
                if let Some(running) = self.running.remove(&stream) {
                    running.reset.cancel();
                }
            }
            Frame::Ping { id } => self.send(control(PING, &id.to_be_bytes())).await,
            Frame::GoAway | Frame::Other => {}
        }
        self.running.retain(|_, r| !r.input.is_closed());
        self.streams = self.running.len() * 2 + self.opening.len() * 2;
        Ok(())
    }

    async fn open(&mut self, stream: u32, headers: &Headers) {
        let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
        let request = header("requestid");
        let half = self.opening.entry(request.clone()).or_default();
        match header("streamtype").as_str() {
            "error" => half.error = Some(stream),
            "data" => half.data = Some(stream),
            _ => return,
        }
        let (Some(error), Some(data_stream)) = (half.error, half.data) else { return };
        self.opening.remove(&request);
        let Ok(port) = header("port").parse::<u16>() else {
            fail(&self.out, error, data_stream, "the port is not a number").await;
            return;
        };
        let (input, queue) = mpsc::channel(QUEUE);
        let reset = CancellationToken::new();
        self.running.insert(data_stream, Running { input, reset: reset.clone() });
        let (kubelet, out) = (self.kubelet.clone(), self.out.clone());
        let (namespace, pod) = (self.namespace.clone(), self.pod.clone());
        let shutdown = self.tasks.shutdown();
        self.tasks.spawn("port-forward", async move {
            let forward = async {
                match kubelet.port_forward(&namespace, &pod, port).await {
                    Ok(connection) => copy(connection, queue, &out, error, data_stream).await,
                    Err(why) => {
                        let why = format!("error forwarding port {port} to pod {pod}: {why}");
                        fail(&out, error, data_stream, &why).await;
                    }
                }
            };
            tokio::select! {
                () = forward => {}
                () = reset.cancelled() => {}
                () = shutdown.cancelled() => {}
            }
        });
    }
}

async fn fail(out: &mpsc::Sender<Bytes>, error: u32, data_stream: u32, why: &str) {
    for frame in [data(error, true, why.as_bytes()), data(data_stream, true, &[])] {
        drop(out.send(frame).await);
    }
}

/// Until both directions have ended, or the pod's side has failed.
async fn copy(
    connection: Box<dyn Duplex>,
    mut queue: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<Bytes>,
    error: u32,
    data_stream: u32,
) {
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let up = async {
        while let Some(chunk) = queue.recv().await {
            let end = chunk.is_empty();
            let done = if end { to_pod.shutdown().await } else { to_pod.write_all(&chunk).await };
            if end || done.is_err() {
                break;
            }
        }
    };
    let down = async {
        let mut chunk = vec![0; CHUNK];
        loop {
            match from_pod.read(&mut chunk).await {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    if out.send(data(data_stream, false, &chunk[..read])).await.is_err() {
                        break;
                    }
                }
            }
        }
        for frame in [data(data_stream, true, &[]), data(error, true, &[])] {
            drop(out.send(frame).await);
        }
    };
    tokio::pin!(up);
    tokio::pin!(down);
    // The client's end may come first and leaves the pod's answer to be read; the pod's end is the end.
    tokio::select! {
        () = &mut down => {}
        () = &mut up => down.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }

    #[test]
    fn header_blocks_inflate_with_and_without_the_dictionary() {
        // Two blocks of one stream made by zlib's own deflater with the dictionary: `port: 80`, then `port: 81`.
        let first = hex::decode(FIRST).unwrap();
        let second = hex::decode(SECOND).unwrap();
        let mut inflate = Inflate::new();
        assert_eq!(inflate.block(&first).unwrap()["port"], "80");
        assert_eq!(inflate.block(&second).unwrap()["port"], "81");
        let mut plain = Inflate::new();
        assert!(plain.block(&[0x78, 0x01, 0x00, 0x04, 0x00, 0xfb, 0xff, 0, 0, 0, 0]).unwrap().is_empty());
        assert!(Inflate::new().block(&first[..20]).is_err());
        assert!(Inflate::new().block(&[]).is_err());
    }

    #[test]
    fn frames_wait_until_they_are_whole() {
        let whole = [control(PING, &7u32.to_be_bytes()), data(5, true, b"abc")].concat();
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for byte in whole {
            buffer.extend_from_slice(&[byte]);
            frames.extend(take_frame(&mut buffer).unwrap());
        }
        assert_eq!(
            frames,
            [Frame::Ping { id: 7 }, Frame::Data { stream: 5, fin: true, data: Bytes::from_static(b"abc") }]
        );
        let mut huge = BytesMut::from(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff][..]);
        assert!(take_frame(&mut huge).is_err());
    }

    const FIRST: &str = "78f9e3c6a7c202e50e48f95b044aab4c1606e0545752949a988b54b02402000000ffff";
    const SECOND: &str = "c25067885d1d000000ffff";
}
