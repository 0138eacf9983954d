-- Runs with their tasks, leases and nodes, and the event log that is their outbox.
--
-- What the rules in domain/ hold is held here a second time by CHECKs: the seven states, the order of the clocks,
-- one lease at a time, three attempts. A run row is changed only together with its events, guarded by its version.

CREATE TABLE runs (
    name text PRIMARY KEY,
    project text NOT NULL,
    -- Order of submission, for lists.
    position bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    version bigint NOT NULL CHECK (version > 0),
    state text NOT NULL CHECK (state IN
        ('QUEUED', 'WAITING_FOR_GPU', 'TRAINING', 'RETRYING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    stage text NOT NULL CHECK (stage IN
        ('queued', 'provisioning', 'data_download', 'initialization', 'training', 'saving', 'upload', 'exporting',
         'done')),
    -- What was agreed at submission.
    tier text NOT NULL,
    plan text NOT NULL,
    rate_micros_per_minute bigint NOT NULL CHECK (rate_micros_per_minute >= 0),
    hold_micros bigint NOT NULL CHECK (hold_micros >= 0),
    budget_micros bigint NOT NULL CHECK (budget_micros >= 0),
    timeout interval,
    vouched boolean NOT NULL,
    gguf boolean NOT NULL,
    fingerprint text NOT NULL,
    spec bytea NOT NULL,
    snapshot bytea NOT NULL,
    quote bytea NOT NULL,
    inputs bytea NOT NULL,
    source_run text NOT NULL DEFAULT '',
    traceparent text NOT NULL DEFAULT '',
    -- What the user may change.
    display_name text NOT NULL,
    tags text[] NOT NULL DEFAULT '{}',
    priority integer NOT NULL CHECK (priority BETWEEN -100 AND 100),
    -- Where it stands.
    sequence bigint NOT NULL CHECK (sequence > 0),
    fencing_epoch bigint NOT NULL CHECK (fencing_epoch >= 0),
    attempt integer NOT NULL CHECK (attempt BETWEEN 0 AND 3),
    task text NOT NULL CHECK (task IN ('TRAIN', 'EXPORT')),
    lease_id text,
    clock jsonb NOT NULL,
    wall_micros bigint NOT NULL,
    active_micros bigint NOT NULL,
    billable_micros bigint NOT NULL,
    finish jsonb,
    fault_code text,
    fault jsonb,
    metrics bytea,
    step bigint,
    total_steps bigint,
    loss double precision,
    checkpoint_step bigint,
    checkpoint_time timestamptz,
    checkpoint_epoch bigint,
    checkpoint_files bytea,
    samples bytea NOT NULL DEFAULT '',
    proofs bytea NOT NULL DEFAULT '',
    adapter bytea NOT NULL DEFAULT '',
    artifact text NOT NULL DEFAULT '',
    warning_count integer NOT NULL DEFAULT 0,
    submit_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    start_time timestamptz,
    end_time timestamptz,
    cancel_request_time timestamptz,
    progress_time timestamptz,
    CONSTRAINT clocks_are_ordered
        CHECK (0 <= billable_micros AND billable_micros <= active_micros AND active_micros <= wall_micros),
    CONSTRAINT budget_within_hold CHECK (budget_micros <= hold_micros),
    CONSTRAINT ended_has_time
        CHECK ((state IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (end_time IS NOT NULL)),
    CONSTRAINT ended_is_done CHECK ((state IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (stage = 'done')),
    CONSTRAINT ended_has_no_lease CHECK (end_time IS NULL OR lease_id IS NULL),
    CONSTRAINT failed_has_fault CHECK ((state = 'FAILED') = (fault_code IS NOT NULL)),
    CONSTRAINT waiting_holds_lease CHECK (state <> 'WAITING_FOR_GPU' OR lease_id IS NOT NULL),
    CONSTRAINT queued_holds_none CHECK (state <> 'QUEUED' OR lease_id IS NULL),
    CONSTRAINT tags_are_few CHECK (cardinality(tags) <= 32)
);

CREATE INDEX runs_of_project ON runs (project, position DESC);
CREATE INDEX runs_under_way ON runs (name) WHERE lease_id IS NOT NULL;
CREATE INDEX runs_out_of_memory ON runs (project, fingerprint) WHERE fault_code = 'RUNTIME_GPU_OOM';

CREATE TABLE tasks (
    run text NOT NULL REFERENCES runs ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('TRAIN', 'EXPORT')),
    state text NOT NULL CHECK (state IN ('QUEUED', 'LEASED', 'DONE', 'FAILED', 'CANCELLED')),
    project text NOT NULL,
    tier text NOT NULL,
    failures integer NOT NULL CHECK (failures BETWEEN 0 AND 2),
    queue_time timestamptz NOT NULL,
    not_before timestamptz NOT NULL,
    PRIMARY KEY (run, kind)
);

CREATE INDEX tasks_queued ON tasks (kind, tier, queue_time) WHERE state = 'QUEUED';
CREATE INDEX tasks_leased ON tasks (project) WHERE state = 'LEASED';

-- Every lease of a run. Those of a training task are its attempts.
CREATE TABLE leases (
    lease_id text PRIMARY KEY,
    run text NOT NULL REFERENCES runs ON DELETE CASCADE,
    kind text NOT NULL CHECK (kind IN ('TRAIN', 'EXPORT')),
    attempt integer NOT NULL CHECK (attempt BETWEEN 1 AND 3),
    fencing_epoch bigint NOT NULL CHECK (fencing_epoch > 0),
    node text NOT NULL,
    incarnation text NOT NULL,
    lease_time timestamptz NOT NULL,
    expire_time timestamptz NOT NULL,
    report_number bigint NOT NULL CHECK (report_number >= 0),
    report_time timestamptz NOT NULL,
    start_time timestamptz,
    end_time timestamptz,
    outcome text CHECK (outcome IN ('COMPLETED', 'FAILED', 'LOST', 'RELEASED', 'CANCELLED')),
    fault jsonb,
    resumed_from_step bigint NOT NULL CHECK (resumed_from_step >= 0),
    CONSTRAINT epoch_is_used_once UNIQUE (run, fencing_epoch),
    CONSTRAINT ended_has_outcome CHECK ((end_time IS NULL) = (outcome IS NULL))
);

CREATE UNIQUE INDEX one_lease_a_run ON leases (run) WHERE end_time IS NULL;
CREATE INDEX leases_open ON leases (expire_time) WHERE end_time IS NULL;
CREATE INDEX leases_of_node ON leases (node) WHERE end_time IS NULL;

CREATE TABLE warnings (
    run text NOT NULL REFERENCES runs ON DELETE CASCADE,
    sequence bigint NOT NULL,
    code text NOT NULL,
    message text NOT NULL,
    warn_time timestamptz NOT NULL,
    PRIMARY KEY (run, sequence)
);

-- Loss by step, for the plot of the model card.
CREATE TABLE losses (
    run text NOT NULL REFERENCES runs ON DELETE CASCADE,
    step bigint NOT NULL CHECK (step >= 0),
    loss double precision NOT NULL,
    PRIMARY KEY (run, step)
);

CREATE TABLE nodes (
    name text PRIMARY KEY,
    position bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    incarnation text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('TRAIN', 'EXPORT')),
    tier text NOT NULL,
    description bytea NOT NULL,
    register_time timestamptz NOT NULL,
    heartbeat_time timestamptz NOT NULL,
    temperature_celsius double precision
);

-- A submission between the check and the run: what a crash in between leaves behind. `abandoned` ones are given
-- back to billing and never become a run.
CREATE TABLE submissions (
    project text NOT NULL,
    request_id text NOT NULL,
    run text NOT NULL UNIQUE,
    abandoned boolean NOT NULL DEFAULT false,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (project, request_id)
);

CREATE INDEX submissions_by_age ON submissions (create_time);

-- One row a project, locked while a lease of it is given out, so that a plan's limit holds for any number of
-- schedulers.
CREATE TABLE projects (
    project text PRIMARY KEY
);
