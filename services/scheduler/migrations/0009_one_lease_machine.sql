-- One machine leases every task, whatever its kind and whoever owns it: a run, or an export of a stored adapter. What an
-- export carried itself, its epoch, its attempts and its newest lease, moves to the tables of tasks and leases, and the
-- epoch moves there from the run. Which kinds there are is said by one table in the code, so that no CHECK lists them; an
-- owner is a name, so that no key refers to runs. Exports under way keep their lease, its id and its epoch.
--
-- Old code cannot lease on this schema: stop every scheduler before the first new one starts.

ALTER TABLE tasks DROP CONSTRAINT tasks_run_fkey, DROP CONSTRAINT tasks_kind_check;
ALTER TABLE tasks RENAME COLUMN run TO owner;
ALTER TABLE tasks ADD CHECK (kind <> ''), ADD COLUMN fencing_epoch bigint, ADD COLUMN lease_id text;
ALTER TABLE leases DROP CONSTRAINT leases_run_fkey, DROP CONSTRAINT leases_kind_check;
ALTER TABLE leases RENAME COLUMN run TO owner;
ALTER TABLE leases ADD CHECK (kind <> '');
ALTER INDEX one_lease_a_run RENAME TO one_lease_an_owner;
ALTER TABLE hub_tokens DROP CONSTRAINT hub_tokens_run_fkey;
ALTER TABLE hub_tokens RENAME COLUMN run TO owner;

-- The newest lease of each task; the open task of a run goes on from the epoch of the run.
UPDATE tasks t SET fencing_epoch = l.fencing_epoch, lease_id = l.lease_id
FROM (SELECT DISTINCT ON (owner, kind) * FROM leases ORDER BY owner, kind, fencing_epoch DESC) l
WHERE l.owner = t.owner AND l.kind = t.kind;
UPDATE tasks t SET fencing_epoch = r.fencing_epoch FROM runs r WHERE r.name = t.owner AND r.task = t.kind;
UPDATE tasks SET fencing_epoch = 0 WHERE fencing_epoch IS NULL;
ALTER TABLE runs DROP COLUMN fencing_epoch;

INSERT INTO tasks (owner, kind, state, project, tier, failures, queue_time, not_before, fencing_epoch, lease_id)
SELECT name, 'STORED_EXPORT',
    CASE state WHEN 'EXPORTING' THEN 'LEASED' WHEN 'COMPLETED' THEN 'DONE' ELSE state END,
    project, 'export', failures, create_time, not_before, fencing_epoch, lease_id
FROM exports;

-- Older leases of an export were not kept. When the newest was given is not known: its newest change is the bound.
INSERT INTO leases (
    lease_id, owner, kind, attempt, fencing_epoch, node, incarnation, lease_time, expire_time, report_number,
    report_time, end_time, outcome, fault, resumed_from_step
)
SELECT lease_id, name, 'STORED_EXPORT', attempt, fencing_epoch, node, incarnation, update_time, expire_time, 0,
    update_time, CASE WHEN outcome IS NOT NULL THEN update_time END, outcome,
    CASE WHEN outcome IN ('FAILED', 'LOST') THEN fault END, 0
FROM exports WHERE lease_id IS NOT NULL;

INSERT INTO hub_tokens (owner, sealed) SELECT name, hub_token FROM exports WHERE hub_token IS NOT NULL;

DROP INDEX exports_queued, exports_leased;
ALTER TABLE exports
    DROP COLUMN failures, DROP COLUMN fencing_epoch, DROP COLUMN not_before, DROP COLUMN lease_id, DROP COLUMN node,
    DROP COLUMN incarnation, DROP COLUMN attempt, DROP COLUMN expire_time, DROP COLUMN outcome, DROP COLUMN hub_token;

ALTER TABLE tasks
    ALTER COLUMN fencing_epoch SET NOT NULL,
    ADD CONSTRAINT leased_holds_lease CHECK (state <> 'LEASED' OR lease_id IS NOT NULL),
    ADD CONSTRAINT lease_has_epoch CHECK (fencing_epoch >= 0 AND (lease_id IS NULL OR fencing_epoch > 0));

-- The order in which tasks are offered.
DROP INDEX tasks_queued;
CREATE INDEX tasks_queued ON tasks (kind, tier, queue_time, owner) WHERE state = 'QUEUED';
