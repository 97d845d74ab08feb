package crowd

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site answers with what it is told, one after the other, and keeps what it was asked.
func site(t *testing.T, answers ...string) (p *Person, asked *[]string) {
	t.Helper()
	asked = new([]string)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*asked = append(*asked, r.Method+" "+r.URL.Path)
		status, refresh, _ := strings.Cut(answers[0], " ")
		answers = answers[1:]
		if refresh != "" {
			w.Header().Set("Refresh", refresh)
		}
		if status == "303" {
			w.Header().Set("Location", "/portal")
		}
		w.WriteHeader(map[string]int{"200": 200, "303": 303, "429": 429, "503": 503}[status])
	}))
	t.Cleanup(srv.Close)
	client := NewClient()
	t.Cleanup(client.CloseIdleConnections)
	return &Person{Crowd: &Crowd{Origins: []string{srv.URL}, Client: client}, Path: "/l/t"}, asked
}

func TestPersonFollowsThePages(t *testing.T) {
	p, asked := site(t, "200", "200 3; url=/l/t/wait/a", "503 5; url=/l/t/wait/b", "503 5", "200", "303")
	p.Look(t.Context())
	for !p.Done() {
		p.Step(t.Context())
	}
	want := []string{"GET /l/t", "POST /l/t", "GET /l/t/wait/a", "GET /l/t/wait/b", "GET /l/t/wait/b", "POST /l/t"}
	if !slices.Equal(*asked, want) {
		t.Errorf("asked %q, want %q", *asked, want)
	}
	if p.Through().IsZero() || p.Presses != 2 || !p.Waited() || p.last().Location != "/portal" {
		t.Errorf("%d presses, %v", p.Presses, p.Answers)
	}
	if len(p.Errors(false)) != 0 || len(p.Errors(true)) != 2 {
		t.Errorf("error pages: %v, and where nothing is down %v", p.Errors(false), p.Errors(true))
	}
	if p.Answers[1].Refresh != 3*time.Second {
		t.Errorf("comes back after %s", p.Answers[1].Refresh)
	}
}

func TestErrorPagesEndTheWay(t *testing.T) {
	for answer, status := range map[string]int{"429": 429, "503": 503, "200 soon": 0, "200 0; url=/l/t": 0, "200 3; url=https://elsewhere.example": 0} {
		t.Run(answer, func(t *testing.T) {
			p, _ := site(t, answer)
			if err := p.Press(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			if errs := p.Errors(false); len(errs) != 1 || errs[0].Status != status || !p.Done() || !p.Through().IsZero() {
				t.Errorf("%v", p.Answers)
			}
		})
	}
}
