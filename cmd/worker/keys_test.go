package main

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// freshKey is a key with an id, as 'worker keys new' prints it.
func freshKey(id byte) string { return portal.FormatKey(id, [32]byte{1, id}) }

// keysFile is a file of keys, and keysFrom has a worker read and watch it.
func keysFile(t *testing.T, keys string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "link_keys")
	if err := writeWhole(path, []byte(keys+"\n")); err != nil {
		t.Fatal(err)
	}
	return path
}

func keysFrom(path string) func(*Config) {
	return func(c *Config) {
		content, _ := os.ReadFile(path)
		c.LinkKeys, c.keysFile = strings.TrimSpace(string(content)), path
	}
}

// The whole rotation, on two replicas that never stop: no link dies before its key is taken out, and a file that can't
// be used changes nothing.
func TestKeysAreRotatedWithoutARestart(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	path := keysFile(t, freshKey(1))
	replicas := []*instance{d.start(keysFrom(path)), d.start(keysFrom(path))}
	rewrite := func(keys, says string) {
		t.Helper()
		if err := writeWhole(path, []byte(keys+"\n")); err != nil {
			t.Fatal(err)
		}
		for _, in := range replicas {
			d.until("a replica to say "+says, func() bool { return strings.Contains(in.log.String(), says) })
		}
	}
	wantOn := func(want int, link *jobs.IssuedData) {
		t.Helper()
		for _, in := range replicas {
			if status, _, header := d.do(http.MethodGet, in.click+"/l/"+tokenOf(link.URL)); status != want || header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s: %d, %q, want %d", link.RequestID, status, header.Get("Cache-Control"), want)
			}
		}
	}
	first := d.link(request("first"))
	rewrite(freshKey(1)+","+freshKey(2), "Keyring(signer 1 of [1 2])")
	rewrite(freshKey(2)+","+freshKey(1), "Keyring(signer 2 of [2 1])")
	second := d.link(request("second"))
	if n := d.number(`SELECT key_id FROM links WHERE request_id = 'second'`); n != 2 {
		t.Errorf("signed by key %d", n)
	}
	rewrite(freshKey(2)+",1:half-wri", "entry 2: the key has 6 bytes")
	wantOn(http.StatusOK, first)
	wantOn(http.StatusOK, second)
	if again := d.link(request("first")); tokenOf(again.URL) != tokenOf(first.URL) {
		t.Error("another token after the rotation")
	}
	rewrite(freshKey(2), "Keyring(signer 2 of [2])")
	for _, in := range replicas {
		d.until("a replica to warn of the link that needs the key", func() bool {
			return strings.Contains(in.log.String(), `"keys":"[1]","live_links":1`)
		})
		for _, key := range []string{freshKey(1), freshKey(2)} {
			if _, secret, _ := strings.Cut(key, ":"); strings.Contains(in.log.String(), secret) {
				t.Error("the log shows a key")
			}
		}
	}
	wantOn(http.StatusNotFound, first)
	wantOn(http.StatusOK, second)
	rewrite(freshKey(2)+","+freshKey(1), "Keyring(signer 2 of [2 1])") // no harm was done
	d.until("both replicas to serve the link again", func() bool {
		for _, in := range replicas {
			if status, _, _ := d.do(http.MethodGet, in.click+"/l/"+tokenOf(first.URL)); status != http.StatusOK {
				return false
			}
		}
		return true
	})
}

