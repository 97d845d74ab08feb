-- +goose Up

-- The audit becomes provable: each row gets a number, rows are sealed into a hash chain by it, and what
-- a visitor left is under the chain by a salted hash alone. And it is split by month. Both need the table
-- to be written anew, under a lock: docs/operating.md says how long that takes.

-- For migrations: takes the locks that they need, all or none, and tries again for 10 s. Who waits for a lock holds up
-- everybody behind it, and who holds one and waits for another can wait for one that waits for it: so no wait is long.
-- Only an autovacuum has to be waited for longer: it gives way to who has waited for deadlock_timeout.
-- +goose StatementBegin
CREATE FUNCTION lock_tables(tables text, mode text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    began CONSTANT timestamptz := clock_timestamp();
    before CONSTANT text := current_setting('lock_timeout');
    for_autovacuum CONSTANT integer := (SELECT setting::integer + 500 FROM pg_settings WHERE name = 'deadlock_timeout'); -- ms
BEGIN
    LOOP
        BEGIN -- what it locks is free again where it fails
            PERFORM set_config('lock_timeout', CASE WHEN clock_timestamp() < began + interval '3 s' THEN '100' ELSE for_autovacuum::text END, true);
            EXECUTE format('LOCK TABLE %s IN %s MODE', tables, mode);
            PERFORM set_config('lock_timeout', before, true);
            RETURN;
        EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
            IF clock_timestamp() > began + interval '10 s' THEN
                RAISE EXCEPTION 'no lock of % within 10 s', tables USING ERRCODE = 'lock_not_available',
                    HINT = 'End what holds it, a long transaction or an autovacuum (pg_stat_activity), and run this again; nothing was changed.';
            END IF;
        END;
        PERFORM pg_sleep(0.1 + random() / 10);
    END LOOP;
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION lock_tables(text, text) FROM PUBLIC;
SELECT lock_tables('audit_events, audit_visitors', 'ACCESS EXCLUSIVE');

ALTER TABLE audit_events RENAME TO audit_events_before;
ALTER TABLE audit_events_before RENAME CONSTRAINT audit_events_pkey TO audit_events_before_pkey;
DROP INDEX audit_events_link_idx, audit_events_rejected_idx, audit_events_click_started_key, audit_events_click_outcome_key;

CREATE SEQUENCE audit_events_seq;

-- What happened. Append-only: latchkey_app may insert and select, and a trigger refuses
-- UPDATE, DELETE and TRUNCATE to everybody else. No foreign keys: the audit outlives the rows
-- that it speaks of.
--
-- Partitions are ranges of id, whose first 48 bits are a time: so the primary key holds for all of
-- them, and a row is found by its id in one.
CREATE TABLE audit_events (
    id           uuid NOT NULL,                         -- UUIDv7, and the id of the CloudEvent published for the row
    at           timestamptz NOT NULL,
    kind         text NOT NULL,
    link_id      uuid,                                  -- NULL for what is about no link
    request_id   text,                                  -- NULL where a rejected request had no readable id
    click_id     uuid,
    detail       jsonb NOT NULL DEFAULT '{}',           -- never a token, a session URL, a key, or a visitor's address
    seq          bigint NOT NULL DEFAULT nextval('audit_events_seq'), -- place in the chain; the worker can't choose it
    visitor_hash bytea,                                 -- SHA-256 of the salt, ip and user_agent in audit_visitors; NULL = no visitor
    CONSTRAINT audit_events_pkey PRIMARY KEY (id),
    CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed', 'webhook.disabled', 'audit.sealed',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied',
        'audit.erased', 'key.retired')),                -- from 00008 on; here, so that one can go down below this and up again
    CONSTRAINT audit_events_has_link CHECK (
        link_id IS NOT NULL OR kind IN ('request.rejected', 'audit.sealed', 'webhook.disabled', 'audit.erased', 'key.retired')),
    CONSTRAINT audit_events_has_click CHECK (
        click_id IS NOT NULL OR kind NOT IN ('click.started', 'session.created', 'session.failed')),
    CONSTRAINT audit_events_visitor_hash_sha256 CHECK (octet_length(visitor_hash) = 32)
) PARTITION BY RANGE (id);

ALTER SEQUENCE audit_events_seq OWNED BY audit_events.seq;

CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION audit_events_append_only();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION audit_events_append_only();

