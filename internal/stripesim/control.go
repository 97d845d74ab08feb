package stripesim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"time"
)

// control is the body of POST /_sim/config. What is left out stays as it is.
type control struct {
	LatencyMS            *int64         `json:"latency_ms"`
	Rate                 *int           `json:"rate"`
	DefaultConfiguration *bool          `json:"default_configuration"`
	DefaultReturnURL     *string        `json:"default_return_url"`
	StrictCustomers      *bool          `json:"strict_customers"`
	AddCustomers         []string       `json:"add_customers"`
	DeleteCustomers      []string       `json:"delete_customers"`
	EnableFeatures       []string       `json:"enable_features"`
	DisableFeatures      []string       `json:"disable_features"`
	Faults               []controlFault `json:"faults"` // added to the queue
	Outage               *controlFault  `json:"outage"` // of every call from now on; {} ends it
}

type controlFault struct {
	Kind      FaultKind `json:"kind"`
	LatencyMS int64     `json:"latency_ms"`
	Status    int       `json:"status"`
	Code      string    `json:"code"`
	Reason    string    `json:"reason"`
	Unsaved   bool      `json:"unsaved"`
	Body      string    `json:"body"`
	URL       string    `json:"url"`
}

func (f controlFault) fault() Fault {
	return Fault{Kind: f.Kind, Latency: time.Duration(f.LatencyMS) * time.Millisecond, Status: f.Status,
		Code: f.Code, Reason: f.Reason, Unsaved: f.Unsaved, Body: f.Body, URL: f.URL}
}

// controlConfig changes the simulator from another process. All of a body is
// applied or nothing. It demands a JSON content type, which a form of a foreign
// page can't send.
func (s *Sim) controlConfig(w http.ResponseWriter, r *http.Request) {
	var c control
	if err := decodeControl(w, r, &c); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var faults []Fault
	for i, f := range c.Faults {
		if err := f.fault().validate(); err != nil {
			http.Error(w, fmt.Sprintf("faults[%d]: %v", i, err), http.StatusBadRequest)
			return
		}
		faults = append(faults, f.fault())
	}
	if c.Outage != nil && *c.Outage != (controlFault{}) {
		if err := c.Outage.fault().validate(); err != nil {
			http.Error(w, fmt.Sprintf("outage: %v", err), http.StatusBadRequest)
			return
		}
	}
	s.apply(c, faults)
	w.WriteHeader(http.StatusNoContent)
}

func decodeControl(w http.ResponseWriter, r *http.Request, c *control) error {
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind != "application/json" {
		return errors.New("send application/json")
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	if c.LatencyMS != nil && *c.LatencyMS < 0 || c.Rate != nil && *c.Rate < 0 {
		return errors.New("latency_ms and rate can't be negative")
	}
	return nil
}

func (s *Sim) apply(c control, faults []Fault) {
	if c.LatencyMS != nil {
		s.SetLatency(time.Duration(*c.LatencyMS) * time.Millisecond)
	}
	if c.Rate != nil {
		s.SetRate(*c.Rate)
	}
	if c.DefaultConfiguration != nil {
		s.SetDefaultConfiguration(*c.DefaultConfiguration)
	}
	if c.DefaultReturnURL != nil {
		s.SetDefaultReturnURL(*c.DefaultReturnURL)
	}
	if c.StrictCustomers != nil {
		s.SetStrictCustomers(*c.StrictCustomers)
	}
	s.AddCustomer(c.AddCustomers...)
	for _, id := range c.DeleteCustomers {
		s.DeleteCustomer(id)
	}
	for _, f := range c.EnableFeatures {
		s.EnableFeature(f)
	}
	for _, f := range c.DisableFeatures {
		s.DisableFeature(f)
	}
	s.world.script(faults)
	switch {
	case c.Outage == nil:
	case *c.Outage == (controlFault{}):
		s.SetOutage(nil)
	default:
		f := c.Outage.fault()
		s.SetOutage(&f)
	}
}

func (s *Sim) controlSessions(w http.ResponseWriter, r *http.Request) { writeList(w, r, s.Sessions()) }

func (s *Sim) controlCalls(w http.ResponseWriter, r *http.Request) { writeList(w, r, s.Calls()) }

// writeList answers {"total", "data"}; ?limit=N gives only the newest N.
func writeList[T any](w http.ResponseWriter, r *http.Request, all []T) {
	total := len(all)
	if text := r.URL.Query().Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 {
			http.Error(w, "limit must be a number of 0 or more", http.StatusBadRequest)
			return
		}
		all = all[max(0, total-n):]
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(mustJSON(map[string]any{"total": total, "data": all}))
}
