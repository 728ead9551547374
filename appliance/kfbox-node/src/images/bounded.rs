//! A bound on what a tar makes its reader hold in memory. Long names and extended attributes come as entries of their own,
//! which the tar crate reads whole; a hostile archive could give one the size of all memory, in a few compressed bytes.
//!
//! The extended attributes are handed on as they stand, because the tar crate takes a line break in one for its end, and
//! file capabilities are binary.

use parking_lot::Mutex;
use std::{
    io::{self, Read},
    sync::Arc,
};

const BLOCK: usize = 512;
/// Of one such entry. Paths end at 4 KiB and attributes at 64 KiB; an entry holds a handful.
pub const MAX_EXTENSION: u64 = 1 << 20;

/// Passes a tar through and follows its structure, as far as needed to see the sizes of its extension entries.
pub struct Bounded<R> {
    inner: R,
    state: State,
    block: Vec<u8>,
    /// The records of a pax header, for the entry after it.
    pending: Vec<u8>,
    current: Arc<Mutex<Vec<u8>>>,
}

enum State {
    /// Collecting a header.
    Header,
    /// Collecting a further block of a sparse file's map, then the content.
    SparseMap { size: u64 },
    /// Collecting a pax header's records: so many bytes, then padding.
    Records { size: usize },
    /// Passing content and, at its end, so much padding.
    Content { left: u64, padding: u64 },
    /// Past the end mark: nothing is read from here.
    End,
}

impl<R> Bounded<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            state: State::Header,
            block: Vec::with_capacity(BLOCK),
            pending: Vec::new(),
            current: Arc::default(),
        }
    }

    /// Where the pax records of the entry read last are found.
    pub fn records(&self) -> Arc<Mutex<Vec<u8>>> {
        self.current.clone()
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut n = self.inner.read(buffer)?;
        // Some writers leave the padding of the last entry out, as umoci 0.4 does; Go's reader, so every other runtime,
        // takes that for an archive's end. Of content nothing may be missing.
        if n == 0
            && let State::Content { left, padding } = self.state
            && left <= padding
        {
            n = usize::try_from(left).unwrap_or(BLOCK).min(buffer.len());
            buffer[..n].fill(0);
        }
        self.follow(&buffer[..n])?;
        Ok(n)
    }
}

impl<R> Bounded<R> {
    fn follow(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let wanted = match self.state {
                State::Header | State::SparseMap { .. } => BLOCK,
                State::Records { size } => size.next_multiple_of(BLOCK),
                State::Content { left, padding } => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[n..];
                    let left = left - n as u64;
                    self.state = if left == 0 { State::Header } else { State::Content { left, padding } };
                    continue;
                }
                State::End => return Ok(()),
            };
            let n = (wanted - self.block.len()).min(bytes.len());
            self.block.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            if self.block.len() == wanted {
                let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
                self.state = self.next(&block)?;
            }
        }
        Ok(())
    }

    fn next(&mut self, block: &[u8]) -> io::Result<State> {
        let content = |size: u64| match size.checked_next_multiple_of(BLOCK as u64) {
            Some(0) => Ok(State::Header),
            Some(left) => Ok(State::Content { left, padding: left - size }),
            None => Err(io::Error::other("an entry's size is out of range")),
        };
        match self.state {
            State::Records { size } => {
                self.pending = block[..size].to_vec();
                Ok(State::Header)
            }
            State::SparseMap { size } if block[504] != 0 => Ok(State::SparseMap { size }),
            State::SparseMap { size } => content(size),
            _ if block.iter().all(|b| *b == 0) => Ok(State::End),
            _ => {
                let header = tar::Header::from_byte_slice(block);
                let size = header.entry_size()?;
                match header.entry_type() {
                    tar::EntryType::XHeader
                    | tar::EntryType::XGlobalHeader
                    | tar::EntryType::GNULongName
                    | tar::EntryType::GNULongLink
                        if size > MAX_EXTENSION =>
                    {
                        Err(io::Error::other(format!("a name or attribute longer than {MAX_EXTENSION} bytes")))
                    }
                    tar::EntryType::XHeader if size > 0 => {
                        Ok(State::Records { size: usize::try_from(size).unwrap_or(0) })
                    }
                    tar::EntryType::XGlobalHeader | tar::EntryType::GNULongName | tar::EntryType::GNULongLink => {
                        content(size)
                    }
                    kind => {
                        let records = std::mem::take(&mut self.pending);
                        let size = size_record(&records).unwrap_or(size);
                        *self.current.lock() = records;
                        if kind.is_gnu_sparse() && block[482] != 0 {
                            Ok(State::SparseMap { size })
                        } else {
                            content(size)
                        }
                    }
                }
            }
        }
    }
}

