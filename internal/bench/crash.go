package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/rig"
	"latchkey/internal/stack"
	"latchkey/migrations"
)

// crash runs a campaign, CSV to CSV, while everything that it stands on dies in turn, without a warning: the worker
// and the bulk command by kill -9, NATS (a process of its own here) too, Postgres by an immediate shutdown, after which
// it recovers from its log. In the end each row has its one link, and each audit row its one event. Whatever is not so is
// an error, in the short form too: it is not a matter of speed.
func (b *bench) crash(ctx context.Context) (err error) {
	c, err := b.newCrashing(ctx)
	if c != nil {
		defer func() { err = errors.Join(err, c.close(ctx)) }()
	}
	if err != nil {
		return err
	}
	took, err := c.campaign(ctx)
	if err != nil {
		return fmt.Errorf("a campaign through crashes: %w", err)
	}
	again, err := c.check(ctx)
	if err != nil {
		return fmt.Errorf("after a campaign through crashes: %w", err)
	}
	b.goal(true, fmt.Sprintf("campaign of %d while all of it dies: %s", c.n, c.told()), "complete, in order, a link a request, an event an audit row", "", "", "all")
	b.goal(true, "  from the first request to the last link", took.Round(100*time.Millisecond).String(), "", "", "shown")
	b.goal(true, "  requests that were sent again, and found their links", fmt.Sprint(again), "", "", "shown")
	return nil
}

// crashing is a deployment of its own whose parts die. Their addresses stay the same.
type crashing struct {
	b       *bench
	n       int
	rate    string        // of enqueue bulk; 0 = none
	ackWait time.Duration // of intake's consumer, in place of its own; 0 = as it is
	deaths  []death

	sim                             *simulator
	workerBinary, enqueue, natsTool string
	pgConfig                        stack.PostgresConfig
	natsDir, natsURL                string
	addr                            string // of the click server: it stands in the links
	in, out                         string

	pg     *stack.Postgres
	nats   *exec.Cmd
	worker *worker
	bulk   *bulkRun
	pool   *pgxpool.Pool
	nc     *nats.Conn
	js     jetstream.JetStream
}

// death is what dies once so many hundredths of the links are there.
type death struct {
	at   int
	what string
	die  func(*crashing, context.Context) error
}

func (b *bench) newCrashing(ctx context.Context) (c *crashing, err error) {
	dir := filepath.Join(b.dir, "crash")
	c = &crashing{b: b, n: 100_000, rate: "0", natsDir: filepath.Join(dir, "nats"), natsURL: "nats://" + rig.FreePort(), addr: rig.FreePort(),
		in: filepath.Join(dir, "campaign.csv"), out: filepath.Join(dir, "links.csv"),
		pgConfig: stack.PostgresConfig{Dir: filepath.Join(dir, "pg"), Fsync: true}}
	c.deaths = []death{{8, "the worker", (*crashing).killWorker}, {16, "enqueue bulk", (*crashing).killBulk},
		{25, "NATS", (*crashing).killNATS}, {33, "Postgres", (*crashing).killPostgres},
		{42, "the worker", (*crashing).killWorker}, {50, "enqueue bulk", (*crashing).killBulk},
		{60, "NATS", (*crashing).killNATS}, {60, "Postgres", (*crashing).killPostgres}, {75, "the worker", (*crashing).killWorker}}
	if b.short { // slow enough for all deaths to come in the middle, and what a killed worker had is served soon
		c.n, c.rate, c.ackWait = 3000, "600", time.Second
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if c.workerBinary, c.sim, err = b.workerAndStripe(ctx); err != nil {
		return nil, err
	}
	if c.enqueue, err = rig.Build(ctx, b.dir, "latchkey/cmd/enqueue"); err != nil {
		return c, err
	}
	if c.natsTool, err = rig.Build(ctx, b.dir, rig.NATSServer); err != nil {
		return c, err
	}
	return c, errors.Join(writeCampaign(c.in, c.n), c.start(ctx))
}

func (c *crashing) start(ctx context.Context) (err error) {
	if c.pg, err = stack.StartPostgres(ctx, c.pgConfig); err != nil {
		return err
	}
	if c.pool, err = pgxpool.New(ctx, c.pg.URL("postgres")); err != nil {
		return err
	}
	if _, err = migrations.Up(ctx, c.pool); err != nil {
		return err
	}
	if err := c.startNATS(ctx); err != nil {
		return err
	}
	if c.nc, err = nats.Connect(c.natsURL, nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond)); err != nil {
		return err
	}
	if c.js, err = jetstream.New(c.nc); err != nil {
		return err
	}
	return c.startWorker(ctx)
}

