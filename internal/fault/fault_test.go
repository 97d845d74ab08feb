package main

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"latchkey/internal/jobs"
	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/stripesim"
)

func TestPlanFollowsFromItsSeed(t *testing.T) {
	t.Parallel()
	drawn := map[string]bool{}
	for seed := uint64(1); seed <= 300; seed++ {
		p := newPlan(seed)
		if again := newPlan(seed); p.String() != again.String() {
			t.Fatalf("seed %d gives two plans:\n%s%s", seed, p, again)
		}
		if n := len(p.faults); n < 3 || n > 8 {
			t.Errorf("seed %d has %d faults", seed, n)
		}
		over := map[string]time.Duration{}
		for _, in := range p.faults {
			drawn[in.kind.name] = true
			if in.at < over[in.subject()] {
				t.Errorf("seed %d strikes %s while it is struck", seed, in.subject())
			}
			over[in.subject()] = in.at + in.lasts
			if in.replica >= len(p.roles) {
				t.Errorf("seed %d strikes replica %d of %d", seed, in.replica, len(p.roles))
			}
		}
	}
	for _, k := range kinds {
		if !drawn[k.name] {
			t.Errorf("no seed up to 300 has %q", k.name)
		}
	}
}

// What was not there when a fault came is not counted as struck, and a lift is not waited for.
func TestWhatIsNotThereIsNotStruck(t *testing.T) {
	t.Parallel()
	d := &deployment{plan: &plan{}, replicas: []*replica{{}}}
	for _, k := range kinds {
		if slices.Contains([]string{"worker killed", "worker frozen and thawed", postgresDiskFull, natsDiskFull}, k.name) {
			d.plan.faults = append(d.plan.faults, injection{kind: k, lasts: time.Hour})
		}
	}
	if err := d.strikeAll(t.Context(), func(string, ...any) {}); err != nil || len(d.plan.faults) != 4 || len(d.struck) != 0 {
		t.Errorf("of %d faults %v struck: %v", len(d.plan.faults), d.struck, err)
	}
}

