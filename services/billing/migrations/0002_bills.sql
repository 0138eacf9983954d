-- The bill of each run, and the inbox through which its events come.
--
-- `inbox.seen` holds the sequence numbers that were taken in, so that an event counts once however often and in
-- whatever order it is delivered; a run is settled when it is one gapless range up to the last event. `facts` keeps
-- the events that money rests on, for good.

CREATE TABLE bills (
    run text PRIMARY KEY,
    project text NOT NULL REFERENCES projects,
    state text NOT NULL CHECK (state IN ('open', 'settled', 'released')),
    held_micros bigint NOT NULL CHECK (held_micros >= 0),
    rate_micros_per_minute bigint NOT NULL CHECK (rate_micros_per_minute >= 0),
    maximum_minutes bigint NOT NULL CHECK (maximum_minutes >= 0),
    gpu_tier text NOT NULL,
    charged_micros bigint NOT NULL DEFAULT 0 CHECK (charged_micros >= 0),
    released_micros bigint NOT NULL DEFAULT 0 CHECK (released_micros >= 0),
    refunded_micros bigint NOT NULL DEFAULT 0 CHECK (refunded_micros >= 0),
    minutes bigint NOT NULL DEFAULT 0 CHECK (minutes >= 0),
    create_time timestamptz NOT NULL DEFAULT now(),
    settle_time timestamptz,
    CONSTRAINT never_more_than_the_hold CHECK (charged_micros <= held_micros),
    CONSTRAINT refund_within_charge CHECK (refunded_micros <= charged_micros),
    CONSTRAINT hold_is_captured_or_released
        CHECK (state = 'open' OR charged_micros + released_micros = held_micros),
    CONSTRAINT settled_has_time CHECK ((state = 'open') = (settle_time IS NULL))
);

CREATE TABLE inbox (
    run text PRIMARY KEY,
    seen int8multirange NOT NULL DEFAULT '{}',
    last_sequence bigint CHECK (last_sequence > 0)
);

CREATE TABLE facts (
    run text NOT NULL REFERENCES inbox,
    sequence bigint NOT NULL CHECK (sequence > 0),
    event_time timestamptz NOT NULL,
    attempt integer NOT NULL CHECK (attempt >= 0),
    phase text NOT NULL,
    clock text CHECK (clock IN ('started', 'paused', 'resumed', 'stopped', 'voided')),
    reason text NOT NULL,
    void_from timestamptz,
    ending text CHECK (ending IN ('completed', 'failed', 'cancelled')),
    refundable boolean,
    fault_code text,
    fault_refundable boolean,
    PRIMARY KEY (run, sequence),
    CONSTRAINT ending_is_whole CHECK (
        (ending IS NULL) = (refundable IS NULL)
        AND (ending IS NULL) = (fault_code IS NULL)
        AND (ending IS NULL) = (fault_refundable IS NULL)
    )
);

CREATE TRIGGER facts_are_append_only BEFORE UPDATE OR DELETE ON facts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- How far the scheduler's event log was read, per reader.
CREATE TABLE cursors (
    reader text PRIMARY KEY,
    page_token text NOT NULL
);
