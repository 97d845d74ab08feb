package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-message/mail"
	"github.com/emersion/go-smtp"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
	"latchkey/internal/testkit"
)

// mailServer takes mails and answers DATA as it is told to.
type mailServer struct {
	t    *testing.T
	addr string
	srv  *smtp.Server

	mu      sync.Mutex
	down    bool    // nobody behind the port: each connection is cut at once
	answers []error // to come; errCut = it takes the mail and cuts the connection
	mails   []string
	to      []string
}

var errCut = errors.New("cut")

func newMailServer(t *testing.T, answers ...error) *mailServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	m := &mailServer{t: t, addr: l.Addr().String(), answers: answers}
	m.srv = smtp.NewServer(smtp.BackendFunc(func(c *smtp.Conn) (smtp.Session, error) { return &mailSession{server: m, conn: c}, nil }))
	m.srv.Domain, m.srv.EnableSMTPUTF8, m.srv.MaxRecipients = "localhost", true, 1
	go func() { _ = m.srv.Serve(&downListener{l, m}) }()
	t.Cleanup(func() { _ = m.srv.Close() })
	return m
}

// downListener keeps the port while the server is down, or another test could take it.
type downListener struct {
	net.Listener
	server *mailServer
}

func (l *downListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.server.isDown() {
			return conn, err
		}
		_ = conn.Close()
	}
}

func (m *mailServer) isDown() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.down
}

func (m *mailServer) setDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

func (m *mailServer) got() (mails, to []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mails), slices.Clone(m.to)
}

type mailSession struct {
	server *mailServer
	conn   *smtp.Conn
	to     string
}

func (s *mailSession) Mail(string, *smtp.MailOptions) error      { return nil }
func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error { s.to = to; return nil }
func (s *mailSession) Reset()                                    {}
func (s *mailSession) Logout() error                             { return nil }

func (s *mailSession) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	var answer error
	if a := &s.server.answers; len(*a) > 0 {
		answer, *a = (*a)[0], (*a)[1:]
	}
	if answer == nil || errors.Is(answer, errCut) {
		s.server.mails, s.server.to = append(s.server.mails, string(raw)), append(s.server.to, s.to)
	}
	if errors.Is(answer, errCut) {
		_ = s.conn.Conn().Close()
		return nil
	}
	return answer
}

func smtpAnswer(code int, a, b, c int, text string) error {
	return &smtp.SMTPError{Code: code, EnhancedCode: smtp.EnhancedCode{a, b, c}, Message: text}
}

// withEmail gives the world a mail server and a clock.
func (w *world) withEmail(addr string, now func() time.Time) *world {
	w.t.Helper()
	templates, err := notify.LoadTemplates(notify.TemplatesConfig{Brand: "Example"})
	must(w.t, err)
	mailer, err := notify.NewMailer(notify.MailerConfig{URL: "smtp://" + addr, From: "Example <billing@example.com>", Log: w.log})
	must(w.t, err)
	w.t.Cleanup(func() { _ = mailer.Close() })
	w.river, err = NewRiver(RiverConfig{Pool: w.pool, JobPool: w.pool, JetStream: w.js, Keys: w.keys, BaseURL: testBaseURL, Now: now, Log: w.log, Mailer: mailer, Templates: templates})
	must(w.t, err)
	w.issuer = w.newIssuer(w.pool)
	w.issuer.Rules.Templates = templates
	return w
}

func emailRequest(id, to string, fields ...any) []byte {
	entry := map[string]any{"channel": "email", "to": to, "template": "payment_failed", "data": map[string]any{"name": "Jo", "amount": "€ 49.00"}}
	for i := 0; i < len(fields); i += 2 {
		entry[fields[i].(string)] = fields[i+1]
	}
	return request(id, "deliver", []any{entry}, "session.locale", "de")
}

// The mail holds the link's URL in the session's language, and goes to whom the request names.
func TestEmailDelivers(t *testing.T) {
	t.Parallel()
	server := newMailServer(t)
	w := setup(t).withEmail(server.addr, time.Now)
	w.startRiver()
	link := w.issue(emailRequest("r1", "jo@example.org", "list_unsubscribe", "https://example.com/u?x=1"))
	w.wantOutcome(link.ID, portal.LinkDelivered, `{"attempts":1,"channel":"email"}`)
	w.events(2)
	mails, to := server.got()
	if len(mails) != 1 || to[0] != "jo@example.org" {
		t.Fatalf("%d mails to %v", len(mails), to)
	}
	r, err := mail.CreateReader(strings.NewReader(mails[0]))
	must(t, err)
	issued, err := w.issuer.Issued(link)
	must(t, err)
	parts := 0
	for {
		part, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		body, err := io.ReadAll(part.Body)
		must(t, err)
		if !strings.Contains(string(body), issued.URL) || !strings.Contains(string(body), "49.00") || !strings.Contains(string(body), "Jo") {
			t.Errorf("part %d lacks the link, the amount or the name:\n%s", parts, body)
		}
		parts++
	}
	subject, err := r.Header.Subject()
	if err != nil || parts != 2 || subject == "" || strings.Contains(subject, "payment") {
		t.Errorf("%d parts, subject %q (%v)", parts, subject, err)
	}
	id, err := r.Header.MessageID()
	row := w.outcomes(link.ID)[0]
	if err != nil || id != row.ID.String()+"@example.com" {
		t.Errorf("Message-ID %q of delivery %s (%v)", id, row.ID, err)
	}
	if got := r.Header.Get("List-Unsubscribe"); got != "<https://example.com/u?x=1>" {
		t.Errorf("List-Unsubscribe %q", got)
	}
}

