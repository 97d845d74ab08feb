package main

import (
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// hookMood is how the target of webhooks behaves.
type hookMood int32

const (
	hookTakes     hookMood = iota
	hookFails              // 500
	hookHangs              // no answer until the sender leaves, or the mood passes
	hookForgetful          // taken, and the connection ends before the answer
)

// hookServer is a target; it keeps which ids came, by path.
type hookServer struct {
	mood atomic.Int32
	url  string
	srv  *http.Server

	forgets bool // it keeps nothing, since a soak goes on for hours

	mu  sync.Mutex
	got map[string]map[string]int // path → webhook-id → times
}

func startHookServer() (*hookServer, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h := &hookServer{url: "http://" + l.Addr().String(), got: map[string]map[string]int{}}
	h.srv = &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = h.srv.Serve(l) }()
	return h, nil
}

func (h *hookServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch hookMood(h.mood.Load()) {
	case hookFails:
		http.Error(w, "not now", http.StatusInternalServerError)
		return
	case hookHangs:
		for hookMood(h.mood.Load()) == hookHangs && r.Context().Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
		panic(http.ErrAbortHandler)
	}
	if !h.forgets {
		h.keep(r.URL.Path, r.Header.Get("webhook-id"))
	}
	if hookMood(h.mood.Load()) == hookForgetful {
		panic(http.ErrAbortHandler)
	}
}

func (h *hookServer) keep(path, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.got[path] == nil {
		h.got[path] = map[string]int{}
	}
	h.got[path][id]++
}

// has tells whether an id came to a path.
func (h *hookServer) has(path, id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.got[path][id] > 0
}

// ids is how many different ones came to a path.
func (h *hookServer) ids(path string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.got[path])
}