// The suite's worker has a clock that can jump, by this Go's time.Now.
func TestClockOverlay(t *testing.T) {
	t.Parallel()
	language, err := goTells(t.Context(), "list", "-m", "-f", "{{.GoVersion}}")
	if err != nil {
		t.Fatal(err)
	}
	family := language[:strings.LastIndex(language, ".")] // 1.26 of 1.26.0
	if version := runtime.Version(); version != "go"+family && !strings.HasPrefix(version, "go"+family+".") {
		return // another Go's time.Now is not ours to know: the program says so when it starts
	}
	dir := t.TempDir()
	path, err := clockOverlay(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	changed, err := os.ReadFile(filepath.Join(dir, "time.go"))
	if err != nil || !bytes.Contains(changed, []byte("sec += jumped.Load()")) {
		t.Errorf("time.Now does not jump: %v", err)
	}
	if main, err := os.ReadFile(filepath.Join(dir, "clock_jump.go")); err != nil || !bytes.Contains(main, []byte(`"`+clockFile+`"`)) {
		t.Errorf("the worker reads its clock's file by another name: %v", err)
	}
}

// healthy is what a small run leaves where nothing is broken.
func healthy() *end {
	link, click := uuid.MustParse("00000000-0000-7000-8000-000000000001"), uuid.MustParse("00000000-0000-7000-8000-000000000002")
	issued, repeat, started, created, delivered, sealed, rejected := uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New(), uuid.New()
	most := 1
	session := stripesim.Session{ID: "bps_1", URL: "http://stripe/p/session/secret", IdempotencyKey: "latchkey_click_" + click.String()}
	good := &request{id: "good", bodies: [][]byte{[]byte("good"), []byte("good")}, sent: 2, promised: true, answered: link, mails: []string{"jo@example.com"}}
	bad := &request{id: "bad", bodies: [][]byte{[]byte("bad")}, sent: 1, promised: true, code: jobs.InvalidJSON}
	e := &end{
		links:     map[uuid.UUID]linkRow{link: {request: "good", created: 1, most: &most}},
		byRequest: map[string]uuid.UUID{"good": link},
		audit: []auditRow{{id: issued, link: link, kind: portal.LinkIssued}, {id: repeat, link: link, kind: portal.RequestDuplicate},
			{id: started, link: link, click: click, kind: portal.ClickStarted},
			{id: created, link: link, click: click, kind: portal.SessionCreated, detail: map[string]any{"session_id": "bps_1"}},
			{id: delivered, link: link, kind: portal.LinkDelivered, detail: map[string]any{"channel": jobs.ChannelEmail}}, {id: sealed, kind: portal.AuditSealed},
			{id: rejected, kind: portal.RequestRejected, request: "bad"}},
		clicks:   map[uuid.UUID]uuid.UUID{click: link},
		events:   map[string]notify.Event{},
		letters:  []letter{{rejected.String(), jobs.InvalidJSON, []byte("bad")}},
		sessions: []stripesim.Session{session},
		l: &load{requests: []*request{good, bad}, byID: map[string]*request{"good": good, "bad": bad},
			given: map[uuid.UUID][]string{link: {session.URL}}},
		d: &deployment{stripe: &stripe{}, mail: &mailServer{got: map[string]map[string]int{"jo@example.com": {"<1@x>": 2}}},
			hooks: &hookServer{got: map[string]map[string]int{everything: {}}}},
	}
	for id, kind := range map[uuid.UUID]portal.Kind{issued: portal.LinkIssued, repeat: portal.LinkIssued, created: portal.SessionCreated, delivered: portal.LinkDelivered, sealed: portal.AuditSealed} {
		e.events[id.String()] = notify.Event{ID: id.String(), Type: notify.TypePrefix + string(kind)}
		e.d.hooks.got[everything][id.String()] = 1
	}
	return e
}

func (e *end) all() []string {
	e.requests()
	e.published()
	e.sessionsAndClicks()
	e.delivered()
	e.subscribed()
	return e.broken
}

// Each invariant is broken in turn, and the check says so.
func TestChecksFindWhatIsBroken(t *testing.T) {
	t.Parallel()
	if broken := healthy().all(); broken != nil {
		t.Fatalf("nothing is broken, and the check says %q", broken)
	}
	link, click := uuid.MustParse("00000000-0000-7000-8000-000000000001"), uuid.MustParse("00000000-0000-7000-8000-000000000002")
	drop := func(kind portal.Kind) func(*end) {
		return func(e *end) {
			for i, a := range e.audit {
				if a.kind == kind {
					e.audit = append(e.audit[:i], e.audit[i+1:]...)
					return
				}
			}
		}
	}
	change := func(edit func(*linkRow)) func(*end) {
		return func(e *end) { row := e.links[link]; edit(&row); e.links[link] = row }
	}
	for want, spoil := range map[string]func(*end){
		"was confirmed and has no link":                   func(e *end) { delete(e.byRequest, "good") },
		"which nobody sent":                               func(e *end) { e.byRequest["stranger"] = link },
		"was answered with link":                          func(e *end) { e.l.requests[0].answered = uuid.New() },
		"and is not":                                      func(e *end) { e.l.requests[0].revoked = true },
		"has no dead letter":                              func(e *end) { e.letters = nil },
		`has a dead letter invalid_field, want "invalid_`: func(e *end) { e.letters[0].code = jobs.InvalidField },
		"was sent 1 times and has 2 dead letters":         func(e *end) { e.letters = append(e.letters, e.letters[0]) },
		"dead letter ":                                    drop(portal.RequestRejected),
		"of request \"bad\" has no dead letter":           func(e *end) { e.letters = nil },
		"with two contents and has no dead letter":        func(e *end) { e.l.requests[0].bodies[1], e.l.requests[0].stored = []byte("other"), 2 },
		"can't be served and has link":                    func(e *end) { e.byRequest["bad"] = link },
		"has no event":                                    func(e *end) { delete(e.events, e.audit[0].id.String()) },
		"has no audit row":                                func(e *end) { e.events["other"] = notify.Event{ID: "other", Type: notify.TypePrefix + "link.issued"} },
		"has an event session.created":                    func(e *end) { e.events[e.audit[0].id.String()] = e.events[e.audit[3].id.String()] },
		"0 rows of link.issued":                           drop(portal.LinkIssued),
		"0 rows of click.started":                         drop(portal.ClickStarted),
		"1 rows of click.started and 0 outcomes":          drop(portal.SessionCreated),
		"which Stripe has not made":                       func(e *end) { e.sessions = nil },
		"is of click":                                     func(e *end) { e.sessions[0].IdempotencyKey = "latchkey_click_" + uuid.NewString() },
		"counts 0 sessions":                               change(func(r *linkRow) { r.created = 0 }),
		"1 reserved":                                      change(func(r *linkRow) { r.reserved = 1 }),
		"has 1 sessions, of 0 at most":                    change(func(r *linkRow) { r.most = new(int) }),
		"which is not in the audit as that link's":        func(e *end) { e.clicks[click] = uuid.New() },
		"ahead of the commit":                             func(e *end) { e.d.stripe.uncovered = []uuid.UUID{click} },
		"has the outcomes map[]":                          drop(portal.LinkDelivered),
		"were given up":                                   func(e *end) { e.audit[4].kind = portal.LinkDeliveryFailed },
		"came under 0 Message-IDs":                        func(e *end) { clear(e.d.mail.got) },
		"did not come to the subscription":                func(e *end) { clear(e.d.hooks.got[everything]) },
	} {
		e := healthy()
		spoil(e)
		if broken := strings.Join(e.all(), "\n"); !strings.Contains(broken, want) {
			t.Errorf("want %q, got %q", want, broken)
		}
	}
}

const committedDocs = "../../docs"

// The page is what the template and the results give.
func TestCommittedPage(t *testing.T) {
	t.Parallel()
	all, err := readResults(committedDocs)
	if err != nil {
		t.Fatal(err)
	}
	want, err := page(all)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(committedDocs, "reliability.md"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("docs/reliability.md is not what its template and results give; run: go run ./internal/fault -render -docs docs")
	}
	if all.Runs == nil {
		return
	}
	known := map[string]bool{}
	for _, k := range kinds {
		known[k.name] = true
	}
	for name := range all.Runs.Faults {
		if !known[name] {
			t.Errorf("the results have a fault %q, which the suite has not", name)
		}
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	text, err := page(results{})
	if err != nil || !strings.Contains(string(text), "Not run yet (`make faults`)") || !strings.Contains(string(text), "Not run yet (`make soak`)") {
		t.Errorf("without results: %v\n%s", err, text)
	}
	text, err = page(results{Runs: &result{Seeds: []uint64{1, 2, 3, 7}, Broken: []uint64{2}, Seconds: 61, Replicas: map[int]int{1: 1, 3: 3},
		Faults: map[string]tally{"NATS killed": {Injected: 5, Runs: 4, Survived: 3}, "worker killed": {Injected: 1, Runs: 1, Survived: 1}}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"**4 runs with 6 faults; in 1 of them an invariant was broken (seeds 2).**", "seeds 1–3, 7: 1 with 1 worker, 3 with 3 workers, on", "in 2 min",
		"| NATS killed | SIGKILL | 5 | 4 | 3 **!** |", "| worker killed | SIGKILL; started again at the fault's end | 1 | 1 | 1 |", "| worker frozen and thawed | SIGSTOP, SIGCONT | not made |",
		"Disks were not filled"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the page has no %q:\n%s", want, text)
		}
	}
}

func TestKeep(t *testing.T) {
	t.Parallel()
	docs := t.TempDir()
	want := &result{Seeds: []uint64{1}, Faults: map[string]tally{"NATS killed": {1, 1, 1}}}
	if err := keep(docs, func(r *results) { r.Runs = want }); err != nil {
		t.Fatal(err)
	}
	got, err := readResults(docs)
	if err != nil || !reflect.DeepEqual(got.Runs, want) {
		t.Errorf("%+v, %v", got.Runs, err)
	}
}

func TestGrowth(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		value func(minute float64) float64
		grows bool
	}{
		"flat":                    {func(float64) float64 { return 50 }, false},
		"a leak":                  {func(m float64) float64 { return 50 + m }, true},
		"a leak that wavers":      {func(m float64) float64 { return 50 + m + 5*float64(int(m)%2) }, true},
		"it wavers":               {func(m float64) float64 { return 50 + 30*float64(int(m)%2) }, false},
		"it fell":                 {func(m float64) float64 { return 90 - m }, false},
		"it filled up, then flat": {func(m float64) float64 { return 50 * min(1, m/14) }, false},
	} {
		r := &soakResult{Seconds: 3600}
		for minute := 0.0; minute < 60; minute++ {
			values := make([]float64, len(figureNames))
			values[0] = c.value(minute)
			for i := range values[1:] {
				values[i+1] = 1
			}
			r.add(time.Duration(minute)*time.Minute, values)
		}
		if grown := r.judge(); len(grown) > 0 != c.grows {
			t.Errorf("%s: %q grow, by %.1f %%", name, grown, r.Figures[0].Growth)
		}
		if svg, err := r.plot(); err != nil || !bytes.Contains(svg, []byte("memory of the workers")) {
			t.Errorf("%s: no plot: %v", name, err)
		}
	}
}