func (c *crashing) startNATS(ctx context.Context) (err error) {
	c.nats, err = rig.StartNATS(ctx, c.natsTool, strings.TrimPrefix(c.natsURL, "nats://"), c.natsDir)
	return err
}

func (c *crashing) startWorker(ctx context.Context) (err error) {
	// What it logs while its servers die is no news. A panic is on stderr all the same.
	c.worker, err = c.b.startWorker(ctx, c.workerBinary, "postgres", c.sim.url, "DATABASE_URL="+c.pg.URL("postgres"), "NATS_URL="+c.natsURL,
		"HTTP_ADDR="+c.addr, "LINK_BASE_URL=http://"+c.addr, "LOG_LEVEL=error+4")
	return err
}

// startBulk returns once the command has its output, and with it a connection: without a server it would not begin.
func (c *crashing) startBulk(ctx context.Context) (err error) {
	partial := c.out + ".partial"
	if err := os.Remove(partial); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if c.bulk, err = startBulk(ctx, c.enqueue, c.natsURL, c.in, "--campaign", "crash", "--out", c.out, "--rate", c.rate); err != nil {
		return err
	}
	return c.until(ctx, partial, func() (bool, error) {
		select {
		case err := <-c.bulk.ended:
			return false, fmt.Errorf("the campaign did not begin: %w\n%s", err, c.bulk.text.String())
		default:
		}
		_, err := os.Stat(partial)
		return err == nil, nil
	})
}

// campaign runs the campaign through all deaths.
func (c *crashing) campaign(ctx context.Context) (took time.Duration, err error) {
	began := time.Now()
	if err := c.startBulk(ctx); err != nil {
		return 0, err
	}
	for _, d := range c.deaths {
		if err := c.untilLinks(ctx, c.n*d.at/100); err != nil {
			return 0, err
		}
		if err := d.die(c, ctx); err != nil {
			return 0, fmt.Errorf("%s at %d %%: %w", d.what, d.at, err)
		}
	}
	err = c.until(ctx, "the campaign to end", func() (bool, error) {
		c.hasten(ctx)
		select {
		case err := <-c.bulk.ended:
			return true, err
		default:
			return false, nil
		}
	})
	if want := fmt.Sprintf(" %s links, 0 rejected, 0 not sent", thousands(c.n)); err == nil && !strings.Contains(c.bulk.text.String(), want) {
		err = fmt.Errorf("enqueue bulk ends with:\n%s", c.bulk.text.String())
	}
	return time.Since(began), err
}

func thousands(n int) string { return fmt.Sprintf("%d,%03d", n/1000, n%1000) }

// untilLinks waits for so many links. A campaign that is through before all deaths proves nothing.
func (c *crashing) untilLinks(ctx context.Context, least int) error {
	return c.until(ctx, fmt.Sprintf("%d links", least), func() (bool, error) {
		select {
		case err := <-c.bulk.ended:
			return false, fmt.Errorf("the campaign ended before all deaths: %w\n%s", err, c.bulk.text.String())
		default:
		}
		var links int
		err := c.pool.QueryRow(ctx, `SELECT count(*) FROM links`).Scan(&links)
		return err == nil && links >= least, nil // a connection that its server's death has ended is replaced
	})
}

