package jobs

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"latchkey/internal/audit"
	"latchkey/internal/portal"
)

// SweepArgs has nothing in it: the rows tell what is open.
type SweepArgs struct{}

// Kind is the job's name in River.
func (SweepArgs) Kind() string { return "sweep" }

// InsertOpts gives it one try: the next one is due in 15 s anyway.
func (SweepArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueMaintenance, MaxAttempts: 1}
}

// sweepWorker closes clicks whose worker died between click.started and the outcome.
type sweepWorker struct {
	river.WorkerDefaults[SweepArgs]

	store   *portal.Store
	log     *slog.Logger
	metrics *metrics
}

// Work closes all that is open and old enough.
func (w *sweepWorker) Work(ctx context.Context, _ *river.Job[SweepArgs]) error {
	for {
		n, err := w.store.Sweep(ctx)
		if err != nil || n == 0 {
			return err
		}
		w.metrics.swept.Add(float64(n))
		w.log.Info("closed clicks that were left open", "clicks", n)
	}
}

// SealArgs has nothing in it: the chain tells where it ends.
type SealArgs struct{}

// Kind is the job's name in River.
func (SealArgs) Kind() string { return "seal" }

// InsertOpts gives it one try: the next one is due in 10 s anyway.
func (SealArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueMaintenance, MaxAttempts: 1}
}

// sealWorker seals the audit's new rows.
type sealWorker struct {
	river.WorkerDefaults[SealArgs]

	sealer  *audit.Sealer
	log     *slog.Logger
	metrics *metrics
}

// sealTime is for a first seal of millions of rows. What is left over when it ends is the next job's.
const sealTime = 10 * time.Minute

// Timeout is longer than River's own default.
func (w *sealWorker) Timeout(*river.Job[SealArgs]) time.Duration { return sealTime }

// Work seals what is committed. A transaction that does not end holds up the chain and nothing else; who can end it
// is told.
func (w *sealWorker) Work(ctx context.Context, _ *river.Job[SealArgs]) error {
	done, err := w.sealer.Seal(ctx)
	w.metrics.sealed.Add(float64(done.Rows))
	var held *audit.HeldUpError
	switch {
	case errors.Is(err, audit.ErrSealing):
		return nil
	case errors.As(err, &held):
		w.log.Warn("the audit is not sealed", "error", err)
		return nil
	}
	return err
}

// AgeArgs has nothing in it.
type AgeArgs struct{}

// Kind is the job's name in River.
func (AgeArgs) Kind() string { return "age" }

// InsertOpts gives it one try: the next one is due in an hour. There is one at a time, however often the leader
// changes, so that what is quick has a worker.
func (AgeArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueMaintenance, MaxAttempts: 1, UniqueOpts: river.UniqueOpts{ByArgs: true}}
}

// ageWorker makes the audit's next months, and deletes what is older than it may be.
type ageWorker struct {
	river.WorkerDefaults[AgeArgs]

	pool      *pgxpool.Pool
	retention audit.Retention
	log       *slog.Logger
}

// Timeout is longer than River's own default: the first time may have a year behind it.
func (w *ageWorker) Timeout(*river.Job[AgeArgs]) time.Duration { return ageEvery }

// Work does both, whatever becomes of the first.
func (w *ageWorker) Work(ctx context.Context, _ *river.Job[AgeArgs]) error {
	months := audit.AddMonths(ctx, w.pool)
	aged, err := w.retention.Age(ctx, w.pool)
	if aged != (audit.Aged{}) {
		w.log.Info("deleted what is past its retention", "visitors", aged.Visitors, "links", aged.Links)
	}
	return errors.Join(months, err)
}
