package stripesim

import (
	"maps"
	"strings"
	"sync"
	"time"
)

// world is the state of the pretended account that tests and operators change.
type world struct {
	mu         sync.Mutex
	faults     []Fault
	outage     *Fault // of every call, after the scripted ones
	latency    time.Duration
	noConfig   bool
	returnURL  string
	featureOff map[string]bool
	strict     bool
	customers  map[string]bool // true: added, false: deleted
	seen       map[string]bool // customers whose first-time fault has happened
}

// maxSeen bounds the memory of first-time faults; beyond it they start anew.
const maxSeen = 100_000

func (w *world) init() {
	w.returnURL = "https://example.com/account"
	w.featureOff = map[string]bool{}
	w.customers = map[string]bool{}
	w.seen = map[string]bool{}
}

func (w *world) edit(change func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

func (w *world) script(faults []Fault) {
	w.edit(func(w *world) { w.faults = append(w.faults, faults...) })
}

// next takes the fault of this call: a scripted one, or else the outage's, or
// else what the customer id stands for. The general latency is added to it.
func (w *world) next(customer string) Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	var f Fault
	if len(w.faults) > 0 {
		f, w.faults = w.faults[0], w.faults[1:]
	} else if w.outage != nil {
		f = *w.outage
	} else if m := magicOf(customer); m != nil && m.fault != nil && w.due(m, customer) {
		f = *m.fault
	}
	f.Latency += w.latency
	return f
}

func (w *world) due(m *magic, customer string) bool {
	if !m.once {
		return true
	}
	if w.seen[customer] {
		return false
	}
	if len(w.seen) >= maxSeen {
		clear(w.seen)
	}
	w.seen[customer] = true
	return true
}

// exists reports whether the customer can be used at all, in either mode.
func (w *world) exists(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if exists, known := w.customers[id]; known {
		return exists
	}
	return !w.strict && !isMissing(id)
}

func (w *world) deleted(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	exists, known := w.customers[id]
	return known && !exists || !known && strings.HasPrefix(marker(id), "deleted")
}

// feature is the configuration's feature behind a flow type.
func feature(flowType string) string {
	if flowType == "subscription_update_confirm" {
		return "subscription_update"
	}
	return flowType
}

// portal is what a session needs to know of the portal configuration.
type portal struct {
	exists     bool
	returnURL  string
	featureOff map[string]bool
}

func (w *world) portal() portal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return portal{!w.noConfig, w.returnURL, maps.Clone(w.featureOff)}
}
