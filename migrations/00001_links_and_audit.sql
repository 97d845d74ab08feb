-- +goose Up

-- One row for each request id, for ever: the unique key is what makes intake idempotent
-- (River's uniqueness ends with the job's row). The token is not here and never will be: it is
-- derived from id and the key that key_id names, whenever a URL is needed.
CREATE TABLE links (
    id                uuid PRIMARY KEY,                 -- UUIDv7: made in order, so the index grows at one end
    request_id        text NOT NULL,                    -- the producer's idempotency key
    request_hash      bytea NOT NULL,                   -- SHA-256 of the request's content: same id, other hash = id_conflict
    published_at      timestamptz NOT NULL,             -- when JetStream stored the request: a redelivery has the same, a repeat another
    source            text NOT NULL,
    campaign          text,
    stripe_customer   text NOT NULL,                    -- session.customer or session.customer_account
    stripe_account    text,                             -- connected account (Stripe-Account)
    session           jsonb NOT NULL,                   -- checked body of Stripe's create call, by Stripe's names
    metadata          jsonb NOT NULL DEFAULT '{}',
    key_id            smallint NOT NULL,
    max_sessions      integer,                          -- NULL = no limit
    sessions_created  integer NOT NULL DEFAULT 0,       -- moves with the click's outcome, in one commit
    sessions_reserved integer NOT NULL DEFAULT 0,       -- clicks between click.started and their outcome
    created_at        timestamptz NOT NULL,
    expires_at        timestamptz NOT NULL,
    revoked_at        timestamptz,
    revoked_by        text,
    revoke_reason     text,
    CONSTRAINT links_request_id_key UNIQUE (request_id),
    CONSTRAINT links_request_hash_sha256 CHECK (octet_length(request_hash) = 32),
    CONSTRAINT links_key_id_range CHECK (key_id BETWEEN 0 AND 255),
    CONSTRAINT links_max_sessions_range CHECK (max_sessions BETWEEN 1 AND 1000),
    CONSTRAINT links_sessions_within_limit CHECK (
        sessions_created >= 0 AND sessions_reserved >= 0
        AND (max_sessions IS NULL OR sessions_created + sessions_reserved <= max_sessions)),
    CONSTRAINT links_expire_after_creation CHECK (expires_at > created_at),
    CONSTRAINT links_revoked_by_someone CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
) WITH (fillfactor = 90);                               -- room for a click's counter to stay on its page (HOT)

CREATE INDEX links_stripe_customer_idx ON links (stripe_customer);
CREATE INDEX links_campaign_idx ON links (campaign) WHERE campaign IS NOT NULL;

-- One row for each press of the button, from click.started to its one outcome. The row is the
-- lock on "exactly one outcome": who sets outcome first wins, the click itself or the sweeper.
CREATE TABLE clicks (
    id         uuid PRIMARY KEY,                        -- also the Stripe idempotency key and the customer's reference number
    link_id    uuid NOT NULL REFERENCES links (id),
    started_at timestamptz NOT NULL,
    outcome    text,                                    -- NULL while Stripe is being asked
    ended_at   timestamptz,
    CONSTRAINT clicks_outcome_kind CHECK (outcome IN ('created', 'failed', 'interrupted')),
    CONSTRAINT clicks_outcome_has_time CHECK ((outcome IS NULL) = (ended_at IS NULL))
) WITH (fillfactor = 90);

CREATE INDEX clicks_open_idx ON clicks (started_at) WHERE outcome IS NULL;

-- What happened. Append-only: latchkey_app may insert and select, and a trigger refuses
-- UPDATE, DELETE and TRUNCATE to everybody else. No foreign keys: the audit outlives the rows
-- that it speaks of.
CREATE TABLE audit_events (
    id         uuid PRIMARY KEY,                        -- UUIDv7, and the id of the CloudEvent published for the row
    at         timestamptz NOT NULL,
    kind       text NOT NULL,
    link_id    uuid,                                    -- NULL for a rejected request
    request_id text,                                    -- NULL where a rejected request had no readable id
    click_id   uuid,
    detail     jsonb NOT NULL DEFAULT '{}',             -- never a token, a session URL, a key, or a visitor's address
    CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied')),
    CONSTRAINT audit_events_has_link CHECK (link_id IS NOT NULL OR kind = 'request.rejected'),
    CONSTRAINT audit_events_has_click CHECK (
        click_id IS NOT NULL OR kind NOT IN ('click.started', 'session.created', 'session.failed'))
);

CREATE INDEX audit_events_link_idx ON audit_events (link_id);
CREATE INDEX audit_events_rejected_idx ON audit_events (request_id) WHERE kind = 'request.rejected';
-- Invariant: no click has two starts or two outcomes, whoever writes them.
CREATE UNIQUE INDEX audit_events_click_started_key ON audit_events (click_id) WHERE kind = 'click.started';
CREATE UNIQUE INDEX audit_events_click_outcome_key ON audit_events (click_id) WHERE kind IN ('session.created', 'session.failed');

-- Personal data of visitors, apart from the audit: it has a retention of its own and can be
-- erased without touching an audit row.
CREATE TABLE audit_visitors (
    event_id   uuid PRIMARY KEY,                        -- audit_events.id
    at         timestamptz NOT NULL,
    ip         inet NOT NULL,
    user_agent text NOT NULL,
    CONSTRAINT audit_visitors_user_agent_length CHECK (char_length(user_agent) <= 512)
);

CREATE INDEX audit_visitors_at_idx ON audit_visitors (at);

-- +goose StatementBegin
CREATE FUNCTION audit_events_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit_events is append-only: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
-- +goose StatementEnd
CREATE TRIGGER audit_events_no_change BEFORE UPDATE OR DELETE ON audit_events
    FOR EACH ROW EXECUTE FUNCTION audit_events_append_only();
CREATE TRIGGER audit_events_no_truncate BEFORE TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION audit_events_append_only();

-- The least the worker needs. A role belongs to the whole cluster, so it may be there already,
-- made for another database (or by an operator, where the migrating user may not create roles).
-- +goose StatementBegin
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'latchkey_app') THEN
        CREATE ROLE latchkey_app NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database's migration was quicker
END
$$;
-- +goose StatementEnd

GRANT SELECT, INSERT ON links, clicks, audit_events TO latchkey_app;
GRANT UPDATE (sessions_created, sessions_reserved, revoked_at, revoked_by, revoke_reason) ON links TO latchkey_app;
GRANT UPDATE (outcome, ended_at) ON clicks TO latchkey_app;
GRANT SELECT, INSERT ON audit_visitors TO latchkey_app;

-- +goose Down
DROP TABLE audit_visitors, audit_events, clicks, links;
DROP FUNCTION audit_events_append_only();
