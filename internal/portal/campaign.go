package portal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Campaign is what became of the links of a campaign, its renewals included. What is counted is links, each
// once, but for Sessions and SessionsFailed. Each link is one of live, used up, expired and revoked.
type Campaign struct {
	Campaign       string    `json:"campaign"`
	Issued         int       `json:"issued"`
	Renewals       int       `json:"renewals"`        // of those issued: in place of an expired one
	Delivered      int       `json:"delivered"`       // by one channel or more
	DeliveryFailed int       `json:"delivery_failed"` // one channel or more has given up
	Opened         int       `json:"opened"`          // by a person, as far as can be told
	Clicked        int       `json:"clicked"`
	Sessions       int       `json:"sessions"`
	SessionsFailed int       `json:"sessions_failed"` // clicks that got no session
	Live           int       `json:"live"`
	UsedUp         int       `json:"used_up"`
	Expired        int       `json:"expired"`
	Revoked        int       `json:"revoked"`
	FirstCreatedAt time.Time `json:"first_created_at"`
	LastCreatedAt  time.Time `json:"last_created_at"`
	FirstExpiresAt time.Time `json:"first_expires_at"`
	LastExpiresAt  time.Time `json:"last_expires_at"`
}

// CampaignList is a list of campaigns, the one with the newest link first.
type CampaignList struct {
	Campaigns []CampaignSummary `json:"campaigns"`
	Total     int               `json:"total"` // campaigns that there are, listed or not
}

// CampaignSummary is a line of the list.
type CampaignSummary struct {
	Campaign       string    `json:"campaign"`
	Sources        []string  `json:"sources"` // sorted
	Links          int       `json:"links"`
	Live           int       `json:"live"`
	FirstCreatedAt time.Time `json:"first_created_at"`
	LastCreatedAt  time.Time `json:"last_created_at"`
}

// Bounds of counting. A process counts for one caller at a time, on one connection without parallel workers, so
// that clicks keep the rest of the pool and of the machine.
const (
	MostCampaigns = 1000 // of a list

	countTurn = 5 * time.Second  // how long a caller waits for the one before
	countTime = 20 * time.Second // with countTurn below the caller's patience
)

// countSettings are PlannerSettings to the end, so that these plans don't depend on statistics either: each lookup
// goes by an index, and what has to be grouped is hashed. To compile a query takes longer than it saves.
const countSettings = `SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off; SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL jit = off; `

// Errors of campaigns.
var (
	// ErrNoCampaign is returned when no link is of the campaign.
	ErrNoCampaign = errors.New("no link is of this campaign")
	// ErrCampaignLimit is returned for a list of no campaign, or of too many.
	ErrCampaignLimit = fmt.Errorf("limit must be 1 to %d", MostCampaigns)
	// ErrCounting is returned when others are being counted for.
	ErrCounting = errors.New("the links of a campaign are being counted for somebody else; try again in a few seconds")
	// ErrCountTooLong is returned when the database has not counted in time.
	ErrCountTooLong = fmt.Errorf("counting took longer than %.0f s and was ended; try again when the database has less to do, or list fewer campaigns by a lower limit", countTime.Seconds())
)

// Both of a link's lookups are by an index, one link after the other: no plan for this has anything to
// sort or to keep in memory, however large the campaign is. The bound of the ids is for the months that they are
// partitioned by.
const countCampaign = `
	SELECT count(*), count(renewal_of), count(*) FILTER (WHERE h.delivered), count(*) FILTER (WHERE h.delivery_failed),
		count(*) FILTER (WHERE h.opened), count(*) FILTER (WHERE h.clicked), sum(sessions_created), sum(h.sessions_failed),
		count(*) FILTER (WHERE ` + isLive + `),
		count(*) FILTER (WHERE revoked_at IS NULL AND expires_at > $2 AND sessions_created >= max_sessions),
		count(*) FILTER (WHERE revoked_at IS NULL AND expires_at <= $2),
		count(revoked_at), min(created_at), max(created_at), min(expires_at), max(expires_at)
	FROM links l CROSS JOIN LATERAL (
		SELECT bool_or(kind = 'link.delivered') AS delivered, bool_or(kind = 'link.delivery_failed') AS delivery_failed,
			bool_or(kind = 'link.opened' AND detail->>'verdict' = 'person') AS opened, bool_or(kind = 'click.started') AS clicked,
			count(*) FILTER (WHERE kind = 'session.failed') AS sessions_failed
		FROM audit_events WHERE link_id = l.id AND id >= audit_id_at(l.created_at - interval '1 hour')) h
	WHERE campaign = $1
	HAVING count(*) > 0`

// isLive is Link.StateAt's StateLive at the time $2.
const isLive = `revoked_at IS NULL AND expires_at > $2 AND (max_sessions IS NULL OR sessions_created < max_sessions)`

