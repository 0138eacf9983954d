-- name: now
SELECT clock_timestamp();

-- name: lock_run
SELECT name FROM runs WHERE name = $1 FOR UPDATE;

-- name: lock_run_if_free
SELECT name FROM runs WHERE name = $1 FOR UPDATE SKIP LOCKED;

-- name: read_run
SELECT r.*, t AS task_row, l AS lease_row, clock_timestamp() AS now
FROM runs r
JOIN tasks t ON t.owner = r.name AND t.kind = r.task
LEFT JOIN leases l ON l.lease_id = t.lease_id
WHERE r.name = $1;

-- name: page_of_runs
SELECT r.*, t AS task_row, l AS lease_row, clock_timestamp() AS now
FROM runs r
JOIN tasks t ON t.owner = r.name AND t.kind = r.task
LEFT JOIN leases l ON l.lease_id = t.lease_id
WHERE r.project = $1 AND r.position < $2
    AND (cardinality($3::text[]) = 0 OR r.state = ANY ($3::text[]))
    AND ($4::text = '' OR $4::text = ANY (r.tags))
ORDER BY r.position DESC
LIMIT $5;

-- name: insert_run
INSERT INTO runs (
    name, project, version, state, stage, tier, plan, rate_micros_per_minute, hold_micros, budget_micros, timeout,
    vouched, gguf, needs, fingerprint, spec, snapshot, quote, inputs, source_run, traceparent, display_name, tags,
    priority, sequence, attempt, task, clock, wall_micros, active_micros, billable_micros, submit_time, update_time
) VALUES (
    $1, $2, 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, 0,
    $25, $26, 0, 0, 0, $27, $27
);

-- name: update_run
UPDATE runs SET
    version = version + 1, state = $3, stage = $4, sequence = $5, attempt = $6, task = $7,
    lease_id = $8, clock = $9, wall_micros = $10, active_micros = $11, billable_micros = $12, finish = $13,
    fault_code = $14, fault = $15, metrics = $16, step = $17, total_steps = $18, loss = $19, checkpoint_step = $20,
    checkpoint_time = $21, checkpoint_epoch = $22, checkpoint_files = $23, samples = $24, proofs = $25, adapter = $26,
    artifact = $27, warning_count = $28, update_time = $29, start_time = $30, end_time = $31,
    cancel_request_time = $32, progress_time = $33, activity = $34
WHERE name = $1 AND version = $2;

-- name: update_labels
UPDATE runs SET display_name = $2, tags = $3, priority = $4 WHERE name = $1;

-- name: delete_run
WITH t AS (DELETE FROM tasks WHERE owner = $1), l AS (DELETE FROM leases WHERE owner = $1)
DELETE FROM runs WHERE name = $1;

-- name: put_task
INSERT INTO tasks (owner, kind, state, project, tier, failures, queue_time, not_before, fencing_epoch, lease_id)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (owner, kind) DO UPDATE SET
    state = excluded.state, failures = excluded.failures, not_before = excluded.not_before,
    fencing_epoch = excluded.fencing_epoch, lease_id = excluded.lease_id
-- A heartbeat changes the lease alone.
WHERE (tasks.state, tasks.failures, tasks.not_before, tasks.fencing_epoch, tasks.lease_id)
    IS DISTINCT FROM
    (excluded.state, excluded.failures, excluded.not_before, excluded.fencing_epoch, excluded.lease_id);

