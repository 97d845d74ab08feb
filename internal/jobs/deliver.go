package jobs

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// The channels of a delivery.
const (
	ChannelEmail   = "email"
	ChannelWebhook = "webhook"
)

// deliveryAttempts is above any schedule of attempts: a job counts its attempts against the schedule
// itself, since River would discard it without an outcome.
const deliveryAttempts = 1000

// soon is when a delivery is tried again that could not even begin.
const soon = 5 * time.Second

// DeliverFunc makes, in the transaction that makes the links, a job for each of their deliveries.
type DeliverFunc func(ctx context.Context, tx pgx.Tx, deliveries []river.InsertManyParams) error

// Deliver is the DeliverFunc.
func (r *River) Deliver(ctx context.Context, tx pgx.Tx, deliveries []river.InsertManyParams) error {
	if _, err := r.client.InsertManyTx(ctx, tx, deliveries); err != nil {
		return fmt.Errorf("insert delivery jobs: %w", err)
	}
	return nil
}

// Priorities of River's: a single link's mail or webhook does not wait behind a campaign's.
const (
	prioritySingle = 1
	priorityMass   = 2
)

// deliveryJobs are the jobs of a request's deliveries; event is the id of its link.issued row.
func deliveryJobs(event uuid.UUID, req *Request) (jobs []river.InsertManyParams) {
	opts := &river.InsertOpts{Priority: prioritySingle}
	if req.Campaign != "" {
		opts.Priority = priorityMass
	}
	for n, d := range req.Deliver {
		switch d.Channel {
		case ChannelEmail:
			jobs = append(jobs, river.InsertManyParams{Args: EmailArgs{Event: event, N: n}, InsertOpts: opts})
		case ChannelWebhook:
			jobs = append(jobs, river.InsertManyParams{Args: WebhookArgs{Event: event, N: n, Lane: notify.Lane(d.URL)}, InsertOpts: opts})
		}
	}
	return jobs
}

// delivery is one entry of a request's deliver on its way.
type delivery struct {
	Delivery

	id   uuid.UUID // stable, and the id of the audit row of its outcome: so it can have only one
	row  portal.EventRow
	link *portal.Link // the row's, with Locale and RevokedAt
}

// deliveryID derives it from the row that issued the link. Its first 48 bits are that row's time, as in
// any UUIDv7.
func deliveryID(event uuid.UUID, n int) uuid.UUID {
	in := binary.BigEndian.AppendUint64(append([]byte("latchkey delivery "), event[:]...), uint64(n))
	sum := sha256.Sum256(in)
	id := uuid.UUID(sum[:16])
	copy(id[:6], event[:6])
	id[6], id[8] = id[6]&0x0f|0x70, id[8]&0x3f|0x80
	return id
}

// errDelivered is returned for a delivery that has its outcome: the worker died between that commit and
// the end of the job.
var errDelivered = errors.New("the delivery has its outcome")

// deliveries loads deliveries and writes down what became of them, durably, whatever their pool does.
type deliveries struct {
	pool    *pgxpool.Pool
	publish portal.PublishFunc
	now     func() time.Time
	log     *slog.Logger
}

// errErased is returned for a delivery whose address and data were erased since.
var errErased = errors.New("the delivery was erased")

// load reads a delivery. It returns errDelivered, errErased with what is left of it, portal.ErrNoLink where the
// database has lost the link, or an error of the database.
func (s *deliveries) load(ctx context.Context, event uuid.UUID, n int) (*delivery, error) {
	rows, err := portal.LoadEventRows(ctx, s.pool, `e.id = $1`, event)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 || rows[0].Link == nil {
		return nil, portal.ErrNoLink
	}
	d := &delivery{id: deliveryID(event, n), row: rows[0], link: rows[0].Link}
	var entry []byte
	var ended bool
	var revoked *time.Time
	err = s.pool.QueryRow(ctx, `SELECT deliver->$2::int, EXISTS (SELECT FROM audit_events WHERE id = $3), `+portal.RevokedAt+`, coalesce(session->>'locale', '')
		FROM links WHERE id = $1`, d.row.LinkID, n, d.id).Scan(&entry, &ended, &revoked, &d.link.Locale)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read a delivery: %w", err)
	case ended:
		return nil, errDelivered
	case len(entry) == 0:
		return d, errErased
	}
	if revoked != nil {
		d.link.RevokedAt = *revoked
	}
	if err := json.Unmarshal(entry, &d.Delivery); err != nil {
		return nil, fmt.Errorf("read a delivery: %w", err)
	}
	return d, nil
}

