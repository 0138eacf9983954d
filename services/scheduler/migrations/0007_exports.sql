-- Exports of adapters that are stored already, and what each such adapter was made from, so that any type can be made
-- at any time: after its run has failed in export or was cancelled there, and after the run's record was deleted.
--
-- A row of export_sources is written in the transaction that ends a run with a hub entry. Neither table refers to a
-- run's record. An export carries its newest lease itself; older ones are known by their epochs alone.

CREATE TABLE export_sources (
    artifact text PRIMARY KEY,
    run text NOT NULL,
    spec bytea NOT NULL,
    snapshot bytea NOT NULL,
    inputs bytea NOT NULL,
    adapter bytea NOT NULL,
    losses double precision[] NOT NULL,
    store_time timestamptz NOT NULL DEFAULT now()
);

INSERT INTO export_sources (artifact, run, spec, snapshot, inputs, adapter, losses)
SELECT r.artifact, r.name, r.spec, r.snapshot, r.inputs, r.adapter,
    ARRAY(SELECT l.loss FROM losses l WHERE l.run = r.name ORDER BY l.step LIMIT 1000)
FROM runs r
WHERE r.end_time IS NOT NULL AND r.artifact <> '' AND length(r.adapter) > 0
ON CONFLICT DO NOTHING;

CREATE TABLE exports (
    name text PRIMARY KEY,
    project text NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    artifact text NOT NULL REFERENCES export_sources,
    run text NOT NULL,
    base_model text NOT NULL,
    quantization text NOT NULL,
    state text NOT NULL CHECK (state IN ('QUEUED', 'EXPORTING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    sequence bigint NOT NULL CHECK (sequence > 0),
    failures integer NOT NULL CHECK (failures BETWEEN 0 AND 2),
    fencing_epoch bigint NOT NULL CHECK (fencing_epoch >= 0),
    not_before timestamptz NOT NULL,
    lease_id text UNIQUE,
    node text,
    incarnation text,
    attempt integer CHECK (attempt BETWEEN 1 AND 3),
    expire_time timestamptz,
    outcome text CHECK (outcome IN ('COMPLETED', 'FAILED', 'LOST', 'RELEASED', 'CANCELLED')),
    fault jsonb,
    proof bytea NOT NULL DEFAULT '',
    file bytea NOT NULL DEFAULT '',
    traceparent text NOT NULL DEFAULT '',
    -- Of the user for the model hub, sealed; gone with the end.
    hub_token bytea,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    end_time timestamptz,
    CONSTRAINT ended_has_time CHECK ((state IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (end_time IS NOT NULL)),
    CONSTRAINT failed_has_fault CHECK (state <> 'FAILED' OR fault IS NOT NULL),
    CONSTRAINT completed_has_file CHECK ((state = 'COMPLETED') = (length(file) > 0)),
    CONSTRAINT exporting_holds_lease CHECK ((state = 'EXPORTING') = (lease_id IS NOT NULL AND outcome IS NULL)),
    CONSTRAINT ended_has_no_token CHECK (end_time IS NULL OR hub_token IS NULL),
    CONSTRAINT lease_is_whole CHECK (
        (lease_id IS NULL) = (node IS NULL) AND (lease_id IS NULL) = (incarnation IS NULL)
        AND (lease_id IS NULL) = (attempt IS NULL) AND (lease_id IS NULL) = (expire_time IS NULL))
);

CREATE UNIQUE INDEX one_open_export_of_a_type ON exports (artifact, quantization) WHERE end_time IS NULL;
CREATE INDEX exports_of_project ON exports (project, position DESC);
CREATE INDEX exports_queued ON exports (position) WHERE state = 'QUEUED';
CREATE INDEX exports_leased ON exports (node) WHERE state = 'EXPORTING';
