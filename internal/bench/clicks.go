package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/portal"
	"latchkey/internal/rig"
)

// connections that the load holds open.
const connections = 64

// site is a worker on a database of its own with a number of links.
type site struct {
	links  int
	pool   *pgxpool.Pool
	worker *worker
	keys   *portal.Keyring
}

// clicks compares GET and POST with a plain handler that does one SELECT and commits one INSERT,
// and both on few links with both on many. Each request goes to another link, as people's do.
// Rounds are short and many: the machine's moods last for seconds.
func (b *bench) clicks(ctx context.Context) error {
	binary, sim, err := b.workerAndStripe(ctx)
	if err != nil {
		return err
	}
	defer sim.close()
	few, many, rounds, d := 10_000, 5_000_000, 11, 2*time.Second
	if b.short {
		few, many, rounds, d = 1000, 20_000, 1, time.Second
	}
	small, err := b.site(ctx, binary, "small", few, sim.url)
	if err != nil {
		return err
	}
	defer small.close()
	large, err := b.site(ctx, binary, "large", many, sim.url)
	if err != nil {
		return err
	}
	defer large.close()
	plain, closePlain, err := small.plainHandler(ctx)
	if err != nil {
		return err
	}
	defer closePlain()
	targets := []*target{
		{what: "plain handler, SELECT + INSERT", method: http.MethodGet, site: small, origins: []string{plain}, want: http.StatusOK},
		{what: "click GET, page and audit row", method: http.MethodGet, site: small, want: http.StatusOK, goal: 1.3},
		{what: "click POST, session, two commits", method: http.MethodPost, site: small, want: http.StatusSeeOther, goal: 0.4},
		{what: "click GET", method: http.MethodGet, site: large, want: http.StatusOK},
		{what: "click POST", method: http.MethodPost, site: large, want: http.StatusSeeOther},
	}
	if err := b.commit(ctx, small); err != nil {
		return err
	}
	sites := []*site{small, large}
	for range rounds {
		for _, t := range targets {
			if err := errors.Join(settle(ctx, sites), t.full(ctx, d)); err != nil {
				return err
			}
		}
		for _, t := range targets {
			if err := errors.Join(settle(ctx, sites), t.half(ctx, d)); err != nil {
				return err
			}
		}
	}
	b.tellClicks(targets)
	return nil
}

// settle waits until the events of what was measured before are published: they are not the next
// one's load.
func settle(ctx context.Context, sites []*site) error {
	for _, s := range sites {
		for waiting := 1; waiting > 0; time.Sleep(20 * time.Millisecond) {
			if err := s.pool.QueryRow(ctx, `SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed'`).Scan(&waiting); err != nil {
				return err
			}
		}
	}
	return nil
}

// commit shows what a commit costs here by itself. The dearer it is, the more there is to gain by
// sharing it, so the ratios below depend on it.
func (b *bench) commit(ctx context.Context, s *site) error {
	took := make([]time.Duration, 1000)
	for i := range took {
		began := time.Now()
		if _, err := s.pool.Exec(ctx, `INSERT INTO plain_opens (link_id) VALUES (gen_random_uuid())`); err != nil {
			return err
		}
		took[i] = time.Since(began)
	}
	b.goal(true, "one row, one commit, one connection, p50", ms(quantile(took, 0.5)), "", "", "shown")
	return nil
}

func (b *bench) tellClicks(targets []*target) {
	plain := targets[0]
	other := fmt.Sprintf("%s: %.0f/s, p99 %s", plain.what, median(plain.rates), ms(median(plain.p99s)))
	otherHalf := fmt.Sprintf("the plain handler at half of its own: %s, %s", ms(median(plain.halfP50s)), ms(median(plain.halfP99s)))
	for _, t := range targets[1:] {
		what := fmt.Sprintf("%s, %d links, %d connections", t.what, t.site.links, connections)
		toPlain := ratios(t.rates, plain.rates)
		goal, met := noGoal, true
		if t.goal > 0 {
			goal, met = fmt.Sprintf("≥ %.1f", t.goal), median(toPlain) >= t.goal
		}
		b.goal(met, what, fmt.Sprintf("%.0f/s, p99 %s", median(t.rates), ms(median(t.p99s))), other, ofRounds("%.2f", toPlain), goal)
		half := median(t.halfP99s)
		goal, met = noGoal, true
		if t == targets[1] {
			goal, met = "< 15 ms", half < 15*time.Millisecond
		}
		b.goal(met, "  at half that load, p50 and p99", ms(median(t.halfP50s))+", "+ms(half), otherHalf, "", goal)
		b.goal(true, "  allocations a request, all of the process", fmt.Sprintf("%.0f", median(t.allocs)), "", "", "shown")
		b.goal(true, "  bytes of Postgres' log a request", fmt.Sprintf("%.0f", median(t.wal)), "", "", "shown")
	}
	for i, few := range targets[1:3] {
		many := targets[3+i]
		grows := ratios(many.halfP50s, few.halfP50s)
		b.goal(median(grows) < 1.25, fmt.Sprintf("click %s p50, %d against %d links, half load each", many.method, many.site.links, few.site.links),
			ms(median(many.halfP50s)), ms(median(few.halfP50s)), ofRounds("%.2f", grows), "< 1.25")
	}
	for _, t := range targets[:3] {
		b.latencies(t.what, t.halfAll)
	}
}

// target is one kind of request and what was measured of it, an entry a round.
type target struct {
	what, method string
	site         *site
	origins      []string // taken by the connections in turn; none = the site's worker
	want         int
	goal         float64
	next         int // the link of the next run's first request

	rates, allocs            []float64
	wal                      []float64 // bytes a request
	p99s, halfP50s, halfP99s []time.Duration
	halfAll                  []time.Duration // requests of all rounds
}

