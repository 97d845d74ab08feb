package jobs

import (
	"sync"

	"latchkey/internal/portal"
)

// handover keeps the rows of this process's last commits until their publish jobs come, mostly within
// milliseconds, so that a job need not read what was just written. It may lose any of them at any
// time: a job that finds none, because another process made it, or a restart or too many others came
// between, reads its rows.
type handover struct {
	mu     sync.Mutex
	rows   map[portal.IDRange][]portal.EventRow
	size   int // bytes of them, roughly
	ring   [handoverMost]portal.IDRange
	oldest int
}

const (
	handoverMost  = 32
	handoverBytes = 4 << 20
)

func newHandover() *handover { return &handover{rows: map[portal.IDRange][]portal.EventRow{}} }

func sizeOf(rows []portal.EventRow) (n int) {
	for i := range rows {
		l := rows[i].Link
		n += 1<<10 + len(rows[i].Detail) + len(l.Session) + len(l.Metadata)
	}
	return n
}

// put keeps the rows of a range in place of those that have waited longest. Rows that are never
// committed have no job, and go that way.
func (h *handover) put(ids portal.IDRange, rows []portal.EventRow) {
	size := sizeOf(rows)
	if size > handoverBytes {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop(h.ring[h.oldest])
	h.ring[h.oldest], h.rows[ids] = ids, rows
	h.size += size
	h.oldest = (h.oldest + 1) % handoverMost
	for i := h.oldest; h.size > handoverBytes; i = (i + 1) % handoverMost {
		h.drop(h.ring[i])
	}
}

// take returns the rows of a range, once; nil = they are to be read.
func (h *handover) take(ids portal.IDRange) []portal.EventRow {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.drop(ids)
}

func (h *handover) drop(ids portal.IDRange) []portal.EventRow {
	rows := h.rows[ids]
	delete(h.rows, ids)
	h.size -= sizeOf(rows)
	return rows
}
