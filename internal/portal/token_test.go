package portal

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
)

const tokenAlphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// vector is one line of testdata/token_vectors.json, which another implementation (Python's hmac
// and hashlib) computed from docs/token.md.
type vector struct {
	About  string    `json:"about"`
	Keys   string    `json:"keys"`
	Signer byte      `json:"signer"`
	KeyID  byte      `json:"key_id"`
	LinkID uuid.UUID `json:"link_id"`
	Token  string    `json:"token"`
}

func vectors(t testing.TB) (list []vector) {
	t.Helper()
	b, err := os.ReadFile("testdata/token_vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &list); err != nil || len(list) == 0 {
		t.Fatalf("%d vectors, %v", len(list), err)
	}
	return list
}

// Invariant 3: the token follows from the link's id and the key that the row names, for ever.
func TestInvariant3TokenVectors(t *testing.T) {
	t.Parallel()
	for _, v := range vectors(t) {
		ring := parseKeys(t, v.Keys)
		if ring.SignerID() != v.Signer || !slices.Contains(ring.IDs(), v.KeyID) {
			t.Errorf("%s: signer %d, want %d", v.About, ring.SignerID(), v.Signer)
		}
		if got, err := ring.Sign(v.KeyID, v.LinkID); err != nil || got != v.Token {
			t.Errorf("%s: signed %q (%v), want %q", v.About, got, err, v.Token)
		}
		if got, key, err := ring.Verify(v.Token); err != nil || got != v.LinkID || key != v.KeyID {
			t.Errorf("%s: verified as %s by key %d (%v), want %s by %d", v.About, got, key, err, v.LinkID, v.KeyID)
		}
	}
}

// Invariant 3: a rotation of keys leaves outstanding links valid, until their key is taken out.
func TestInvariant3RotationKeepsLinks(t *testing.T) {
	t.Parallel()
	const next = "8:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA="
	before, after, later := parseKeys(t, testKeys), parseKeys(t, next+","+testKeys), parseKeys(t, next)
	link := uuid.Must(uuid.NewV7())
	old, err := before.Sign(before.SignerID(), link)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := after.Sign(7, link); err != nil || again != old {
		t.Errorf("after the rotation the link's token is %q (%v), want %q", again, err, old)
	}
	if got, _, err := after.Verify(old); err != nil || got != link {
		t.Errorf("after the rotation the link's token verifies as %s (%v)", got, err)
	}
	if after.SignerID() != 8 {
		t.Errorf("new links are signed by key %d, want 8", after.SignerID())
	}
	if _, _, err := later.Verify(old); !errors.Is(err, ErrToken) {
		t.Errorf("without the old key: %v, want ErrToken", err)
	}
	if _, err := later.Sign(7, link); err == nil || !strings.Contains(err.Error(), "key 7, which LINK_KEYS lacks") {
		t.Errorf("without the old key its link is signed: %v", err)
	}
}

// Each of the 48 characters is under the signature, and no token has a second spelling.
func TestEveryOtherCharacterIsRefused(t *testing.T) {
	t.Parallel()
	v := vectors(t)[5] // two keys, so that a flipped key id may name the other one
	ring := parseKeys(t, v.Keys)
	for at := range v.Token {
		for _, c := range []byte(tokenAlphabet + "+/=.~ %\n\r\x00\xff") {
			if c == v.Token[at] {
				continue
			}
			if _, _, err := ring.Verify(v.Token[:at] + string([]byte{c}) + v.Token[at+1:]); !errors.Is(err, ErrToken) {
				t.Fatalf("%q at %d: %v, want ErrToken", c, at, err)
			}
		}
	}
}

func TestTokenOfAnotherLengthIsRefused(t *testing.T) {
	t.Parallel()
	v := vectors(t)[0]
	ring := parseKeys(t, v.Keys)
	for at := range v.Token {
		for _, cut := range []string{v.Token[:at], v.Token[at+1:], v.Token[:at] + v.Token[at+1:]} {
			if _, _, err := ring.Verify(cut); !errors.Is(err, ErrToken) {
				t.Errorf("cut at %d: %v, want ErrToken", at, err)
			}
		}
	}
	for _, more := range []string{"A", "=", "==", "\n", "AAAA", "%27", v.Token} {
		for _, s := range []string{v.Token + more, more + v.Token} {
			if _, _, err := ring.Verify(s); !errors.Is(err, ErrToken) {
				t.Errorf("longer by %q: %v, want ErrToken", more, err)
			}
		}
	}
}