-- name: put_lease
INSERT INTO leases (
    lease_id, owner, kind, attempt, fencing_epoch, node, incarnation, lease_time, expire_time, report_number,
    report_time, start_time, end_time, outcome, fault, resumed_from_step
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
ON CONFLICT (lease_id) DO UPDATE SET
    expire_time = excluded.expire_time, report_number = excluded.report_number,
    report_time = excluded.report_time, start_time = excluded.start_time, end_time = excluded.end_time,
    outcome = excluded.outcome, fault = excluded.fault, resumed_from_step = excluded.resumed_from_step;

-- name: queued_tasks
SELECT owner FROM tasks
WHERE kind = $1 AND tier = $2 AND state = 'QUEUED' AND not_before <= clock_timestamp()
ORDER BY queue_time, owner LIMIT $3;

-- name: put_warning
INSERT INTO warnings (run, sequence, code, message, warn_time) VALUES ($1, $2, $3, $4, $5);

-- name: put_loss
INSERT INTO losses (run, step, loss) VALUES ($1, $2, $3)
ON CONFLICT (run, step) DO UPDATE SET loss = excluded.loss;

-- name: losses_of_run
SELECT loss FROM losses WHERE run = $1 AND step <= $2 ORDER BY step LIMIT $3;

-- name: wake
SELECT pg_notify($1, $2);

-- name: attempts_of_runs
SELECT owner AS run, * FROM leases WHERE owner = ANY ($1::text[]) AND kind = 'TRAIN' ORDER BY owner, fencing_epoch;

-- name: warnings_of_runs
SELECT * FROM warnings WHERE run = ANY ($1::text[]) ORDER BY run, sequence;

-- name: lease_by_id
SELECT * FROM leases WHERE lease_id = $1;

-- name: open_lease_of_node
SELECT * FROM leases WHERE node = $1 AND incarnation = $2 AND end_time IS NULL LIMIT 1;

-- name: leases_of_old_incarnations
SELECT * FROM leases WHERE node = $1 AND incarnation <> $2 AND end_time IS NULL;

-- name: expired_leases
SELECT * FROM leases WHERE end_time IS NULL AND expire_time < clock_timestamp() ORDER BY expire_time LIMIT $1;

-- name: training_runs
SELECT r.name AS run
FROM leases l
JOIN runs r ON r.name = l.owner
WHERE l.end_time IS NULL AND l.kind = 'TRAIN' AND r.state = 'TRAINING'
    AND (r.progress_time IS NULL OR r.progress_time <= clock_timestamp() - CASE
        WHEN l.start_time > clock_timestamp() - $3::interval THEN $2::interval ELSE $1::interval END)
ORDER BY r.name;

-- name: candidates
WITH limits AS (
    SELECT plan, concurrency_limit FROM unnest($3::text[], $4::int[]) AS l (plan, concurrency_limit)
), waiting AS (
    SELECT t.owner AS run, t.kind, r.priority, t.queue_time, coalesce(l.concurrency_limit, 0) AS concurrency_limit,
        (SELECT count(*) FROM tasks o WHERE o.project = t.project AND o.state = 'LEASED' AND o.kind = 'TRAIN')
            AS running_count
    FROM tasks t
    JOIN runs r ON r.name = t.owner
    LEFT JOIN limits l ON l.plan = r.plan
    WHERE t.state = 'QUEUED' AND t.kind = $1 AND t.tier = $2 AND t.not_before <= clock_timestamp()
        AND (t.kind = 'EXPORT' OR r.needs <@ $6::text[])
)
SELECT * FROM waiting
WHERE kind = 'EXPORT' OR running_count < concurrency_limit
ORDER BY priority DESC, queue_time, run
LIMIT $5;

-- name: lock_project
INSERT INTO projects (project) VALUES ($1) ON CONFLICT (project) DO UPDATE SET project = excluded.project;

-- name: running_count
SELECT count(*) FROM tasks WHERE project = $1 AND state = 'LEASED' AND kind = 'TRAIN';

-- name: same_oom_count
SELECT count(*) FROM runs
WHERE project = $1 AND fingerprint = $2 AND fault_code = 'RUNTIME_GPU_OOM';

-- name: put_node
INSERT INTO nodes (name, incarnation, kind, tier, description, register_time, heartbeat_time)
VALUES ($1, $2, $3, $4, $5, clock_timestamp(), clock_timestamp())
ON CONFLICT (name) DO UPDATE SET
    incarnation = excluded.incarnation, kind = excluded.kind, tier = excluded.tier,
    description = excluded.description, register_time = excluded.register_time,
    heartbeat_time = excluded.heartbeat_time, temperature_celsius = NULL;

-- name: touch_node
UPDATE nodes SET heartbeat_time = clock_timestamp(), temperature_celsius = coalesce($3, temperature_celsius)
WHERE name = $1 AND incarnation = $2;

-- name: read_node
SELECT n.*, '' AS run FROM nodes n WHERE n.name = $1;

-- name: training_nodes
SELECT n.*, '' AS run FROM nodes n WHERE n.kind = 'TRAIN' AND n.tier = $1 ORDER BY n.heartbeat_time DESC LIMIT $2;

-- name: page_of_nodes
SELECT n.*, coalesce(e.run, l.owner, '') AS run, clock_timestamp() AS now
FROM nodes n
LEFT JOIN leases l ON l.node = n.name AND l.incarnation = n.incarnation AND l.end_time IS NULL
LEFT JOIN exports e ON e.name = l.owner
WHERE n.position > $1
ORDER BY n.position
LIMIT $2;

-- name: begin_submission
INSERT INTO submissions (project, request_id, run, create_time) VALUES ($1, $2, $3, clock_timestamp())
ON CONFLICT (project, request_id) DO NOTHING;

-- name: lock_submission
SELECT run, abandoned, create_time FROM submissions WHERE project = $1 AND request_id = $2 FOR UPDATE;

-- name: end_submission
DELETE FROM submissions WHERE run = $1;

-- name: give_up_submission
WITH deleted AS (DELETE FROM submissions WHERE run = $1 RETURNING run)
INSERT INTO leftovers (run, ended, due_time) SELECT run, true, clock_timestamp() FROM deleted
ON CONFLICT (run) DO NOTHING;

-- name: abandon_stale_submissions
UPDATE submissions SET abandoned = true
WHERE run IN (
    SELECT run FROM submissions
    WHERE abandoned OR create_time < clock_timestamp() - $1::interval
    ORDER BY create_time
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
RETURNING run;

-- name: events_of_run
SELECT payload FROM outbox WHERE run = $1 AND sequence > $2 ORDER BY sequence LIMIT $3;

-- name: newest_event
SELECT sequence, subject FROM outbox WHERE run = $1 ORDER BY sequence DESC LIMIT 1;

-- name: put_hub_token
INSERT INTO hub_tokens (owner, sealed) VALUES ($1, $2);

-- name: hub_token
SELECT sealed FROM hub_tokens WHERE owner = $1;

-- name: note_end
WITH deleted AS (DELETE FROM superseded_checkpoints WHERE run = $1),
    spent AS (DELETE FROM hub_tokens WHERE owner = $1)
INSERT INTO leftovers (run, ended, adapter, due_time) VALUES ($1, true, $2, clock_timestamp())
ON CONFLICT (run) DO UPDATE
SET ended = true, adapter = excluded.adapter, due_time = excluded.due_time, try_count = 0;

-- name: note_superseded
WITH recorded AS (INSERT INTO superseded_checkpoints (run, files) VALUES ($1, $2))
INSERT INTO leftovers (run, ended, due_time) VALUES ($1, false, clock_timestamp())
ON CONFLICT (run) DO UPDATE SET due_time = excluded.due_time;

-- name: claim_sweep
UPDATE leftovers SET
    try_count = try_count + 1, due_time = clock_timestamp() + $1::interval * power(2, least(try_count, $2::integer))
WHERE run = (
    SELECT run FROM leftovers WHERE due_time <= clock_timestamp()
    ORDER BY due_time LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING run, ended, adapter, sweep_count, due_time;

-- name: settle_sweep
UPDATE leftovers SET
    sweep_count = sweep_count + ended::integer, try_count = 0, due_time = clock_timestamp() + $3::interval,
    leftovers_swept_time = CASE WHEN ended AND $3::interval IS NULL THEN clock_timestamp() END
WHERE run = $1 AND due_time = $2;

-- name: superseded_of_run
SELECT position, files FROM superseded_checkpoints WHERE run = $1 ORDER BY position DESC;

-- name: forget_superseded
DELETE FROM superseded_checkpoints WHERE position = $1;

-- name: note_alert
INSERT INTO alerts (alert_id, channel, code, payload)
SELECT $1, c, $3, $4 FROM unnest($2::text[]) AS c
ON CONFLICT (alert_id, channel) DO NOTHING;

-- name: claim_alert
UPDATE alerts SET
    try_count = try_count + 1, due_time = clock_timestamp() + $2::interval * power(2, least(try_count, $3::integer))
WHERE (alert_id, channel) = (
    SELECT alert_id, channel FROM alerts WHERE due_time <= clock_timestamp() AND channel = ANY ($1::text[])
    ORDER BY due_time LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING alert_id, channel, code, payload, try_count;

-- name: settle_alert
UPDATE alerts SET
    due_time = CASE WHEN $3 OR $4 THEN NULL ELSE due_time END,
    deliver_time = CASE WHEN $3 THEN clock_timestamp() END
WHERE alert_id = $1 AND channel = $2;

-- name: note_source
INSERT INTO export_sources (artifact, run, spec, snapshot, inputs, adapter, losses)
SELECT r.artifact, r.name, r.spec, r.snapshot, r.inputs, r.adapter,
    ARRAY(SELECT l.loss FROM losses l WHERE l.run = r.name AND l.step <= coalesce(r.step, 0) ORDER BY l.step LIMIT $2)
FROM runs r
WHERE r.name = $1 AND r.artifact <> '' AND length(r.adapter) > 0
ON CONFLICT (artifact) DO NOTHING;

-- name: export_source
SELECT artifact, run, spec, snapshot, inputs, adapter, losses FROM export_sources WHERE artifact = $1;

-- name: insert_export
INSERT INTO exports (
    name, project, artifact, run, base_model, quantization, state, sequence, traceparent, create_time, update_time
) VALUES ($1, $2, $3, $4, $5, $6, 'QUEUED', 1, $7, $8, $8);

-- name: update_export
UPDATE exports SET
    state = $2, sequence = $3, fault = $4, proof = $5, file = $6, update_time = $7, end_time = $8, activity = $9
WHERE name = $1;

-- name: export
SELECT e.*, t AS task_row, l AS lease_row, clock_timestamp() AS now
FROM exports e
JOIN tasks t ON t.owner = e.name AND t.kind = 'STORED_EXPORT'
LEFT JOIN leases l ON l.lease_id = t.lease_id
WHERE e.name = $1;

-- name: lock_export
SELECT name FROM exports WHERE name = $1 FOR UPDATE;

-- name: lock_export_if_free
SELECT name FROM exports WHERE name = $1 FOR UPDATE SKIP LOCKED;

-- name: open_export_of_type
SELECT name FROM exports WHERE artifact = $1 AND quantization = $2 AND end_time IS NULL;

-- name: page_of_exports
SELECT e.*, t AS task_row, l AS lease_row
FROM exports e
JOIN tasks t ON t.owner = e.name AND t.kind = 'STORED_EXPORT'
LEFT JOIN leases l ON l.lease_id = t.lease_id
WHERE e.project = $1 AND e.position < $2 AND ($3 = '' OR e.artifact = $3)
ORDER BY e.position DESC LIMIT $4;
