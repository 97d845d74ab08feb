-- +goose Up

-- A temporary table comes before all others of its name, pg_catalog's too, unless search_path has pg_temp last; and the
-- worker's role may make some. With one called retired_keys it could make links under a retired key, with
-- one called pg_class pass for the owner of audit_events.
-- +goose StatementBegin
DO $$
DECLARE
    untold smallint[];
BEGIN
    EXECUTE format('ALTER FUNCTION links_key_not_retired() SET search_path = pg_catalog, %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION audit_seals_go_on() SET search_path = pg_catalog, %I, pg_temp', current_schema());
    ALTER FUNCTION audit_events_by_owner() SET search_path = pg_catalog, pg_temp;

    -- Keys that were retired before that stood in the audit (00008), so that a row of retired_keys without one is
    -- somebody's. Looked for first: an INSERT holds up the seals for as long as it takes.
    untold := ARRAY(SELECT id FROM retired_keys k
        WHERE NOT EXISTS (SELECT FROM audit_events WHERE kind = 'key.retired' AND detail->'key_id' = to_jsonb(k.id)));
    INSERT INTO audit_events (id, at, kind, detail)
    SELECT (left(audit_id_at(now())::text, 14) || '7' || substr(gen_random_uuid()::text, 16))::uuid, retired_at, 'key.retired',
        jsonb_build_object('key_id', id, 'by', retired_by, 'reason', coalesce(reason, ''))
    FROM retired_keys WHERE id = ANY(untold);
END
$$;
-- +goose StatementEnd

-- +goose Down
ALTER FUNCTION links_key_not_retired() RESET search_path;
ALTER FUNCTION audit_seals_go_on() RESET search_path;
ALTER FUNCTION audit_events_by_owner() RESET search_path;