// The crash table's rows of mails and of their outcome. Then all is fine again, and everything adds up.
func TestEmailCrashes(t *testing.T) {
	t.Parallel()
	busy := smtpAnswer(451, 4, 7, 1, "zebra is greylisted")
	for name, c := range map[string]struct {
		answers  []error
		commits  []testkit.Fate // of the outcome
		attempts int
		mails    int // that the server took
	}{
		"put off by the server":                    {[]error{busy, busy}, nil, 3, 1},
		"took effect and the answer was lost":      {[]error{errCut}, nil, 2, 2},
		"died after the mail, before the commit":   {nil, []testkit.Fate{testkit.Failed}, 1, 2},
		"died after the commit of its outcome":     {nil, []testkit.Fate{testkit.FailedButTook}, 1, 1},
		"put off, then taken, and then it is dead": {[]error{busy, errCut}, nil, 3, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newMailServer(t, c.answers...)
			w := setup(t).withEmail(server.addr, yesterday)
			link := w.issue(emailRequest("r1", "jo@example.org"))
			if c.commits != nil {
				faults := &testkit.Commits{}
				worker := w.emailWorker(server)
				worker.deliveries.pool = w.workerPool(faults)
				faults.Script(c.commits...)
				var snooze *rivertype.JobSnoozeError
				if err := worker.Work(w.ctx, w.emailJob(link, 1)); !errors.As(err, &snooze) {
					t.Fatalf("the job ends with %v, not to come back", err)
				}
			}
			w.startRiver()
			w.jobEnds("email")
			w.wantOutcome(link.ID, portal.LinkDelivered, fmt.Sprintf(`{"attempts":%d,"channel":"email"}`, c.attempts))
			mails, _ := server.got()
			if len(mails) != c.mails {
				t.Errorf("the server took %d mails, want %d", len(mails), c.mails)
			}
			for _, m := range mails {
				if messageID := headerOf(t, m, "Message-Id"); messageID != headerOf(t, mails[0], "Message-Id") || headerOf(t, m, "Date") != headerOf(t, mails[0], "Date") {
					t.Errorf("a repeat can't be told: %s", messageID)
				}
			}
			w.events(2)
			if strings.Contains(w.logs.tail(), "zebra") || strings.Contains(w.logs.tail(), "jo@example.org") {
				t.Error("the log quotes the server or the address")
			}
			if w.count(`SELECT count(*) FROM river_job j WHERE j::text LIKE '%zebra%' OR j::text LIKE '%jo@%'`) != 0 {
				t.Error("a job quotes the server or the address")
			}
		})
	}
}

func headerOf(t *testing.T, raw, name string) string {
	t.Helper()
	r, err := mail.CreateReader(strings.NewReader(raw))
	must(t, err)
	return r.Header.Get(name)
}

func (w *world) emailWorker(server *mailServer) *emailWorker {
	w.t.Helper()
	mailer, err := notify.NewMailer(notify.MailerConfig{URL: "smtp://" + server.addr, From: "billing@example.com"})
	must(w.t, err)
	w.t.Cleanup(func() { _ = mailer.Close() })
	return &emailWorker{deliveries: &deliveries{pool: w.pool, publish: w.river.Publish, now: time.Now, log: w.log},
		templates: w.issuer.Rules.Templates, mailer: mailer, keys: w.keys, baseURL: testBaseURL, metrics: newMetrics(nil)}
}

// emailJob is the job of a link's only delivery.
func (w *world) emailJob(link *portal.Link, attempt int) *river.Job[EmailArgs] {
	w.t.Helper()
	rows, err := portal.LoadAudit(w.ctx, w.owner, `link_id = $2 AND kind = 'link.issued'`, link.ID)
	must(w.t, err)
	return &river.Job[EmailArgs]{JobRow: &rivertype.JobRow{Attempt: attempt}, Args: EmailArgs{Event: rows[0].ID}}
}

