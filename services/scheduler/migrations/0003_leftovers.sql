-- What runs have stored and nobody needs: checkpoints, files of lost attempts, everything of a run without a hub
-- entry. A row is written in the transaction that ends the run, or that ends a submission without one, so that
-- neither a crash nor an outage of the hub can lose it. It does not refer to the run, whose record may be deleted.

CREATE TABLE leftovers (
    run text PRIMARY KEY,
    ended boolean NOT NULL,
    -- The loose files of the adapter, which a later export needs.
    adapter bytea NOT NULL DEFAULT '',
    -- Sweeps after the end that were answered, and tries since the last answer.
    sweep_count integer NOT NULL DEFAULT 0 CHECK (sweep_count >= 0),
    try_count integer NOT NULL DEFAULT 0 CHECK (try_count >= 0),
    due_time timestamptz,
    leftovers_swept_time timestamptz,
    CONSTRAINT swept_has_ended CHECK (leftovers_swept_time IS NULL OR ended),
    CONSTRAINT swept_is_not_due CHECK (leftovers_swept_time IS NULL OR due_time IS NULL)
);

CREATE INDEX leftovers_due ON leftovers (due_time) WHERE due_time IS NOT NULL;

-- Checkpoints of runs under way that a newer one has taken the place of.
CREATE TABLE superseded_checkpoints (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run text NOT NULL,
    files bytea NOT NULL
);

CREATE INDEX superseded_checkpoints_of_run ON superseded_checkpoints (run, position);

INSERT INTO leftovers (run, ended, adapter, due_time)
SELECT name, true, adapter, clock_timestamp() FROM runs WHERE end_time IS NOT NULL;
