-- What operators are told, written in the transaction of what it tells of. One row a channel, so that a webhook that is
-- away does not hold up NATS; a channel that stays away is given up after a bounded number of tries.

CREATE TABLE alerts (
    alert_id text NOT NULL,
    channel text NOT NULL CHECK (channel IN ('nats', 'webhook')),
    code text NOT NULL,
    payload bytea NOT NULL,
    try_count integer NOT NULL DEFAULT 0 CHECK (try_count >= 0),
    due_time timestamptz DEFAULT clock_timestamp(),
    deliver_time timestamptz,
    PRIMARY KEY (alert_id, channel),
    CONSTRAINT delivered_is_not_due CHECK (deliver_time IS NULL OR due_time IS NULL)
);

CREATE INDEX alerts_due ON alerts (due_time) WHERE due_time IS NOT NULL;