// 5xx is final at once, 4xx at the schedule's end. Both are audited with what the server's codes were, and
// with nothing that it said.
func TestEmailIsRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer   error
		attempts int
		detail   string
	}{
		"550": {smtpAnswer(550, 5, 1, 1, "no zebra@example.org here"), 1, `"enhanced_status":"5.1.1"`},
		"0":   {errCut, len(EmailSchedule) + 1, `may have been taken`}, // a server that takes it and never says so
		"451": {smtpAnswer(451, 4, 7, 1, "zebra, later"), len(EmailSchedule) + 1, `"enhanced_status":"4.7.1"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := newMailServer(t, slices.Repeat([]error{c.answer}, 20)...)
			w := setup(t).withEmail(server.addr, time.Now)
			link := w.issue(emailRequest("r1", "zebra@example.org"))
			start := time.Now()
			for attempt := 1; attempt < c.attempts; attempt++ {
				job, worker := w.emailJob(link, attempt), w.emailWorker(server) // one whose breaker knows of no earlier attempt
				worker.deliveries.now = func() time.Time { return start }
				var snooze *rivertype.JobSnoozeError
				if err := worker.Work(w.ctx, job); err == nil || errors.As(err, &snooze) {
					t.Fatalf("attempt %d: %v", attempt, err)
				}
				if at := worker.NextRetry(job); !at.Equal(start.Add(EmailSchedule[attempt-1])) {
					t.Errorf("after attempt %d it is tried again in %v", attempt, at.Sub(start))
				}
			}
			must(t, w.emailWorker(server).Work(w.ctx, w.emailJob(link, c.attempts)))
			row := w.outcomes(link.ID)[0]
			detail, err := json.Marshal(row.Detail)
			must(t, err)
			if row.Kind != portal.LinkDeliveryFailed || !strings.Contains(string(detail), c.detail) || name != "0" && !strings.Contains(string(detail), fmt.Sprintf(`"smtp_code":%s`, name)) ||
				!strings.Contains(string(detail), fmt.Sprintf(`"attempts":%d`, c.attempts)) || strings.Contains(string(detail), "zebra") {
				t.Errorf("%s %s", row.Kind, detail)
			}
			w.checkEvents()
		})
	}
}

// A mail server that is down for an hour delays mails, loses none, counts no attempt, and holds up no event.
func TestMailServerAwayForAnHour(t *testing.T) {
	t.Parallel()
	server := newMailServer(t)
	server.setDown(true)
	w := setup(t).withEmail(server.addr, time.Now)
	const n = 30
	var links []*portal.Link
	for _, id := range numbered("r%02d", n) {
		links = append(links, w.issue(emailRequest(id, id+"@example.org")))
	}
	must(t, w.river.Start(w.ctx))
	w.events(n) // link.issued of all
	w.eventually("mails that wait", func() bool {
		return w.count(`SELECT count(*) FROM river_job WHERE kind = 'email' AND state = 'running'`) == emailWorkers
	})
	if left := w.count(`SELECT count(*) FROM river_job WHERE kind = 'email' AND state = 'available' AND attempt = 0`); left != n-emailWorkers {
		t.Errorf("%d mails wait untouched, want %d", left, n-emailWorkers)
	}
	must(t, w.river.Stop(w.ctx))
	server.setDown(false)
	w.withEmail(server.addr, func() time.Time { return time.Now().Add(time.Hour) })
	w.startRiver()
	for _, link := range links {
		w.wantOutcome(link.ID, portal.LinkDelivered, `{"attempts":1,"channel":"email"}`)
	}
	mails, to := server.got()
	slices.Sort(to)
	if len(mails) != n || len(slices.Compact(to)) != n {
		t.Errorf("the server has %d mails to %d people, want %d", len(mails), len(slices.Compact(to)), n)
	}
}

// A template that panics, or a mail whose link can't be signed, is tried again and then audited, like any
// other failure; the panic's value, which could hold anything, is written nowhere.
func TestEmailThatCannotBeMade(t *testing.T) {
	t.Parallel()
	server := newMailServer(t)
	w := setup(t).withEmail(server.addr, time.Now)
	link := w.issue(emailRequest("r1", "jo@example.org"))
	worker := w.emailWorker(server)
	worker.keys, _ = portal.ParseKeys(portal.FormatKey(9, [32]byte{9}))
	if err := worker.Work(w.ctx, w.emailJob(link, 1)); err == nil {
		t.Error("no error")
	}
	must(t, worker.Work(w.ctx, w.emailJob(link, len(EmailSchedule)+1)))
	if row := w.outcomes(link.ID)[0]; row.Kind != portal.LinkDeliveryFailed {
		t.Errorf("%+v", row)
	}
	work := recoverJob(w.log)
	err := work(w.ctx, &rivertype.JobRow{}, func(context.Context) error { panic("zebra") })
	if err == nil || strings.Contains(err.Error()+w.logs.tail(), "zebra") || !strings.Contains(w.logs.tail(), "TestEmailThatCannotBeMade") {
		t.Errorf("%v\n%s", err, w.logs.tail())
	}
}
