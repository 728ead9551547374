//! The log's table, and reading it at start.

use super::{
    record::{self, Key},
    state::State,
};
use kfbox_db::rusqlite::{Connection, Result};
use std::sync::Arc;

pub const SCHEMA: kfbox_db::Schema = kfbox_db::Schema {
    name: "kubernetes",
    migrations: &["
CREATE TABLE log (
    revision   INTEGER PRIMARY KEY,
    collection TEXT    NOT NULL,
    namespace  TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    -- The revision that this one replaces, 0 for a creation.
    previous   INTEGER NOT NULL,
    deleted    INTEGER NOT NULL,
    -- Seconds since the epoch.
    written    INTEGER NOT NULL,
    json       BLOB    NOT NULL
) STRICT;
CREATE TABLE compaction (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    -- Revisions up to here have lost what was replaced or deleted by then.
    floor    INTEGER NOT NULL
) STRICT;
INSERT INTO compaction VALUES (1, 0);
"],
};

pub(super) fn load(connection: &Connection) -> Result<State> {
    let floor: i64 = connection.query_row("SELECT floor FROM compaction", [], |row| row.get(0))?;
    let mut state = State::new(floor.cast_unsigned());
    let mut statement = connection
        .prepare("SELECT revision, collection, namespace, name, deleted, written, json FROM log ORDER BY revision")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let collection = row.get_ref(1)?.as_str()?;
        let key = Key::new(row.get_ref(2)?.as_str()?, row.get_ref(3)?.as_str()?);
        let revision = row.get::<_, i64>(0)?.cast_unsigned();
        let object = record::restore(collection, key, revision, row.get(5)?, row.get(6)?);
        state.apply(collection, Arc::new(object), row.get::<_, i64>(4)? != 0);
    }
    state.advance();
    Ok(state)
}

/// Forgets, inside the caller's transaction, what was replaced or deleted in the revisions after `from` up to `to`.
pub(super) fn forget(connection: &Connection, from: u64, to: u64) -> Result<()> {
    let (from, to) = (from.cast_signed(), to.cast_signed());
    connection
        .prepare_cached(
            "DELETE FROM log WHERE revision IN
               (SELECT previous FROM log WHERE revision > ?1 AND revision <= ?2 AND previous > 0)",
        )?
        .execute([from, to])?;
    connection
        .prepare_cached("DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND deleted = 1")?
        .execute([from, to])?;
    connection.prepare_cached("UPDATE compaction SET floor = ?1")?.execute([to])?;
    Ok(())
}

/// Gives a few unused pages back; false when (nearly) none are left.
pub(super) fn shrink(connection: &Connection) -> Result<bool> {
    let unused: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    if unused <= SLACK_PAGES {
        return Ok(false);
    }
    run(connection, "PRAGMA incremental_vacuum(128)")?;
    Ok(true)
}

/// The file is shorter once the write-ahead log that says so has gone into it. The log itself keeps its length.
pub(super) fn checkpoint(connection: &Connection) -> Result<()> {
    run(connection, "PRAGMA wal_checkpoint(RESTART)")
}

fn run(connection: &Connection, pragma: &str) -> Result<()> {
    let mut statement = connection.prepare_cached(pragma)?;
    let mut rows = statement.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

/// Unused pages that stay in the file, for the next writes to fill: 1 MiB.
const SLACK_PAGES: i64 = 256;

#[cfg(test)]
pub(super) fn rows(connection: &Connection) -> i64 {
    connection.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).unwrap()
}
