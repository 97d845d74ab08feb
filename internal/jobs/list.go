package jobs

import (
	"context"

	"github.com/google/uuid"

	"latchkey/internal/portal"
)

// CustomerLinks lists a customer's links, newest first: at most limit of them, made before the link
// `before` (uuid.Nil: from the newest on), of the given sources only (nil: of all). A link's id is a
// UUIDv7, so its order is that of making, and a page stays where it is while new links come.
func (s *Service) CustomerLinks(ctx context.Context, customer string, sources []string, before uuid.UUID, limit int) ([]*LinkStatus, error) {
	// Materialized, or the planner could walk through all links from the newest on to find this customer's.
	links, err := portal.LoadLinks(ctx, s.Store.Pool, `id IN (
		WITH theirs AS MATERIALIZED (SELECT id FROM links
			WHERE stripe_customer = $1 AND ($2::text[] IS NULL OR source = ANY($2)))
		SELECT id FROM theirs WHERE $3::uuid IS NULL OR id < $3 ORDER BY id DESC LIMIT $4)
		ORDER BY id DESC`, customer, sources, uuid.NullUUID{UUID: before, Valid: before != uuid.Nil}, limit)
	if err != nil {
		return nil, err
	}
	out := make([]*LinkStatus, len(links))
	for i, link := range links {
		out[i] = s.linkStatus(link)
	}
	return out, nil
}
