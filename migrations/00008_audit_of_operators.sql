-- +goose Up

-- What an operator does to more than links stands in the audit too: audit.erased, key.retired. NOT VALID, so that
-- nobody waits for a look at every row: the rows that are there passed a narrower constraint.
SELECT lock_tables('audit_events', 'ACCESS EXCLUSIVE');
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_kind,
    ADD CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed', 'webhook.disabled', 'audit.sealed',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied', 'audit.erased', 'key.retired')) NOT VALID,
    DROP CONSTRAINT audit_events_has_link,
    ADD CONSTRAINT audit_events_has_link CHECK (CASE WHEN kind IN ('audit.erased', 'key.retired') THEN link_id IS NULL
        ELSE link_id IS NOT NULL OR kind IN ('request.rejected', 'audit.sealed', 'webhook.disabled') END) NOT VALID;

-- Whoever has the worker's password makes up no operator's doing.
-- +goose StatementBegin
CREATE FUNCTION audit_events_by_owner() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RAISE EXCEPTION '% takes the owner of audit_events', NEW.kind USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
-- +goose StatementEnd
CREATE TRIGGER audit_events_by_owner BEFORE INSERT ON audit_events
    FOR EACH ROW WHEN (NEW.kind IN ('audit.erased', 'key.retired')) EXECUTE FUNCTION audit_events_by_owner();

-- +goose Down
DROP TRIGGER audit_events_by_owner ON audit_events;
DROP FUNCTION audit_events_by_owner();
-- The rows of the new kinds stay; so the constraints do not look back.
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_kind,
    ADD CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed', 'webhook.disabled', 'audit.sealed',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied')) NOT VALID,
    DROP CONSTRAINT audit_events_has_link,
    ADD CONSTRAINT audit_events_has_link CHECK (
        link_id IS NOT NULL OR kind IN ('request.rejected', 'audit.sealed', 'webhook.disabled')) NOT VALID;
