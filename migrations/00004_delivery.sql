-- +goose Up

-- What happened to a webhook's target is an event too: nobody would look for what does not come any more.
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_kind,
    ADD CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed', 'webhook.disabled',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied'));

-- One row for each webhook target that ever failed. A target is known by the hash of its URL, which can
-- hold a secret; the host is for people.
CREATE TABLE webhook_targets (
    id             bytea PRIMARY KEY,                   -- SHA-256 of the URL
    host           text NOT NULL,
    failing_since  timestamptz,                         -- first failure since its last success; NULL = it works
    last_failed_at timestamptz NOT NULL,
    disabled_at    timestamptz,                         -- since then nothing is sent to it; NULL = enabled
    CONSTRAINT webhook_targets_id_sha256 CHECK (octet_length(id) = 32),
    CONSTRAINT webhook_targets_disabled_is_failing CHECK (disabled_at IS NULL OR failing_since IS NOT NULL)
);

-- Bearer tokens of the HTTP API. A token is 256 random bits, so a plain hash of it can't be guessed.
CREATE TABLE api_tokens (
    id           uuid PRIMARY KEY,
    name         text NOT NULL,
    hash         bytea NOT NULL,                        -- SHA-256 of the token
    scopes       text[] NOT NULL,
    sources      text[],                                -- links of which sources; NULL = of all
    created_at   timestamptz NOT NULL,
    last_used_at timestamptz,                           -- to the hour
    revoked_at   timestamptz,
    CONSTRAINT api_tokens_name_key UNIQUE (name),
    CONSTRAINT api_tokens_hash_key UNIQUE (hash),
    CONSTRAINT api_tokens_hash_sha256 CHECK (octet_length(hash) = 32),
    CONSTRAINT api_tokens_name_length CHECK (char_length(name) BETWEEN 1 AND 100),
    CONSTRAINT api_tokens_scopes CHECK (cardinality(scopes) > 0 AND scopes <@ '{create,read,revoke}'::text[]),
    CONSTRAINT api_tokens_sources CHECK (cardinality(sources) > 0)
);

-- The worker checks tokens; who makes and revokes them owns the schema.
GRANT SELECT ON api_tokens TO latchkey_app;
GRANT UPDATE (last_used_at) ON api_tokens TO latchkey_app;
GRANT SELECT, INSERT, UPDATE ON webhook_targets TO latchkey_app;

-- +goose Down
DROP TABLE api_tokens, webhook_targets;
-- Rows of the kind webhook.disabled stay: the audit is append-only. So the constraint does not look back.
ALTER TABLE audit_events
    DROP CONSTRAINT audit_events_kind,
    ADD CONSTRAINT audit_events_kind CHECK (kind IN (
        'link.issued', 'link.delivered', 'link.delivery_failed', 'link.opened', 'link.renewed', 'link.revoked',
        'session.created', 'session.failed',
        'request.duplicate', 'request.rejected', 'click.started', 'click.denied')) NOT VALID;
