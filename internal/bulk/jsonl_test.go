package bulk

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"latchkey/internal/jobs"
)

func TestJSONLines(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ line, body, err string }{
		{line: `{"session":{"customer":"cus_1"}}`, body: `{"campaign":"spring","source":"campaign","id":"spring:cus_1","session":{"customer":"cus_1"}}`},
		{line: `  { "id": "a", "source": "dunning", "session": {} }  `, body: `{"campaign":"spring","id": "a", "source": "dunning", "session": {} }`},
		{line: `{"id":"","campaign":null,"session":{"customer_account":"acct_1"},"stripe_account":"acct_2"}`,
			body: `{"campaign":"spring","source":"campaign","id":"spring:acct_1:acct_2","session":{"customer_account":"acct_1"},"stripe_account":"acct_2"}`},
		{line: `{}`, err: "no id"},
		{line: `{"id":1}`, err: "$.id"},
		{line: `{"id":"a","id":"b"}`, err: "given twice"},
		{line: `[]`, err: "must be a JSON object"},
		{line: `{"id":"a"} {}`, err: "something follows"},
		{line: `{"id":"a","source":"Big Source"}`, err: "$.source"},
		{line: `{"id":"a","metadata":{"a":"` + strings.Repeat("x", jobs.MaxRequestBytes) + `"}}`, err: "may have 65536"},
		{line: `{"id":"a","metadata":{"a":"` + strings.Repeat("x", 1<<18) + `"}}`, err: "the line has"},
		{line: "{\"id\":\"\xff\"}", err: "invalid UTF-8"},
	} {
		in, err := Open(strings.NewReader("\n"+c.line+"\n\n{\"id\":\"next\"}"), "x.jsonl", "", spring)
		must(t, err)
		got := rows(t, in)
		if len(got) != 2 || got[0].Line != 2 || got[1].Line != 4 || got[1].ID != "next" {
			t.Errorf("%.80s: %+v", c.line, got)
			continue
		}
		if c.err == "" && (got[0].Err != nil || string(got[0].Body) != c.body) || c.err != "" && (got[0].Err == nil || !strings.Contains(got[0].Err.Error(), c.err)) {
			t.Errorf("%.80s\n%s (%v)\nwant\n%s%s", c.line, got[0].Body, got[0].Err, c.body, c.err)
		}
	}
}

// A line is a request or an error, and what goes out is an object a line.
func FuzzJSONL(f *testing.F) {
	for _, seed := range []string{`{"session":{"customer":"cus_1"}}`, "{\"id\":null,\"source\":\"\"}\n\n{}\n[", `{"expires_at":"x","id":"a"}`, "{ }\r\n{\"a\":{\"id\":1}}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file string) {
		in, err := Open(strings.NewReader(file), "", JSONL, spring)
		must(t, err)
		for line := 0; ; {
			row, err := in.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			must(t, err)
			if row.Line <= line || (row.Err == nil) != (len(row.Body) > 0) {
				t.Fatalf("line %d behind %d: %v, %q", row.Line, line, row.Err, row.Body)
			}
			line = row.Line
			var rejection *jobs.Rejection
			if err := jobs.CheckRequest(row.Body, time.Now()); row.Err == nil && errors.As(err, &rejection) && rejection.Code == jobs.InvalidJSON {
				t.Fatalf("line %d: %v\n%s", row.Line, err, row.Body)
			}
			for _, result := range []Result{{URL: "u"}, {Err: "e"}} {
				out := in.Append(nil, row, &result)
				var object map[string]any
				if err := json.Unmarshal(out, &object); err != nil || strings.Count(string(out), "\n") != 1 {
					t.Fatalf("%v: %q", err, out)
				}
			}
		}
	})
}
