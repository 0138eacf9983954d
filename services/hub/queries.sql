-- name: now
SELECT clock_timestamp();

-- name: open_usage
INSERT INTO usage (project) VALUES ($1) ON CONFLICT DO NOTHING;

-- name: lock_usage
SELECT dataset_bytes, artifact_bytes FROM usage WHERE project = $1 FOR UPDATE;

-- name: usage
SELECT dataset_bytes, artifact_bytes FROM usage WHERE project = $1;

-- name: change_usage
UPDATE usage SET dataset_bytes = dataset_bytes + $2, artifact_bytes = artifact_bytes + $3 WHERE project = $1;

-- name: pending_bytes
SELECT coalesce(sum(size_bytes), 0)::bigint FROM uploads
WHERE project = $1 AND state = 'pending' AND upload_id <> $2 AND expire_time > now();

-- name: insert_upload
INSERT INTO uploads (upload_id, project, dataset, size_bytes, sha256, file_name, display_name, object_key,
    expire_time)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9);

-- name: upload
SELECT * FROM uploads WHERE upload_id = $1 AND project = $2;

-- name: lock_upload
SELECT * FROM uploads WHERE upload_id = $1 AND project = $2 FOR UPDATE;

-- name: prolong_upload
UPDATE uploads SET expire_time = greatest(expire_time, $2) WHERE upload_id = $1 AND state = 'pending';

-- name: commit_upload
UPDATE uploads SET state = 'committed', version = $2 WHERE upload_id = $1 AND state = 'pending';

-- name: refuse_upload
UPDATE uploads SET state = 'refused', refusal = $2 WHERE upload_id = $1 AND state = 'pending';

-- name: expire_uploads
WITH expired AS (
    UPDATE uploads SET state = 'expired'
    WHERE upload_id IN (
        SELECT upload_id FROM uploads
        WHERE state = 'pending' AND expire_time < $1
        ORDER BY upload_id LIMIT 100 FOR UPDATE SKIP LOCKED
    )
    RETURNING object_key
)
INSERT INTO garbage (object_key) SELECT object_key FROM expired ON CONFLICT DO NOTHING
RETURNING object_key;

-- name: put_dataset
INSERT INTO datasets (project, dataset, display_name, version_count) VALUES ($1, $2, $3, 1)
ON CONFLICT (project, dataset) DO UPDATE
SET version_count = datasets.version_count + 1, delete_time = NULL, display_name = excluded.display_name
RETURNING version_count;

-- name: insert_version
INSERT INTO dataset_versions (project, dataset, version, format, trainable_row_count, size_bytes, sha256,
    file_name, object_key, row_count, duplicate_row_count, character_count, longest_row_characters,
    longest_row_number, multi_turn_row_count)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15);

-- name: dataset
SELECT * FROM datasets WHERE project = $1 AND dataset = $2;

-- name: lock_dataset
SELECT * FROM datasets WHERE project = $1 AND dataset = $2 FOR UPDATE;

-- name: dataset_ids
SELECT dataset FROM datasets WHERE project = $1 AND delete_time IS NULL ORDER BY position DESC LIMIT 1000;

-- name: list_datasets
SELECT * FROM datasets
WHERE project = $1 AND delete_time IS NULL AND position < $2
ORDER BY position DESC LIMIT $3;

-- name: version
SELECT * FROM dataset_versions WHERE project = $1 AND dataset = $2 AND version = $3;

-- name: latest_versions
SELECT DISTINCT ON (dataset) * FROM dataset_versions
WHERE project = $1 AND dataset = ANY($2::text[]) AND delete_time IS NULL
ORDER BY dataset, version DESC;

-- name: list_versions
SELECT * FROM dataset_versions
WHERE project = $1 AND dataset = $2 AND delete_time IS NULL AND version < $3
ORDER BY version DESC LIMIT $4;

