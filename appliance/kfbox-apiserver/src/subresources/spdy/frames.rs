//! SPDY/3.1 frames, as far as Kubernetes' streams use them: streams that the client opens with a header block, data both
//! ways, ping, goaway and reset.
//!
//! Guarantees: a frame and a header block are bounded; malformed ones are errors.
//! Source: <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>.

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};
use std::collections::HashMap;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
pub(super) const PING: u16 = 6;
const GOAWAY: u16 = 7;

const FLAG_FIN: u8 = 1;

/// The largest frame taken; kubectl writes 32 KiB of data at once.
const FRAME_LIMIT: usize = 1 << 20;

/// What a header block may inflate to; port-forward's are some hundred bytes.
const HEADERS_LIMIT: usize = 16 << 10;

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
pub(super) enum Broken {
    #[error("a malformed SPDY frame")]
    Frame,
    #[error("a malformed SPDY header block")]
    Headers,
}

pub(super) type Headers = HashMap<String, String>;

/// The client's header blocks are one zlib stream with a preset dictionary. The inflater at hand knows no dictionaries;
/// one that has just inflated the dictionary, given as a stored block, is in the same state.
pub(super) struct Inflate {
    raw: Decompress,
    started: bool,
}

impl Inflate {
    pub(super) fn new() -> Self {
        Self { raw: Decompress::new(false), started: false }
    }

    pub(super) fn block(&mut self, mut input: &[u8]) -> Result<Headers, Broken> {
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
pub(super) enum Frame {
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
pub(super) fn take_frame(buffer: &mut BytesMut) -> Result<Option<Frame>, Broken> {
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

pub(super) fn control(kind: u16, body: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(8 + body.len());
    frame.extend_from_slice(&(0x8003_0000 | u32::from(kind)).to_be_bytes());
    frame.extend_from_slice(&u32::try_from(body.len()).unwrap_or(0).to_be_bytes());
    frame.extend_from_slice(body);
    frame.into()
}

pub(super) fn data(stream: u32, fin: bool, data: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(8 + data.len());
    frame.extend_from_slice(&stream.to_be_bytes());
    let length = u32::try_from(data.len()).unwrap_or(0) | (u32::from(if fin { FLAG_FIN } else { 0 }) << 24);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(data);
    frame.into()
}

/// The status of a stream that was not taken.
pub(super) const REFUSED: u32 = 3;

/// Refuses or ends a stream.
pub(super) fn reset(stream: u32, status: u32) -> Bytes {
    control(RST_STREAM, &[stream.to_be_bytes(), status.to_be_bytes()].concat())
}

/// No more streams are taken: the last one seen, and that nothing went wrong.
pub(super) fn goaway(last: u32) -> Bytes {
    control(GOAWAY, &[last.to_be_bytes(), [0; 4]].concat())
}

/// Accepts a stream. Our header blocks are empty: a zlib stream of stored blocks, which needs no deflater. The empty block
/// at the end is zlib's sync flush, without which Go's inflater waits for more.
pub(super) fn reply(stream: u32, first: bool) -> Bytes {
    let mut body = stream.to_be_bytes().to_vec();
    if first {
        body.extend_from_slice(&[0x78, 0x01]);
    }
    body.extend_from_slice(&[0x00, 0x04, 0x00, 0xfb, 0xff, 0, 0, 0, 0, 0x00, 0x00, 0x00, 0xff, 0xff]);
    control(SYN_REPLY, &body)
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
