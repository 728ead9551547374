//! Failed sign-ins on disk, so that a restart is no way around the waits. What was typed as a name is kept only where it
//! has an address's shape: anything else is nobody's account, and may be a password typed into the wrong field.

use super::{Store, StoreError};
use kfbox_db::rusqlite::{Connection, params};

/// As many as are held in memory, of accounts and of addresses.
const KEPT: i64 = 20_000;

/// What is known of one account or address. Times are seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempts {
    /// `account NAME` or `address IP`.
    pub who: String,
    /// None: forgotten.
    pub failures: u32,
    pub last: i64,
    pub blocked_until: i64,
}

pub(super) fn load(connection: &Connection) -> Result<Vec<Attempts>, StoreError> {
    let mut statement = connection.prepare("SELECT who, failures, last, blocked_until FROM attempts ORDER BY last")?;
    let rows = statement.query_map([], |row| {
        Ok(Attempts { who: row.get(0)?, failures: row.get(1)?, last: row.get(2)?, blocked_until: row.get(3)? })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

impl Store {
    /// Returns when they are on disk. `before`: what is older is forgotten.
    pub async fn keep_attempts(&self, all: Vec<Attempts>, before: i64) -> Result<(), StoreError> {
        self.db
            .write::<_, StoreError, _>(move |tx| {
                for Attempts { who, failures, last, blocked_until } in all {
                    if failures == 0 {
                        tx.execute("DELETE FROM attempts WHERE who = ?1", [who])?;
                        continue;
                    }
                    // Of two at once the one that counted more is the later, whichever comes here first.
                    tx.execute(
                        "INSERT INTO attempts (who, failures, last, blocked_until) VALUES (?1, ?2, ?3, ?4)
                         ON CONFLICT (who) DO UPDATE SET failures = excluded.failures, last = excluded.last,
                            blocked_until = excluded.blocked_until
                         WHERE excluded.last > last OR excluded.failures >= failures",
                        params![who, failures, last, blocked_until],
                    )?;
                }
                tx.execute("DELETE FROM attempts WHERE last < ?1 AND blocked_until < ?1", [before])?;
                tx.execute(
                    "DELETE FROM attempts WHERE who IN (SELECT who FROM attempts ORDER BY last DESC LIMIT -1 OFFSET ?1)",
                    [KEPT],
                )?;
                Ok(())
            })
            .await
    }
}
