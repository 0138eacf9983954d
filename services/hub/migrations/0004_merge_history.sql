-- A multi-run leaves its merge history behind: a third kind of file.
ALTER TABLE artifact_files DROP CONSTRAINT artifact_files_kind_check;
ALTER TABLE artifact_files ADD CONSTRAINT artifact_files_kind_check
CHECK (kind IN ('lora_adapter', 'gguf_bundle', 'merge_history'));
