package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// WebhookArgs names a post: the audit row whose event it is, and either its place in the request's deliver
// or the subscription that wants it.
type WebhookArgs struct {
	Event  uuid.UUID `json:"event"`
	N      int       `json:"n,omitempty"`
	Target string    `json:"target,omitempty"` // of a subscription: targetID in hex
	Lane   string    `json:"lane"`             // of the target, so that a busy one is known before anything is read
}

// Kind is the job's name in River.
func (WebhookArgs) Kind() string { return "webhook" }

// InsertOpts puts the job on its own queue.
func (WebhookArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueWebhook, MaxAttempts: deliveryAttempts}
}

// WebhookSchedule is how long after each failed attempt the next one is made: Standard Webhooks'
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, "Retry schedule").
var WebhookSchedule = []time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour,
	14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

// webhookWorkers are many, for they only wait for others; a host's lane bounds its share of them.
const webhookWorkers = 128

// webhookWorker posts an event.
type webhookWorker struct {
	river.WorkerDefaults[WebhookArgs]

	deliveries    *deliveries
	webhooks      *notify.Webhooks
	subscriptions []Subscription
	event         func(portal.EventRow) (notify.Event, error)
	metrics       *metrics
	retryAfter    sync.Map // time.Duration by the id of a job that just failed: what its target asked for
}

// NextRetry goes by WebhookSchedule, or later where the target asked for that.
func (w *webhookWorker) NextRetry(job *river.Job[WebhookArgs]) time.Time {
	pause := WebhookSchedule[min(job.Attempt, len(WebhookSchedule))-1]
	if asked, ok := w.retryAfter.LoadAndDelete(job.ID); ok {
		pause = max(pause, asked.(time.Duration))
	}
	return w.deliveries.now().Add(pause)
}

// Work posts the event and writes down how that ended. Durable when the target has taken it: nothing yet,
// so a crash there posts it again, under the same webhook-id.
func (w *webhookWorker) Work(ctx context.Context, job *river.Job[WebhookArgs]) error {
	place, err := w.webhooks.Enter(job.Args.Lane, w.deliveries.now())
	var busy *notify.BusyError
	if errors.As(err, &busy) {
		w.metrics.delivered.WithLabelValues(ChannelWebhook, resultPutOff).Inc()
		return river.JobSnooze(busy.Wait)
	}
	defer place.Leave()
	if job.Args.Target != "" {
		return w.workSubscription(ctx, job, place)
	}
	d, skip, ok := w.deliveries.begin(ctx, ChannelWebhook, job.Args.Event, job.Args.N, job.Attempt)
	if !ok {
		return skip
	}
	err = w.post(ctx, place, d.URL, d.row, false)
	retry, final := w.judge(ctx, job, err)
	switch {
	case err == nil:
		return w.deliveries.settle(ctx, d, delivered(job.Attempt))
	case final:
		return w.deliveries.settle(ctx, d, failed(job.Attempt, err.Error(), httpDetail(err)))
	}
	return retry
}

// workSubscription posts what a subscription wants. It has no outcome in the audit, or each event would
// bring about another one.
func (w *webhookWorker) workSubscription(ctx context.Context, job *river.Job[WebhookArgs], place *notify.Place) error {
	i := slices.IndexFunc(w.subscriptions, func(s Subscription) bool { return s.target() == job.Args.Target })
	if i < 0 {
		return river.JobCancel(errors.New("its subscription is not in WEBHOOK_SUBSCRIPTIONS any more"))
	}
	rows, err := portal.LoadEventRows(ctx, w.deliveries.pool, `e.id = $1`, job.Args.Event)
	if err != nil {
		return w.deliveries.later(job.Args.Event, err)
	}
	if len(rows) == 0 {
		return river.JobCancel(errors.New("its audit row is gone: was the database restored from a dump without it?"))
	}
	err = w.post(ctx, place, w.subscriptions[i].URL, rows[0], true)
	retry, final := w.judge(ctx, job, err)
	if final {
		return river.JobCancel(err)
	}
	return retry
}

// errDisabled is why nothing is sent to a target.
var errDisabled = errors.New("the target failed for days and is disabled; mend it, then enable it as docs/webhooks.md tells")

// errNotTried is of a post that did not come about because the database did not answer.
var errNotTried = errors.New("not posted")

// post sends a row's event, unless its target is disabled, and keeps account of the target. A subscription's that
// is gone is disabled at once; a link's own mostly was for that link alone.
func (w *webhookWorker) post(ctx context.Context, place *notify.Place, target string, row portal.EventRow, subscribed bool) error {
	disabled, err := w.deliveries.targetDisabled(ctx, target)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", errNotTried, err)
	case disabled:
		return errDisabled
	}
	event, err := w.event(row)
	if err != nil {
		return err
	}
	body, err := json.Marshal(&event)
	if err != nil {
		return fmt.Errorf("event %s: %w", event.ID, err)
	}
	posted := place.Post(ctx, target, event.ID, w.deliveries.now(), body)
	var refused *notify.WebhookError
	switch {
	case posted == nil:
		err = w.deliveries.targetWorks(ctx, target)
	case errors.As(posted, &refused) && ctx.Err() == nil:
		err = w.deliveries.targetFails(ctx, target, row, subscribed && refused.Gone())
	}
	if err != nil { // the account is not worth another post
		w.deliveries.log.Warn("the state of a webhook's target is not written down", "error", err)
	}
	return posted
}

// judge says what becomes of a job whose post ended in err: retry is what Work returns unless it is final,
// which means that there will be no other attempt.
func (w *webhookWorker) judge(ctx context.Context, job *river.Job[WebhookArgs], err error) (retry error, final bool) {
	var refused *notify.WebhookError
	errors.As(err, &refused)
	result := resultRetried
	switch {
	case err == nil:
		result = resultDelivered
	case ctx.Err() != nil: // the process stops: River gives the attempt back
		return ctx.Err(), false
	case errors.Is(err, errNotTried):
		return w.deliveries.later(job.Args.Event, err), false
	case errors.Is(err, errDisabled), refused != nil && refused.Gone(), job.Attempt > len(WebhookSchedule):
		result, final = resultFailed, true
	case refused != nil:
		w.retryAfter.Store(job.ID, refused.RetryAfter)
	}
	w.metrics.delivered.WithLabelValues(ChannelWebhook, result).Inc()
	return err, final
}

func httpDetail(err error) map[string]any {
	var refused *notify.WebhookError
	if errors.As(err, &refused) && refused.Status != 0 {
		return map[string]any{"http_status": refused.Status}
	}
	return nil
}
