-- What a node must be able to do to train a run, beyond being of its tier: some backends run on some nodes only.
-- Runs of old code need nothing.

ALTER TABLE runs ADD COLUMN needs text[] NOT NULL DEFAULT '{}';