-- The least id that a row written at a time can have.
CREATE FUNCTION audit_id_at(t timestamptz) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM t) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- +goose StatementBegin
CREATE FUNCTION audit_add_partition(name text, bounds text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('CREATE TABLE %I (LIKE audit_events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING COMMENTS)', name);
    -- Invariant: no click has two starts or two outcomes, whoever writes them. Over the turn of a month the
    -- click's own row holds it alone.
    EXECUTE format('CREATE UNIQUE INDEX %I ON %I (click_id) WHERE kind = ''click.started''', name || '_click_started_key', name);
    EXECUTE format('CREATE UNIQUE INDEX %I ON %I (click_id) WHERE kind IN (''session.created'', ''session.failed'')', name || '_click_outcome_key', name);
    EXECUTE format('CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION audit_events_append_only()', name);
    -- Attached, not made as a partition: that would lock out the clicks until it is there.
    EXECUTE format('ALTER TABLE audit_events ATTACH PARTITION %I %s', name, bounds);
END
$$;

-- Makes the partitions of the month of since, of the three months from now on, and of all between, where they
-- are missing, and returns how many it made. A month that already has rows among the others stays there.
CREATE FUNCTION audit_add_months(since timestamptz) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    first timestamp := date_trunc('month', since AT TIME ZONE 'UTC');
    months CONSTANT interval := '1 month';
    month timestamp;
    name text;
    made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock('audit_events'::regclass::oid::bigint);
    FOR month IN SELECT generate_series(first, date_trunc('month', now() AT TIME ZONE 'UTC') + 3 * months, months) LOOP
        name := 'audit_events_' || to_char(month, 'YYYY_MM');
        CONTINUE WHEN to_regclass(name) IS NOT NULL
            -- For these it stays so: it is looked for here, before anything is locked.
            OR EXISTS (SELECT FROM audit_events_others WHERE id >= audit_id_at(month AT TIME ZONE 'UTC') AND id < audit_id_at((month + months) AT TIME ZONE 'UTC'));
        BEGIN
            PERFORM audit_add_partition(name, format('FOR VALUES FROM (%L) TO (%L)',
                audit_id_at(month AT TIME ZONE 'UTC'), audit_id_at((month + months) AT TIME ZONE 'UTC')));
            made := made + 1;
        EXCEPTION WHEN check_violation THEN
            RAISE WARNING 'audit_events_others has rows of %, so it gets no partition of its own', name;
        END;
    END LOOP;
    RETURN made;
END
$$;

-- The same from now on, for the worker, which may make no tables.
CREATE FUNCTION audit_add_months() RETURNS integer LANGUAGE sql SECURITY DEFINER AS $$ SELECT audit_add_months(now()) $$;
-- +goose StatementEnd

-- Whoever writes while no month fits: ids of a clock that is months off.
SELECT audit_add_partition('audit_events_others', 'DEFAULT');
SELECT audit_add_months(greatest(now() - interval '10 years', least(now(), min(at)))) FROM audit_events_before;

ALTER TABLE audit_visitors
    ADD COLUMN salt bytea,                              -- 16 random bytes: without it the hash in audit_events tells nothing; NULL = written by 0.1.0, and not proved
    ADD CONSTRAINT audit_visitors_salt_length CHECK (octet_length(salt) = 16);
UPDATE audit_visitors SET salt = uuid_send(gen_random_uuid());

-- inet_send is family, bits, is_cidr, length, address.
INSERT INTO audit_events (id, at, kind, link_id, request_id, click_id, detail, visitor_hash)
SELECT e.id, e.at, e.kind, e.link_id, e.request_id, e.click_id, e.detail,
    sha256(v.salt || substring(inet_send(v.ip) FROM 4) || convert_to(v.user_agent, 'UTF8'))
FROM audit_events_before e LEFT JOIN audit_visitors v ON v.event_id = e.id ORDER BY e.id;

DROP TABLE audit_events_before;

CREATE INDEX audit_events_link_idx ON audit_events (link_id);
CREATE INDEX audit_events_rejected_idx ON audit_events (request_id) WHERE kind = 'request.rejected';
-- Not unique, which an index of a partitioned table can be on id only: that a number is there twice is
-- what the chain shows.
CREATE INDEX audit_events_seq_idx ON audit_events (seq);

-- The chain. A seal is over the rows whose seq is above the seal's before it and up to its own last_seq; when it was
-- made, none of these numbers was with a transaction that was still under way. docs/audit.md has the hash's form.
CREATE TABLE audit_seals (
    number    bigint PRIMARY KEY,                       -- 1, 2, 3, …
    last_seq  bigint NOT NULL,
    sealed_at timestamptz NOT NULL,
    ids       uuid[] NOT NULL,                          -- of its rows, by seq: what names one that was added, moved or removed
    marks     bytea NOT NULL,                           -- the first 8 bytes of each row's hash: what names one that was changed
    hash      bytea NOT NULL,                           -- SHA-256 over the hash before it and the rows'
    CONSTRAINT audit_seals_number CHECK (number > 0),
    CONSTRAINT audit_seals_rows CHECK (octet_length(marks) = 8 * cardinality(ids) AND cardinality(ids) > 0),
    CONSTRAINT audit_seals_hash_sha256 CHECK (octet_length(hash) = 32)
);
CREATE TRIGGER audit_seals_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_seals
    FOR EACH STATEMENT EXECUTE FUNCTION audit_events_append_only();
-- +goose StatementBegin
-- Or a stolen password could end the chain for ever, by a seal over all numbers to come.
CREATE FUNCTION audit_seals_go_on() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    before record;
BEGIN
    SELECT number, last_seq INTO before FROM audit_seals ORDER BY number DESC LIMIT 1;
    IF NEW.number <> coalesce(before.number, 0) + 1 OR NEW.last_seq <= before.last_seq OR NEW.last_seq > (SELECT last_value FROM audit_events_seq) THEN
        RAISE EXCEPTION 'seal % up to % is not the next one', NEW.number, NEW.last_seq USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE OR REPLACE FUNCTION audit_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER audit_seals_go_on BEFORE INSERT ON audit_seals FOR EACH ROW EXECUTE FUNCTION audit_seals_go_on();

-- What runs with the owner's rights looks nothing up where the worker could put something in the way.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION audit_add_months() SET search_path = %I, pg_temp', current_schema());
END
$$;
-- +goose StatementEnd
ALTER FUNCTION audit_add_months() SET lock_timeout = '2s';
REVOKE ALL ON FUNCTION audit_id_at(timestamptz), audit_add_partition(text, text), audit_add_months(timestamptz), audit_add_months() FROM PUBLIC;

