-- The memory of mutations: the same request id gives the first answer.

CREATE TABLE requests (
    project text NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea NOT NULL,
    response bytea,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, method, request_id)
);
