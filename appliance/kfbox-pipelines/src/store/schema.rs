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
"],
};
