//! The frames between the daemon and a shim's attach socket, or an exec process: one byte of channel, four of length
//! (big-endian), then the payload.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Longest payload either side sends or accepts: one pipe buffer.
pub const MAX_PAYLOAD: usize = 64 * 1024;
pub const HEADER: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// [`Outcome`] as JSON; the last frame.
    Outcome = 3,
    /// Columns and rows, two big-endian 16-bit numbers.
    Resize = 4,
    /// Standard input ended.
    StdinEnd = 5,
    /// [`ExecRequest`] as JSON; the first frame.
    Request = 6,
}

impl Channel {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::Outcome,
            4 => Self::Resize,
            5 => Self::StdinEnd,
            6 => Self::Request,
            _ => return None,
        })
    }
}

/// A process to run in a container that is running already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    pub id: String,
    pub runtime_root: PathBuf,
    pub args: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    Exited(i32),
    /// It never ran: why.
    Failed(String),
}

pub fn header(channel: Channel, length: usize) -> [u8; HEADER] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [channel as u8, length[0], length[1], length[2], length[3]]
}

pub fn resize_payload(columns: u16, rows: u16) -> [u8; 4] {
    let (c, r) = (columns.to_be_bytes(), rows.to_be_bytes());
    [c[0], c[1], r[0], r[1]]
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("unknown channel {0}")]
    Channel(u8),
    #[error("a frame of {0} bytes is longer than {MAX_PAYLOAD}")]
    Length(usize),
}

/// Takes frames out of a byte stream that arrives in pieces.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub fn take(&mut self) -> Result<Option<(Channel, Vec<u8>)>, FrameError> {
        let Some((head, _)) = self.buffer.split_first_chunk::<HEADER>() else { return Ok(None) };
        let channel = Channel::from_byte(head[0]).ok_or(FrameError::Channel(head[0]))?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(FrameError::Length(length));
        }
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        let payload = self.buffer[HEADER..HEADER + length].to_vec();
        self.buffer.drain(..HEADER + length);
        Ok(Some((channel, payload)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let mut wire = header(Channel::Stdout, 3).to_vec();
        wire.extend_from_slice(b"abc");
        wire.extend_from_slice(&header(Channel::StdinEnd, 0));
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();
        for byte in wire {
            decoder.push(&[byte]);
            while let Some(frame) = decoder.take().unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, [(Channel::Stdout, b"abc".to_vec()), (Channel::StdinEnd, Vec::new())]);
    }

    #[test]
    fn a_frame_too_long_is_refused_before_it_is_buffered() {
        let mut decoder = Decoder::default();
        decoder.push(&header(Channel::Stdin, MAX_PAYLOAD + 1));
        assert_eq!(decoder.take(), Err(FrameError::Length(MAX_PAYLOAD + 1)));
        let mut decoder = Decoder::default();
        decoder.push(&[99, 0, 0, 0, 0]);
        assert_eq!(decoder.take(), Err(FrameError::Channel(99)));
    }
}