func TestForgedTokens(t *testing.T) {
	t.Parallel()
	v := vectors(t)[0]
	ring := parseKeys(t, v.Keys)
	raw, err := base64.RawURLEncoding.DecodeString(v.Token)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := parseKeys(t, "7:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=").Sign(7, v.LinkID)
	if err != nil {
		t.Fatal(err)
	}
	resigned := func(version, keyID byte) string { // by the right key, with another head
		forged := append([]byte{version, keyID}, raw[2:]...)
		mac := ring.now.Load().byID[7].tokens.mac(forged[:18])
		copy(forged[18:], mac[:])
		return base64.RawURLEncoding.EncodeToString(forged)
	}
	if _, _, err := ring.Verify(resigned(tokenVersion, 7)); err != nil {
		t.Fatalf("the forger of this test does not even sign: %v", err)
	}
	for about, token := range map[string]string{
		"another key of the same id": foreign,
		"an unknown key id":          resigned(tokenVersion, 8),
		"version 0":                  resigned(0, 7),
		"version 2":                  resigned(2, 7),
		"no signature":               base64.RawURLEncoding.EncodeToString(append(raw[:18:18], make([]byte, 18)...)),
		"padded":                     base64.URLEncoding.EncodeToString(raw[:34]),
		"empty":                      "",
	} {
		if id, _, err := ring.Verify(token); !errors.Is(err, ErrToken) || id != uuid.Nil {
			t.Errorf("%s: %s, %v; want ErrToken", about, id, err)
		}
	}
}

// A key of LINK_KEYS signs link tokens only: the MAC key is derived from it.
func TestTokenIsNotSignedByTheKeyItself(t *testing.T) {
	t.Parallel()
	var key [signingKeyLen]byte
	for i := range key {
		key[i] = byte(i)
	}
	if got := FormatKey(7, key); got != testKeys {
		t.Fatalf("FormatKey gives %q", got)
	}
	a, b := parseKeys(t, testKeys), parseKeys(t, "7:"+base64.RawURLEncoding.EncodeToString(key[:]))
	id := uuid.Must(uuid.NewV7())
	one, _ := a.Sign(7, id)
	if two, _ := b.Sign(7, id); one != two {
		t.Errorf("the spelling of a key changes its tokens: %q and %q", one, two)
	}
	if strings.HasSuffix(one, hmacOf(key[:], one)) {
		t.Error("the token's MAC is made with the key of LINK_KEYS itself")
	}
}

func hmacOf(key []byte, token string) string {
	raw, _ := base64.RawURLEncoding.DecodeString(token)
	h := hmac.New(sha256.New, key)
	h.Write(raw[:18])
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:18])
}

func TestKeyringIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	ring := parseKeys(t, testKeys)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				id := uuid.New()
				token, err := ring.Sign(7, id)
				if err != nil {
					t.Error(err)
				}
				if got, _, err := ring.Verify(token); err != nil || got != id {
					t.Errorf("%s verified as %s: %v", id, got, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestKeyringPrintsNoKey(t *testing.T) {
	t.Parallel()
	ring := parseKeys(t, testKeys)
	holder := struct{ Keys *Keyring }{ring}
	js, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprint(string(js), fmt.Sprintf("%v %+v %#v %s %q", ring, ring, ring, ring, ring), fmt.Sprintf("%v %+v %#v", holder, holder, holder),
		ring.String(), ring.GoString())
	if !strings.Contains(out, "Keyring(signer 7 of [7])") {
		t.Errorf("printed as %s", out)
	}
	for _, secret := range []string{"AAECAwQF", "\x00\x01\x02\x03", "0, 1, 2, 3", "0 1 2 3", "0x0, 0x1, 0x2"} {
		if strings.Contains(out, secret) {
			t.Errorf("the key shows (%q) in %s", secret, out)
		}
	}
}

func TestParseKeysOfLines(t *testing.T) {
	t.Parallel()
	const key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	for _, input := range []string{"7:" + key + "\n8:" + key + "\n", "7:" + key + "\r\n\r\n 8:" + key, "7:" + key + ",\n8:" + key, " 7:" + key + " , 8:" + key} {
		ring, err := ParseKeys(input)
		if err != nil {
			t.Errorf("%q: %v", input, err)
		} else if ring.SignerID() != 7 || len(ring.now.Load().order) != 2 {
			t.Errorf("%q: %s", input, ring)
		}
	}
}

func TestParseKeysErrors(t *testing.T) {
	t.Parallel()
	const key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
	for input, want := range map[string]string{
		"":                               "entry 1 is not of the form id:base64key",
		key:                              "entry 1 is not of the form id:base64key",
		"7:" + key + ",":                 "entry 2 is not of the form id:base64key",
		"7:" + key + "," + key:           "entry 2 is not of the form id:base64key",
		":" + key:                        "entry 1: the id must be a number from 0 to 255",
		"256:" + key:                     "entry 1: the id must be a number from 0 to 255",
		"-1:" + key:                      "entry 1: the id must be a number from 0 to 255",
		"+1:" + key:                      "entry 1: the id must be a number from 0 to 255",
		" 1 :" + key:                     "entry 1: the id must be a number from 0 to 255",
		key + ":7":                       "entry 1: the id must be a number from 0 to 255",
		"7:":                             "entry 1: the key has 0 bytes, it must have 32",
		"7:AAECAwQFBgcICQoLDA0ODw==":     "entry 1: the key has 16 bytes, it must have 32",
		"7:" + key[:43] + "AA":           "entry 1: the key is not base64", // 45 characters are no base64
		"7:!" + key[1:]:                  "entry 1: the key is not base64",
		"7:" + key[:20] + " " + key[21:]: "entry 1: the key is not base64",
		"7:" + key + ",7:" + key:         "entry 2: the id 7 stands twice",
		"7:" + key + ",007:" + key:       "entry 2: the id 7 stands twice",
	} {
		ring, err := ParseKeys(input)
		if err == nil || !strings.HasPrefix(err.Error(), want) || ring != nil {
			t.Errorf("%q: %v, want %q", input, err, want)
			continue
		}
		for part := range strings.FieldsFuncSeq(input, func(r rune) bool { return r == ':' || r == ',' }) {
			if len(part) > 8 && strings.Contains(err.Error(), part) {
				t.Errorf("the error holds what it complains about: %v", err)
			}
		}
	}
}

func FuzzVerify(f *testing.F) {
	ring := parseKeys(f, testKeys+",8:Hx4dHBsaGRgXFhUUExIREA8ODQwLCgkIBwYFBAMCAQA=")
	for _, v := range vectors(f) {
		f.Add(v.Token)
	}
	f.Add("")
	f.Add(strings.Repeat("A", tokenLen))
	f.Fuzz(func(t *testing.T, s string) {
		id, _, err := ring.Verify(s)
		if err != nil {
			if !errors.Is(err, ErrToken) || id != uuid.Nil {
				t.Fatalf("%s, %v", id, err)
			}
			return
		}
		for _, key := range []byte{7, 8} { // what verifies is what was signed, to the letter
			if token, err := ring.Sign(key, id); err == nil && token == s {
				return
			}
		}
		t.Fatalf("%q verifies and is no token that Sign makes", s)
	})
}

func FuzzParseKeys(f *testing.F) {
	for _, v := range vectors(f) {
		f.Add(v.Keys)
	}
	for _, s := range []string{"", ":", "7:", "7:AAAA", ",,", "999:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ring, err := ParseKeys(s)
		if err != nil {
			if len(s) > 60 && strings.Contains(err.Error(), s) {
				t.Fatalf("the error holds its input: %v", err)
			}
			return
		}
		id := uuid.New()
		token, err := ring.Sign(ring.SignerID(), id)
		if err != nil || leadingToken(token) != token || len(token) != tokenLen {
			t.Fatalf("signed %q: %v", token, err)
		}
		if got, _, err := ring.Verify(token); err != nil || got != id {
			t.Fatalf("verified %s: %v", got, err)
		}
	})
}
