package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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

// webhookWorkers are many, for they only wait for others; a target's lane bounds its share of them.
const webhookWorkers = 128

// webhookWorker posts an event.
type webhookWorker struct {
	river.WorkerDefaults[WebhookArgs]

	deliveries    *deliveries
	webhooks      *notify.Webhooks
	subscriptions []Subscription
	event         func(portal.EventRow) (notify.Event, error)
	metrics       *metrics
}

// NextRetry goes by WebhookSchedule.
func (w *webhookWorker) NextRetry(job *river.Job[WebhookArgs]) time.Time {
	return w.deliveries.now().Add(WebhookSchedule[min(job.Attempt, len(WebhookSchedule))-1])
}

// Work posts the event and writes down how that ended. Durable when the target has taken it: nothing yet,
// so a crash there posts it again, under the same webhook-id.
func (w *webhookWorker) Work(ctx context.Context, job *river.Job[WebhookArgs]) error {
	if job.Args.Target != "" {
		return w.workSubscription(ctx, job)
	}
	d, skip, ok := w.deliveries.begin(ctx, job.Args.Event, job.Args.N, job.Attempt)
	if !ok {
		return skip
	}
	err := w.post(ctx, d.URL, d.row)
	retry, final := w.judge(err, job.Attempt)
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
func (w *webhookWorker) workSubscription(ctx context.Context, job *river.Job[WebhookArgs]) error {
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
	err = w.post(ctx, w.subscriptions[i].URL, rows[0])
	retry, final := w.judge(err, job.Attempt)
	if final {
		return river.JobCancel(err)
	}
	return retry
}

// errDisabled is why nothing is sent to a target.
var errDisabled = errors.New("the target failed for days and is disabled; mend it, then enable it as docs/webhooks.md tells")

// post sends a row's event, unless its target is disabled, and keeps account of the target.
func (w *webhookWorker) post(ctx context.Context, target string, row portal.EventRow) error {
	disabled, err := w.deliveries.targetDisabled(ctx, target)
	switch {
	case err != nil:
		return err
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
	at := w.deliveries.now()
	posted := w.webhooks.Post(ctx, target, event.ID, at, body)
	var refused *notify.WebhookError
	switch {
	case posted == nil:
		err = w.deliveries.targetWorks(ctx, target)
	case errors.As(posted, &refused) && ctx.Err() == nil:
		err = w.deliveries.targetFails(ctx, target, row, refused.Gone())
	}
	if err != nil { // the account is not worth another post
		w.deliveries.log.Warn("the state of a webhook's target is not written down", "error", err)
	}
	return posted
}

// judge says what becomes of a job whose post ended in err: retry is what Work returns unless it is final,
// which means that there will be no other attempt.
func (w *webhookWorker) judge(err error, attempt int) (retry error, final bool) {
	var busy *notify.BusyError
	var refused *notify.WebhookError
	result := resultRetried
	switch {
	case err == nil:
		result = resultDelivered
	case errors.As(err, &busy):
		return river.JobSnooze(busy.Wait), false
	case errors.Is(err, errDisabled), errors.As(err, &refused) && (refused.Gone() || attempt > len(WebhookSchedule)):
		result, final = resultFailed, true
	case !errors.As(err, &refused): // the database's, or the event can't be made: not the target's fault
		return w.deliveries.later(uuid.Nil, err), false
	case refused.RetryAfter > WebhookSchedule[attempt-1]: // no attempt is counted, but the target's days are
		return river.JobSnooze(refused.RetryAfter), false
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
