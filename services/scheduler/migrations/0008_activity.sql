-- What a node does while it has no metrics to tell: a download, the trial of the longest batch, a step of an export.
-- It belongs to the lease under way and goes with it.

ALTER TABLE runs ADD COLUMN activity jsonb;
ALTER TABLE runs ADD CONSTRAINT activity_belongs_to_lease CHECK (activity IS NULL OR lease_id IS NOT NULL);

ALTER TABLE exports ADD COLUMN activity jsonb;
ALTER TABLE exports ADD CONSTRAINT activity_belongs_to_work CHECK (activity IS NULL OR state = 'EXPORTING');
