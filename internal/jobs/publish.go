package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// PublishArgs names the audit rows of one commit whose events are to be published; not each id needs to
// have a row. Ids only: the URL of link.issued is computed when the event is made.
type PublishArgs struct {
	Rows []portal.IDRange `json:"rows"`
}

// Kind is the job's name in River.
func (PublishArgs) Kind() string { return "publish" }

// InsertOpts puts the job on its own queue.
func (PublishArgs) InsertOpts() river.InsertOpts { return river.InsertOpts{Queue: queueEvents} }

// EventData is what the data of every event holds.
type EventData struct {
	RequestID string          `json:"request_id"`
	LinkID    uuid.UUID       `json:"link_id"`
	Source    string          `json:"source"`
	Campaign  string          `json:"campaign"`
	Customer  string          `json:"customer"`
	Metadata  json.RawMessage `json:"metadata"`
}

func newEventData(l *portal.Link) EventData {
	return EventData{RequestID: l.RequestID, LinkID: l.ID, Source: l.Source, Campaign: l.Campaign, Customer: l.Customer, Metadata: l.Metadata}
}

// publisher makes events of audit rows and has them stored, and a job made for each webhook that a
// subscription wants.
type publisher struct {
	pool          *pgxpool.Pool
	js            jetstream.JetStream
	maker         eventMaker
	subscriptions []Subscription
	insert        func(context.Context, []river.InsertManyParams) error
	metrics       *metrics
}

// publishWorker publishes the events of a commit that express has left to it, and ends only after JetStream has
// stored each.
type publishWorker struct {
	river.WorkerDefaults[PublishArgs]
	*publisher
}

// Work returns nil when every event is stored; snoozes while JetStream is away, which counts as
// no attempt, so no outage is long enough to lose an event; and is retried by River after any other error. A
// row whose event can't be made (its link is gone, or its key is not in LINK_KEYS any more) gets a job of its
// own, or each try at it would publish the others once more.
func (w *publishWorker) Work(ctx context.Context, job *river.Job[PublishArgs]) error {
	rows, err := w.rows(ctx, job.Args.Rows)
	if err != nil {
		return err
	}
	events, unmade, cause := w.events(rows)
	if len(events) == 0 {
		return cause
	}
	var more []river.InsertManyParams
	if len(unmade) > 0 {
		more = append(more, river.InsertManyParams{Args: PublishArgs{Rows: unmade}})
	}
	err = w.store(ctx, events, more)
	if errors.Is(err, notify.ErrNotStored) && ctx.Err() == nil {
		w.metrics.publishFailed.Inc()
		return river.JobSnooze(publishSnooze)
	}
	return err
}

// store returns nil when JetStream has stored each event, and the jobs are made that follow: those of
// subscriptions, and more.
func (p *publisher) store(ctx context.Context, events []notify.Event, more []river.InsertManyParams) error {
	if err := notify.Publish(ctx, p.js, events); err != nil {
		return err
	}
	p.metrics.published.Add(float64(len(events)))
	if jobs := append(p.subscribed(events), more...); len(jobs) > 0 {
		return p.insert(ctx, jobs)
	}
	return nil
}

// subscribed is a job for each event and subscription that wants it. A publish job that runs again finds the
// jobs there, unless they have ended minutes ago: then the target gets a webhook-id that it knows.
func (p *publisher) subscribed(events []notify.Event) (jobs []river.InsertManyParams) {
	for i := range events {
		for _, s := range p.subscriptions {
			if s.wants(portal.Kind(events[i].Kind())) {
				jobs = append(jobs, river.InsertManyParams{Args: s.args(uuid.MustParse(events[i].ID)), // an audit row's
					InsertOpts: &river.InsertOpts{Priority: priorityMass, UniqueOpts: river.UniqueOpts{ByArgs: true}}})
			}
		}
	}
	return jobs
}

const publishSnooze = 3 * time.Second

// events makes the events of rows; unmade are rows whose event can't be made, because of cause.
func (p *publisher) events(rows []portal.EventRow) (events []notify.Event, unmade []portal.IDRange, cause error) {
	events = make([]notify.Event, 0, len(rows))
	for _, row := range rows {
		e, err := p.maker.event(row)
		if err != nil {
			unmade, cause = append(unmade, portal.OneID(row.ID)), err // one speaks for all: mostly they have one cause
			continue
		}
		events = append(events, e)
	}
	return events, unmade, cause
}

// rows reads the rows of a commit.
func (p *publisher) rows(ctx context.Context, ranges []portal.IDRange) (rows []portal.EventRow, err error) {
	single := [][16]byte{} // repeats come one by one: one query for all of them
	for _, r := range ranges {
		if r.First == r.Last && len(ranges) > 1 {
			single = append(single, r.First)
			continue
		}
		got, err := portal.LoadEventRows(ctx, p.pool, `e.id BETWEEN $1 AND $2`, r.First, r.Last)
		if err != nil {
			return nil, err
		}
		rows = append(rows, got...)
	}
	if len(single) > 0 {
		got, err := portal.LoadEventRows(ctx, p.pool, `e.id = ANY($1)`, single)
		if err != nil {
			return nil, err
		}
		rows = append(rows, got...)
	}
	return rows, nil
}

// eventMaker makes events of audit rows.
type eventMaker struct {
	keys    *portal.Keyring
	baseURL string
}

// event makes a row's CloudEvent. A request that was published again has its link.issued
// published again, under an id of its own, or readers that drop repeated ids would not hear it.
func (m eventMaker) event(row portal.EventRow) (notify.Event, error) {
	kind, subject := row.Kind, row.LinkID.String()
	var data []byte
	var err error
	switch {
	case row.LinkID == uuid.Nil:
		subject = ""
		data, err = withDetail(noLink{Metadata: json.RawMessage("{}")}, row.Detail)
	case row.Link == nil:
		err = portal.ErrNoLink
	case kind == portal.LinkIssued || kind == portal.RequestDuplicate:
		kind = portal.LinkIssued
		var issued *IssuedData
		if issued, err = issuedData(m.keys, m.baseURL, row.Link); err == nil {
			data, err = json.Marshal(issued)
		}
	default:
		data, err = withDetail(newEventData(row.Link), row.Detail)
	}
	if err != nil {
		return notify.Event{}, fmt.Errorf("event of audit row %s: %w", row.ID, err)
	}
	return notify.NewEvent(row.ID.String(), m.baseURL, string(kind), subject, row.At, data), nil
}

// noLink is EventData of what is about no link: readers find the names that every event has.
type noLink struct {
	RequestID string          `json:"request_id"`
	LinkID    string          `json:"link_id"`
	Source    string          `json:"source"`
	Campaign  string          `json:"campaign"`
	Customer  string          `json:"customer"`
	Metadata  json.RawMessage `json:"metadata"`
}

// withDetail puts the row's detail beside what every event holds. Both are JSON objects of our
// own whose names differ, so one is put behind the other as it is.
func withDetail(base any, detail []byte) ([]byte, error) {
	data, err := json.Marshal(base)
	if err != nil || string(detail) == "{}" {
		return data, err
	}
	return append(append(data[:len(data)-1], ','), detail[1:]...), nil
}
