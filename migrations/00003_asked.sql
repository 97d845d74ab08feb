-- +goose Up

-- A click keeps its ticket until its end, so that its place outlives a slot that came to nothing.
-- Whether Stripe may have been asked decides how long its idempotency key is good for, and stands
-- by itself: asked_at, or started_at where the click never had to wait (ticket is NULL).
ALTER TABLE clicks
    ADD COLUMN asked_at   timestamptz,                  -- since when Stripe may have been asked; NULL with a ticket = it was not
    ADD COLUMN kept_until timestamptz;                  -- until when its page comes back, which was told so because Stripe was away
-- The line looks for them after a pause; at other times it is empty.
CREATE INDEX clicks_kept_idx ON clicks (kept_until) WHERE outcome IS NULL AND kept_until IS NOT NULL;
COMMENT ON COLUMN clicks.ticket IS 'number in the line of stripe_budget; 0 = it comes back for one; NULL = it never had to wait';

GRANT UPDATE (asked_at, kept_until) ON clicks TO latchkey_app;

-- +goose Down
DROP INDEX clicks_kept_idx;
ALTER TABLE clicks
    DROP COLUMN asked_at,
    DROP COLUMN kept_until;
