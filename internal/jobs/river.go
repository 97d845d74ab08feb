package jobs

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivertype"

	"latchkey/internal/audit"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// Each channel has a queue and workers of its own, so that none holds up another.
const (
	queueEvents      = "events"
	queueEmail       = "email"
	queueWebhook     = "webhook"
	queueMaintenance = "maintenance"
)

// River's throughput is MaxWorkers ÷ FetchCooldown and its idle latency one cooldown. Publish jobs, which were most of
// them, come to River only where express did not do them; 5 ms and 8 workers are what keeps up then, with
// no more than 200 fetches a second beside the clicks.
const (
	fetchCooldown        = 5 * time.Millisecond
	fetchPollInterval    = 50 * time.Millisecond
	deliveryPollInterval = 250 * time.Millisecond // beside a notification of each insert
	eventWorkers         = 8
	completedJobsKept    = 10 * time.Minute // the audit is the record; the job is not
	jobTimeout           = 20 * time.Second // twice what a publish waits for its acks
	rescueAfter          = 30 * time.Second // a job whose worker was killed runs again after this and at most a round of River's rescuer
)

// How often what has to be done is looked for: clicks that are open past their time, rows of the audit that are in no
// seal, and what is older than it may be.
const (
	sweepEvery = 15 * time.Second
	sealEvery  = 10 * time.Second
	ageEvery   = time.Hour
)

// maintenanceWorkers are one for each of these, so that none waits for a long one.
const maintenanceWorkers = 3

// River is the job queue: a client that inserts, and, after Start, works.
type River struct {
	client  *river.Client[pgx.Tx]
	pool    *pgxpool.Pool
	log     *slog.Logger
	metrics *metrics
	express *express

	roomMu   sync.Mutex
	roomSeen time.Time // when Room last saw room in the database
}

// RiverConfig is what the jobs need.
type RiverConfig struct {
	Pool      *pgxpool.Pool // of what must be durable: the sweeper's outcomes, seals
	JobPool   *pgxpool.Pool // River's own, and what jobs read by; it need not wait for the disk: durable sees to what must
	JetStream jetstream.JetStream
	Keys      *portal.Keyring
	BaseURL   string
	Now       func() time.Time
	Log       *slog.Logger
	Metrics   prometheus.Registerer

	Mailer        *notify.Mailer    // nil: this process sends no mail
	Templates     *notify.Templates // of the mails
	Webhooks      *notify.Webhooks  // nil: this process posts no webhook
	Subscriptions []Subscription

	Retention audit.Retention
}

// NewRiver makes the client. It works no job until Start.
func NewRiver(cfg RiverConfig) (*River, error) {
	r := &River{pool: cfg.JobPool, log: cfg.Log}
	m := newMetrics(cfg.Metrics)
	r.metrics = m
	workers := river.NewWorkers()
	maker := eventMaker{cfg.Keys, cfg.BaseURL}
	out := &deliveries{pool: cfg.JobPool, publish: r.Publish, now: cfg.Now, log: cfg.Log}
	events := &publisher{pool: cfg.JobPool, js: cfg.JetStream, maker: maker, subscriptions: cfg.Subscriptions, insert: r.insert, metrics: m}
	r.express = newExpress(events, r.remove, cfg.Log)
	river.AddWorker(workers, &publishWorker{publisher: events})
	river.AddWorker(workers, &emailWorker{deliveries: out, templates: cfg.Templates, mailer: cfg.Mailer, keys: cfg.Keys, baseURL: cfg.BaseURL, metrics: m})
	river.AddWorker(workers, &webhookWorker{deliveries: out, webhooks: cfg.Webhooks, subscriptions: cfg.Subscriptions, event: maker.event, metrics: m})
	store := portal.NewStore(cfg.Pool, r.Publish, cfg.Now)
	river.AddWorker(workers, &sweepWorker{store: store, log: cfg.Log, metrics: m})
	river.AddWorker(workers, &sealWorker{sealer: &audit.Sealer{Pool: cfg.Pool, Publish: r.Publish}, log: cfg.Log, metrics: m})
	river.AddWorker(workers, &ageWorker{pool: cfg.JobPool, retention: cfg.Retention, log: cfg.Log})
	client, err := river.NewClient(riverpgxv5.New(cfg.JobPool), &river.Config{
		Queues:                      queues(cfg),
		Workers:                     workers,
		PeriodicJobs:                []*river.PeriodicJob{every(sweepEvery, SweepArgs{}), every(sealEvery, SealArgs{}), every(ageEvery, AgeArgs{})},
		FetchCooldown:               fetchCooldown, // the client's, not the queue's: inserting goes by it when it notifies
		CompletedJobRetentionPeriod: completedJobsKept,
		JobTimeout:                  jobTimeout,
		RescueStuckJobsAfter:        rescueAfter,
		SoftStopTimeout:             5 * time.Second,
		ReindexerSchedule:           river.NeverSchedule(), // the worker's role owns no indexes; those that needed it are gone (00009)
		ErrorHandler:                &jobErrors{log: cfg.Log},
		Middleware:                  []rivertype.Middleware{recoverJob(cfg.Log)},
		Logger:                      slog.New(&riverLog{Handler: cfg.Log.Handler(), seen: &seenLines{at: map[string]time.Time{}}}),
	})
	if err != nil {
		return nil, fmt.Errorf("river: %w", err)
	}
	r.client = client
	return r, nil
}

