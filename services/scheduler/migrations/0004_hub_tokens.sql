-- Tokens of users for the model hub, sealed with a key that is not in this database. Every attempt and the export
-- fetch the base model, so that one is kept until its run ends; the transaction that ends the run deletes it.

CREATE TABLE hub_tokens (
    run text PRIMARY KEY REFERENCES runs ON DELETE CASCADE,
    sealed bytea NOT NULL
);
