//! Digests of a body as it passes: MD5 always (the ETag), and the checksums that the client declared.
//! Source: "Checking object integrity" in the Amazon S3 user guide.

use crate::Error;
use base64::{Engine, prelude::BASE64_STANDARD};
use crc_fast::CrcAlgorithm;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use serde::{Deserialize, Serialize};

/// The checksum algorithms of S3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    #[serde(rename = "CRC32")]
    Crc32,
    #[serde(rename = "CRC32C")]
    Crc32c,
    #[serde(rename = "CRC64NVME")]
    Crc64Nvme,
    #[serde(rename = "SHA1")]
    Sha1,
    #[serde(rename = "SHA256")]
    Sha256,
}

impl Algorithm {
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.name().eq_ignore_ascii_case(name))
    }

    /// The header (or trailer) that carries this checksum.
    pub fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }
}

/// Checksums in base64, as they stand in headers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Checksums {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc32c: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crc64nvme: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha1: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Checksums {
    pub fn get(&self, algorithm: Algorithm) -> Option<&str> {
        match algorithm {
            Algorithm::Crc32 => self.crc32.as_deref(),
            Algorithm::Crc32c => self.crc32c.as_deref(),
            Algorithm::Crc64Nvme => self.crc64nvme.as_deref(),
            Algorithm::Sha1 => self.sha1.as_deref(),
            Algorithm::Sha256 => self.sha256.as_deref(),
        }
    }

    pub fn set(&mut self, algorithm: Algorithm, value: String) {
        *match algorithm {
            Algorithm::Crc32 => &mut self.crc32,
            Algorithm::Crc32c => &mut self.crc32c,
            Algorithm::Crc64Nvme => &mut self.crc64nvme,
            Algorithm::Sha1 => &mut self.sha1,
            Algorithm::Sha256 => &mut self.sha256,
        } = Some(value);
    }

    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        Algorithm::ALL.into_iter().filter(|a| self.get(*a).is_some())
    }

    /// Every checksum in `declared` must have been computed and be equal.
    pub fn verify(&self, declared: &Self) -> Result<(), Error> {
        match declared.algorithms().find(|a| self.get(*a) != declared.get(*a)) {
            Some(wrong) => Err(Error::BadDigest(wrong.name())),
            None => Ok(()),
        }
    }
}

/// Digests under way.
pub(crate) struct Hashers {
    md5: Md5,
    crc32: Option<Crc32>,
    crc32c: Option<Crc32c>,
    crc64nvme: Option<Crc64Nvme>,
    sha1: Option<Sha1>,
    sha256: Option<Sha256>,
}

impl Hashers {
    pub fn new(wanted: &[Algorithm]) -> Self {
        let has = |a| wanted.contains(&a);
        Self {
            md5: Md5::new(),
            crc32: has(Algorithm::Crc32).then(Crc32::new),
            crc32c: has(Algorithm::Crc32c).then(Crc32c::new),
            crc64nvme: has(Algorithm::Crc64Nvme).then(Crc64Nvme::new),
            sha1: has(Algorithm::Sha1).then(Sha1::new),
            sha256: has(Algorithm::Sha256).then(Sha256::new),
        }
    }

    pub fn update(&mut self, data: &[u8]) {
        self.md5.update(data);
        if let Some(h) = &mut self.crc32 {
            h.update(data);
        }
        if let Some(h) = &mut self.crc32c {
            h.update(data);
        }
        if let Some(h) = &mut self.crc64nvme {
            h.update(data);
        }
        if let Some(h) = &mut self.sha1 {
            h.update(data);
        }
        if let Some(h) = &mut self.sha256 {
            h.update(data);
        }
    }

