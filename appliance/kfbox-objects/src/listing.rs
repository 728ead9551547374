//! Listings: current objects and versions, with prefix, delimiter and a place to go on from.
//!
//! Guarantee: a page costs time in proportion to what it answers, not to what the common prefixes hide.

use crate::{
    Error,
    store::{MAX_LIST, OBJECT_COLUMNS, ObjectInfo, Store, bucket, object_from},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use rusqlite::params;

#[derive(Debug, Default, Clone)]
pub(crate) struct Query {
    pub bucket: String,
    pub prefix: String,
    pub delimiter: Option<String>,
    /// Entries strictly after this place.
    pub after: Option<Place>,
    pub limit: usize,
    pub versions: bool,
}

/// Where a listing stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Key(String),
    /// A common prefix: everything below it was answered too.
    Prefix(String),
    /// Of a key's versions, the row that was answered last.
    Version(String, i64),
}

impl Place {
    pub fn token(&self) -> String {
        let text = match self {
            Self::Key(key) => format!("k{key}"),
            Self::Prefix(prefix) => format!("p{prefix}"),
            Self::Version(key, id) => format!("v{id} {key}"),
        };
        BASE64_URL_SAFE_NO_PAD.encode(text)
    }

    pub fn parse(token: &str) -> Option<Self> {
        let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
        let rest = text.get(1..)?;
        match text.as_bytes().first()? {
            b'k' => Some(Self::Key(rest.into())),
            b'p' => Some(Self::Prefix(rest.into())),
            b'v' => rest.split_once(' ').and_then(|(id, key)| Some(Self::Version(key.into(), id.parse().ok()?))),
            _ => None,
        }
    }

    /// Where S3's own markers (a key, or a common prefix as it was answered) leave off.
    pub fn marker(marker: &str, prefix: &str, delimiter: Option<&str>) -> Self {
        match delimiter {
            Some(d) if !d.is_empty() && marker.strip_prefix(prefix).is_some_and(|below| below.ends_with(d)) => {
                Self::Prefix(marker.into())
            }
            _ => Self::Key(marker.into()),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Page {
    pub objects: Vec<ObjectInfo>,
    pub prefixes: Vec<String>,
    /// Set when there is more.
    pub next: Option<Place>,
}

/// The least string above every string that starts with `prefix`; `None` if there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        let next = match last {
            '\u{d7ff}' => Some('\u{e000}'),
            char::MAX => None,
            c => char::from_u32(u32::from(c) + 1),
        };
        if let Some(next) = next {
            text.push(next);
            return Some(text);
        }
    }
    None
}

impl Store {
    pub async fn list(&self, query: Query) -> Result<Page, Error> {
        self.db.read(move |c| page(c, &query)).await
    }
}

fn page(c: &rusqlite::Connection, query: &Query) -> Result<Page, Error> {
    let bucket = bucket(c, &query.bucket)?;
    let limit = query.limit.min(MAX_LIST);
    let mut page = Page::default();
    if limit == 0 {
        return Ok(page);
    }
    let versioned = bucket.versioning.is_some();
    let end = successor(&query.prefix).filter(|_| !query.prefix.is_empty());
    let delimiter = query.delimiter.as_deref().filter(|d| !d.is_empty());
    // `from` is the key to go on at: included, or not (then only its versions with an id below `id`).
    let (mut from, mut included, mut id) = (query.prefix.clone(), true, 0);
    match &query.after {
        Some(Place::Key(key)) if *key >= from => (from, included) = (key.clone(), false),
        Some(Place::Version(key, last)) if *key >= from => (from, included, id) = (key.clone(), false, *last),
        Some(Place::Prefix(prefix)) if *prefix >= from => match successor(prefix) {
            Some(next) => from = next,
            None => return Ok(page),
        },
        _ => {}
    }
    let (filter, order) = if query.versions {
        ("(key > ?2 OR (key = ?2 AND (?3 OR id < ?5)))", "key, id DESC")
    } else {
        ("latest = 1 AND marker = 0 AND (key > ?2 OR (?3 AND key = ?2) OR (?5 > 0 AND 0))", "key")
    };
    let sql = format!(
        "SELECT {OBJECT_COLUMNS} FROM object WHERE bucket = ?1 AND key >= ?2 AND {filter} \
         AND (?4 IS NULL OR key < ?4) ORDER BY {order}"
    );
    let mut statement = c.prepare_cached(&sql)?;
    let mut last: Option<Place> = None;
    'seek: loop {
        let mut rows = statement.query(params![bucket.name, from, included, end, id])?;
        while let Some(row) = rows.next()? {
            if page.objects.len() + page.prefixes.len() == limit {
                page.next = last;
                return Ok(page);
            }
            let key = row.get_ref(2)?.as_str().map_err(rusqlite::Error::from)?;
            let common = delimiter.and_then(|d| {
                let below = key.get(query.prefix.len()..)?;
                below.find(d).map(|at| key[..query.prefix.len() + at + d.len()].to_owned())
            });
            match common {
                Some(prefix) => {
                    let next = successor(&prefix);
                    last = Some(Place::Prefix(prefix.clone()));
                    page.prefixes.push(prefix);
                    match next {
                        Some(next) => (from, included, id) = (next, true, 0),
                        None => return Ok(page),
                    }
                    continue 'seek;
                }
                None => {
                    let object = object_from(row, versioned)?;
                    last = Some(if query.versions {
                        Place::Version(object.key.clone(), object.id)
                    } else {
                        Place::Key(object.key.clone())
                    });
                    page.objects.push(object);
                }
            }
        }
        return Ok(page);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successors_are_above_all_that_they_succeed_and_nothing_lies_between() {
        assert_eq!(successor("a/").as_deref(), Some("a0"));
        assert_eq!(successor("\u{d7ff}").as_deref(), Some("\u{e000}"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{10ffff}"), None);
    }

    #[test]
    fn tokens_come_back_and_garbage_does_not() {
        for place in [Place::Key("a b/ü".into()), Place::Prefix("p/".into()), Place::Version("k y".into(), 7)] {
            assert_eq!(Place::parse(&place.token()), Some(place));
        }
        assert_eq!(Place::parse("%%%"), None);
        assert_eq!(Place::parse(""), None);
    }
}
