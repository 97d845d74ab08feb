-- +goose Up

SELECT lock_tables('clicks, links', 'SHARE ROW EXCLUSIVE');

-- LINK_RETENTION: links that expired long ago can be deleted. Their request ids stay used up.
CREATE TABLE spent_request_ids (
    request_id text PRIMARY KEY
);

-- What is long past is found without a look at the rest; rows go in nearly by it, so a range of pages is enough.
CREATE INDEX links_expires_at_idx ON links USING brin (expires_at) WITH (pages_per_range = 32, autosummarize = on);
-- For the foreign key: each link that is deleted is looked for.
CREATE INDEX clicks_link_idx ON clicks (link_id);

-- The worker may delete no link and no visitor but by these, by the database's clock, and nothing of the last day.
-- +goose StatementBegin
CREATE FUNCTION delete_old_visitors(age interval, most integer) RETURNS bigint LANGUAGE sql SECURITY DEFINER AS $$
    WITH gone AS (
        DELETE FROM audit_visitors WHERE event_id IN (
            SELECT event_id FROM audit_visitors WHERE at < now() - greatest(age, interval '24 hours') ORDER BY at LIMIT most)
        RETURNING 1)
    SELECT count(*) FROM gone
$$;

-- Those past their time, at most so many. A chain of renewals goes as a whole or stays: its links count its renewals, and
-- a revoked one ends it. Who visited a link can't be found without it, to be erased, so that goes too.
CREATE FUNCTION delete_expired_links(age interval, most integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    before CONSTANT timestamptz := now() - greatest(age, interval '24 hours');
    gone uuid[];
BEGIN
    gone := ARRAY(
        SELECT id FROM links l
        WHERE expires_at < before
            AND NOT EXISTS (SELECT FROM links r WHERE r.expires_at >= before
                AND (r.id = coalesce(l.renewal_of, l.id) OR r.renewal_of = coalesce(l.renewal_of, l.id)))
            AND NOT EXISTS (SELECT FROM clicks c WHERE c.link_id = l.id AND c.outcome IS NULL)
        LIMIT most FOR UPDATE SKIP LOCKED);
    -- A worker of the release before does not know the table, and may have used an id again.
    INSERT INTO spent_request_ids SELECT request_id FROM links WHERE id = ANY(gone) ON CONFLICT DO NOTHING;
    DELETE FROM audit_visitors WHERE event_id IN (SELECT id FROM audit_events WHERE link_id = ANY(gone));
    DELETE FROM clicks WHERE link_id = ANY(gone);
    DELETE FROM links WHERE id = ANY(gone);
    RETURN cardinality(gone);
END
$$;
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION delete_old_visitors(interval, integer) SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION delete_expired_links(interval, integer) SET search_path = %I, pg_temp', current_schema());
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION delete_old_visitors(interval, integer), delete_expired_links(interval, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_old_visitors(interval, integer), delete_expired_links(interval, integer) TO latchkey_app;
GRANT SELECT ON spent_request_ids TO latchkey_app;

-- +goose Down
DROP FUNCTION delete_old_visitors(interval, integer), delete_expired_links(interval, integer);
DROP INDEX clicks_link_idx, links_expires_at_idx;
DROP TABLE spent_request_ids;
