-- name: open_project
INSERT INTO projects (project, plan) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: open_accounts
INSERT INTO accounts (account, kind)
VALUES ($1 || '/available', 'available'), ($1 || '/held', 'held'), ($1 || '/spent', 'spent')
ON CONFLICT DO NOTHING;

-- name: wallet
SELECT project, plan, create_time, available.balance_micros AS available_micros,
    held.balance_micros AS held_micros
FROM projects
JOIN accounts available ON available.account = 'projects/' || project || '/available'
JOIN accounts held ON held.account = 'projects/' || project || '/held'
WHERE project = $1;

-- name: set_plan
UPDATE projects SET plan = $2 WHERE project = $1;

-- name: now
SELECT clock_timestamp();

-- name: lock_accounts
SELECT account, balance_micros FROM accounts WHERE account = ANY($1::text[]) ORDER BY account FOR UPDATE;

-- name: set_balance
UPDATE accounts SET balance_micros = $2 WHERE account = $1;

-- name: insert_entry
INSERT INTO entries (entry_id, posting_key, kind, project, run, amount_micros, debit_account,
    credit_account, minutes, reason, event_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
RETURNING *;

-- name: entry_by_key
SELECT * FROM entries WHERE posting_key = $1;

-- name: entries_of_run
SELECT * FROM entries WHERE run = $1 ORDER BY position;

-- name: list_entries
SELECT * FROM entries
WHERE project = $1 AND position < $2 AND ($3 = '' OR run = $3)
ORDER BY position DESC
LIMIT $4;

-- name: insert_bill
INSERT INTO bills (run, project, state, held_micros, rate_micros_per_minute, maximum_minutes, gpu_tier)
VALUES ($1, $2, 'open', $3, $4, $5, $6)
ON CONFLICT DO NOTHING
RETURNING run;

-- name: insert_released_bill
INSERT INTO bills (run, project, state, held_micros, rate_micros_per_minute, maximum_minutes, gpu_tier,
    settle_time)
VALUES ($1, $2, 'released', 0, 0, 0, '', now())
ON CONFLICT DO NOTHING
RETURNING run;

-- name: lock_bill
SELECT * FROM bills WHERE run = $1 FOR UPDATE;

-- name: bill
SELECT * FROM bills WHERE run = $1;

-- name: close_bill
UPDATE bills
SET state = $2, charged_micros = $3, released_micros = $4, refunded_micros = $5, minutes = $6,
    settle_time = now()
WHERE run = $1 AND state = 'open';

-- name: open_inbox
INSERT INTO inbox (run) VALUES ($1) ON CONFLICT DO NOTHING;

-- name: take_in
UPDATE inbox
SET seen = seen + int8multirange(int8range($2, $2 + 1)), last_sequence = coalesce($3, last_sequence)
WHERE run = $1 AND NOT seen @> $2::bigint
RETURNING coalesce(seen = int8multirange(int8range(1, last_sequence + 1)), false) AS complete;

-- name: insert_fact
INSERT INTO facts (run, sequence, event_time, attempt, phase, clock, reason, void_from, ending,
    refundable, fault_code, fault_refundable)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12);

-- name: facts
SELECT * FROM facts WHERE run = $1 ORDER BY sequence;

-- name: cursor
SELECT page_token FROM cursors WHERE reader = $1;

-- name: save_cursor
INSERT INTO cursors (reader, page_token) VALUES ($1, $2)
ON CONFLICT (reader) DO UPDATE SET page_token = excluded.page_token;
