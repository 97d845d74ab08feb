package portal

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

const (
	agentChrome  = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
	agentFirefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
	agentSafari  = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.0 Mobile/15E148 Safari/604.1"
	agentOld     = "Mozilla/5.0 (iPhone; CPU iPhone OS 12_5_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/12.1.2 Mobile/15E148 Safari/604.1"
)

// navigation is what a browser of today sends when a person opens a link in a mail.
var navigation = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none", "Sec-Fetch-User", "?1"}

var ownForm = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-User", "?1"}

// visitBy makes a request; header comes in pairs.
func visitBy(method, agent string, header ...string) *http.Request {
	r := httptest.NewRequest(method, "/l/x", nil)
	r.Header.Set("User-Agent", agent)
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// newDetector is one that fetch metadata has reached.
func newDetector() *Detector {
	d := NewDetector()
	d.look(visitBy("GET", agentChrome, navigation...), netip.MustParseAddr("192.0.2.1"), testLink(0), "", limitsNow)
	return d
}

func (d *Detector) look(r *http.Request, ip netip.Addr, link uuid.UUID, campaign string, now time.Time) Verdict {
	return d.Look(d.See(r, ip, link), campaign, now)
}

func (d *Detector) press(r *http.Request, ip netip.Addr, link uuid.UUID, campaign string, now time.Time) Verdict {
	return d.Press(d.See(r, ip, link), campaign, now)
}

func (v Verdict) want(t *testing.T, about, verdict string, signals ...string) {
	t.Helper()
	if v.Verdict != verdict || !slices.Equal(v.Signals, signals) {
		t.Errorf("%s: %s %v, want %s %v", about, v.Verdict, v.Signals, verdict, signals)
	}
}

func TestLook(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about   string
		r       *http.Request
		verdict string
		signals []string
	}{
		{"a person", visitBy("GET", agentChrome, navigation...), "person", nil},
		{"a person's Firefox", visitBy("GET", agentFirefox, navigation...), "person", nil},
		{"a person's iPhone", visitBy("GET", agentSafari, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), "person", nil},
		{"the first browsers with metadata", visitBy("GET", strings.Replace(agentChrome, "142", "76", 1), "Sec-Fetch-Mode", "navigate", "Sec-Fetch-User", "?1"), "person", nil},
		{"an old phone", visitBy("GET", agentOld), "person", nil},
		{"a browser's name without its headers", visitBy("GET", agentChrome), "person", []string{"no_fetch_metadata"}},
		{"the same for Firefox", visitBy("GET", agentFirefox), "person", []string{"no_fetch_metadata"}},
		{"the same for Safari", visitBy("GET", agentSafari), "person", []string{"no_fetch_metadata"}},
		{"HEAD", visitBy("HEAD", agentChrome, navigation...), "scanner", []string{"head"}},
		{"HEAD with less", visitBy("HEAD", agentChrome), "scanner", []string{"head", "no_fetch_metadata"}},
		{"Chrome's prefetch", visitBy("GET", agentChrome, append([]string{"Sec-Purpose", "prefetch;prerender"}, navigation...)...), "scanner", []string{"prefetch"}},
		{"Chrome's prefetch of old", visitBy("GET", agentOld, "Purpose", "Prefetch"), "scanner", []string{"prefetch"}},
		{"Firefox's prefetch", visitBy("GET", agentOld, "X-Moz", "prefetch"), "scanner", []string{"prefetch"}},
		{"Safari's preview", visitBy("GET", agentOld, "X-Purpose", "preview"), "scanner", []string{"prefetch"}},
		{"a script's fetch", visitBy("GET", agentChrome, "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), "scanner", []string{"no_navigation"}},
		{"an image", visitBy("GET", agentChrome, "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"), "scanner", []string{"no_navigation"}},
		{"a frame", visitBy("GET", agentChrome, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"), "scanner", []string{"no_navigation"}},
		{"nonsense", visitBy("GET", agentChrome, "Sec-Fetch-Dest", "\xff\x00"), "scanner", []string{"no_navigation"}},
		{"curl", visitBy("GET", "curl/8.5.0"), "scanner", []string{"agent"}},
		{"a preview that poses as a browser", visitBy("GET", agentChrome+" BingPreview/1.0b", navigation...), "scanner", []string{"agent"}},
		{"no agent", visitBy("GET", "  "), "scanner", []string{"agent"}},
	} {
		newDetector().look(c.r, netip.MustParseAddr("203.0.113.9"), testLink(1), "", limitsNow).want(t, c.about, c.verdict, c.signals...)
	}
}

// Where a proxy takes Sec-Fetch-* out of everybody's requests, their absence says nothing.
func TestMetadataThatNeverArrives(t *testing.T) {
	t.Parallel()
	d := NewDetector()
	ip := netip.MustParseAddr("203.0.113.9")
	d.look(visitBy("GET", agentChrome), ip, testLink(1), "", limitsNow).want(t, "before any", "person")
	d.look(visitBy("GET", agentChrome, "Sec-Fetch-Mode", "cors"), ip, testLink(1), "", limitsNow).want(t, "a script", "scanner", "no_navigation")
	d.look(visitBy("GET", agentChrome), ip, testLink(1), "", limitsNow).want(t, "before any navigation", "person")
	d.look(visitBy("GET", agentChrome, navigation...), ip, testLink(1), "", limitsNow).want(t, "with it", "person")
	d.look(visitBy("GET", agentChrome), ip, testLink(1), "", limitsNow).want(t, "after it", "person", "no_fetch_metadata")
}

func TestBurst(t *testing.T) {
	t.Parallel()
	ip := netip.MustParseAddr("203.0.113.9")
	look := func(d *Detector, ip netip.Addr, link int, campaign string, after time.Duration) Verdict {
		return d.look(visitBy("GET", agentOld), ip, testLink(link), campaign, limitsNow.Add(after))
	}
	d := newDetector()
	for n := 1; n <= 20; n++ {
		v := look(d, ip, n, "dunning-11", time.Duration(n)*time.Millisecond)
		switch {
		case n < 3:
			v.want(t, "a first link", "person")
		case n < 8:
			v.want(t, "a few links", "person", "burst")
		default:
			v.want(t, "many links", "scanner", "mass")
		}
	}
	look(d, ip, 21, "other", time.Second).want(t, "another campaign", "person")
	look(d, ip, 22, "", time.Second).want(t, "no campaign", "person")
	look(d, netip.MustParseAddr("203.0.113.10"), 23, "dunning-11", time.Second).want(t, "another address", "person")
	look(d, ip, 24, "dunning-11", 11*time.Second).want(t, "ten seconds later", "person")

	d = newDetector()
	for n := range 50 {
		look(d, ip, 1, "", time.Duration(n)*time.Millisecond).want(t, "one link many times", "person")
	}
	for n := range 30 {
		look(d, ip, n, "slow", time.Duration(n)*6*time.Second).want(t, "a link each six seconds", "person")
	}
	d = newDetector()
	d.look(visitBy("GET", agentOld), ip, testLink(1), "", limitsNow)
	d.look(visitBy("GET", agentChrome), ip, testLink(2), "", limitsNow).want(t, "two links and no metadata", "person", "no_fetch_metadata")
	d.look(visitBy("GET", agentChrome), ip, testLink(3), "", limitsNow).want(t, "both", "scanner", "burst", "no_fetch_metadata")

	d = newDetector()
	for n := range 10 { // addresses of one /64
		ip := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(n)})
		if v := look(d, ip, n, "x", 0); n >= 7 && v.Verdict != scanner {
			t.Errorf("link %d of a /64: %v", n+1, v)
		}
	}
	for n := range 100 {
		r := visitBy("GET", agentOld, "X-Forwarded-For", "203.0.113.1")
		d.look(r, netip.MustParseAddr("10.0.0.1"), testLink(n), "", limitsNow).want(t, "a proxy's address", "person")
	}
}

// A transaction that is tried again looks at its requests again.
func TestLookAgain(t *testing.T) {
	t.Parallel()
	d := newDetector()
	for n := range 2 {
		d.look(visitBy("GET", agentOld), testIP(1), testLink(n), "", limitsNow)
	}
	seen := d.See(visitBy("GET", agentChrome), testIP(1), testLink(2))
	first := d.Look(seen, "", limitsNow)
	d.Look(seen, "", limitsNow).want(t, "the second look", "scanner", "burst", "no_fetch_metadata")
	d.Press(seen, "", limitsNow).want(t, "a press", "scanner", "burst", "no_fetch_metadata")
	first.want(t, "the first look", "scanner", "burst", "no_fetch_metadata")
}

func TestPress(t *testing.T) {
	t.Parallel()
	ip, link := netip.MustParseAddr("203.0.113.9"), testLink(1)
	press := func(d *Detector, agent string, header ...string) Verdict {
		return d.press(visitBy("POST", agent, header...), ip, link, "", limitsNow.Add(time.Hour))
	}
	press(newDetector(), agentChrome, ownForm...).want(t, "our form, page from another replica", "person")
	press(newDetector(), agentOld).want(t, "an old phone, page from another replica", "person", "no_page")
	press(newDetector(), agentChrome).want(t, "a borrowed name and no page", "scanner", "no_fetch_metadata", "no_page")
	press(newDetector(), agentChrome, "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "cross-site").want(t, "a form elsewhere", "person", "no_page")
	press(newDetector(), "python-requests/2.32.3").want(t, "a program", "scanner", "agent", "no_page")

	d := newDetector()
	d.look(visitBy("HEAD", agentOld), ip, link, "", limitsNow)
	press(d, agentOld).want(t, "HEAD shows no page", "person", "no_page")
	d.look(visitBy("GET", agentOld), ip, link, "", limitsNow)
	press(d, agentOld).want(t, "an old phone that saw the page", "person")
	d.press(visitBy("POST", agentOld), ip, testLink(2), "", limitsNow).want(t, "another link", "person", "no_page")
	d.press(visitBy("POST", agentOld), netip.MustParseAddr("203.0.113.8"), link, "", limitsNow).want(t, "another address", "person", "no_page")
}

// What is judged must not be spelled out: the signals stand in the audit, which holds no visitor's data.
func TestSignalsHoldNothingOfTheRequest(t *testing.T) {
	t.Parallel()
	known := []string{"agent", "burst", "head", "mass", "no_fetch_metadata", "no_navigation", "no_page", "prefetch"}
	d := newDetector()
	for n := range 20 {
		r := visitBy("HEAD", "curl/secret", "Sec-Purpose", "prefetch secret", "Sec-Fetch-Mode", "secret", "Sec-Fetch-Dest", "secret")
		v := d.press(r, netip.MustParseAddr("203.0.113.9"), testLink(n), "secret", limitsNow)
		for _, s := range v.Signals {
			if !slices.Contains(known, s) {
				t.Errorf("unknown signal %q", s)
			}
		}
		if !slices.IsSorted(v.Signals) || v.Verdict != scanner {
			t.Errorf("%v", v)
		}
	}
	if out, err := json.Marshal(newDetector().look(visitBy("GET", agentOld), netip.Addr{}, uuid.Nil, "", limitsNow).Signals); err != nil || string(out) != "[]" {
		t.Errorf("no signals are %s in JSON, %v", out, err)
	}
}

// The tables stay bounded under a flood of addresses, links and campaigns.
func TestDetectorStaysBounded(t *testing.T) {
	t.Parallel()
	d := newDetector()
	r := visitBy("GET", agentOld)
	for n := range 200_000 {
		d.look(r, testIP(n), testLink(n), "", limitsNow)
	}
	if n := d.pages.len(); n > 2*pageEntries {
		t.Errorf("%d pages", n)
	}
	if n := d.bursts.len(); n > 2*burstEntries {
		t.Errorf("%d bursts", n)
	}
	d.press(visitBy("POST", agentOld), testIP(199_999), testLink(199_999), "", limitsNow).want(t, "the last page", "person")
}

func TestAgents(t *testing.T) {
	t.Parallel()
	a := parseAgents(agentsJSON)
	for _, agent := range []string{
		"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
		"Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm) Chrome/116.0.1938.76 Safari/537.36",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/140.0.0.0 Safari/537.36",
		"facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)", "WhatsApp/2.23.20.0", "Slackbot-LinkExpanding 1.0 (+https://api.slack.com/robots)",
		"Mozilla/5.0 (Windows NT 6.1; WOW64) SkypeUriPreview Preview/0.5", "TelegramBot (like TwitterBot)", "Twitterbot/1.0", "Discordbot/2.0",
		"Barracuda Sentinel (EE)", "Mimecast", "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.17328; Pro)", "Mozilla/4.0 (compatible; ms-office; MSOffice 16)",
		"curl/8.5.0", "Wget/1.21.4", "python-requests/2.32.3", "python-httpx/0.27", "Go-http-client/2.0", "Java/17.0.2", "okhttp/4.12.0", "axios/1.7.2", "node",
		"Apache-HttpClient/4.5.14 (Java/17.0.9)", "GuzzleHttp/7", "Ruby", "PostmanRuntime/7.39", "lua-resty-http/0.10 (Lua) ngx_lua/10012", "Dalvik/2.1.0 (Linux; U; Android 14)",
		"UptimeRobot/2.0", "Mozilla/5.0 (compatible; Pingdom.com_bot_version_1.4)", "DatadogSynthetics", "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
	} {
		if !a.match(agent) {
			t.Errorf("a person: %s", agent)
		}
	}
	for _, agent := range []string{agentChrome, agentFirefox, agentSafari, agentOld,
		"Mozilla/5.0 (Linux; Android 12; CUBOT NOTE 20) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Mobile Safari/537.36",
		"Mozilla/5.0 (Linux; Android 9; Cubot X19 Build/PPR1) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Mobile Safari/537.36",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 [FBAN/FBIOS;FBAV/510.0.0;FBDV/iPhone14,5;FBMD/iPhone]",
		"Mozilla/5.0 (Linux; Android 15; CPH2557 Build/AP3A.240617.008; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/142.0.7444.142 Mobile Safari/537.36 Instagram 406.0.0.58.159 Android",
		"Mozilla/5.0 (Linux; Android 16; Pixel 10 Build/CP1A; wv) AppleWebKit/537.36 (KHTML, like Gecko) Version/4.0 Chrome/146.0.0.0 Mobile Safari/537.36 MetaIAB Facebook",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) GSA/439.4.980558000 Mobile/15E148 Safari/604.1",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/126.0.6478.54 Mobile/15E148 Safari/604.1",
		"Mozilla/5.0 (Linux; Android 14; SAMSUNG SM-S918B) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/27.0 Chrome/125.0.0.0 Mobile Safari/537.36",
		"Mozilla/5.0 (Linux; Android 11; KFTRWI) AppleWebKit/537.36 (KHTML, like Gecko) Silk/120.4.1 like Chrome/120.0.0.0 Safari/537.36",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
		"Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; rv:11.0) like Gecko", "Opera/9.80 (Android; Opera Mini/36.2/119.132; U; id) Presto/2.12.423 Version/12.16",
		"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 Safari/605.1.15 Ddg/17.5",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 YaBrowser/24.6.0 Safari/537.36",
		"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) coc_coc_browser/130.0 Chrome/124.0.0.0 Safari/537.36",
		"Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148 MicroMessenger/8.0.50 NetType/WIFI Language/zh_CN",
		"Mozilla/5.0 (Linux; U; Android 4.4.2; de-de; GT-I9195) AppleWebKit/534.30 (KHTML, like Gecko) Version/4.0 Mobile Safari/534.30",
	} {
		if a.match(agent) {
			t.Errorf("a machine: %s", agent)
		}
	}
	if a.match("") || a.match("cur") || a.match("my curl/8.5.0") || !a.match("curl") {
		t.Error("the ends of a text are off")
	}
	if d := newDetector(); len(d.ofRequest(visitBy("GET", strings.Repeat("x", 512)+"Googlebot/2.1"))) != 0 {
		t.Error("more than the first 512 bytes are looked at")
	}
}

// The file says of each of its lists what it is and where it comes from.
func TestAgentsFile(t *testing.T) {
	t.Parallel()
	var file struct {
		Sources []struct {
			Name, Version, Date, URL, Licence, Derivation string
			LicenceText                                   string `json:"licence_text"`
			Patterns                                      []string
		}
	}
	if err := json.Unmarshal(agentsJSON, &file); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, s := range file.Sources {
		if s.Name == "" || s.Version == "" || s.Licence == "" || s.Derivation == "" || len(s.Patterns) == 0 {
			t.Errorf("%q lacks something", s.Name)
		}
		if _, err := time.Parse(time.DateOnly, s.Date); err != nil {
			t.Error(err)
		}
		if (s.URL != "") != strings.Contains(s.LicenceText, "Copyright") {
			t.Errorf("%q: the licence's text and the address belong together", s.Name)
		}
		for _, p := range s.Patterns {
			if len(strings.TrimPrefix(p, "^")) < 4 || len(p) > 64 || seen[p] {
				t.Errorf("%q is short, long, or stands twice", p)
			}
			seen[p] = true
		}
	}
}

func FuzzVerdict(f *testing.F) {
	f.Add("HEAD", agentChrome, "navigate", "document", "prefetch")
	f.Add("GET", "Chrome/99999999999999999999", "", "", "")
	f.Add("POST", "Version/17 Safari/ Firefox/", "cors", "\x00", "\xff")
	d := newDetector()
	f.Fuzz(func(t *testing.T, method, agent, mode, dest, purpose string) {
		r := &http.Request{Method: method, Header: http.Header{"User-Agent": {agent}, "Sec-Fetch-Mode": {mode}, "Sec-Fetch-Dest": {dest}, "Sec-Purpose": {purpose}}}
		for _, v := range []Verdict{d.look(r, netip.Addr{}, uuid.Nil, agent, limitsNow), d.press(r, testIP(1), uuid.Nil, mode, limitsNow)} {
			if v.Verdict != person && v.Verdict != scanner || v.Signals == nil || !slices.IsSorted(v.Signals) || v.Verdict == person && len(v.Signals) > 1 {
				t.Fatalf("%+v", v)
			}
		}
	})
}

func BenchmarkAgents(b *testing.B) {
	a := parseAgents(agentsJSON)
	for name, agent := range map[string]string{
		"browser": agentChrome, "phone": agentSafari, "scanner": agentChrome + " BingPreview/1.0b",
		"hostile": strings.Repeat("Goog", 128), "hostile2": strings.Repeat("Cloudflare-", 46),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.match(agent)
			}
		})
	}
	b.Run("load", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			parseAgents(agentsJSON)
		}
	})
}

func BenchmarkLook(b *testing.B) {
	d := newDetector()
	r := visitBy("GET", agentChrome, navigation...)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		d.look(r, testIP(n), testLink(n), "dunning-11", limitsNow)
	}
}

func BenchmarkDetectorMemory(b *testing.B) {
	r := visitBy("GET", agentChrome, navigation...)
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		d := NewDetector()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-empty")
		for n := range 2*pageEntries - 1 {
			d.look(r, testIP(n), testLink(n), "", limitsNow)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/1e6, "MB-full")
		runtime.KeepAlive(d)
	}
}
