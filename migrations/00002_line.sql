-- +goose Up

-- What a renewal needs of the link that it replaces.
ALTER TABLE links
    ADD COLUMN deliver    jsonb,                        -- the request's deliveries; NULL = none
    ADD COLUMN renewal_of uuid;                         -- the first link of a chain of renewals; NULL = not a renewal
-- At most 3 renewals a day are counted by it.
CREATE INDEX links_renewal_of_idx ON links (renewal_of, created_at) WHERE renewal_of IS NOT NULL;

-- A link has at most one open click: a press meanwhile joins it. One that waits for the Stripe
-- budget has a ticket, its place in the account's line.
ALTER TABLE clicks
    ADD COLUMN ticket     bigint,                       -- number in the line of stripe_budget; NULL = never had to wait
    ADD COLUMN open_until timestamptz NOT NULL DEFAULT now() + interval '60 seconds', -- from then on the sweeper may close it
    DROP CONSTRAINT clicks_outcome_kind,
    ADD CONSTRAINT clicks_outcome_kind CHECK (outcome IN ('created', 'failed', 'interrupted', 'abandoned'));
DROP INDEX clicks_open_idx;
CREATE INDEX clicks_open_idx ON clicks (open_until) WHERE outcome IS NULL;
CREATE INDEX clicks_open_link_idx ON clicks (link_id) WHERE outcome IS NULL;

-- The Stripe budget: one row for each Stripe account, shared by all replicas, locked for a moment
-- by each reservation. slot_at is when the next call may be made; tickets number those who have
-- to wait longer than a request does. Losing the last moments of it in a crash of Postgres is
-- harmless, so its writers don't wait for the disk (synchronous_commit = off).
CREATE TABLE stripe_budget (
    account     text PRIMARY KEY,                       -- connected account; '' = the key's own
    slot_at     timestamptz NOT NULL,                   -- the next free slot
    head        bigint NOT NULL DEFAULT 1,              -- the ticket whose turn it is at slot_at
    last_ticket bigint NOT NULL DEFAULT 0,              -- the newest ticket given
    lowered_to  double precision,                       -- calls a second after Stripe's last 429; NULL = never
    lowered_at  timestamptz,
    CONSTRAINT stripe_budget_lowered CHECK ((lowered_to IS NULL) = (lowered_at IS NULL) AND lowered_to > 0)
) WITH (fillfactor = 20);                               -- every update stays on its page (HOT)

GRANT UPDATE (ticket, open_until) ON clicks TO latchkey_app;
GRANT SELECT, INSERT, UPDATE ON stripe_budget TO latchkey_app;

-- +goose Down
DROP TABLE stripe_budget;
DROP INDEX clicks_open_link_idx;
DROP INDEX clicks_open_idx;
CREATE INDEX clicks_open_idx ON clicks (started_at) WHERE outcome IS NULL;
UPDATE clicks SET outcome = 'interrupted' WHERE outcome = 'abandoned';
ALTER TABLE clicks
    DROP COLUMN ticket,
    DROP COLUMN open_until,
    DROP CONSTRAINT clicks_outcome_kind,
    ADD CONSTRAINT clicks_outcome_kind CHECK (outcome IN ('created', 'failed', 'interrupted'));
DROP INDEX links_renewal_of_idx;
ALTER TABLE links
    DROP COLUMN deliver,
    DROP COLUMN renewal_of;
