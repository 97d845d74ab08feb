package books_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/books"
	"latchkey/internal/jobs"
	"latchkey/internal/mailcatcher"
	"latchkey/internal/stripesim"
	"latchkey/internal/testkit"
	"latchkey/migrations"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

func migrate(ctx context.Context, url string) error {
	db, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = migrations.Up(ctx, db)
	return err
}

// Books that nobody wrote in are in order; of ones that were cooked each breach is told.
func TestEachBreachIsTold(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db, err := pgxpool.New(ctx, testkit.Database(t, migrate))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	nc, err := nats.Connect(testkit.NATS(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if err := jobs.EnsureStreams(ctx, js, true); err != nil {
		t.Fatal(err)
	}
	b := &books.Books{DB: db, JetStream: js}
	// What is tried once, since the next one is due soon, may fail.
	if _, err := db.Exec(ctx, `INSERT INTO river_job (args, kind, max_attempts, queue, state, finalized_at) VALUES ('{}', 'seal', 1, 'maintenance', 'discarded', now())`); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(ctx); err != nil {
		t.Fatalf("empty books: %v", err)
	}

	const link, click, event = "01a00000-0000-7000-8000-000000000001", "01a00000-0000-7000-8000-000000000002", "01a00000-0000-7000-8000-000000000003"
	for _, sql := range []string{
		`INSERT INTO links (id, request_id, request_hash, published_at, source, stripe_customer, session, key_id, created_at, expires_at, sessions_reserved, sessions_created, deliver)
			VALUES ('` + link + `', 'nobody''s', sha256(''), now(), 's', 'cus_1', '{}', 1, now(), now() + interval '1 day', 1, 1, '[{"channel": "email"}]')`,
		`INSERT INTO clicks (id, link_id, started_at) VALUES ('` + click + `', '` + link + `', now())`,
		`INSERT INTO audit_events (id, at, kind, link_id, click_id, detail) VALUES
			('` + event + `', now(), 'session.created', '` + link + `', gen_random_uuid(), '{"session_id": "bps_none"}'),
			(gen_random_uuid(), now(), 'session.created', '` + link + `', gen_random_uuid(), '{"session_id": "bps_1"}'),
			(gen_random_uuid(), now(), 'link.delivered', '` + link + `', NULL, '{"channel": "webhook"}')`,
		`INSERT INTO audit_events (id, at, kind) VALUES (gen_random_uuid(), now(), 'request.rejected')`,
		`INSERT INTO river_job (args, kind, max_attempts, queue, state, finalized_at) VALUES ('{}', 'publish', 25, 'events', 'discarded', now())`,
	} {
		if _, err := db.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	for subject, body := range map[string]string{"portal.requests.s": "left", "portal.dead.invalid_json": "dead",
		"portal.events.link.issued": `{"specversion": "1.0", "id": "of-no-row", "type": "com.example", "source": "s"}`} {
		if _, err := js.Publish(ctx, subject, []byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	b.Requests = []string{"lost"}
	b.Sessions = []stripesim.Session{{ID: "bps_1", IdempotencyKey: "latchkey_click_" + uuid.NewString()}}
	b.Mails = []*mailcatcher.Mail{{Content: mailcatcher.Content{Header: []mailcatcher.Field{{Name: "Message-ID", Value: "<of-no-delivery@example.com>"}}}}}
	b.Webhooks = []string{"of-no-event"}
	told := b.Check(ctx)
	if told == nil {
		t.Fatal("the books are in order")
	}
	for _, want := range []string{
		`1 requests without their one link: ["lost"]`, `1 links of no request: ["nobody's"]`, "1 links without their one link.issued", "1 rejected requests",
		"1 clicks without their one click.started", "1 clicks without their one outcome", "2 audit rows of a click that is none", "1 links with reserved uses",
		"1 links whose count is not their sessions in the audit", "1 jobs that were given up", "2 deliveries without their one outcome",
		"session bps_1 was made for a click", `a session "bps_none" that Stripe did not make`,
		"1 messages in PORTAL_REQUESTS", "1 messages in PORTAL_DEAD",
		"audit row " + event + " has no event", "event of-no-row is of no audit row",
		"mail of-no-delivery is of no delivery", "webhook of-no-event is of no event",
	} {
		if !strings.Contains(told.Error(), want) {
			t.Errorf("not told: %s", want)
		}
	}
	if t.Failed() {
		t.Log(told)
	}
}