    pub fn finish(self) -> ([u8; 16], Checksums) {
        let checksums = Checksums {
            crc32: self.crc32.map(|h| BASE64_STANDARD.encode(h.finalize())),
            crc32c: self.crc32c.map(|h| BASE64_STANDARD.encode(h.finalize())),
            crc64nvme: self.crc64nvme.map(|h| BASE64_STANDARD.encode(h.finalize())),
            sha1: self.sha1.map(|h| BASE64_STANDARD.encode(h.finalize())),
            sha256: self.sha256.map(|h| BASE64_STANDARD.encode(h.finalize())),
        };
        (self.md5.finalize(), checksums)
    }
}

/// The ETag of a multipart object: the MD5 of its parts' MD5s, and how many they were.
pub(crate) fn multipart_etag(parts: &[[u8; 16]]) -> String {
    format!("{}-{}", hex::encode(Md5::checksum(parts.as_flattened())), parts.len())
}

/// The checksum of a multipart object from its parts' checksums (base64) and lengths. `full` asks for the checksum of
/// the whole object, which only the CRCs can give; otherwise it is the checksum of checksums with the number of parts.
/// `None` when a part lacks it.
pub(crate) fn combine(algorithm: Algorithm, full: bool, parts: &[(&Checksums, u64)]) -> Option<String> {
    let raw: Vec<Vec<u8>> =
        parts.iter().map(|(c, _)| BASE64_STANDARD.decode(c.get(algorithm)?).ok()).collect::<Option<_>>()?;
    if !full {
        let mut hashers = Hashers::new(&[algorithm]);
        raw.iter().for_each(|r| hashers.update(r));
        return hashers.finish().1.get(algorithm).map(|sum| format!("{sum}-{}", parts.len()));
    }
    let (crc, width) = match algorithm {
        Algorithm::Crc32 => (CrcAlgorithm::Crc32IsoHdlc, 4),
        Algorithm::Crc32c => (CrcAlgorithm::Crc32Iscsi, 4),
        Algorithm::Crc64Nvme => (CrcAlgorithm::Crc64Nvme, 8),
        Algorithm::Sha1 | Algorithm::Sha256 => return None,
    };
    let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let mut all = raw.iter().zip(parts);
    let (first, _) = all.next()?;
    let sum = all.fold(number(first), |sum, (part, (_, len))| crc_fast::checksum_combine(crc, sum, number(part), *len));
    Some(BASE64_STANDARD.encode(&sum.to_be_bytes()[8 - width..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(data: &[u8]) -> ([u8; 16], Checksums) {
        let mut h = Hashers::new(&Algorithm::ALL);
        h.update(data);
        h.finish()
    }

    #[test]
    fn known_values() {
        // The check values of the CRC catalogue for "123456789".
        let (md5, c) = sums(b"123456789");
        assert_eq!(hex::encode(md5), "25f9e794323b453885f5181f1b624d0b");
        assert_eq!(BASE64_STANDARD.decode(c.crc32.unwrap()).unwrap(), 0xcbf4_3926_u32.to_be_bytes());
        assert_eq!(BASE64_STANDARD.decode(c.crc32c.unwrap()).unwrap(), 0xe306_9283_u32.to_be_bytes());
        assert_eq!(BASE64_STANDARD.decode(c.crc64nvme.unwrap()).unwrap(), 0xae8b_1486_0a79_9888_u64.to_be_bytes());
    }

    #[test]
    fn full_object_crcs_combine_to_the_crc_of_the_whole() {
        let data: Vec<u8> = (0..100_000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let (a, rest) = data.split_at(33_333);
        let (b, c) = rest.split_at(1);
        let parts: Vec<(Checksums, u64)> = [a, b, c].iter().map(|p| (sums(p).1, p.len() as u64)).collect();
        let parts: Vec<(&Checksums, u64)> = parts.iter().map(|(c, n)| (c, *n)).collect();
        let whole = sums(&data).1;
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            assert_eq!(combine(algorithm, true, &parts).as_deref(), whole.get(algorithm), "{algorithm:?}");
            assert!(combine(algorithm, false, &parts).unwrap().ends_with("-3"));
        }
        assert_eq!(combine(Algorithm::Sha256, true, &parts), None);
    }
}