func every(pause time.Duration, args river.JobArgs) *river.PeriodicJob {
	return river.NewPeriodicJob(river.PeriodicInterval(pause), func() (river.JobArgs, *river.InsertOpts) { return args, nil },
		&river.PeriodicJobOpts{RunOnStart: true})
}

// queues are those that this process can serve: it leaves mails to those that have a mail server.
func queues(cfg RiverConfig) map[string]river.QueueConfig {
	q := map[string]river.QueueConfig{
		queueEvents:      {MaxWorkers: eventWorkers, FetchPollInterval: fetchPollInterval},
		queueMaintenance: {MaxWorkers: maintenanceWorkers},
	}
	if cfg.Mailer != nil {
		q[queueEmail] = river.QueueConfig{MaxWorkers: emailWorkers, FetchPollInterval: deliveryPollInterval}
	}
	if cfg.Webhooks != nil {
		q[queueWebhook] = river.QueueConfig{MaxWorkers: webhookWorkers, FetchPollInterval: deliveryPollInterval}
	}
	return q
}

// Start works jobs until Stop.
func (r *River) Start(ctx context.Context) error {
	r.express.start(ctx)
	return r.client.Start(ctx)
}

// Stop lets running jobs end, at most SoftStopTimeout, and leaves the rest to the next start. It
// may be called on a client that was not started.
func (r *River) Stop(ctx context.Context) error {
	r.express.stop()
	return r.client.Stop(ctx)
}

// Publish is the portal.PublishFunc: one job in the transaction that wrote the rows, which is sent along with
// COMMIT. Where this process works jobs, express is to be quicker than it.
func (r *River) Publish(ctx context.Context, tx *portal.Tx, rows ...portal.IDRange) error {
	if !r.express.takes() {
		return PublishByJob(ctx, tx, rows...)
	}
	var job int64
	due := time.Now().Add(publishLater)
	if err := addPublishJob(tx, &job, publishLater, rivertype.JobStateScheduled, rows); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		handed, known := tx.HandedOver(rows...)
		r.express.put(commit{job, due, rows, handed, known})
	})
	return nil
}

// PublishByJob is a portal.PublishFunc for who works no jobs.
func PublishByJob(_ context.Context, tx *portal.Tx, rows ...portal.IDRange) error {
	return addPublishJob(tx, new(int64), 0, rivertype.JobStateAvailable, rows)
}

// addPublishJob has a publish job inserted, whose id is in job once its answer is there.
func addPublishJob(tx *portal.Tx, job *int64, later time.Duration, state rivertype.JobState, rows []portal.IDRange) error {
	args, err := json.Marshal(PublishArgs{Rows: rows})
	if err != nil {
		return fmt.Errorf("encode the publish job: %w", err)
	}
	tx.QueryLater(func(answer pgx.Rows) (err error) {
		if *job, err = pgx.CollectExactlyOneRow(answer, pgx.RowTo[int64]); err != nil {
			return fmt.Errorf("insert the publish job: %w", err)
		}
		return nil
	}, insertPublishJob, string(args), PublishArgs{}.Kind(), river.MaxAttemptsDefault, queueEvents, later, string(state))
	return nil
}