GRANT SELECT, INSERT (id, at, kind, link_id, request_id, click_id, detail, visitor_hash) ON audit_events TO latchkey_app;
GRANT USAGE, SELECT ON SEQUENCE audit_events_seq TO latchkey_app;
GRANT SELECT, INSERT ON audit_seals TO latchkey_app;
GRANT EXECUTE ON FUNCTION audit_id_at(timestamptz), audit_add_months() TO latchkey_app;

-- +goose Down
ALTER TABLE audit_events RENAME TO audit_events_after;
ALTER TABLE audit_events_after RENAME CONSTRAINT audit_events_pkey TO audit_events_after_pkey;
DROP INDEX audit_events_link_idx, audit_events_rejected_idx;
CREATE TABLE audit_events (
    id         uuid PRIMARY KEY,
    at         timestamptz NOT NULL,
    kind       text NOT NULL,
    link_id    uuid,
    request_id text,
    click_id   uuid,
    detail     jsonb NOT NULL DEFAULT '{}',
    CONSTRAINT audit_events_has_click CHECK (
        click_id IS NOT NULL OR kind NOT IN ('click.started', 'session.created', 'session.failed'))
);
INSERT INTO audit_events SELECT id, at, kind, link_id, request_id, click_id, detail FROM audit_events_after;
-- Rows of the kind audit.sealed stay. So the constraints do not look back.
ALTER TABLE audit_events
    ADD CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed', 'webhook.disabled',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied')) NOT VALID,
    ADD CONSTRAINT audit_events_has_link CHECK (link_id IS NOT NULL OR kind = 'request.rejected') NOT VALID;
CREATE INDEX audit_events_link_idx ON audit_events (link_id);
CREATE INDEX audit_events_rejected_idx ON audit_events (request_id) WHERE kind = 'request.rejected';
CREATE UNIQUE INDEX audit_events_click_started_key ON audit_events (click_id) WHERE kind = 'click.started';
CREATE UNIQUE INDEX audit_events_click_outcome_key ON audit_events (click_id) WHERE kind IN ('session.created', 'session.failed');
CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION audit_events_append_only();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION audit_events_append_only();
DROP TABLE audit_events_after, audit_seals;
DROP FUNCTION IF EXISTS lock_tables(text, text);
DROP FUNCTION audit_seals_go_on(), audit_add_months(), audit_add_months(timestamptz), audit_add_partition(text, text), audit_id_at(timestamptz);
ALTER TABLE audit_visitors DROP COLUMN salt;
GRANT SELECT, INSERT ON audit_events TO latchkey_app;
