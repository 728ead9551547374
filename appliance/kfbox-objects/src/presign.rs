//! Signature Version 4 in the query string. Source: "Authenticating Requests: Using Query Parameters" in the Amazon S3
//! API reference.

use crate::{Credential, Error};
use chrono::{DateTime, Utc};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// The longest a presigned URL may live, as in S3.
pub const MAX_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);

/// What SigV4 leaves unencoded.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const PATH: &AsciiSet = &VALUE.remove(b'/');

pub(crate) struct Request<'a> {
    pub method: &'a str,
    /// Such as `http://127.0.0.1:9000`.
    pub endpoint: &'a str,
    /// Bucket and key, not encoded, starting with a slash.
    pub path: &'a str,
    /// Further parameters of the operation.
    pub query: &'a [(&'a str, &'a str)],
    pub region: &'a str,
    pub expiry: Duration,
    pub now: DateTime<Utc>,
}

pub(crate) fn presign(credential: &Credential, request: &Request<'_>) -> Result<String, Error> {
    let Request { method, endpoint, path, query, region, expiry, now } = request;
    let endpoint = endpoint.trim_end_matches('/');
    let host = endpoint
        .split_once("://")
        .map(|(_, host)| host)
        .filter(|host| !host.is_empty() && !host.contains('/'))
        .ok_or_else(|| Error::InvalidArgument(format!("{endpoint:?} is not an endpoint such as http://host:9000")))?;
    if expiry.is_zero() || *expiry > MAX_EXPIRY {
        return Err(Error::InvalidArgument("a presigned URL lives between one second and seven days".into()));
    }
    let (date, time) = (now.format("%Y%m%d").to_string(), now.format("%Y%m%dT%H%M%SZ").to_string());
    let scope = format!("{date}/{region}/s3/aws4_request");
    let mut pairs: Vec<(String, String)> = vec![
        ("X-Amz-Algorithm".into(), "AWS4-HMAC-SHA256".into()),
        ("X-Amz-Credential".into(), format!("{}/{scope}", credential.access_key)),
        ("X-Amz-Date".into(), time.clone()),
        ("X-Amz-Expires".into(), expiry.as_secs().to_string()),
        ("X-Amz-SignedHeaders".into(), "host".into()),
    ];
    pairs.extend(query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let mut encoded: Vec<String> = pairs
        .iter()
        .map(|(k, v)| format!("{}={}", utf8_percent_encode(k, VALUE), utf8_percent_encode(v, VALUE)))
        .collect();
    encoded.sort();
    let (path, query) = (utf8_percent_encode(path, PATH).to_string(), encoded.join("&"));
    let canonical = format!("{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    let to_sign = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex::encode(Sha256::digest(canonical)));
    let mut key = format!("AWS4{}", credential.secret_key).into_bytes();
    for step in [date.as_str(), region, "s3", "aws4_request"] {
        key = mac(&key, step)?;
    }
    let signature = hex::encode(mac(&key, &to_sign)?);
    Ok(format!("{endpoint}{path}?{query}&X-Amz-Signature={signature}"))
}

fn mac(key: &[u8], data: &str) -> Result<Vec<u8>, Error> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|e| Error::InvalidArgument(e.to_string()))?;
    mac.update(data.as_bytes());
    Ok(mac.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_reference() {
        // The GET example of the API reference: test.txt, 24 hours. Virtual-hosted there, so the bucket is in the host.
        let credential = Credential {
            access_key: "AKIAIOSFODNN7EXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
        };
        let request = Request {
            method: "GET",
            endpoint: "https://examplebucket.s3.amazonaws.com",
            path: "/test.txt",
            query: &[],
            region: "us-east-1",
            expiry: Duration::from_secs(86400),
            now: "2013-05-24T00:00:00Z".parse().unwrap(),
        };
        let url = presign(&credential, &request).unwrap();
        assert!(url.ends_with("aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"), "{url}");
        assert!(presign(&credential, &Request { endpoint: "nonsense", ..request }).is_err());
    }
}