-- name: delete_dataset
UPDATE datasets SET delete_time = now() WHERE project = $1 AND dataset = $2 AND delete_time IS NULL
RETURNING delete_time;

-- name: delete_versions
UPDATE dataset_versions SET delete_time = now()
WHERE project = $1 AND dataset = $2 AND delete_time IS NULL;

-- name: purge_versions
UPDATE dataset_versions v SET purge_time = now()
WHERE v.project = $1 AND v.dataset = ANY($2::text[]) AND v.delete_time IS NOT NULL AND v.purge_time IS NULL
    AND NOT EXISTS (
        SELECT FROM dataset_holds h
        WHERE h.project = v.project AND h.dataset = v.dataset AND h.version = v.version
    )
RETURNING v.object_key, v.size_bytes;

-- name: hold_version
INSERT INTO dataset_holds (project, run, dataset, version) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING;

-- name: is_held
SELECT EXISTS (
    SELECT FROM dataset_holds WHERE project = $1 AND run = $2 AND dataset = $3 AND version = $4
);

-- name: release_versions
DELETE FROM dataset_holds WHERE project = $1 AND run = $2 RETURNING dataset;

-- name: insert_model
INSERT INTO models (project, model, model_id, revision, consent_user, consent_time)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (project, model) DO UPDATE
SET revision = excluded.revision, consent_user = excluded.consent_user, consent_time = excluded.consent_time
RETURNING *;

-- name: model
SELECT * FROM models WHERE project = $1 AND model = $2;

-- name: list_models
SELECT * FROM models WHERE project = $1 ORDER BY model;

-- name: delete_model
DELETE FROM models WHERE project = $1 AND model = $2 RETURNING model;

-- name: put_catalog_file
INSERT INTO catalog_files (model_id, path, object_key, size_bytes, sha256) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (model_id, path) DO UPDATE
SET object_key = excluded.object_key, size_bytes = excluded.size_bytes, sha256 = excluded.sha256;

-- name: forget_catalog_files
DELETE FROM catalog_files WHERE model_id = $1 AND NOT path = ANY($2::text[]);

-- name: catalog_files
SELECT * FROM catalog_files ORDER BY model_id, path;

-- name: put_artifact
INSERT INTO artifacts (project, artifact, run, base_model) VALUES ($1, $2, $3, $4)
ON CONFLICT (project, artifact) DO NOTHING;

-- name: artifact
SELECT * FROM artifacts WHERE project = $1 AND artifact = $2;

-- name: list_artifacts
SELECT * FROM artifacts
WHERE project = $1 AND position < $2 AND ($3 = '' OR run = $3)
ORDER BY position DESC LIMIT $4;

-- name: artifact_files
SELECT * FROM artifact_files
WHERE project = $1 AND artifact = ANY($2::text[])
ORDER BY artifact, create_time, kind, quantization;

-- name: put_artifact_file
INSERT INTO artifact_files (project, artifact, kind, quantization, file_name, size_bytes, sha256, object_key,
    entries)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (project, artifact, kind, quantization) DO UPDATE
SET file_name = excluded.file_name, size_bytes = excluded.size_bytes, sha256 = excluded.sha256,
    object_key = excluded.object_key, entries = excluded.entries, create_time = now();

-- name: registered_keys
SELECT object_key FROM artifact_files WHERE object_key = ANY($1::text[]);

-- name: delete_artifact
DELETE FROM artifacts WHERE project = $1 AND artifact = $2 RETURNING artifact;

-- name: add_garbage
INSERT INTO garbage (object_key) SELECT unnest($1::text[]) ON CONFLICT DO NOTHING;

-- name: some_garbage
SELECT object_key FROM garbage ORDER BY create_time LIMIT 100;

-- name: is_garbage
SELECT EXISTS (SELECT FROM garbage WHERE object_key = $1);

-- name: forget_garbage
DELETE FROM garbage WHERE object_key = $1;
