package jobs

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/notify"
	"latchkey/internal/testkit"
)

func connect(t *testing.T) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(testkit.NATS(t))
	must(t, err)
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return js
}

func TestEnsureStreamsTogether(t *testing.T) {
	t.Parallel()
	js := connect(t)
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if err := EnsureStreams(t.Context(), js, true); err != nil {
				t.Error(err)
			}
			if _, err := ensureConsumer(t.Context(), js); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for name, want := range map[string]struct {
		subject   string
		retention jetstream.RetentionPolicy
		age       time.Duration
	}{
		"PORTAL_REQUESTS": {"portal.requests.>", jetstream.WorkQueuePolicy, 0},
		"PORTAL_EVENTS":   {"portal.events.>", jetstream.LimitsPolicy, 72 * time.Hour},
		"PORTAL_DEAD":     {"portal.dead.>", jetstream.LimitsPolicy, 0},
	} {
		s, err := js.Stream(t.Context(), name)
		must(t, err)
		c := s.CachedInfo().Config
		if len(c.Subjects) != 1 || c.Subjects[0] != want.subject || c.Retention != want.retention || c.MaxAge != want.age || c.Storage != jetstream.FileStorage {
			t.Errorf("stream %s: %+v", name, c)
		}
	}
	must(t, EnsureStreams(t.Context(), js, false))
}

// With NATS_MANAGE_STREAMS=false a subject that events need and the stream lacks is named.
func TestEnsureStreamsFindsMissingSubjects(t *testing.T) {
	t.Parallel()
	js := connect(t)
	must(t, EnsureStreams(t.Context(), js, true))
	changed := jetstream.StreamConfig{Name: notify.EventsStream, Subjects: []string{"portal.events.link.>", "other.events"},
		MaxAge: time.Hour, MaxBytes: 1 << 20, Discard: jetstream.DiscardNew, Duplicates: time.Minute, Description: "ours", Storage: jetstream.FileStorage}
	_, err := js.UpdateStream(t.Context(), changed)
	must(t, err)
	err = EnsureStreams(t.Context(), js, false)
	if err == nil || !strings.Contains(err.Error(), notify.EventsStream) || !strings.Contains(err.Error(), "portal.events.>") {
		t.Errorf("a check finds %v, want the missing subject", err)
	}
}

// What an operator set stays; only a subject that is missing is added.
func TestEnsureStreamsAddsSubjectsOnly(t *testing.T) {
	t.Parallel()
	js := connect(t)
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: DeadStream, Subjects: []string{"other.dead"}, MaxAge: time.Hour,
		MaxBytes: 1 << 20, Discard: jetstream.DiscardNew, Duplicates: time.Minute, Description: "ours", Storage: jetstream.MemoryStorage})
	must(t, err)
	must(t, EnsureStreams(t.Context(), js, true))
	s, err := js.Stream(t.Context(), DeadStream)
	must(t, err)
	c := s.CachedInfo().Config
	if strings.Join(c.Subjects, " ") != "other.dead portal.dead.>" || c.MaxAge != time.Hour || c.MaxBytes != 1<<20 ||
		c.Discard != jetstream.DiscardNew || c.Description != "ours" || c.Storage != jetstream.MemoryStorage {
		t.Errorf("stream: %+v", c)
	}
}

func TestEnsureStreamsReportsWhatItMayNotMend(t *testing.T) {
	t.Parallel()
	js := connect(t)
	if err := EnsureStreams(t.Context(), js, false); err == nil || !strings.Contains(err.Error(), "PORTAL_REQUESTS") {
		t.Errorf("without streams: %v", err)
	}
	if names := js.StreamNames(t.Context()); len(names.Name()) > 0 {
		t.Error("a check made a stream")
	}
	_, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: RequestsStream, Subjects: []string{RequestsSubjects}})
	must(t, err)
	for _, manage := range []bool{true, false} {
		if err := EnsureStreams(t.Context(), js, manage); err == nil || !strings.Contains(err.Error(), "retention") {
			t.Errorf("without work-queue retention: %v", err)
		}
	}
}
