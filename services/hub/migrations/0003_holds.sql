-- Which dataset versions runs are going to read, so that deleting a dataset takes its bytes only when no run needs
-- them any more. A hold begins before its run does and ends with the sweep after its run; neither table refers to a
-- run's record, which the hub does not have.

CREATE TABLE dataset_holds (
    project text NOT NULL,
    run text NOT NULL,
    dataset text NOT NULL,
    version integer NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, run, dataset, version),
    FOREIGN KEY (project, dataset, version) REFERENCES dataset_versions
);

CREATE INDEX dataset_holds_of_version ON dataset_holds (project, dataset, version);

-- When the bytes of a deleted version were given up, and with them its share of the quota. Until now that was at once.
ALTER TABLE dataset_versions ADD COLUMN purge_time timestamptz;
UPDATE dataset_versions SET purge_time = delete_time WHERE delete_time IS NOT NULL;
ALTER TABLE dataset_versions ADD CONSTRAINT purged_was_deleted CHECK (purge_time IS NULL OR delete_time IS NOT NULL);
