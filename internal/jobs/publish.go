package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// PublishArgs names the audit rows of one commit whose events are to be published. Ids only: the
// URL of link.issued is computed when the event is made.
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

// publishWorker publishes the events of a commit and ends only after JetStream has stored each.
type publishWorker struct {
	river.WorkerDefaults[PublishArgs]

	pool    *pgxpool.Pool
	js      jetstream.JetStream
	keys    *portal.Keyring
	baseURL string
	metrics *metrics
}

// Work returns nil when every event is stored; snoozes while JetStream is away, which counts as
// no attempt, so no outage is long enough to lose an event; cancels a job that can never work;
// and is retried by River after any other error. A row whose event can't be made (its link is
// gone, or its key is not in LINK_KEYS any more) does not keep the others' back.
func (w *publishWorker) Work(ctx context.Context, job *river.Job[PublishArgs]) error {
	events, unmade, err := w.events(ctx, job.Args.Rows)
	if err != nil {
		return err
	}
	if len(events) == 0 && unmade == nil {
		return river.JobCancel(errors.New("the job names no audit row: was the database restored from a dump without them?"))
	}
	err = notify.Publish(ctx, w.js, events)
	switch {
	case errors.Is(err, notify.ErrNotStored) && ctx.Err() == nil:
		w.metrics.publishFailed.Inc()
		return river.JobSnooze(publishSnooze)
	case err != nil:
		return err
	}
	w.metrics.published.Add(float64(len(events)))
	return unmade
}

const publishSnooze = 3 * time.Second

// events makes the events of rows; unmade is about rows whose event can't be made.
func (w *publishWorker) events(ctx context.Context, ranges []portal.IDRange) (events []notify.Event, unmade, err error) {
	var rows []portal.AuditEvent
	linkIDs := map[uuid.UUID]bool{}
	single := []uuid.UUID{} // repeats come one by one: one query for all of them
	for _, r := range ranges {
		if r.First == r.Last {
			single = append(single, r.First)
			continue
		}
		got, err := portal.LoadAudit(ctx, w.pool, `id BETWEEN $2 AND $3`, r.First, r.Last)
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, got...)
	}
	if len(single) > 0 {
		got, err := portal.LoadAudit(ctx, w.pool, `id = ANY($2)`, single)
		if err != nil {
			return nil, nil, err
		}
		rows = append(rows, got...)
	}
	for _, e := range rows {
		linkIDs[e.LinkID] = true
	}
	ids := make([]uuid.UUID, 0, len(linkIDs))
	for id := range linkIDs {
		ids = append(ids, id)
	}
	links, err := portal.LoadLinks(ctx, w.pool, `id = ANY($1)`, ids)
	if err != nil {
		return nil, nil, err
	}
	byID := make(map[uuid.UUID]*portal.Link, len(links))
	for _, l := range links {
		byID[l.ID] = l
	}
	events = make([]notify.Event, 0, len(rows))
	for _, row := range rows {
		e, err := w.event(row, byID[row.LinkID])
		if err != nil {
			unmade = err // one speaks for all: mostly they have one cause
			continue
		}
		events = append(events, e)
	}
	return events, unmade, nil
}

// event makes a row's CloudEvent. A request that was published again has its link.issued
// published again, under an id of its own, or readers that drop repeated ids would not hear it.
func (w *publishWorker) event(row portal.AuditEvent, link *portal.Link) (notify.Event, error) {
	if link == nil {
		return notify.Event{}, fmt.Errorf("audit row %s: %w", row.ID, portal.ErrNoLink)
	}
	kind := row.Kind
	var data any
	var err error
	if kind == portal.LinkIssued || kind == portal.RequestDuplicate {
		kind = portal.LinkIssued
		data, err = issuedData(w.keys, w.baseURL, link)
	} else {
		data, err = mergeDetail(newEventData(link), row.Detail)
	}
	if err != nil {
		return notify.Event{}, fmt.Errorf("event of audit row %s: %w", row.ID, err)
	}
	return notify.NewEvent(row.ID.String(), w.baseURL, string(kind), row.LinkID.String(), row.At, data)
}

// mergeDetail puts the row's detail beside what every event holds.
func mergeDetail(base EventData, detail map[string]any) (map[string]any, error) {
	body, err := json.Marshal(base)
	if err != nil {
		return nil, err
	}
	data := maps.Clone(detail)
	if data == nil {
		data = map[string]any{}
	}
	return data, json.Unmarshal(body, &data)
}
