package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

//go:embed dev_page.html
var devPageHTML string

var devPageTemplate = template.Must(template.New("dev").Parse(devPageHTML))

// devPage is dev's start page: what runs, the samples, what to try next. The same goes to the
// terminal and to dev.json.
type devPage struct {
	Start, Click, Admin, Simulator, Mail, SMTP, NATS, Postgres string
	OwnStripe                                                  bool
	WebhookSecret                                              string
	Check                                                      string // settings that 'worker check' needs to try this run
	OwnPostgres                                                string // what DATABASE_URL names; empty = dev's own
	Data                                                       string // where dev's own Postgres keeps its data

	mu      sync.Mutex
	samples []sample
}

func (p *devPage) setLinks(s []sample) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.samples = s
}

// devState is dev.json, for scripts.
type devState struct {
	StartPage   string   `json:"start_page"`
	ClickServer string   `json:"click_server"`
	Admin       string   `json:"internal_server"`
	Simulator   string   `json:"simulator,omitempty"`
	MailCatcher string   `json:"mail_catcher,omitempty"`
	SMTP        string   `json:"smtp,omitempty"`
	NATS        string   `json:"nats"`
	Webhooks    string   `json:"webhook_secret"`
	Database    string   `json:"database,omitempty"`
	PID         int      `json:"pid"`
	Samples     []sample `json:"samples"`
}

func (p *devPage) state() devState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return devState{p.Start, p.Click, p.Admin, p.Simulator, p.Mail, p.SMTP, p.NATS, p.WebhookSecret, p.Postgres, os.Getpid(), p.samples}
}

// tool is a command to try next.
type tool struct{ What, Command string }

// tools are completed by the samples' ids.
func (p *devPage) tools(samples []sample) []tool {
	if len(samples) == 0 {
		return nil
	}
	run, worker, env := "enqueue", "worker", ""
	if exe, err := os.Executable(); err == nil && strings.Contains(filepath.ToSlash(exe), "/go-build") {
		run, worker = "go run ./cmd/enqueue", "go run ./cmd/worker"
	}
	if p.NATS != fmt.Sprintf("nats://%s:%d", loopback, devNATSPort) && strings.HasPrefix(p.NATS, "nats://") {
		env = "NATS_URL=" + p.NATS + " "
	}
	run = env + run
	customer := "cus_Demo123"
	if p.OwnStripe {
		customer = "cus_… (one of your test customers)"
	}
	tools := []tool{
		{"a link for a customer", run + " link --customer " + customer + " --flow payment_method_update --wait"},
		{"the same, mailed", run + " link --customer " + customer + " --email you@customer.example --template payment_failed --data name=Jo"},
		{"a campaign: a link for each row of a file", "printf 'customer,metadata.note\\n" + customer + ",a try\\n' | " + run + " bulk - --campaign a-try --out -"},
		{"everything that happens, as it happens", run + " watch"},
		{"what became of a link", run + " status " + samples[0].RequestID},
		{"end a campaign's links", run + " revoke --campaign dev-card-expiry --reason 'a try'"},
	}
	if p.Postgres != "" {
		database := "DATABASE_URL='" + p.Postgres + "' "
		if p.Check != "" {
			tools = append(tools, tool{"what an operator asks first", database + env + p.Check + " " + worker + " check"})
		}
		tools = append(tools, tool{"a token of the HTTP API, and a link by it", "TOKEN=$(" + database + worker + " tokens new --name me)\n  curl -sS " + p.Admin +
			"/v1/links -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -d '{\"id\": \"a-try\", \"source\": \"support\", \"session\": {\"customer\": \"" + customer + "\"}}'"},
			tool{"the audit, as CSV", database + worker + " audit export"},
			tool{"that nothing in it was changed", database + worker + " audit verify"})
	}
	return tools
}

func (p *devPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Cache-Control", "no-store")
	if r.URL.Path != "/" && r.URL.Path != "/returned" {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	state := p.state()
	_ = devPageTemplate.Execute(w, map[string]any{
		"State": state, "Tools": p.tools(state.Samples), "Returned": r.URL.Path == "/returned", "OwnStripe": p.OwnStripe, "OwnPostgres": p.OwnPostgres,
	})
}

// print is the first screen that a newcomer sees.
func (p *devPage) print(w io.Writer) {
	state := p.state()
	fmt.Fprintf(w, "\nLatchkey is up. Open %s\n\n", p.Start)
	fmt.Fprintf(w, "  %-16s %s\n", "click server", p.Click)
	if p.OwnStripe {
		fmt.Fprintf(w, "  %-16s %s\n", "Stripe", "your account's test mode (the samples' customers don't exist there)")
	} else {
		fmt.Fprintf(w, "  %-16s %s\n", "Stripe simulator", p.Simulator)
	}
	if p.Mail != "" {
		fmt.Fprintf(w, "  %-16s %s (SMTP %s)\n", "mail catcher", p.Mail, p.SMTP)
	} else {
		fmt.Fprintf(w, "  %-16s yours, of SMTP_URL\n", "mail server")
	}
	fmt.Fprintf(w, "  %-16s %s\n", "NATS", p.NATS)
	if p.OwnPostgres != "" {
		fmt.Fprintf(w, "  %-16s %s\n", "Postgres", p.OwnPostgres)
	} else {
		fmt.Fprintf(w, "  %-16s its own, data in %s\n", "Postgres", p.Data)
	}
	fmt.Fprintf(w, "  %-16s %s/readyz %s/metrics\n\n", "internal server", p.Admin, p.Admin)
	if p.Mail != "" {
		fmt.Fprintf(w, "%d sample requests went through, and a mail for each is in the mail catcher. Open one as the customer would,\nor its link itself, and press the button:\n\n", len(state.Samples))
	} else {
		fmt.Fprintf(w, "%d sample requests went through. Open one as the customer would, and press the button:\n\n", len(state.Samples))
	}
	for _, s := range state.Samples[:min(3, len(state.Samples))] {
		fmt.Fprintf(w, "  %s\n    %s\n", s.What, s.LinkURL)
	}
	if more := len(state.Samples) - 3; more > 0 {
		fmt.Fprintf(w, "  … and %d more on %s\n", more, p.Start)
	}
	fmt.Fprintf(w, "\nTry next, in another terminal:\n\n")
	for _, t := range p.tools(state.Samples) {
		fmt.Fprintf(w, "  # %s\n  %s\n", t.What, t.Command)
	}
	fmt.Fprintf(w, "\nCtrl-C stops everything; the data stay for the next start.\n")
}
