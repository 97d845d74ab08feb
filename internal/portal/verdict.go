package portal

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
)

// Verdict is what the signals of one request add up to. It counts; it never blocks anybody.
//
// One of these decides for "scanner":
//
//	head           the method is HEAD, which no browser sends for a person
//	prefetch       Sec-Purpose, Purpose, X-Purpose or X-Moz says so
//	no_navigation  Sec-Fetch-Mode or -Dest says that this is no page in a tab of its own: a
//	               script's fetch, an image, a frame (which our pages refuse to be in)
//	agent          the User-Agent is missing, or names a machine (agents.json)
//	mass           the eighth link or more of one campaign from one address within 10 s
//
// Of these it takes two, for each of them alone happens to people:
//
//	burst              the third link or more of one campaign from one address within 10 s: people
//	                   behind one gateway, or one person with several mails
//	no_fetch_metadata  a browser that has sent Sec-Fetch-* for years did not: a scanner under a
//	                   borrowed name, or a person behind a proxy that takes headers out
//	no_page            POST only: nobody at this address was shown the page by this process, and
//	                   the browser does not say that the form was ours: a machine, or an old phone
//	                   that changed from one network or replica to another
//
// An old browser, which sends no fetch metadata, is a person unless something else speaks against
// it. Missing metadata counts only once this process has seen any, so that a proxy that strips
// it from everybody makes nobody suspect.
//
// What it can't tell: a scanner that drives a real browser, from addresses of its own, a few links
// at a time, passes as a person, as do the first links of one that opens many; what was written
// down is not revised. Many customers behind one address, all clicking within seconds of a
// campaign, pass as a scanner. Only a press followed by a session is good evidence of a person.
type Verdict struct {
	Verdict string   // "person" or "scanner"
	Signals []string // names from above, sorted; never a header's own text
}

const (
	person  = "person"
	scanner = "scanner"

	burstWindow = 10 * time.Second
	burstLinks  = 3
	massLinks   = 8

	// How long the page may stand open before its button is pressed.
	pageKept = 24 * time.Hour

	// Entries in one generation of a table; a table has two. Full, both tables take 7 MB. That of pages, which
	// would take hours or days to fill, has its 2 MB from the start: whoever looks at a process' memory sees what it will be.
	pageEntries  = 32 << 10
	burstEntries = 8 << 10
)

// decisive has the signals of which one is enough.
var decisive = []string{"agent", "head", "mass", "no_navigation", "prefetch"}

// Detector holds what the verdict on one request needs of earlier ones: which pages were shown to
// whom, and how many links an address opened just now. It belongs to one process, keeps hashes
// under a seed of its own instead of addresses and links, stays bounded, and is safe for
// concurrent use.
type Detector struct {
	agents   agents
	metadata atomic.Bool // Sec-Fetch-* reaches this process
	seed     maphash.Seed

	mu     sync.Mutex
	pages  *recent[uint64, struct{}] // by address and link
	bursts *recent[uint64, burst]    // by address and campaign
}

// burst is the last links of one campaign that one address opened.
type burst [massLinks]struct {
	link uint64
	at   int64 // Unix nanoseconds
}

// NewDetector reads the list of agents.
func NewDetector() *Detector {
	return &Detector{
		agents: parseAgents(agentsJSON),
		seed:   maphash.MakeSeed(),
		pages:  newRecent[uint64, struct{}](pageEntries, pageKept, pageEntries),
		bursts: newRecent[uint64, burst](burstEntries, burstWindow, 0),
	}
}

// Seen is what one request shows by itself. It is made on the request's own goroutine, since it is
// read from a stranger's bytes; the verdict, which needs the link's campaign too, is not.
type Seen struct {
	method  string
	page    uint64 // hash of the address and the link
	link    uint64 // hash of the link
	network [16]byte
	proxy   bool // the address is one that many share
	ownForm bool // the browser says that it sends our own page's form
	signals []string
}

// See looks at a request.
func (d *Detector) See(r *http.Request, ip netip.Addr, link uuid.UUID) Seen {
	n := network(ip)
	return Seen{
		method:  r.Method,
		page:    maphash.Comparable(d.seed, shown{n, link}),
		link:    maphash.Comparable(d.seed, link),
		network: n,
		proxy:   sharedByMany(ip) && r.Header.Get("X-Forwarded-For") != "",
		ownForm: r.Header.Get("Sec-Fetch-Site") == "same-origin",
		signals: d.ofRequest(r),
	}
}

// Look judges GET and HEAD. An empty campaign is one like any other: that of links without one.
func (d *Detector) Look(seen Seen, campaign string, now time.Time) Verdict {
	d.mu.Lock()
	defer d.mu.Unlock()
	if seen.method == http.MethodGet {
		d.pages.put(seen.page, struct{}{}, now)
	}
	return judge(d.ofBurst(seen.signals, seen, campaign, now))
}

// Press judges POST.
func (d *Detector) Press(seen Seen, campaign string, now time.Time) Verdict {
	d.mu.Lock()
	defer d.mu.Unlock()
	signals := seen.signals
	if _, ok := d.pages.get(seen.page); !ok && !seen.ownForm {
		signals = append(signals, "no_page")
	}
	return judge(d.ofBurst(signals, seen, campaign, now))
}

type shown struct {
	network [16]byte
	link    uuid.UUID
}

type opener struct {
	network  [16]byte
	campaign string
}

