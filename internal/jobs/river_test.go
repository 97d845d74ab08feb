package jobs

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/uuid"

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
