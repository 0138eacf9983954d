-- Datasets, added models, artifacts and what each project keeps of the two quotas.
--
-- Names from users are columns, never paths: objects are keyed by ids and digests. Deleted datasets stay as rows,
-- so that a run that refers to one can be told so, and so that a version number never means two files.

CREATE TABLE usage (
    project text PRIMARY KEY,
    dataset_bytes bigint NOT NULL DEFAULT 0 CHECK (dataset_bytes >= 0),
    artifact_bytes bigint NOT NULL DEFAULT 0 CHECK (artifact_bytes >= 0)
);

CREATE TABLE datasets (
    project text NOT NULL REFERENCES usage,
    dataset text NOT NULL,
    display_name text NOT NULL,
    version_count integer NOT NULL CHECK (version_count > 0),
    create_time timestamptz NOT NULL DEFAULT now(),
    delete_time timestamptz,
    position bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (project, dataset)
);

CREATE TABLE dataset_versions (
    project text NOT NULL,
    dataset text NOT NULL,
    version integer NOT NULL CHECK (version > 0),
    format text NOT NULL,
    trainable_row_count bigint NOT NULL CHECK (trainable_row_count > 0),
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    file_name text NOT NULL,
    object_key text NOT NULL UNIQUE,
    row_count bigint NOT NULL,
    duplicate_row_count bigint NOT NULL,
    character_count bigint NOT NULL,
    longest_row_characters bigint NOT NULL,
    longest_row_number bigint NOT NULL,
    multi_turn_row_count bigint NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    delete_time timestamptz,
    PRIMARY KEY (project, dataset, version),
    FOREIGN KEY (project, dataset) REFERENCES datasets
);

CREATE TABLE uploads (
    upload_id text PRIMARY KEY,
    project text NOT NULL REFERENCES usage,
    dataset text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    sha256 text NOT NULL,
    file_name text NOT NULL,
    display_name text NOT NULL,
    object_key text NOT NULL UNIQUE,
    state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'committed', 'refused', 'expired')),
    expire_time timestamptz NOT NULL,
    version integer,
    refusal jsonb,
    CONSTRAINT committed_has_version CHECK ((state = 'committed') = (version IS NOT NULL)),
    CONSTRAINT refused_has_reason CHECK ((state = 'refused') = (refusal IS NOT NULL))
);

CREATE INDEX pending_uploads ON uploads (project) WHERE state = 'pending';

CREATE TABLE models (
    project text NOT NULL,
    model text NOT NULL,
    model_id text NOT NULL,
    revision text NOT NULL,
    consent_user text NOT NULL,
    consent_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, model)
);

CREATE TABLE catalog_files (
    model_id text NOT NULL,
    path text NOT NULL,
    object_key text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    sha256 text NOT NULL,
    PRIMARY KEY (model_id, path)
);

CREATE TABLE artifacts (
    project text NOT NULL REFERENCES usage,
    artifact text NOT NULL,
    run text NOT NULL,
    base_model text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    position bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    PRIMARY KEY (project, artifact)
);

CREATE TABLE artifact_files (
    project text NOT NULL,
    artifact text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('lora_adapter', 'gguf_bundle')),
    quantization text NOT NULL,
    file_name text NOT NULL,
    size_bytes bigint NOT NULL CHECK (size_bytes > 0),
    sha256 text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    object_key text NOT NULL UNIQUE,
    entries text[] NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, artifact, kind, quantization),
    FOREIGN KEY (project, artifact) REFERENCES artifacts ON DELETE CASCADE
);

-- Objects that no row refers to any more; they are removed from the store after the transaction that says so.
CREATE TABLE garbage (
    object_key text PRIMARY KEY,
    create_time timestamptz NOT NULL DEFAULT now()
);
