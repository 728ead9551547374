//! The tables. Artifacts, executions and contexts are rows of one table, told apart by their kind; as upstream, each
//! kind counts its own ids.

use kfbox_db::Schema;

pub(crate) const SCHEMA: Schema = Schema {
    name: "metadata",
    migrations: &["
        CREATE TABLE type (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            namespace TEXT NOT NULL,
            kind INTEGER NOT NULL,               -- 1 artifact, 2 execution, 3 context
            name TEXT NOT NULL,
            version TEXT NOT NULL,               -- '' without one
            description TEXT,
            external_id TEXT,
            base_type INTEGER,
            input_type BLOB,                     -- ArtifactStructType, of executions
            output_type BLOB,
            properties TEXT NOT NULL             -- JSON, name to PropertyType
        );
        CREATE UNIQUE INDEX type_name ON type (kind, name, version, namespace);
        CREATE UNIQUE INDEX type_external ON type (kind, namespace, external_id) WHERE external_id IS NOT NULL;
        CREATE TABLE node (
            kind INTEGER NOT NULL,
            id INTEGER NOT NULL,
            namespace TEXT NOT NULL,
            type INTEGER NOT NULL REFERENCES type (id),
            name TEXT,
            external_id TEXT,
            uri TEXT,
            state INTEGER,
            created INTEGER NOT NULL,            -- milliseconds since 1970
            updated INTEGER NOT NULL,
            system_metadata BLOB,                -- google.protobuf.Any
            PRIMARY KEY (kind, id)
        ) WITHOUT ROWID;
        CREATE UNIQUE INDEX node_name ON node (type, name) WHERE name IS NOT NULL;
        CREATE UNIQUE INDEX node_external ON node (kind, namespace, external_id) WHERE external_id IS NOT NULL;
        CREATE INDEX node_uri ON node (uri);
        CREATE INDEX node_created ON node (kind, created);
        CREATE INDEX node_updated ON node (kind, updated);
        CREATE TABLE property (
            kind INTEGER NOT NULL,
            node INTEGER NOT NULL,
            custom INTEGER NOT NULL,
            name TEXT NOT NULL,
            value BLOB NOT NULL,                 -- Value; the columns below are for filters
            int_value INTEGER,
            double_value REAL,
            string_value TEXT,
            bool_value INTEGER,
            PRIMARY KEY (kind, node, custom, name)
        ) WITHOUT ROWID;
        CREATE TABLE event (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            artifact INTEGER NOT NULL,
            execution INTEGER NOT NULL,
            type INTEGER NOT NULL,
            path BLOB,
            time INTEGER NOT NULL,
            system_metadata BLOB,
            UNIQUE (artifact, execution, type)
        );
        CREATE INDEX event_execution ON event (execution);
        CREATE TABLE member (                    -- attributions (artifacts) and associations (executions)
            context INTEGER NOT NULL,
            kind INTEGER NOT NULL,
            node INTEGER NOT NULL,
            PRIMARY KEY (context, kind, node)
        ) WITHOUT ROWID;
        CREATE INDEX member_node ON member (kind, node);
        CREATE TABLE parent (
            child INTEGER NOT NULL,
            parent INTEGER NOT NULL,
            PRIMARY KEY (child, parent)
        ) WITHOUT ROWID;
        CREATE INDEX parent_parent ON parent (parent);
    "],
};
