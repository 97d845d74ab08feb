-- +goose Up

-- Signing keys that were retired, for ever: none of their links serves a click any more, and none is made
-- under them. A key itself is never here, only its id.
CREATE TABLE retired_keys (
    id         smallint PRIMARY KEY,                    -- links.key_id
    retired_at timestamptz NOT NULL,
    retired_by text NOT NULL,
    reason     text,
    CONSTRAINT retired_keys_id_range CHECK (id BETWEEN 0 AND 255)
);

-- No link is made under a retired key, whatever binary makes it. The lock is held to the commit, and who
-- retires the key takes it alone: so a link is there, to be revoked, before the key is retired, or is refused.
-- After the statement, once for all of its rows: a foreign key would look once for each.
-- +goose StatementBegin
CREATE FUNCTION links_key_not_retired() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    key smallint;
BEGIN
    SELECT min(key_id) INTO key FROM made; -- from key to key, mostly of one: DISTINCT would sort all rows
    WHILE key IS NOT NULL LOOP
        PERFORM pg_advisory_xact_lock_shared(1801812339, key); -- 'keys' in ASCII
        IF EXISTS (SELECT FROM retired_keys WHERE id = key) THEN
            RAISE EXCEPTION 'signing key % is retired', key
                USING ERRCODE = 'object_not_in_prerequisite_state', CONSTRAINT = 'links_key_not_retired',
                      HINT = 'Put another key first in LINK_KEYS.';
        END IF;
        SELECT min(key_id) INTO key FROM made WHERE key_id > key;
    END LOOP;
    RETURN NULL;
END
$$;
-- +goose StatementEnd
SELECT lock_tables('links', 'SHARE ROW EXCLUSIVE');
CREATE TRIGGER links_key_not_retired AFTER INSERT ON links
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION links_key_not_retired();

-- The worker looks; who retires a key owns the schema.
GRANT SELECT ON retired_keys TO latchkey_app;

-- +goose Down
DROP TRIGGER links_key_not_retired ON links;
DROP FUNCTION links_key_not_retired();
DROP TABLE retired_keys;