// dead says why a link is not worth delivering any more; empty = it is.
func (d *delivery) dead(now time.Time) string {
	switch state := d.link.StateAt(now); state {
	case portal.StateRevoked:
		return "the link was revoked before it could be delivered"
	case portal.StateExpired:
		return "the link expired before it could be delivered"
	}
	return ""
}

// outcome is how a delivery ended.
type outcome struct {
	kind     portal.Kind // portal.LinkDelivered or LinkDeliveryFailed
	attempts int
	detail   map[string]any // beside channel and attempts
}

func delivered(attempts int) outcome { return outcome{portal.LinkDelivered, attempts, nil} }

func failed(attempts int, reason string, more map[string]any) outcome {
	detail := map[string]any{"error": reason}
	for k, v := range more {
		detail[k] = v
	}
	return outcome{portal.LinkDeliveryFailed, attempts, detail}
}

// end writes a delivery's outcome and its publish job. Only the first outcome counts: two workers may be
// at the same job, if one of them was taken for dead.
func (s *deliveries) end(ctx context.Context, d *delivery, o outcome) error {
	detail := map[string]any{"channel": d.Channel, "attempts": o.attempts}
	for k, v := range o.detail {
		detail[k] = v
	}
	e := portal.AuditEvent{ID: d.id, At: s.now(), Kind: o.kind, LinkID: d.link.ID, RequestID: d.link.RequestID, Detail: detail}
	return portal.InTx(ctx, s.pool, func(tx *portal.Tx) error {
		if err := durable(ctx, tx); err != nil {
			return err
		}
		if err := portal.InsertAuditOnce(ctx, tx, []portal.AuditEvent{e}); err != nil {
			return err
		}
		return s.publish(ctx, tx, portal.OneID(d.id))
	})
	// InTx has committed: durable are the outcome and its publish job. A crash here means that the job
	// runs once more, and finds its outcome.
}

// begin loads a delivery for its job. skip is what the job is to return where there is nothing to send.
func (s *deliveries) begin(ctx context.Context, channel string, event uuid.UUID, n, attempts int) (d *delivery, skip error, ok bool) {
	d, err := s.load(ctx, event, n)
	switch {
	case errors.Is(err, errDelivered):
		return nil, nil, false
	case errors.Is(err, errErased):
		d.Channel = channel
		return nil, s.settle(ctx, d, failed(attempts, "what it needed was erased before it could be delivered", nil)), false
	case errors.Is(err, portal.ErrNoLink):
		return nil, river.JobCancel(errors.New("its link is gone: it was past its retention, or the database was restored from a dump without it")), false
	case err != nil:
		return nil, s.later(event, err), false
	}
	if reason := d.dead(s.now()); reason != "" {
		return nil, s.settle(ctx, d, failed(attempts, reason, nil)), false
	}
	return d, nil, true
}

// settleTime is left to an outcome when the process stops.
const settleTime = 3 * time.Second

// settle ends a delivery; where the database does not take that, the job comes back for it. A stop does not
// cut it: what was sent would be sent again.
func (s *deliveries) settle(ctx context.Context, d *delivery, o outcome) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if err := s.end(ctx, d, o); err != nil {
		return s.later(d.row.ID, err)
	}
	return nil
}

// later puts a job off for something that is not the delivery's fault, and so is no attempt of it.
func (s *deliveries) later(event uuid.UUID, err error) error {
	s.log.Warn("a delivery is put off", "event_id", event, "error", err)
	return river.JobSnooze(soon)
}