// Campaign counts what became of a campaign's links. It returns ErrNoCampaign, ErrCounting or ErrCountTooLong.
func (s *Store) Campaign(ctx context.Context, name string) (*Campaign, error) {
	c := &Campaign{Campaign: name}
	err := s.count(ctx, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, countCampaign, name, s.Now()).Scan(&c.Issued, &c.Renewals, &c.Delivered, &c.DeliveryFailed,
			&c.Opened, &c.Clicked, &c.Sessions, &c.SessionsFailed, &c.Live, &c.UsedUp, &c.Expired, &c.Revoked,
			&c.FirstCreatedAt, &c.LastCreatedAt, &c.FirstExpiresAt, &c.LastExpiresAt)
		if errors.Is(err, pgx.ErrNoRows) {
			return ErrNoCampaign
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, at := range []*time.Time{&c.FirstCreatedAt, &c.LastCreatedAt, &c.FirstExpiresAt, &c.LastExpiresAt} {
		*at = at.UTC()
	}
	return c, nil
}

// The names are found by jumps from one to the next in the index of campaigns. It has no times, but keeps the
// links of a campaign by their place in the table: the last 200 of each tell which campaigns are the newest, and
// only those are counted, and put in order by what was counted. An update may move a link to another place, so
// at the limit a campaign with more links than that can be taken for older than it is.
const listCampaigns = `
	WITH RECURSIVE names AS (
		(SELECT campaign FROM links WHERE campaign IS NOT NULL ORDER BY campaign LIMIT 1)
		UNION ALL
		SELECT (SELECT l.campaign FROM links l WHERE l.campaign > names.campaign ORDER BY l.campaign LIMIT 1)
		FROM names WHERE campaign IS NOT NULL),
	newest AS (
		SELECT n.campaign, count(*) OVER () AS total FROM names n
		CROSS JOIN LATERAL (
			SELECT max(created_at) AS at
			FROM (SELECT created_at FROM links WHERE campaign <= n.campaign AND campaign >= n.campaign -- '=' would lose the order
				ORDER BY campaign DESC LIMIT 200) r) last
		WHERE n.campaign IS NOT NULL
		ORDER BY last.at DESC, n.campaign LIMIT $1)
	SELECT n.total, n.campaign, c.* FROM newest n
	CROSS JOIN LATERAL (
		SELECT array_agg(source ORDER BY source), sum(links), sum(live), min(first), max(last) AS last
		FROM (SELECT source, count(*) AS links, count(*) FILTER (WHERE ` + isLive + `) AS live, min(created_at) AS first, max(created_at) AS last
			FROM links WHERE campaign = n.campaign GROUP BY source) s) c
	ORDER BY c.last DESC, n.campaign`

// Campaigns lists at most limit campaigns. It returns ErrCampaignLimit, ErrCounting or ErrCountTooLong.
func (s *Store) Campaigns(ctx context.Context, limit int) (*CampaignList, error) {
	if limit < 1 || limit > MostCampaigns {
		return nil, ErrCampaignLimit
	}
	list := &CampaignList{}
	err := s.count(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, listCampaigns, limit, s.Now())
		if err != nil {
			return err
		}
		list.Campaigns, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (c CampaignSummary, err error) {
			err = row.Scan(&list.Total, &c.Campaign, &c.Sources, &c.Links, &c.Live, &c.FirstCreatedAt, &c.LastCreatedAt)
			c.FirstCreatedAt, c.LastCreatedAt = c.FirstCreatedAt.UTC(), c.LastCreatedAt.UTC()
			return c, err
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// count runs f's query when it is this caller's turn, in a transaction that only reads.
func (s *Store) count(ctx context.Context, f func(tx pgx.Tx) error) error {
	select { // who waits here takes a place among the callers of the micro service, which has few
	case s.countLine <- struct{}{}:
		defer func() { <-s.countLine }()
	default:
		return ErrCounting
	}
	turn, cancel := context.WithTimeout(ctx, countTurn)
	defer cancel()
	select {
	case s.counting <- struct{}{}:
		defer func() { <-s.counting }()
	case <-turn.Done():
		return ErrCounting
	}
	err := pgx.BeginTxFunc(ctx, s.Pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, countSettings+fmt.Sprintf("SET LOCAL statement_timeout = %d", s.countTime.Milliseconds())); err != nil {
			return err
		}
		return f(tx)
	})
	var pg *pgconn.PgError
	switch {
	case errors.Is(err, ErrNoCampaign):
		return ErrNoCampaign
	case errors.As(err, &pg) && pg.Code == "57014": // query_canceled
		return ErrCountTooLong
	case err != nil:
		return fmt.Errorf("count links of campaigns: %w", err)
	}
	return nil
}
