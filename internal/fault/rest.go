package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A run would wait for minutes until leases have ended, retries are due and abandoned clicks may be closed. Instead,
// the rows are made older by that time, once the faults are over. One that a worker has locked is being brought on
// by it, and two who each hold a row that the other wants would be a deadlock.
const (
	// ageJobs and ageClicks are what a dead worker has left: jobs that nobody works at, and clicks that nobody comes back to.
	ageJobs = `UPDATE river_job SET attempted_at = attempted_at - interval '1 hour'
		WHERE id IN (SELECT id FROM river_job WHERE state = 'running' FOR UPDATE SKIP LOCKED)`
	ageClicks = `UPDATE clicks SET started_at = started_at - interval '1 hour', asked_at = asked_at - interval '1 hour', kept_until = kept_until - interval '1 hour',
		open_until = open_until - interval '1 hour' WHERE id IN (SELECT id FROM clicks WHERE outcome IS NULL FOR UPDATE SKIP LOCKED)`
	// ageDue is what is to be tried again later, published by its job because its process died, or due by a clock that was ahead.
	ageDue = `UPDATE river_job SET state = 'available', scheduled_at = now() - interval '1 hour'
		WHERE id IN (SELECT id FROM river_job WHERE state IN ('scheduled', 'retryable') OR state = 'available' AND scheduled_at > now() FOR UPDATE SKIP LOCKED)`
	// ageLeader: a dead leader's term ends.
	ageLeader = `UPDATE river_leader SET expires_at = now() - interval '1 hour'`
)

// restTime is the longest that a deployment without faults may need to get everything done.
const restTime = 2 * time.Minute

// rest brings the deployment to where nothing is left to do.
func (d *deployment) rest(ctx context.Context) error {
	if d.plan.restart {
		if err := d.stopAll(ctx); err != nil {
			return err
		}
	}
	for _, statement := range []string{ageJobs, ageClicks} {
		if _, err := d.pool.Exec(ctx, statement); err != nil {
			return err
		}
	}
	if d.plan.restart {
		if _, err := d.pool.Exec(ctx, ageLeader); err != nil {
			return err
		}
		for _, r := range d.replicas {
			r.supervise(ctx)
		}
	}
	if err := d.untilReady(ctx); err != nil {
		return err
	}
	return d.untilDone(ctx)
}

func (d *deployment) untilDone(ctx context.Context) error {
	return until(ctx, restTime, "all to be done", func() (string, error) { return d.left(ctx) })
}

// stopAll asks every worker to stop; that it does, and says so, is a promise too.
func (d *deployment) stopAll(ctx context.Context) error {
	if err := d.untilReady(ctx); err != nil {
		return err
	}
	stopped := make(chan error, len(d.replicas))
	for i, r := range d.replicas {
		go func() {
			err := r.stop()
			if err != nil {
				err = fmt.Errorf("replica %d: %w", i, err)
			}
			stopped <- err
		}()
	}
	var err error
	for range d.replicas {
		err = errors.Join(err, <-stopped)
	}
	return err
}

// left tells what is still to be done; empty = nothing.
func (d *deployment) left(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := d.pool.Exec(ctx, ageDue); err != nil {
		return "", err
	}
	consumer, err := d.consumer(ctx)
	if err != nil {
		return "", err
	}
	info := consumer.CachedInfo()
	if config := info.Config; config.AckWait != time.Second { // what a killed worker had is served soon
		config.AckWait = time.Second
		if _, err := d.js.UpdateConsumer(ctx, info.Stream, config); err != nil {
			return "", err
		}
	}
	if info.NumPending > 0 || info.NumAckPending > 0 {
		return fmt.Sprintf("%d requests wait, %d are not acknowledged", info.NumPending, info.NumAckPending), nil
	}
	var jobs, clicks, uses, rows int
	if err := d.pool.QueryRow(ctx, leftInDatabase).Scan(&jobs, &clicks, &uses, &rows); err != nil || jobs+clicks+uses+rows == 0 {
		return "", err
	}
	return fmt.Sprintf("%d jobs are not done, %d clicks are open, %d uses are reserved, %d audit rows are not sealed", jobs, clicks, uses, rows), nil
}

// leftInDatabase is one statement, so of one moment: whatever is done by then leaves nothing behind that a later look
// would have to find. Once all is sealed but what seals tell, there is nothing to seal, and no event to come. Of the jobs of
// maintenance there is always a next one.
const leftInDatabase = `SELECT
	(SELECT count(*) FROM river_job WHERE queue <> 'maintenance' AND state NOT IN ('completed', 'discarded', 'cancelled')),
	(SELECT count(*) FROM clicks WHERE outcome IS NULL),
	(SELECT coalesce(sum(sessions_reserved), 0) FROM links),
	(SELECT count(*) FROM audit_events WHERE kind <> 'audit.sealed' AND seq > ALL (SELECT last_seq FROM audit_seals))`

func number(ctx context.Context, pool *pgxpool.Pool, query string) (n int, err error) {
	err = pool.QueryRow(ctx, query).Scan(&n)
	return n, err
}
