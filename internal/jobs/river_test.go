package jobs

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"

	"latchkey/internal/portal"
)

// River's periodic job closes, without waiting for its first interval, what a worker that died
// left open, and leaves clicks alone that may still be on their way.
func TestSweeperRunsAtStart(t *testing.T) {
	t.Parallel()
	w := setup(t)
	old, young := w.issue(request("r1")), w.issue(request("r2"))
	past := portal.NewStore(w.pool, w.river.Publish, func() time.Time { return time.Now().Add(-2 * time.Minute) })
	// The link of a click that old must have been there by then.
	w.exec(`UPDATE links SET created_at = created_at - interval '1 hour'`)
	abandoned, running := uuid.New(), uuid.New()
	w.startClick(past, old, abandoned, nil)
	w.startClick(w.store, young, running, nil)
	w.startRiver()

	events := w.events(3)
	for _, e := range events {
		var data struct {
			Code      portal.SessionCode `json:"code"`
			Retryable bool               `json:"retryable"`
		}
		must(t, json.Unmarshal(e.Data, &data))
		if e.Type == "latchkey.session.failed" && (data.Code != portal.CodeInterrupted || !data.Retryable) {
			t.Errorf("event data %s", e.Data)
		}
	}
	if n := w.count(`SELECT count(*) FROM clicks WHERE id = $1 AND outcome = 'interrupted'`, abandoned); n != 1 {
		t.Error("the abandoned click is still open")
	}
	if n := w.count(`SELECT count(*) FROM clicks WHERE id = $1 AND outcome IS NULL`, running); n != 1 {
		t.Error("the running click was closed")
	}
	if n := w.count(`SELECT sum(sessions_reserved) FROM links`); n != 1 {
		t.Errorf("%d uses reserved, want 1", n)
	}
}

// The publish job's row is what River would have written for the same arguments, in every column but its id and times.
func TestPublishJobIsRivers(t *testing.T) {
	t.Parallel()
	w := setup(t)
	ids, err := portal.NewIDs(3)
	must(t, err)
	var created time.Time
	row := func() (columns string, due time.Time) {
		must(t, w.owner.QueryRow(w.ctx, `DELETE FROM river_job j
			RETURNING (to_jsonb(j) - '{id,created_at,scheduled_at}'::text[])::text, scheduled_at, created_at`).Scan(&columns, &due, &created))
		return columns, due
	}
	for _, state := range []string{"available", "scheduled"} {
		var opts river.InsertOpts
		if state == "scheduled" { // as where express is at work
			w.river.express.open = true
			opts.ScheduledAt = time.Now().Add(publishLater)
		}
		must(t, portal.InTx(w.ctx, w.pool, func(tx *portal.Tx) error { return w.river.Publish(w.ctx, tx, ids) }))
		ours, due := row()
		ourCreated := created
		_, err := w.river.client.Insert(w.ctx, PublishArgs{Rows: []portal.IDRange{ids}}, &opts)
		must(t, err)
		rivers, riversDue := row()
		if ours != rivers || !strings.Contains(ours, `"state": "`+state+`"`) {
			t.Errorf("the publish job is\n%s\nRiver's\n%s", ours, rivers)
		}
		if apart := riversDue.Sub(due).Abs(); apart > time.Minute {
			t.Errorf("%s: due %s apart", state, apart)
		}
		if due.Sub(ourCreated) != map[string]time.Duration{"available": 0, "scheduled": publishLater}[state] {
			t.Errorf("%s: due %s, made %s", state, due, ourCreated)
		}
	}
}
