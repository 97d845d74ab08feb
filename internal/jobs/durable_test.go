package jobs

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// River keeps the end of a job that could not be written in memory, and writes it when a Postgres that crashed is
// back. So the outcome of a delivery, and a subscription's job, must be on disk before their job ends, although
// the jobs' connections don't wait for it: else they are lost and nothing runs again. Here the database refuses them
// where a crash could take them.
func TestWhatJobsLeaveIsDurable(t *testing.T) {
	t.Parallel()
	w := setup(t)
	w.exec(`CREATE FUNCTION refuse_what_can_be_lost() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF current_setting('synchronous_commit') = 'off' THEN RAISE 'a crash could lose this row'; END IF; RETURN NEW; END $$`)
	w.exec(`CREATE TRIGGER durable BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION refuse_what_can_be_lost()`)
	w.exec(`CREATE TRIGGER durable BEFORE INSERT ON river_job FOR EACH ROW WHEN (NEW.queue <> 'maintenance') EXECUTE FUNCTION refuse_what_can_be_lost()`)
	cfg := w.pool.Config()
	role := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET synchronous_commit = off") // as openJobPool of cmd/worker does
		return errors.Join(role(ctx, conn), err)
	}
	jobPool, err := pgxpool.NewWithConfig(w.ctx, cfg)
	must(t, err)
	t.Cleanup(jobPool.Close)
	target, all := newReceiver(t), newReceiver(t)
	webhooks, err := notify.NewWebhooks(notify.WebhookConfig{Secrets: []string{webhookSecret}, AllowPrivate: true})
	must(t, err)
	t.Cleanup(webhooks.Close)
	w.river, err = NewRiver(RiverConfig{Pool: w.pool, JobPool: jobPool, JetStream: w.js, Keys: w.keys, BaseURL: testBaseURL, Now: time.Now, Log: w.log,
		Webhooks: webhooks, Subscriptions: []Subscription{{URL: all.URL}}})
	must(t, err)
	w.issuer = w.newIssuer(w.pool)
	w.issuer.Rules.Webhooks = webhooks
	w.startRiver()
	link := w.issue(webhookRequest("r1", target.URL))
	w.wantOutcome(link.ID, portal.LinkDelivered, `{"attempts":1,"channel":"webhook"}`)
	w.eventually("both events at the subscription", func() bool {
		posts, _ := all.got()
		came := map[string]bool{}
		for _, p := range posts {
			came[p.Type] = true
		}
		return came[notify.TypePrefix+string(portal.LinkIssued)] && came[notify.TypePrefix+string(portal.LinkDelivered)]
	})
}
