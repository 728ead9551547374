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

pub(super) fn compact(connection: &mut Connection, from: u64, to: u64) -> Result<()> {
    let (from, to) = (from.cast_signed(), to.cast_signed());
    let tx = connection.transaction()?;
    tx.prepare_cached(
        "DELETE FROM log WHERE revision IN
           (SELECT previous FROM log WHERE revision > ?1 AND revision <= ?2 AND previous > 0)",
    )?
    .execute([from, to])?;
    tx.prepare_cached("DELETE FROM log WHERE revision > ?1 AND revision <= ?2 AND deleted = 1")?.execute([from, to])?;
    tx.execute("UPDATE compaction SET floor = ?1", [to])?;
    tx.commit()?;
    // Give freed pages back a few at a time.
    let mut vacuum = connection.prepare_cached("PRAGMA incremental_vacuum(64)")?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}
