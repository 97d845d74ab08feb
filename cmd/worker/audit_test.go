package main

import (
	"encoding/csv"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// The auditor's way: seal, verify, export, erase, and be told what somebody changed.
func TestAuditCommands(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.start()
	link := d.link(request("r1"))
	d.do(http.MethodGet, link.URL)
	d.do(http.MethodPost, link.URL)
	d.until("the click has its outcome", func() bool {
		return d.number(`SELECT count(*) FROM audit_events WHERE kind = 'session.created'`) == 1
	})

	var head string
	d.until("all is sealed", func() bool { // by the command or by the worker, whoever is quicker
		code, out := d.command(nil, "audit", "seal")
		if found := regexp.MustCompile(`(?m)^head (\d+:[0-9a-f]{64})$`).FindStringSubmatch(out); code == 0 && found != nil {
			head = found[1]
		}
		return d.number(`SELECT count(*) FROM audit_events WHERE kind <> 'audit.sealed' AND seq > coalesce((SELECT max(last_seq) FROM audit_seals), 0)`) == 0
	})
	code, out := d.command(nil, "audit", "verify", "--head", head)
	if code != 0 || !strings.HasPrefix(out, "the audit is as it was sealed: ") || !strings.Contains(out, "\nhead      ") {
		t.Fatalf("verify: exit %d\n%s", code, out)
	}
	var v struct {
		OK                    bool
		Rows, Seals, Visitors int
	}
	code, out = d.command(nil, "audit", "verify", "--json")
	if err := json.Unmarshal([]byte(out), &v); code != 0 || err != nil || !v.OK || v.Rows < 4 || v.Seals < 1 || v.Visitors != 2 {
		t.Errorf("verify --json: exit %d, %v\n%s", code, err, out)
	}

	code, out = d.command(nil, "audit", "export", "--customer", link.Customer, "--visitors")
	records, err := csv.NewReader(strings.NewReader(out[:strings.LastIndex(strings.TrimSpace(out), "\n")+1])).ReadAll()
	if code != 0 || err != nil || len(records) != 5 || records[1][3] != "link.issued" || records[4][3] != "session.created" {
		t.Errorf("export: exit %d, %v\n%s", code, err, out)
	}
	code, out = d.command(nil, "audit", "export", "--format", "jsonl", "--since", "1h")
	if code != 0 || strings.Count(out, `{"seq":`) < 4 || strings.Contains(out, "user_agent") {
		t.Errorf("export --format jsonl: exit %d\n%s", code, out)
	}

	if code, out := d.command(nil, "audit", "erase", "--customer", link.Customer, "--reason", "ticket 4711"); code != 0 ||
		out != "erased 2 rows of visitors, and the deliveries of 0 links\nwho looks at one of their links from now on, also at one that has ended, is written down again: erase again, or wait for VISITOR_RETENTION\n" {
		t.Errorf("erase: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "audit", "verify", "--head", head); code != 0 || !strings.Contains(out, "visitors  0 rows as hashed, 2 gone: ") {
		t.Errorf("verify after an erasure: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "audit", "export", "--format", "jsonl"); code != 0 || !strings.Contains(out, `"kind":"audit.erased"`) || !strings.Contains(out, `"reason":"ticket 4711"`) {
		t.Errorf("export after an erasure: exit %d\n%s", code, out)
	}

	id := records[2][1]
	d.sql(`ALTER TABLE audit_events DISABLE TRIGGER audit_events_no_change`)
	d.sql(`UPDATE audit_events SET detail = '{}' WHERE id = '` + id + `'`)
	if code, out := d.command(nil, "audit", "verify"); code != 1 || !strings.Contains(out, "row "+id+" was changed") || strings.Count(out, "\n") != 1 {
		t.Errorf("verify of a changed row: exit %d\n%s", code, out)
	}
	code, out = d.command(nil, "audit", "verify", "--json")
	if line, _, _ := strings.Cut(out, "\n"); code != 1 || !strings.HasPrefix(line, `{"ok":false,"what":"changed","seal":`) || !strings.HasSuffix(line, `"row":"`+id+`"}`) {
		t.Errorf("verify --json of a changed row: exit %d\n%s", code, out)
	}
	if code, out := d.command([]string{"DATABASE_URL=postgres:///latchkey?host=/nowhere"}, "audit", "verify", "--json"); code != 3 || strings.Contains(out, "{") {
		t.Errorf("verify of a database that is away: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "audit", "erase", "--customer", "cus_misspelled"); code != 1 || !strings.Contains(out, "no link is of that customer") || strings.Count(out, "\n") != 1 {
		t.Errorf("erase of nobody: exit %d\n%s", code, out)
	}
	for _, args := range [][]string{{"export", "--customer", ""}, {"export", "--campaign", ""}, {"export", "--since", ""}, {"verify", "--head", "x"}, {"verify", "--since", ""}, {"export", "--format", "xml"}, {"export", "--since", "soon"}, {"erase"}, {"erase", "--customer", ""},
		{"erase", "--customer", link.Customer, "--by", ""}, {"erase", "--customer", link.Customer, "--reason", strings.Repeat("x", 201)}} {
		if code, out := d.command(nil, append([]string{"audit"}, args...)...); code != 2 || strings.Count(out, "\n") != 1 {
			t.Errorf("%v: exit %d\n%s", args, code, out)
		}
	}
}
