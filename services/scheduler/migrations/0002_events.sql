-- The outbox, which is the event log, and the memory of requests; both as chassis reads them.
--
-- Rows of the outbox are never deleted, not even with their run: money rests on them.

CREATE TABLE outbox (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id text NOT NULL UNIQUE,
    subject text NOT NULL,
    payload bytea NOT NULL,
    headers jsonb NOT NULL DEFAULT '{}',
    run text NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    create_time timestamptz NOT NULL DEFAULT now(),
    publish_time timestamptz,
    stream_sequence bigint,
    UNIQUE (run, sequence)
);

CREATE INDEX outbox_unpublished ON outbox (position) WHERE publish_time IS NULL;
CREATE INDEX outbox_stream ON outbox (stream_sequence);

CREATE TABLE outbox_streams (
    stream text PRIMARY KEY,
    created text NOT NULL,
    last_sequence bigint NOT NULL DEFAULT 0
);

CREATE TABLE requests (
    project text NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea NOT NULL,
    response bytea,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, method, request_id)
);