// judge adds the signals up. The request keeps its own: it is looked at again where a transaction is
// tried again.
func judge(signals []string) Verdict {
	signals = slices.Clone(signals)
	slices.Sort(signals)
	isDecisive := func(s string) bool { return slices.Contains(decisive, s) }
	if len(signals) > 1 || slices.ContainsFunc(signals, isDecisive) {
		return Verdict{scanner, signals}
	}
	return Verdict{person, signals}
}

// ofRequest returns the signals of the request by itself.
func (d *Detector) ofRequest(r *http.Request) []string {
	signals := []string{} // not nil: it stands in JSON
	if r.Method == http.MethodHead {
		signals = append(signals, "head")
	}
	if isPrefetch(r) {
		signals = append(signals, "prefetch")
	}
	agent := firstBytes(r.UserAgent(), 512)
	if strings.TrimSpace(agent) == "" || d.agents.match(agent) {
		signals = append(signals, "agent")
	}
	mode, dest := r.Header.Get("Sec-Fetch-Mode"), r.Header.Get("Sec-Fetch-Dest") // the first browsers had no dest
	switch {
	case mode != "" && mode != "navigate" || dest != "" && dest != "document":
		signals = append(signals, "no_navigation")
	case mode != "":
		d.metadata.Store(true)
	case d.metadata.Load() && sendsMetadata(agent):
		signals = append(signals, "no_fetch_metadata")
	}
	return signals
}

// isPrefetch tells a browser that looks ahead from one that shows the page to its person.
func isPrefetch(r *http.Request) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		value := strings.ToLower(firstBytes(r.Header.Get(name), 64))
		if strings.Contains(value, "prefetch") || strings.Contains(value, "preview") { // Safari's old word
			return true
		}
	}
	return false
}

// ofBurst notes that a link was opened and adds what that makes of its address. An address that is
// a proxy's has everybody's links behind it and tells nothing.
func (d *Detector) ofBurst(signals []string, seen Seen, campaign string, now time.Time) []string {
	if seen.proxy {
		return signals
	}
	key := maphash.Comparable(d.seed, opener{seen.network, campaign})
	opened, _ := d.bursts.get(key)
	n := opened.add(seen.link, now.UnixNano())
	d.bursts.put(key, opened, now)
	switch {
	case n >= massLinks:
		return append(signals, "mass")
	case n >= burstLinks:
		return append(signals, "burst")
	}
	return signals
}

// add puts a link in the place that it has already, or of the one opened longest ago, and returns
// how many links the window holds.
func (b *burst) add(link uint64, at int64) (n int) {
	place := 0
	for i := range b {
		if b[i].link == link {
			place = i
			break
		}
		if b[i].at < b[place].at {
			place = i
		}
	}
	b[place].link, b[place].at = link, at
	for i := range b {
		if age := at - b[i].at; age < int64(burstWindow) && age > -int64(burstWindow) {
			n++
		}
	}
	return n
}

// sendsMetadata is true for a browser whose version sends Sec-Fetch-* with every navigation. Only
// names that their makers' own engines use are judged: Chrome's (and so Edge's, Opera's, Samsung's)
// and Firefox's since years, Safari's since 16.4. What runs on an iPhone under another name is
// left alone: its number is not the engine's.
func sendsMetadata(agent string) bool {
	return version(agent, "Chrome/") >= 90 || version(agent, "Firefox/") >= 100 ||
		version(agent, "Version/") >= 17 && strings.Contains(agent, " Safari/")
}

// version is the number behind a name, 0 where there is none.
func version(agent, name string) int {
	_, after, _ := strings.Cut(agent, name)
	major, _, _ := strings.Cut(firstBytes(after, 8), ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return 0
	}
	return n
}

func firstBytes(s string, n int) string { return s[:min(n, len(s))] }

//go:embed agents.json
var agentsJSON []byte

// agents finds any of some 1,200 texts in a user agent, in one pass. Each text is filed under its
// first four bytes, and a bit for these says at most places that there is nothing to look up. A
// browser's agent takes 0.2 µs, the worst one that 512 bytes allow 14 µs, the list 0.6 ms at the
// start and 130 kB. The same texts as one regular expression took 900 µs for a browser's.
type agents struct {
	some  [1 << 10]uint64 // a bit for each hash of four bytes that a text begins with
	texts map[uint32][]string
}

func parseAgents(data []byte) (a agents) {
	var file struct {
		Sources []struct{ Patterns []string }
	}
	if err := json.Unmarshal(data, &file); err != nil {
		panic(fmt.Errorf("agents.json, which is part of the program: %w", err))
	}
	a.texts = map[uint32][]string{}
	for _, source := range file.Sources {
		for _, pattern := range source.Patterns {
			four := fourBytes(strings.TrimPrefix(pattern, "^"))
			a.texts[four] = append(a.texts[four], pattern)
			h := hashFour(four)
			a.some[h/64] |= 1 << (h % 64)
		}
	}
	return a
}

func (a *agents) match(agent string) bool {
	for i := 0; i+4 <= len(agent); i++ {
		four := fourBytes(agent[i:])
		if h := hashFour(four); a.some[h/64]&(1<<(h%64)) == 0 {
			continue
		}
		for _, pattern := range a.texts[four] {
			text, atStart := strings.CutPrefix(pattern, "^")
			if strings.HasPrefix(agent[i:], text) && (i == 0 || !atStart) {
				return true
			}
		}
	}
	return false
}

func fourBytes(s string) uint32 {
	return uint32(s[3])<<24 | uint32(s[2])<<16 | uint32(s[1])<<8 | uint32(s[0])
}

// hashFour spreads four bytes over 16 bits, by the golden ratio.
func hashFour(four uint32) uint32 { return four * 0x9E3779B1 >> 16 }