// full sends as much as the connections take.
func (t *target) full(ctx context.Context, d time.Duration) error {
	before := t.site.worker.mallocs()
	written, err := walPosition(ctx, t.site.pool)
	if err != nil {
		return err
	}
	took, err := t.load(ctx, d, 0)
	if err != nil {
		return err
	}
	until, err := walPosition(ctx, t.site.pool)
	if err != nil {
		return err
	}
	t.wal = append(t.wal, (until-written)/float64(len(took)))
	t.rates = append(t.rates, float64(len(took))/d.Seconds())
	t.p99s = append(t.p99s, quantile(took, 0.99))
	t.allocs = append(t.allocs, (t.site.worker.mallocs()-before)/float64(len(took)))
	return nil
}

// half sends at half the rate of the round's full load, and counts each request's time from when
// it was due, so that a stall counts for all that it held up.
func (t *target) half(ctx context.Context, d time.Duration) error {
	took, err := t.load(ctx, d, t.rates[len(t.rates)-1]/2)
	if err != nil {
		return err
	}
	t.halfAll = append(t.halfAll, took...)
	t.halfP50s, t.halfP99s = append(t.halfP50s, quantile(took, 0.5)), append(t.halfP99s, quantile(took, 0.99))
	return nil
}

// load sends requests over all connections for a time, at a rate where it is not 0, and returns
// how long each took.
func (t *target) load(ctx context.Context, d time.Duration, rate float64) ([]time.Duration, error) {
	origins := t.origins
	if len(origins) == 0 {
		origins = []string{t.site.worker.Public}
	}
	var mu sync.Mutex
	var all []time.Duration
	var failed error
	var people sync.WaitGroup
	began := time.Now()
	for person := range connections {
		people.Go(func() {
			took, err := t.person(ctx, origins[person%len(origins)], person, began, d, rate)
			mu.Lock()
			defer mu.Unlock()
			all, failed = append(all, took...), errors.Join(failed, err)
		})
	}
	people.Wait()
	t.next += len(all) + connections
	return all, failed
}

// person is one connection, spoken to without net/http's client: on a machine that everything
// shares, the load's own work must be small.
func (t *target) person(ctx context.Context, origin string, person int, began time.Time, d time.Duration, rate float64) (took []time.Duration, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", strings.TrimPrefix(origin, "http://"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	answers := bufio.NewReader(conn)
	for i := 0; ; i++ {
		due := time.Now()
		if rate > 0 {
			due = began.Add(time.Duration(float64(i*connections+person) / rate * float64(time.Second)))
			time.Sleep(time.Until(due))
		}
		if due.Sub(began) >= d {
			return took, nil
		}
		token, err := t.site.token(t.next + i*connections + person)
		if err != nil {
			return nil, err
		}
		if _, err := fmt.Fprintf(conn, "%s /l/%s HTTP/1.1\r\nHost: pay.example.com\r\nUser-Agent: Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X)\r\nAccept-Language: de-DE,de;q=0.9\r\nContent-Length: 0\r\n\r\n",
			t.method, token); err != nil {
			return nil, err
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return nil, err
		}
		if resp.StatusCode != t.want {
			return nil, fmt.Errorf("%s: %s answered %d", t.what, t.method, resp.StatusCode)
		}
		took = append(took, time.Since(due))
	}
}

// site makes a database with links and starts a worker on it.
func (b *bench) site(ctx context.Context, binary, name string, links int, stripe string, env ...string) (*site, error) {
	pool, err := b.database(ctx, name)
	if err != nil {
		return nil, err
	}
	keys, err := portal.ParseKeys(rig.LinkKeys)
	if err != nil {
		return nil, err
	}
	s := &site{links: links, pool: pool, keys: keys}
	if err := fillLinks(ctx, pool, links); err != nil {
		return nil, err
	}
	s.worker, err = b.startWorker(ctx, binary, name, stripe, env...)
	return s, err
}

func (s *site) close() {
	s.worker.Stop()
	s.pool.Close()
}

// token is the token of the i-th request's link: far apart in the table from the one before.
func (s *site) token(i int) (string, error) {
	id, err := s.id(i)
	if err != nil {
		return "", err
	}
	return s.keys.Sign(1, id)
}

func (s *site) id(i int) (uuid.UUID, error) {
	return filledID(uint64(i) * 2_654_435_761 % uint64(s.links)) // Knuth's multiplier, prime to the sizes
}

// plainHandler is what most would write: look the link up, write a row, answer.
func (s *site) plainHandler(ctx context.Context) (origin string, closeIt func(), err error) {
	if _, err := s.pool.Exec(ctx, `CREATE TABLE plain_opens (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, link_id uuid NOT NULL, at timestamptz NOT NULL DEFAULT now())`); err != nil {
		return "", nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, _, err := s.keys.Verify(strings.TrimPrefix(r.URL.Path, "/l/"))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		var session []byte
		if err := s.pool.QueryRow(r.Context(), `SELECT session FROM links WHERE id = $1`, id).Scan(&session); err != nil {
			http.Error(w, "no link", http.StatusNotFound)
			return
		}
		if _, err := s.pool.Exec(r.Context(), `INSERT INTO plain_opens (link_id) VALUES ($1)`, id); err != nil {
			http.Error(w, "no row", http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(session)
	})}
	go func() { _ = srv.Serve(ln) }()
	return "http://" + ln.Addr().String(), func() { _ = srv.Close() }, nil
}

// mallocs is how many objects the worker's process has allocated, all its work together.
func (w *worker) mallocs() float64 { return w.Metric("go_memstats_mallocs_total") }