/// The `size` of a pax header, as the tar crate reads it: both must see the same structure.
fn size_record(records: &[u8]) -> Option<u64> {
    for record in tar::PaxExtensions::new(records) {
        let record = record.ok()?;
        if record.key() == Ok("size") {
            return record.value().ok()?.parse().ok();
        }
    }
    None
}

/// Pax records by their lengths: `LENGTH NAME=VALUE\n`, where VALUE may be any bytes.
pub fn parse_records(mut bytes: &[u8]) -> io::Result<Vec<(&[u8], &[u8])>> {
    let damaged = || io::Error::other("its extended attributes are damaged");
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|b| *b == b' ').ok_or_else(damaged)?;
        let length: usize =
            std::str::from_utf8(&bytes[..space]).ok().and_then(|t| t.parse().ok()).ok_or_else(damaged)?;
        let record = bytes.get(space + 1..length).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(damaged)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(damaged)?;
        all.push((&record[..equals], &record[equals + 1..]));
        bytes = &bytes[length..];
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: tar::EntryType, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn passes(tar: &[u8]) -> io::Result<usize> {
        // In pieces that do not fall on blocks.
        let mut bounded = Bounded::new(tar);
        let (mut buffer, mut total) = ([0; 311], 0);
        loop {
            match bounded.read(&mut buffer)? {
                0 => return Ok(total),
                n => total += n,
            }
        }
    }

    #[test]
    fn what_would_fill_memory_is_refused_wherever_it_stands() {
        let padded = |text: &str| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(BLOCK, 0);
            bytes
        };
        for kind in [
            tar::EntryType::GNULongName,
            tar::EntryType::GNULongLink,
            tar::EntryType::XHeader,
            tar::EntryType::XGlobalHeader,
        ] {
            let bomb = block(kind, MAX_EXTENSION + 1);
            assert!(passes(&bomb).is_err());
            // After a file, after a file whose size a pax header gives, after a sparse file with a longer map.
            assert!(passes(&[block(tar::EntryType::Regular, 600), vec![7; 1024], bomb.clone()].concat()).is_err());
            let pax = [block(tar::EntryType::XHeader, 13), padded("13 size=1024\n"), block(tar::EntryType::Regular, 0)]
                .concat();
            assert!(passes(&[pax, vec![7; 1024], bomb.clone()].concat()).is_err());
            let mut sparse = block(tar::EntryType::GNUSparse, 512);
            sparse[482] = 1;
            let mut more = vec![0; BLOCK];
            more[504] = 1;
            assert!(passes(&[sparse, more, vec![0; BLOCK], vec![7; BLOCK], bomb].concat()).is_err());
        }
    }

    #[test]
    fn records_may_hold_any_bytes() {
        let records = b"15 name=a\nb\n=c\n13 size=1024\n";
        assert_eq!(parse_records(records).unwrap(), [(&b"name"[..], &b"a\nb\n=c"[..]), (b"size", b"1024")]);
        for bad in [&b"5"[..], b"99 a=b\n", b"0 a=b\n", b"7 a=bcd", b"6 a=b\nx", b"5 ab\n", b"-1 a=b\n"] {
            assert!(parse_records(bad).is_err(), "{bad:?}");
        }
        assert!(parse_records(b"").unwrap().is_empty());
    }

    #[test]
    fn content_is_not_mistaken_for_structure() {
        let bomb = block(tar::EntryType::GNULongName, u64::MAX >> 1);
        let file = [
            block(tar::EntryType::Regular, 512),
            bomb.clone(),
            block(tar::EntryType::GNULongName, 10),
            vec![b'a'; 512],
        ]
        .concat();
        let tar = [file, block(tar::EntryType::Regular, 0), vec![0; 1024], bomb].concat();
        assert_eq!(passes(&tar).unwrap(), tar.len());
    }
}