// insertPublishJob writes what river.Client.InsertTx would, by the database's clock, but for the notification: that is
// not sent for a job that is due later, and a process that works jobs looks for them every fetchPollInterval. By
// InsertTx each click and each batch would wait once more for an answer, of a statement that costs four times as much.
const insertPublishJob = `INSERT INTO river_job (args, kind, max_attempts, queue, scheduled_at, state, tags)
	VALUES ($1, $2, $3, $4, now() + $5::interval, $6, '{}') RETURNING id`

// remove deletes jobs that are not running.
func (r *River) remove(ctx context.Context, jobs []int64) error {
	_, err := r.client.JobDeleteMany(ctx, river.NewJobDeleteManyParams().IDs(jobs...).First(len(jobs)))
	return err
}

// insert makes jobs by themselves.
func (r *River) insert(ctx context.Context, jobs []river.InsertManyParams) error {
	return portal.InTx(ctx, r.pool, func(tx *portal.Tx) error {
		if err := durable(ctx, tx); err != nil {
			return err
		}
		if _, err := r.client.InsertManyTx(ctx, tx, jobs); err != nil {
			return fmt.Errorf("insert jobs: %w", err)
		}
		return nil
	})
}

// durable has the commit of a job's own transaction wait for the disk, as the database's configuration has it. What a
// job leaves behind must not be lost where the job's end is kept, and that it is committed first is not enough: River keeps
// ends that could not be written in memory, and writes them once a database that crashed is back.
func durable(ctx context.Context, tx *portal.Tx) error {
	_, err := tx.Exec(ctx, `SET LOCAL synchronous_commit TO DEFAULT`)
	return err
}

// jobErrors logs failed jobs. Their arguments are ids: by an event's, 'enqueue status' finds the link.
type jobErrors struct{ log *slog.Logger }

// HandleError logs an attempt that failed; River decides on the next one.
func (h *jobErrors) HandleError(_ context.Context, job *rivertype.JobRow, err error) *river.ErrorHandlerResult {
	h.log.Error("job failed", "job_id", job.ID, "job_kind", job.Kind, "attempt", job.Attempt, "args", string(job.EncodedArgs), "error", err)
	return nil
}

// HandlePanic has nothing to do: recoverJob is before it.
func (h *jobErrors) HandlePanic(context.Context, *rivertype.JobRow, any, string) *river.ErrorHandlerResult {
	return nil
}

// recoverJob makes an error of a job's panic, without its value: that could hold anything, and River would
// write it into the job's row.
func recoverJob(log *slog.Logger) river.WorkerMiddlewareFunc {
	return func(ctx context.Context, job *rivertype.JobRow, work func(context.Context) error) (err error) {
		defer func() {
			if p := recover(); p != nil {
				log.Error("job panicked; please report the stack", "job_id", job.ID, "job_kind", job.Kind, "attempt", job.Attempt, "type", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
				err = fmt.Errorf("panicked with a %T; the log has the stack", p)
			}
		}()
		return work(ctx)
	}
}

// riverLog lets River's own log through from warnings on (at info it tells of each election), and
// each of its messages at most once in riverLogEvery: while the database is away it polls on, and
// every poll would be a line.
type riverLog struct {
	slog.Handler
	seen *seenLines
}

const riverLogEvery = 10 * time.Second

type seenLines struct {
	mu sync.Mutex
	at map[string]time.Time // messages are River's own words, so there are few
}

// Enabled is the level's part.
func (h *riverLog) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

// Handle drops repeats.
func (h *riverLog) Handle(ctx context.Context, r slog.Record) error {
	h.seen.mu.Lock()
	again := r.Time.Sub(h.seen.at[r.Message]) < riverLogEvery
	if !again {
		h.seen.at[r.Message] = r.Time
	}
	h.seen.mu.Unlock()
	if again {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs keeps the wrapping.
func (h *riverLog) WithAttrs(a []slog.Attr) slog.Handler {
	return &riverLog{h.Handler.WithAttrs(a), h.seen}
}

// WithGroup keeps the wrapping.
func (h *riverLog) WithGroup(n string) slog.Handler { return &riverLog{h.Handler.WithGroup(n), h.seen} }