func TestKeysListAndRetire(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	d.keys = freshKey(1) + "," + freshKey(2)
	w, clicks := d.start(), d.start(func(c *Config) { c.Roles = []string{roleClick} })
	link := d.link(request("r1"))
	d.link(request("r2"))
	if _, err := d.producer.Revoke(d.soon(), portal.Revocation{RequestID: "r2", By: "test"}); err != nil {
		t.Fatal(err)
	}
	list := func(env []string, want ...string) {
		t.Helper()
		code, out := d.command(env, "keys")
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if code != 0 || len(lines) != len(want)+1 || !strings.HasPrefix(out, "KEY") {
			t.Fatalf("exit %d, want %d keys\n%s", code, len(want), out)
		}
		for i, line := range lines[1:] {
			if !regexp.MustCompile(`^` + want[i] + `$`).MatchString(line) {
				t.Errorf("%q, want %s", line, want[i])
			}
		}
	}
	const at = `20\S+ \S+ \S+`
	list(nil, `1 +signs +1 +`+at+` +2 +-`, `2 +verifies +0 +- +0 +-`)
	list([]string{"LINK_KEYS="}, `1 +- +1 +`+at+` +2 +-`)
	list([]string{"LINK_KEYS=" + freshKey(3)}, `1 +missing +1 +`+at+` +2 +-`, `3 +signs +0 +- +0 +-`)

	moved := []string{"LINK_KEYS=" + freshKey(2) + "," + freshKey(1), "LINK_BASE_URL=" + w.click}
	if code, out := d.command(append(moved[1:], "LINK_KEYS="+freshKey(3)), "check"); code != 1 || !strings.Contains(out, "1 live links need key 1") {
		t.Errorf("check of keys that lack one: exit %d\n%s", code, out)
	}
	if code, out := d.command(nil, "keys", "retire", "1"); code != 1 || !strings.Contains(out, "put another one first") {
		t.Errorf("a key that signs: exit %d\n%s", code, out)
	}
	if code, out := d.command([]string{"LINK_KEYS="}, "keys", "retire", "1"); code != 1 || !strings.Contains(out, "add --force") {
		t.Errorf("a key that could be the only one: exit %d\n%s", code, out)
	}
	if code, out := d.command(moved, "keys", "retire", "9"); code != 1 || !strings.Contains(out, "no link was signed by it") {
		t.Errorf("a key that nobody knows: exit %d\n%s", code, out)
	}
	if n := d.number(`SELECT count(*) FROM retired_keys`); n != 0 {
		t.Fatal("it was retired")
	}
	if code, out := d.command(moved, "keys", "retire", "1", "--reason", "leaked", "--by", "jo"); code != 0 || out != "retired key 1; links revoked: 1\n" {
		t.Errorf("retire: exit %d\n%s", code, out)
	}
	for _, in := range []*instance{w, clicks} {
		if status, _, _ := d.do(http.MethodPost, in.click+"/l/"+tokenOf(link.URL)); status != http.StatusGone {
			t.Errorf("a link of the retired key: %d", status)
		}
	}
	d.until("the event to be published", func() bool {
		return d.number(`SELECT count(*) FROM river_job WHERE kind = 'publish' AND state <> 'completed'`) == 0
	})
	d.link(request("r3")) // by the next key: these processes were not told
	if n := d.number(`SELECT key_id FROM links WHERE request_id = 'r3'`); n != 2 {
		t.Errorf("signed by key %d", n)
	}
	list(nil, `1 +retired +0 +- +2 +`+at, `2 +signs +1 +`+at+` +1 +-`)
	_, out := d.command(nil, "keys", "list", "--json")
	var keys []keyStatus
	if err := json.Unmarshal([]byte(out), &keys); err != nil || len(keys) != 2 || keys[0].State != keyRetired || keys[0].RetiredBy != "jo" || keys[0].Reason != "leaked" || keys[1].Live != 1 {
		t.Errorf("%v\n%s", err, out)
	}
	if code, out := d.command([]string{"LINK_BASE_URL=" + w.click}, "check"); code != 1 || !strings.Contains(out, "key 1, the first of LINK_KEYS, is retired") {
		t.Errorf("check of a first key that is retired: exit %d\n%s", code, out)
	}
	if code, out := d.command(moved, "check"); code != 1 || !strings.Contains(out, "key 1 of LINK_KEYS is retired; take it out") {
		t.Errorf("check of a retired key that stays: exit %d\n%s", code, out)
	}
	if code, out := d.command(append(moved[1:], "LINK_KEYS="+freshKey(2)), "check"); code != 0 || !strings.Contains(out, "2 signs") {
		t.Errorf("check: exit %d\n%s", code, out)
	}
	if code, out := d.command([]string{"LINK_KEYS="}, "keys", "retire", "1", "--force"); code != 0 || out != "key 1 was retired before; links revoked: 0\n" {
		t.Errorf("again, by force: exit %d\n%s", code, out)
	}
	for _, wrong := range [][]string{{"retire"}, {"retire", "256"}, {"retire", "x"}, {"retire", "2", "--by", ""}, {"frob"}, {"list", "x"}} {
		if code, out := d.command(nil, append([]string{"keys"}, wrong...)...); code != 2 {
			t.Errorf("keys %v: exit %d\n%s", wrong, code, out)
		}
	}
}

// A process takes its keys from the file that LINK_KEYS_FILE names, and 'worker dev' from its own.
func TestKeysFileOfTheEnvironmentIsWatched(t *testing.T) {
	t.Parallel()
	d := deploy(t)
	path := keysFile(t, freshKey(1))
	p := d.serve("LINK_KEYS=", "LINK_KEYS_FILE="+path)
	if err := writeWhole(path, []byte(freshKey(2)+","+freshKey(1))); err != nil {
		t.Fatal(err)
	}
	d.until("the process to take the keys", func() bool { return strings.Contains(p.out.String(), "Keyring(signer 2 of [2 1])") })
}
