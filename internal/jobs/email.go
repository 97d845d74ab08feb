package jobs

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/riverqueue/river"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// EmailArgs names a mail: the link.issued row of its link, and its place in the request's deliver.
type EmailArgs struct {
	Event uuid.UUID `json:"event"`
	N     int       `json:"n"`
}

// Kind is the job's name in River.
func (EmailArgs) Kind() string { return "email" }

// InsertOpts puts the job on its own queue.
func (EmailArgs) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: queueEmail, MaxAttempts: deliveryAttempts}
}

// EmailSchedule is how long after each attempt that the mail server answered by 4xx, or not at all once it
// had the mail, the next one is made: four days in all, as long as mail servers themselves go on (RFC 5321, 4.5.4.1).
var EmailSchedule = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour,
	8 * time.Hour, 16 * time.Hour, 24 * time.Hour, 24 * time.Hour, 16 * time.Hour}

// A job is given up for lost after emailTimeout, and sends no longer than emailSending: the rest is for
// writing down how it ended.
const (
	emailTimeout = 3 * time.Minute
	emailSending = emailTimeout - 10*time.Second
	emailWorkers = 4 // as many as the mailer has connections
)

// emailWorker sends a mail. While the mail server is away a job waits for it, and with it its queue.
type emailWorker struct {
	river.WorkerDefaults[EmailArgs]

	deliveries *deliveries
	templates  *notify.Templates
	mailer     *notify.Mailer
	keys       *portal.Keyring
	baseURL    string
	metrics    *metrics
}

// Timeout is longer than River's own default.
func (w *emailWorker) Timeout(*river.Job[EmailArgs]) time.Duration { return emailTimeout }

// NextRetry goes by EmailSchedule.
func (w *emailWorker) NextRetry(job *river.Job[EmailArgs]) time.Time {
	return w.deliveries.now().Add(EmailSchedule[min(job.Attempt, len(EmailSchedule))-1])
}

// Work sends the mail and writes down how that ended. Durable when the server has taken it: nothing yet,
// so a crash there sends it again, under the same Message-ID.
func (w *emailWorker) Work(ctx context.Context, job *river.Job[EmailArgs]) error {
	d, skip, ok := w.deliveries.begin(ctx, ChannelEmail, job.Args.Event, job.Args.N, job.Attempt)
	if !ok {
		return skip
	}
	sending, cancel := context.WithTimeout(ctx, emailSending)
	defer cancel()
	err := w.send(sending, d)
	var refused *notify.MailError
	switch {
	case err == nil:
		w.metrics.delivered.WithLabelValues(ChannelEmail, resultDelivered).Inc()
		return w.deliveries.settle(ctx, d, delivered(job.Attempt))
	case ctx.Err() != nil: // the process stops: River gives the attempt back
		return ctx.Err()
	case errors.Is(err, notify.ErrMailServer) && !errors.Is(err, notify.ErrCutOff):
		w.metrics.delivered.WithLabelValues(ChannelEmail, resultPutOff).Inc()
		return w.deliveries.later(job.Args.Event, err)
	case errors.As(err, &refused) && !refused.Temporary, job.Attempt > len(EmailSchedule):
		w.metrics.delivered.WithLabelValues(ChannelEmail, resultFailed).Inc()
		return w.deliveries.settle(ctx, d, failed(job.Attempt, err.Error(), smtpDetail(refused)))
	}
	w.metrics.delivered.WithLabelValues(ChannelEmail, resultRetried).Inc()
	return err
}

func smtpDetail(e *notify.MailError) map[string]any {
	detail := map[string]any{}
	if e != nil && e.Code != 0 {
		detail["smtp_code"] = e.Code
	}
	if e != nil && e.EnhancedStatus != "" {
		detail["enhanced_status"] = e.EnhancedStatus
	}
	return detail
}

func (w *emailWorker) send(ctx context.Context, d *delivery) error {
	issued, err := issuedData(w.keys, w.baseURL, d.link)
	if err != nil {
		return err
	}
	var data map[string]any
	if len(d.Data) > 0 {
		numbers := json.NewDecoder(bytes.NewReader(d.Data))
		numbers.UseNumber() // or long ones lose their digits
		if err := numbers.Decode(&data); err != nil {
			return errors.New("the data of the mail can't be read")
		}
	}
	content, err := w.templates.Render(d.Template, d.link.Locale, notify.MailLink{URL: issued.URL, ExpiresAt: issued.ExpiresAt}, data)
	if err != nil {
		return err
	}
	return w.mailer.Send(ctx, notify.Mail{DeliveryID: d.id.String(), To: d.To, Date: d.row.At, Subject: content.Subject,
		Text: content.Text, HTML: content.HTML, ListUnsubscribe: d.ListUnsubscribe})
}
