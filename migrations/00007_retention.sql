-- +goose Up

-- LINK_RETENTION: links that expired long ago can be deleted. Their request ids stay used up.
CREATE TABLE spent_request_ids (
    request_id text PRIMARY KEY
);

-- What is long past is found without a look at the rest; rows go in nearly by it, so a range of pages is enough.
CREATE INDEX links_expires_at_idx ON links USING brin (expires_at) WITH (pages_per_range = 32, autosummarize = on);
-- For the foreign key: each link that is deleted is looked for.
CREATE INDEX clicks_link_idx ON clicks (link_id);

-- The worker may delete no link but by this: those past their time, and of which nobody needs anything, at most so many.
-- A renewal needs the first of its chain, which is what counts renewals.
-- +goose StatementBegin
CREATE FUNCTION delete_expired_links(before timestamptz, most integer) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    gone uuid[];
BEGIN
    gone := ARRAY(
        SELECT id FROM links l
        WHERE expires_at < least(before, now())
            AND NOT EXISTS (SELECT FROM links r WHERE r.renewal_of = l.id AND r.expires_at >= before)
            AND NOT EXISTS (SELECT FROM clicks c WHERE c.link_id = l.id AND c.outcome IS NULL)
        LIMIT most FOR UPDATE SKIP LOCKED);
    INSERT INTO spent_request_ids SELECT request_id FROM links WHERE id = ANY(gone);
    DELETE FROM clicks WHERE link_id = ANY(gone);
    DELETE FROM links WHERE id = ANY(gone);
    RETURN cardinality(gone);
END
$$;
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION delete_expired_links(timestamptz, integer) SET search_path = %I, pg_temp', current_schema());
END
$$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION delete_expired_links(timestamptz, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION delete_expired_links(timestamptz, integer) TO latchkey_app;
GRANT SELECT ON spent_request_ids TO latchkey_app;

-- +goose Down
DROP FUNCTION delete_expired_links(timestamptz, integer);
DROP INDEX clicks_link_idx, links_expires_at_idx;
DROP TABLE spent_request_ids;
