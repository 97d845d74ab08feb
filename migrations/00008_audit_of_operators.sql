-- +goose Up

-- What an operator does to more than links stands in the audit too: audit.erased, key.retired. NOT VALID, so that
-- nobody waits for a look at every row: the rows that are there passed the narrower constraint.
SELECT lock_tables('audit_events', 'ACCESS EXCLUSIVE');
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_kind,
    ADD CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed', 'webhook.disabled', 'audit.sealed',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied', 'audit.erased', 'key.retired')) NOT VALID,
    DROP CONSTRAINT audit_events_has_link,
    ADD CONSTRAINT audit_events_has_link CHECK (
        link_id IS NOT NULL OR kind IN ('request.rejected', 'audit.sealed', 'webhook.disabled', 'audit.erased', 'key.retired')) NOT VALID;

-- +goose Down
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
