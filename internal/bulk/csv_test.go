package bulk

import (
	"encoding/csv"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/text/encoding/unicode"

	"latchkey/internal/jobs"
	"latchkey/internal/testkit"
)

func TestMain(m *testing.M) { os.Exit(testkit.Main(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var spring = Defaults{Campaign: "spring", Source: "campaign"}

// rows reads a whole file.
func rows(t testing.TB, in Input) (all []*Row) {
	t.Helper()
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		all = append(all, row)
	}
}

func TestCSVForms(t *testing.T) {
	t.Parallel()
	const one, two = `{"id":"spring:cus_1","source":"campaign","campaign":"spring","session":{"customer":"cus_1","locale":"de"},"metadata":{"note":"a"}}`,
		`{"id":"spring:cus_2","source":"campaign","campaign":"spring","session":{"customer":"cus_2"},"metadata":{"note":" two\nlines, \"quoted\" "}}`
	plain := "customer,locale,metadata.note\ncus_1,de,a\n\"cus_2\",,\" two\nlines, \"\"quoted\"\" \"\n"
	utf16, err := unicode.UTF16(unicode.LittleEndian, unicode.UseBOM).NewEncoder().String(plain)
	must(t, err)
	for name, file := range map[string]string{
		"plain":               plain,
		"CRLF":                strings.ReplaceAll(plain, "\n", "\r\n"),
		"a mark of UTF-8":     "\ufeff" + plain,
		"UTF-16":              utf16,
		"no line end at last": strings.TrimSuffix(plain, "\n"),
		"semicolons":          "customer;locale;metadata.note\ncus_1;de;a\ncus_2;;\" two\nlines, \"\"quoted\"\" \"\n",
		"tabs":                "customer\tlocale\tmetadata.note\ncus_1\tde\ta\ncus_2\t\t\" two\nlines, \"\"quoted\"\" \"\n",
		"another order":       "metadata.note,customer,locale\na,cus_1,de\n\" two\nlines, \"\"quoted\"\" \",cus_2,\n",
		"long names":          "session.customer,session.locale,metadata.note\ncus_1,de,a\ncus_2,,\" two\nlines, \"\"quoted\"\" \"\n",
		"names of a person":   "Customer, Locale ,Metadata.note\n cus_1 ,de ,a\ncus_2,,\" two\nlines, \"\"quoted\"\" \"\n",
		"empty lines":         "customer,locale,metadata.note\n\ncus_1,de,a\n,,\n\n\ncus_2,,\" two\nlines, \"\"quoted\"\" \"\n,,\n",
		"a quoted delimiter":  "\"customer\",\"locale\",metadata.note\ncus_1,de,a\ncus_2,,\" two\nlines, \"\"quoted\"\" \"\n",
	} {
		in, err := Open(strings.NewReader(file), "", "", spring)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := rows(t, in)
		if len(got) != 2 || got[0].Err != nil || got[1].Err != nil {
			t.Errorf("%s: %d rows, %+v", name, len(got), got)
			continue
		}
		for i, want := range []string{one, two} {
			// encoding/csv turns \r\n within quotes into \n, so all of them say the same.
			if !same(t, got[i].Body, want) || !got[i].Derived {
				t.Errorf("%s: row %d\n%s\nwant\n%s", name, i, got[i].Body, want)
			}
			if err := jobs.CheckRequest(got[i].Body, time.Now()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// The output is the input as it was, with four columns more, and can be read as CSV.
func TestCSVOutput(t *testing.T) {
	t.Parallel()
	file := "\ufeff\"customer\"; locale\r\ncus_1;de\r\n\r\ncus_2\r\ncus_3;de;fr\r\n\"cus_4;de\r\n"
	in, err := Open(strings.NewReader(file), "x.csv", "", spring)
	must(t, err)
	out := in.Header()
	for i, row := range rows(t, in) {
		result := Result{URL: "https://x/l/1", LinkID: "1", ExpiresAt: "2026"}
		if row.Err != nil {
			result = Result{Err: "a; \"b\""}
		}
		if wantLine := []int{2, 4, 5, 6}[i]; row.Line != wantLine || (row.Err == nil) != (i == 0) {
			t.Errorf("row %d: line %d, %v", i, row.Line, row.Err)
		}
		out = in.Append(out, row, &result)
	}
	want := "\ufeff\"customer\"; locale;link_url;link_id;expires_at;error\r\n" +
		"cus_1;de;https://x/l/1;1;2026;\r\n" +
		"cus_2;;;;;\"a; \"\"b\"\"\"\r\n" +
		";;;;;\"line 5: a; \"\"b\"\"\"\r\n" +
		";;;;;\"line 6: a; \"\"b\"\"\"\r\n"
	if string(out) != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

func TestCSVColumns(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ header, row, want string }{
		{"id,source,campaign,customer", "a,dunning,x,cus_1", `{"id":"a","source":"dunning","campaign":"x","session":{"customer":"cus_1"}}`},
		{"customer,stripe_account", "cus_1,acct_1", `{"id":"spring:cus_1:acct_1","source":"campaign","campaign":"spring","session":{"customer":"cus_1"},"stripe_account":"acct_1"}`},
		{"customer", "acct_1", `{"id":"spring:acct_1","source":"campaign","campaign":"spring","session":{"customer_account":"acct_1"}}`},
		{"id,customer,flow,subscription", "a,cus_1,subscription_cancel,sub_1", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1","flow_data":{"type":"subscription_cancel","subscription_cancel":{"subscription":"sub_1"}}}}`},
		{"id,customer,subscription,flow", "a,cus_1,sub_1,subscription_update", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1","flow_data":{"subscription_update":{"subscription":"sub_1"},"type":"subscription_update"}}}`},
		{"id,customer,flow,subscription", "a,cus_1,payment_method_update,", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1","flow_data":{"type":"payment_method_update"}}}`},
		{"id,customer,email,template,data.name,data.card.brand", "a,cus_1,jo@example.com,generic,Jo,visa", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1"},"deliver":[{"channel":"email","to":"jo@example.com","template":"generic","data":{"name":"Jo","card":{"brand":"visa"}}}]}`},
		{"id,customer,email,template,data.name", "a,cus_1,,generic,Jo", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1"}}`},
		{"id,customer,webhook,email", "a,cus_1,https://h.example.com/,jo@example.com", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1"},"deliver":[{"channel":"email","to":"jo@example.com"},{"channel":"webhook","url":"https://h.example.com/"}]}`},
		{"id,customer,deliver[0].channel,deliver[0].to", "a,cus_1,email,jo@example.com", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1"},"deliver":[{"channel":"email","to":"jo@example.com"}]}`},
		{"id,customer,max_sessions,livemode,metadata.a.b,metadata.0", "a,cus_1,5,TRUE,x,y", `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1"},"max_sessions":5,"livemode":true,"metadata":{"a.b":"x","0":"y"}}`},
		{"id,customer,flow,flow_data.subscription_update_confirm.items.0.quantity,session.flow_data.subscription_update_confirm.items[0].id", "a,cus_1,subscription_update_confirm,0,si_1",
			`{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1","flow_data":{"type":"subscription_update_confirm","subscription_update_confirm":{"items":[{"quantity":0,"id":"si_1"}]}}}}`},
		{"id,session", `a,"{""customer"":""cus_1""}"`, `{"id":"a","source":"campaign","campaign":"spring","session":{"customer":"cus_1"}}`},
	} {
		in, err := Open(strings.NewReader(c.header+"\n"+c.row+"\n"), "x.csv", "", spring)
		if err != nil {
			t.Errorf("%s: %v", c.header, err)
			continue
		}
		got := rows(t, in)
		if len(got) != 1 || got[0].Err != nil || !same(t, got[0].Body, c.want) {
			t.Errorf("%s\n%s (%v)\nwant\n%s", c.header, got[0].Body, got[0].Err, c.want)
		}
	}
}

func TestHeaderErrors(t *testing.T) {
	t.Parallel()
	for header, want := range map[string]string{
		"customer,emial":               `"emial" (did you mean email?)`,
		"customer,Language":            `"Language"`,
		"customer_id":                  "did you mean customer?",
		"customer,sesion.locale":       "did you mean session.locale?",
		"customer,":                    "it has no name",
		"customer,session.customer":    "both give session.customer",
		"locale":                       "no column names the customer",
		"customer,data.name":           "need a column email",
		"customer,template":            "need a column email",
		"customer,subscription":        "needs a column flow",
		"customer,link_url":            "earlier output",
		"customer,error":               "earlier output",
		"customer,email,deliver.0.to":  "another column",
		"customer,email,deliver.1.url": "don't go together",
		"customer,metadata,metadata.a": "JSON",
		"customer,flow,subscription,session.flow_data.subscription_cancel.subscription": "another column",
		"customer,metadata.":    `"metadata."`,
		"customer,deliver.x.to": `"deliver.x.to"`,
		"":                      "empty",
		"\"customer":            "can't be read",
		"customer,\xff":         "UTF-8",
	} {
		_, err := Open(strings.NewReader(header+"\n"), "x.csv", "", spring)
		if header == "" {
			_, err = Open(strings.NewReader(""), "x.csv", "", spring)
		}
		var wrong *HeaderError
		if !errors.As(err, &wrong) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v\nwant %s", header, err, want)
		}
	}
	if _, err := Open(strings.NewReader("customer\n"), "x.csv", "", Defaults{Source: "campaign"}); err == nil || !strings.Contains(err.Error(), "--campaign") {
		t.Errorf("no campaign: %v", err)
	}
	in, err := Open(strings.NewReader("customer,Region,\ncus_1,EMEA,x\n"), "x.csv", "", Defaults{Campaign: "c", Source: "campaign", IgnoreUnknown: true})
	must(t, err)
	if row := rows(t, in)[0]; strings.Contains(string(row.Body), "EMEA") || string(in.Append(nil, row, &Result{})) != "cus_1,EMEA,x,,,,\n" {
		t.Errorf("%s", row.Body)
	}
}

// A quote that is never closed does not take the whole file into memory.
func TestRowWithoutEnd(t *testing.T) {
	t.Parallel()
	in, err := Open(io.MultiReader(strings.NewReader("customer\ncus_1\n\""), &endless{}), "x.csv", "", spring)
	must(t, err)
	if row, err := in.Read(); err != nil || row.ID != "spring:cus_1" {
		t.Fatal(err)
	}
	if _, err := in.Read(); !errors.Is(err, errNoEnd) || !strings.Contains(err.Error(), "line ") {
		t.Errorf("%v", err)
	}
	if _, err := in.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("afterwards: %v", err)
	}
}

// endless is a file of a's.
type endless struct{}

func (*endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func same(t testing.TB, got []byte, want string) bool {
	t.Helper()
	a, b := jsontext.Value(strings.ReplaceAll(string(got), `\r\n`, `\n`)), jsontext.Value(want)
	must(t, a.Canonicalize())
	must(t, b.Canonicalize())
	return string(a) == string(b)
}

// A row is a request or an error, and has its line; the output is a CSV with each row in it.
func FuzzCSV(f *testing.F) {
	for _, seed := range []string{"customer,locale\ncus_1,de\n", "customer;email;data.x\r\ncus_1;\"a\nb\";c\r\n\r\n;;\n", "\ufeffcustomer\tmetadata.a\ncus_1\t\"x", "customer,max_sessions\ncus_1,1,2\n\"a\"b,c\n\xff,\n",
		"\xff\xfec\x00", "customer,deliver.0.to,deliver[1].url,session.flow_data.type,subscription\na,b,c,d,e\n", "a\rb\n\r\n\rcustomer\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, file string) {
		in, err := Open(strings.NewReader(file), "x.csv", "", Defaults{Campaign: "c", Source: "campaign", IgnoreUnknown: true})
		if err != nil {
			return
		}
		out := in.Header()
		n, last := 0, 1
		for {
			row, err := in.Read()
			if err != nil {
				break
			}
			n++
			if row.Line <= 1 || row.Line <= last && n > 1 {
				t.Fatalf("row %d has line %d, behind %d", n, row.Line, last)
			}
			last = row.Line
			if (row.Err == nil) != (len(row.Body) > 0) {
				t.Fatalf("line %d: %v, %q", row.Line, row.Err, row.Body)
			}
			var rejection *jobs.Rejection
			if err := jobs.CheckRequest(row.Body, time.Now()); row.Err == nil && errors.As(err, &rejection) && rejection.Code == jobs.InvalidJSON {
				t.Fatalf("line %d is no JSON: %v\n%s", row.Line, err, row.Body)
			}
			out = in.Append(out, row, &Result{URL: "u", Err: "e;,\t\""})
		}
		if !utf8.Valid(out) {
			t.Fatal("the output is no UTF-8")
		}
		r := csv.NewReader(strings.NewReader(strings.TrimPrefix(string(out), "\ufeff")))
		r.Comma = in.(*csvInput).reader.Comma
		records, err := r.ReadAll()
		if err != nil || len(records) != n+1 {
			t.Fatalf("%d records of %d rows, %v\n%q", len(records), n, err, out)
		}
	})
}
