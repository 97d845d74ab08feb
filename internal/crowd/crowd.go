// Package crowd is people: what a browser does with the link of a mail, for load and failure
// tests. A person gets the page, presses its button, follows each page's Refresh, and is through
// when redirected to the portal. What a person saw on the way is kept.
package crowd

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Crowd is what people have in common: the way to the site.
type Crowd struct {
	// Origins of the replicas. Each request goes to one at random, as behind a load balancer.
	Origins []string
	// Client must follow no redirects (NewClient).
	Client *http.Client
}

// NewClient returns a client for many people: it shares connections, as a proxy in front would,
// and leaves redirects alone.
func NewClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, 64
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Answer is what one request of a person got.
type Answer struct {
	Method   string
	Sent, At time.Time
	Status   int           // 0 = none at all: the browser's own error page
	Refresh  time.Duration // after which the page comes back; 0 = never
	Location string        // of a redirect
	problem  string
}

// String is for messages; a place or a session's URL does not stand in it.
func (a Answer) String() string {
	if a.Status == 0 {
		return a.Method + " " + a.problem
	}
	return a.Method + " " + strconv.Itoa(a.Status)
}

// TryAgain is the page of a site that can't serve now and comes back by itself.
func (a Answer) TryAgain() bool { return a.Status == http.StatusServiceUnavailable && a.Refresh > 0 }

// errorPage is every other page than those of the way to the portal.
func (a Answer) errorPage() bool {
	return a.Status != http.StatusOK && a.Status != http.StatusSeeOther && !a.TryAgain()
}

// Person has one link. The zero value with Crowd and Path is ready to use; it is not safe for
// concurrent use.
type Person struct {
	Crowd *Crowd
	Path  string      // /l/<token>
	IP    string      // sent as X-Forwarded-For; empty = none
	Agent http.Header // in place of an iPhone's headers

	Answers []Answer
	Pressed time.Time // when the button was pressed first
	Presses int
	next    string // URL of the refresh
}

// phone is what Safari sends with a link that was tapped in a mail.
var phone = http.Header{
	"User-Agent":      {"Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"},
	"Accept":          {"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
	"Accept-Language": {"de-DE,de;q=0.9"},
	"Sec-Fetch-Mode":  {"navigate"},
	"Sec-Fetch-Dest":  {"document"},
	"Sec-Fetch-Site":  {"none"},
}

// Look gets the page.
func (p *Person) Look(ctx context.Context) Answer { return p.Open(ctx, http.MethodGet) }

// Open gets the page by a method, as a scanner does.
func (p *Person) Open(ctx context.Context, method string) Answer { return p.send(ctx, method, p.Path) }

// Press presses the button and comes back until there is no page to come back from. haste divides
// the time that pages are left open: 1 does what they say. The error is ctx's.
func (p *Person) Press(ctx context.Context, haste int) error {
	for p.Step(ctx); !p.Done(); p.Step(ctx) {
		if err := sleep(ctx, p.last().Refresh/time.Duration(haste)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Step does the next thing at once: it presses the button, or comes back where the page would. A
// person who came back to the page with the button, because their click is over, presses again.
func (p *Person) Step(ctx context.Context) Answer {
	if p.next != "" {
		return p.send(ctx, http.MethodGet, p.next)
	}
	if p.Presses++; p.Presses == 1 {
		p.Pressed = time.Now()
	}
	return p.send(ctx, http.MethodPost, p.Path)
}

// mostPresses is when a person gives up.
const mostPresses = 20

// Done tells that nothing more happens by itself: the person is through, or sees a page that
// leads nowhere.
func (p *Person) Done() bool {
	if len(p.Answers) == 0 {
		return false
	}
	a := p.last()
	return a.Status == http.StatusSeeOther || a.errorPage() || p.Presses >= mostPresses
}

// Through returns when the person was redirected to the portal; zero = not.
func (p *Person) Through() time.Time {
	if len(p.Answers) == 0 || p.last().Status != http.StatusSeeOther {
		return time.Time{}
	}
	return p.last().At
}

// Errors are the error pages that the person saw; a page that tries again by itself is one where
// nothing is meant to be down.
func (p *Person) Errors(nothingIsDown bool) (out []Answer) {
	for _, a := range p.Answers {
		if a.errorPage() || nothingIsDown && a.TryAgain() {
			out = append(out, a)
		}
	}
	return out
}

// Waited tells whether the person saw a page that comes back.
func (p *Person) Waited() bool {
	for _, a := range p.Answers {
		if a.Refresh > 0 {
			return true
		}
	}
	return false
}

func (p *Person) last() Answer { return p.Answers[len(p.Answers)-1] }

func (p *Person) send(ctx context.Context, method, path string) Answer {
	a := Answer{Method: method, Sent: time.Now()}
	refresh, err := p.exchange(ctx, &a, path)
	if err != nil {
		a.Status, a.problem = 0, err.Error()
	}
	a.At = time.Now()
	p.next = ""
	if a.Refresh > 0 {
		p.next = refresh
		if refresh == "" {
			p.next = path // which the browser gets, whatever the method was
		}
	}
	p.Answers = append(p.Answers, a)
	return a
}

func (p *Person) exchange(ctx context.Context, a *Answer, path string) (refresh string, err error) {
	origin := p.Crowd.Origins[rand.IntN(len(p.Crowd.Origins))]
	req, err := http.NewRequestWithContext(ctx, a.Method, origin+path, nil)
	if err != nil {
		return "", err
	}
	req.Header = phone.Clone()
	if p.Agent != nil {
		req.Header = p.Agent.Clone()
	}
	if a.Method == http.MethodPost && p.Agent == nil {
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	if p.IP != "" {
		req.Header.Set("X-Forwarded-For", p.IP)
	}
	resp, err := p.Crowd.Client.Do(req)
	if err != nil {
		return "", withoutURL(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return "", err
	}
	a.Status, a.Location = resp.StatusCode, resp.Header.Get("Location")
	a.Refresh, refresh, err = parseRefresh(resp.Header.Get("Refresh"))
	return refresh, err
}

// withoutURL keeps tokens out of messages.
func withoutURL(err error) error {
	if e, ok := err.(*url.Error); ok {
		return e.Err
	}
	return err
}

// parseRefresh reads "10; url=/path", of which the URL may be missing.
func parseRefresh(header string) (after time.Duration, path string, err error) {
	if header == "" {
		return 0, "", nil
	}
	seconds, rest, _ := strings.Cut(header, ";")
	n, err := strconv.Atoi(seconds)
	if err != nil || n < 1 {
		return 0, "", fmt.Errorf("header Refresh does not begin with seconds from 1: %q", seconds)
	}
	path, found := strings.CutPrefix(strings.TrimSpace(rest), "url=")
	if !found && rest != "" || found && !strings.HasPrefix(path, "/") {
		return 0, "", fmt.Errorf("header Refresh has no path of this site behind its %d seconds", n)
	}
	return time.Duration(n) * time.Second, path, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
