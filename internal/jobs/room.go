package jobs

import (
	"context"
	"fmt"
	"time"
)

// Invariant 9: what intake makes must be published. So it fetches no more while this process has more events at
// hand than it publishes, or while publish jobs pile up in the database, because JetStream does not take events or no
// process works jobs. Requests keep in JetStream, which is made for it.
const (
	roomBytes = 1 << 20 // of commits that express holds, some thousand events: so long may one wait behind others
	roomJobs  = 1000    // publish jobs that are open, each up to a batch of events
	roomEvery = time.Second
)

// Room returns true once there is room for more, and false when ctx ends first.
func (r *River) Room(ctx context.Context) bool {
	if !r.express.room(ctx) {
		return false
	}
	r.roomMu.Lock() // the loops of intake wait together
	defer r.roomMu.Unlock()
	for paused := false; ; paused = true {
		if !paused && time.Since(r.roomSeen) < roomEvery {
			return true
		}
		jobs, err := r.openPublishJobs(ctx)
		if err != nil && ctx.Err() != nil {
			return false
		}
		r.roomSeen = time.Now()
		if err != nil || jobs < roomJobs { // a database that does not answer takes no batch either, which intake knows to handle
			if paused {
				r.log.Info("intake goes on")
				r.metrics.paused.Set(0)
			}
			return true
		}
		if !paused {
			r.log.Warn("intake pauses: too many publish jobs are open; is NATS up, and a process with the role jobs?", "jobs", jobs)
			r.metrics.paused.Set(1)
		}
		if !sleep(ctx, roomEvery) {
			return false
		}
	}
}

// openPublishJobs counts them, up to roomJobs.
func (r *River) openPublishJobs(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	// Not those that failed: an event that can't be made fails for weeks, and while JetStream is away jobs are scheduled.
	err = r.pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM river_job
		WHERE state IN ('available', 'running', 'scheduled') AND queue = $1 LIMIT $2) j`, queueEvents, roomJobs).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count publish jobs: %w", err)
	}
	return n, nil
}

// room is Room, of what express holds.
func (e *express) room(ctx context.Context) bool {
	for {
		e.mu.Lock()
		full, taken := e.open && e.size > roomBytes, e.taken
		e.mu.Unlock()
		if !full {
			return ctx.Err() == nil
		}
		select {
		case <-taken:
		case <-ctx.Done():
			return false
		}
	}
}