// until polls. Five minutes without what it waits for are a hang: a killed worker's jobs are rescued after three.
func (c *crashing) until(ctx context.Context, what string, done func() (bool, error)) error {
	for deadline := time.Now().Add(5 * time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if ok, err := done(); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("waited five minutes for %s", what)
}

// hasten gives intake's consumer the ack wait of the short form.
func (c *crashing) hasten(ctx context.Context) {
	if c.ackWait == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	consumer, err := c.js.Consumer(ctx, jobs.RequestsStream, jobs.IntakeConsumer)
	if err != nil || consumer.CachedInfo().Config.AckWait == c.ackWait {
		return
	}
	config := consumer.CachedInfo().Config
	config.AckWait = c.ackWait
	_, _ = c.js.UpdateConsumer(ctx, jobs.RequestsStream, config) // else at the next look
}

func (c *crashing) killWorker(ctx context.Context) error {
	rig.KillNow(c.worker.Cmd)
	return c.startWorker(ctx)
}

func (c *crashing) killBulk(ctx context.Context) error {
	if err := c.bulk.cmd.Process.Kill(); err != nil {
		return err
	}
	<-c.bulk.ended
	if _, err := os.Stat(c.out); err == nil {
		return fmt.Errorf("%s is there, and the campaign is not through", c.out)
	}
	return c.startBulk(ctx)
}

func (c *crashing) killNATS(ctx context.Context) error {
	rig.KillNow(c.nats)
	return c.startNATS(ctx)
}

func (c *crashing) killPostgres(ctx context.Context) (err error) {
	if err := syscall.Kill(c.pg.Pid(), syscall.SIGQUIT); err != nil {
		return err
	}
	<-c.pg.Done()
	_ = c.pg.Stop(ctx) // frees the folder; that it had ended is known
	c.pg, err = stack.StartPostgres(ctx, c.pgConfig)
	return err
}

// told counts the deaths.
func (c *crashing) told() string {
	times, order := map[string]int{}, []string{}
	for _, d := range c.deaths {
		if times[d.what]++; times[d.what] == 1 {
			order = append(order, d.what)
		}
	}
	for i, what := range order {
		order[i] = fmt.Sprintf("%s × %d", what, times[what])
	}
	return strings.Join(order, ", ")
}

// check sees that nothing is missing and nothing there twice, and returns how many requests came again.
func (c *crashing) check(ctx context.Context) (again int, err error) {
	links, err := readLinks(c.out, c.n)
	if err != nil {
		return 0, err
	}
	if err := c.untilQuiet(ctx); err != nil {
		return 0, err
	}
	issued, err := c.checkLinks(ctx, links)
	if err != nil {
		return 0, err
	}
	return issued - c.n, errors.Join(c.checkEvents(ctx, issued), c.checkPages(ctx, links))
}

// untilQuiet waits until every request is served and every event published. It asks intake's consumer, not the stream:
// a NATS that was killed may go on holding requests whose acknowledgements it knows.
func (c *crashing) untilQuiet(ctx context.Context) error {
	return c.until(ctx, "all events", func() (bool, error) {
		c.hasten(ctx)
		consumer, err := c.js.Consumer(ctx, jobs.RequestsStream, jobs.IntakeConsumer)
		if err != nil {
			return false, err
		}
		if info := consumer.CachedInfo(); info.NumPending > 0 || info.NumAckPending > 0 {
			return false, nil
		}
		var open int
		err = c.pool.QueryRow(ctx, `SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed'`).Scan(&open)
		return open == 0, err
	})
}

// checkLinks compares the file with the database: the link of each row is the one link of its request. It returns how
// many audit rows an event is due for.
func (c *crashing) checkLinks(ctx context.Context, links []issuedLink) (events int, err error) {
	rows, err := c.pool.Query(ctx, `SELECT request_id, id FROM links`)
	if err != nil {
		return 0, err
	}
	of := make(map[string]uuid.UUID, c.n)
	var request string
	var id uuid.UUID
	count, err := pgx.ForEachRow(rows, []any{&request, &id}, func() error { of[request] = id; return nil })
	if err != nil {
		return 0, err
	}
	if count.RowsAffected() != int64(c.n) || len(of) != c.n {
		return 0, fmt.Errorf("%d links of %d requests in the database, not %d", count.RowsAffected(), len(of), c.n)
	}
	for i, link := range links {
		if request := "crash:" + campaignRow(i)[0]; of[request] != link.id {
			return 0, fmt.Errorf("the file has link %s for request %s, the database %s", link.id, request, of[request])
		}
	}
	var issued, repeats, others int
	err = c.pool.QueryRow(ctx, `SELECT count(*) FILTER (WHERE kind = $1), count(*) FILTER (WHERE kind = $2), count(*) FILTER (WHERE kind NOT IN ($1, $2))
		FROM audit_events WHERE kind <> 'audit.sealed'`, portal.LinkIssued, portal.RequestDuplicate).Scan(&issued, &repeats, &others)
	if err == nil && (issued != c.n || others != 0) {
		err = fmt.Errorf("the audit has %d rows of link.issued, not %d, and %d of kinds that nobody caused", issued, c.n, others)
	}
	return issued + repeats, err
}

// checkEvents sees that the stream has an event for each audit row, under the row's id, and no other; a repeat may be there
// twice. Nothing was rejected.
func (c *crashing) checkEvents(ctx context.Context, n int) error {
	dead, err := c.js.Stream(ctx, jobs.DeadStream)
	if err != nil {
		return err
	}
	if letters := dead.CachedInfo().State.Msgs; letters > 0 {
		return fmt.Errorf("%d dead letters", letters)
	}
	published, err := c.eventIDs(ctx)
	if err != nil {
		return err
	}
	rows, err := c.pool.Query(ctx, `SELECT id::text FROM audit_events WHERE kind <> 'audit.sealed'`)
	if err != nil {
		return err
	}
	var id string
	_, err = pgx.ForEachRow(rows, []any{&id}, func() error {
		if !published[id] {
			return fmt.Errorf("the event of audit row %s is not in the stream", id)
		}
		return nil
	})
	if err == nil && len(published) != n {
		err = fmt.Errorf("%d events for %d audit rows", len(published), n)
	}
	return err
}

// eventIDs are the ids of the links' events, repeats dropped.
func (c *crashing) eventIDs(ctx context.Context) (map[string]bool, error) {
	consumer, err := c.js.OrderedConsumer(ctx, notify.EventsStream, jetstream.OrderedConsumerConfig{HeadersOnly: true, FilterSubjects: []string{notify.SubjectPrefix + "link.>"}})
	if err != nil {
		return nil, err
	}
	left, ids := consumer.CachedInfo().NumPending, map[string]bool{}
	for left > 0 {
		batch, err := consumer.Fetch(500, jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return nil, err
		}
		before := left
		for msg := range batch.Messages() {
			ids[msg.Headers().Get(nats.MsgIdHdr)] = true
			left--
		}
		if left == before {
			return nil, fmt.Errorf("%d events of the stream can't be read: %w", left, batch.Error())
		}
	}
	return ids, nil
}

// checkPages opens some links.
func (c *crashing) checkPages(ctx context.Context, links []issuedLink) error {
	for i := 0; i < len(links); i += len(links) / 200 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, links[i].url, nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("the link of row %d answers %d: %w", i, resp.StatusCode, err)
		}
	}
	return nil
}

// close ends what is there, however far it came.
func (c *crashing) close(ctx context.Context) (err error) {
	if c.bulk != nil {
		_ = c.bulk.cmd.Process.Kill() // mostly it has ended
	}
	if c.worker != nil {
		c.worker.Stop()
	}
	if c.nc != nil {
		c.nc.Close()
	}
	if c.nats != nil {
		rig.KillNow(c.nats)
	}
	if c.pool != nil {
		c.pool.Close()
	}
	if c.pg != nil {
		err = errors.Join(c.pg.Stop(ctx), stack.RemovePostgres(c.pgConfig.Dir))
	}
	c.sim.close()
	return err
}
