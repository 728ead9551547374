//! Reading and deleting blobs.

use super::{
    Call,
    answer::{self, Fault},
};
use axum::{body::Body, response::Response};
use http::{HeaderMap, Method, StatusCode, header};
use std::io::SeekFrom;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

/// Read from the disk at once.
const PIECE: usize = 256 << 10;

impl Call<'_> {
    pub(super) async fn blob(&self, digest: &str) -> Result<Response, Fault> {
        let images = &self.registry.images;
        if !images.repositories().has_blob(&self.owner, self.repository, digest) {
            return Err(Fault::blob_unknown(digest));
        }
        let (file, size) = images.open_blob(digest).await?;
        let range = range_of(&self.head.headers, size);
        let mut fields = vec![
            ("docker-content-digest", digest.to_owned()),
            ("etag", format!("\"{digest}\"")),
            ("accept-ranges", "bytes".to_owned()),
            ("content-type", "application/octet-stream".to_owned()),
        ];
        let (status, from, length) = match range {
            Range::All => (StatusCode::OK, 0, size),
            Range::Part { first, last } => {
                fields.push(("content-range", format!("bytes {first}-{last}/{size}")));
                (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
            }
            Range::Beyond => {
                let field = ("content-range", format!("bytes */{size}"));
                return Ok(answer::headers(StatusCode::RANGE_NOT_SATISFIABLE, &[field]));
            }
        };
        fields.push(("content-length", length.to_string()));
        let mut response = answer::headers(status, &fields);
        if self.head.method == Method::GET {
            let mut file = tokio::fs::File::from_std(file);
            file.seek(SeekFrom::Start(from)).await.map_err(|error| Fault::internal(&error))?;
            *response.body_mut() = Body::from_stream(ReaderStream::with_capacity(file.take(length), PIECE));
        }
        Ok(response)
    }

    pub(super) async fn delete_blob(&self, digest: String) -> Result<Response, Fault> {
        let (owner, repository, wanted) = (self.owner.clone(), self.repository.to_owned(), digest.clone());
        let images = &self.registry.images;
        let deleted = images.changing_repositories(move |all| all.unlink_blob(&owner, &repository, &wanted)).await?;
        if !deleted {
            return Err(Fault::blob_unknown(&digest));
        }
        tracing::info!(target: "audit", user = %self.user.username, repository = self.repository, digest, "a blob was deleted from the registry");
        Ok(answer::headers(StatusCode::ACCEPTED, &[]))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    All,
    /// Both are part of it.
    Part {
        first: u64,
        last: u64,
    },
    Beyond,
}

/// One range of bytes; a request for several is answered with all, as RFC 9110 permits.
fn range_of(headers: &HeaderMap, size: u64) -> Range {
    let text = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|v| v.strip_prefix("bytes="));
    let Some((first, last)) = text.and_then(|text| text.split_once('-')) else { return Range::All };
    let (first, last) = match (first.trim().parse::<u64>(), last.trim()) {
        (Ok(first), "") => (first, size.saturating_sub(1)),
        (Ok(first), last) => match last.parse::<u64>() {
            Ok(last) => (first, last.min(size.saturating_sub(1))),
            Err(_) => return Range::All,
        },
        (Err(_), last) if first.trim().is_empty() => match last.parse::<u64>() {
            Ok(0) => return Range::Beyond,
            Ok(count) => (size.saturating_sub(count), size.saturating_sub(1)),
            Err(_) => return Range::All,
        },
        _ => return Range::All,
    };
    if first >= size || first > last { Range::Beyond } else { Range::Part { first, last } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_goes_on_where_it_stopped() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, text.parse().unwrap());
            range_of(&headers, 10)
        };
        assert_eq!(of("bytes=4-"), Range::Part { first: 4, last: 9 });
        assert_eq!(of("bytes=0-3"), Range::Part { first: 0, last: 3 });
        assert_eq!(of("bytes=8-99"), Range::Part { first: 8, last: 9 });
        assert_eq!(of("bytes=-3"), Range::Part { first: 7, last: 9 });
        for beyond in ["bytes=10-", "bytes=5-4", "bytes=-0"] {
            assert_eq!(of(beyond), Range::Beyond, "{beyond}");
        }
        for all in ["bytes=0-1,3-4", "items=1-2", "bytes=x-y", "bytes=-"] {
            assert_eq!(of(all), Range::All, "{all}");
        }
        assert_eq!(range_of(&HeaderMap::new(), 0), Range::All);
    }
}
