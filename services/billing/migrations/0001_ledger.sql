-- The ledger: accounts with balances, and entries that are only ever appended.
--
-- What domain/ledger.py holds is held here a second time: no project's account goes below zero, an entry moves a
-- non-negative amount between two different accounts, a posting key is used once, and entries can be neither
-- changed nor removed.

CREATE TABLE projects (
    project text PRIMARY KEY,
    plan text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE accounts (
    account text PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('available', 'held', 'spent', 'grants')),
    balance_micros bigint NOT NULL DEFAULT 0,
    CONSTRAINT balance_not_below_floor CHECK (kind = 'grants' OR balance_micros >= 0)
);

INSERT INTO accounts (account, kind) VALUES ('platform/grants', 'grants');

CREATE TABLE entries (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry_id text NOT NULL UNIQUE,
    posting_key text NOT NULL UNIQUE,
    kind text NOT NULL CHECK (kind IN ('grant', 'hold', 'capture', 'release', 'refund')),
    project text NOT NULL REFERENCES projects,
    run text NOT NULL,
    amount_micros bigint NOT NULL CHECK (amount_micros >= 0),
    debit_account text NOT NULL REFERENCES accounts,
    credit_account text NOT NULL REFERENCES accounts,
    minutes bigint NOT NULL CHECK (minutes >= 0),
    reason text NOT NULL,
    event_time timestamptz NOT NULL,
    post_time timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT two_accounts CHECK (debit_account <> credit_account),
    CONSTRAINT run_unless_grant CHECK ((kind = 'grant') = (run = ''))
);

CREATE INDEX entries_of_project ON entries (project, position DESC);
CREATE INDEX entries_of_run ON entries (run, position) WHERE run <> '';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only';
END
$$;

CREATE TRIGGER entries_are_append_only BEFORE UPDATE OR DELETE ON entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER entries_are_never_truncated BEFORE TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Both sides of every entry; their sum is zero, and per account it is the balance.
CREATE VIEW postings AS
    SELECT position, debit_account AS account, -amount_micros AS amount_micros FROM entries
    UNION ALL
    SELECT position, credit_account, amount_micros FROM entries;
