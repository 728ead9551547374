//! The tables of `pipelines.db`. Times are milliseconds since 1970; structures are JSON text.

pub(crate) const SCHEMA: kfbox_db::Schema = kfbox_db::Schema {
    name: "pipelines",
    migrations: &["
CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;

CREATE TABLE experiments (
    id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_run_created_at INTEGER NOT NULL,
    storage_state TEXT NOT NULL,
    UNIQUE (namespace, display_name)
) STRICT;

CREATE TABLE pipelines (
    id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    tags TEXT NOT NULL,
    UNIQUE (namespace, name)
) STRICT;

CREATE TABLE pipeline_versions (
    id TEXT PRIMARY KEY,
    pipeline_id TEXT NOT NULL REFERENCES pipelines (id),
    name TEXT NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    code_source_url TEXT NOT NULL,
    tags TEXT NOT NULL,
    spec TEXT NOT NULL,
    UNIQUE (pipeline_id, name)
) STRICT;

CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    experiment_id TEXT NOT NULL REFERENCES experiments (id),
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    storage_state TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    scheduled_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    service_account TEXT NOT NULL,
    pipeline_id TEXT NOT NULL,
    pipeline_version_id TEXT NOT NULL,
    recurring_run_id TEXT NOT NULL,
    pipeline_name TEXT NOT NULL,
    pipeline_root TEXT NOT NULL,
    spec TEXT NOT NULL,
    runtime_config TEXT NOT NULL,
    error TEXT NOT NULL,
    state_history TEXT NOT NULL,
    context_ids TEXT NOT NULL
) STRICT;
CREATE INDEX runs_by_namespace ON runs (namespace, created_at);
CREATE INDEX runs_by_experiment ON runs (experiment_id, created_at);
CREATE INDEX runs_open ON runs (state) WHERE state IN ('PENDING', 'RUNNING', 'CANCELING');

CREATE TABLE tasks (
    id TEXT PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX tasks_by_run ON tasks (run_id);

CREATE TABLE cache (
    namespace TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    run_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    outputs TEXT NOT NULL,
    execution_id INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, fingerprint)
) STRICT;

CREATE TABLE recurring_runs (
    id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    experiment_id TEXT NOT NULL,
    display_name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    status TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
", "
-- The version that v1beta1's callers chose; empty for the latest.
ALTER TABLE pipelines ADD COLUMN default_version_id TEXT NOT NULL DEFAULT '';

CREATE TABLE run_metrics (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    node_id TEXT NOT NULL,
    number_value REAL NOT NULL,
    format TEXT NOT NULL,
    PRIMARY KEY (run_id, name, node_id)
) STRICT, WITHOUT ROWID;

-- Artifacts that a run uses and another run's folder holds: a cached result, an imported one. They outlive their run.
CREATE TABLE borrowed (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    uri TEXT NOT NULL,
    PRIMARY KEY (uri, run_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX borrowed_by_run ON borrowed (run_id);
INSERT OR IGNORE INTO borrowed (run_id, uri)
    SELECT t.run_id, j.value FROM tasks AS t JOIN runs AS r ON r.id = t.run_id, json_tree(t.body) AS j
    WHERE j.key = 'uri' AND j.type = 'text' AND substr(j.value, 1, length(r.pipeline_root) + 1) <> r.pipeline_root || '/';
-- Folders of deleted runs, until the last of their artifacts is gone.
CREATE TABLE leftovers (
    run_id TEXT PRIMARY KEY,
    namespace TEXT NOT NULL,
    root TEXT NOT NULL
) STRICT;
CREATE INDEX cache_by_run ON cache (run_id);
CREATE INDEX runs_ended ON runs (finished_at) WHERE finished_at > 0;

-- Lists as people page through them, each in the order of its index; a row's spec is read only for the page itself.
DROP INDEX runs_by_namespace;
DROP INDEX runs_by_experiment;
CREATE INDEX runs_by_namespace ON runs (namespace, created_at, id);
CREATE INDEX runs_stored ON runs (namespace, storage_state, created_at, id);
CREATE INDEX runs_by_experiment ON runs (experiment_id, created_at, id);
CREATE INDEX runs_stored_by_experiment ON runs (experiment_id, storage_state, created_at, id);
CREATE INDEX runs_by_recurring ON runs (recurring_run_id, state) WHERE recurring_run_id <> '';
-- Every other order and most filters look at this instead of rows that hold whole pipelines.
CREATE INDEX runs_narrow ON runs (namespace, experiment_id, storage_state, state, display_name, created_at, scheduled_at,
    finished_at, pipeline_id, pipeline_version_id, recurring_run_id, id);
CREATE INDEX recurring_by_namespace ON recurring_runs (namespace, created_at, id);
CREATE INDEX recurring_by_experiment ON recurring_runs (experiment_id, created_at, id);
", "
-- The cluster's object of which a row is the image: its name, and empty for what came by REST.
ALTER TABLE pipelines ADD COLUMN resource TEXT NOT NULL DEFAULT '';
ALTER TABLE pipeline_versions ADD COLUMN resource TEXT NOT NULL DEFAULT '';
"],
};
