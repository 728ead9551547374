//! The tables. An object's content is a list of slices of content files, so that completing a multipart upload or
//! copying an object moves no bytes. A content file is named by `slice` or `part` rows; when the last goes, so does it.

use kfbox_db::Schema;

pub(crate) const SCHEMA: Schema = Schema {
    name: "objects",
    migrations: &["
        CREATE TABLE bucket (
            name TEXT PRIMARY KEY,
            created INTEGER NOT NULL,             -- milliseconds since 1970, as all times here
            versioning TEXT,                      -- NULL: never enabled; else Enabled or Suspended
            tags TEXT NOT NULL DEFAULT '[]'
        ) WITHOUT ROWID;
        CREATE TABLE object (
            id INTEGER PRIMARY KEY AUTOINCREMENT, -- grows with time: the highest of a key is its newest version
            bucket TEXT NOT NULL REFERENCES bucket (name),
            key TEXT NOT NULL,
            version TEXT NOT NULL,                -- 'null' outside of versioning
            latest INTEGER NOT NULL,
            marker INTEGER NOT NULL,              -- a delete marker: no content
            size INTEGER NOT NULL,
            etag TEXT NOT NULL,
            modified INTEGER NOT NULL,
            attributes TEXT NOT NULL,             -- JSON
            tags TEXT NOT NULL DEFAULT '[]'       -- JSON, [[key, value], ...]
        );
        CREATE UNIQUE INDEX object_latest ON object (bucket, key) WHERE latest = 1;
        CREATE UNIQUE INDEX object_version ON object (bucket, key, version);
        CREATE TABLE slice (
            object INTEGER NOT NULL REFERENCES object (id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            blob TEXT NOT NULL,
            size INTEGER NOT NULL,
            PRIMARY KEY (object, position)
        ) WITHOUT ROWID;
        CREATE INDEX slice_blob ON slice (blob);
        CREATE TABLE upload (
            id TEXT PRIMARY KEY,
            bucket TEXT NOT NULL REFERENCES bucket (name),
            key TEXT NOT NULL,
            created INTEGER NOT NULL,
            attributes TEXT NOT NULL,
            tags TEXT NOT NULL,
            algorithm TEXT,
            full_checksum INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE INDEX upload_key ON upload (bucket, key, id);
        CREATE TABLE part (
            upload TEXT NOT NULL REFERENCES upload (id) ON DELETE CASCADE,
            number INTEGER NOT NULL,
            blob TEXT NOT NULL,
            size INTEGER NOT NULL,
            md5 BLOB NOT NULL,
            checksums TEXT NOT NULL,
            modified INTEGER NOT NULL,
            PRIMARY KEY (upload, number)
        ) WITHOUT ROWID;
        CREATE INDEX part_blob ON part (blob);
        CREATE TABLE credential (
            access_key TEXT PRIMARY KEY,
            secret TEXT NOT NULL,
            owner TEXT NOT NULL,
            standing INTEGER NOT NULL,            -- the one that credential_for answers
            grants TEXT NOT NULL,                 -- JSON
            created INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE UNIQUE INDEX credential_standing ON credential (owner) WHERE standing = 1;
    "],
};
