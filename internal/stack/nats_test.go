package stack

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func startNATS(t *testing.T, cfg NATSConfig) (*NATS, jetstream.JetStream) {
	t.Helper()
	n, err := StartNATS(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Stop() })
	nc, err := nats.Connect(n.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return n, js
}

func TestNATSKeepsItsStreams(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n, js := startNATS(t, NATSConfig{Dir: dir, SyncAlways: true})
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "REQUESTS", Subjects: []string{"requests.>"}, Retention: jetstream.WorkQueuePolicy, Storage: jetstream.FileStorage,
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "requests.a", []byte("kept")); err != nil {
		t.Fatal(err)
	}
	for range 2 { // idempotent
		if err := n.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	_, js = startNATS(t, NATSConfig{Dir: dir, SyncAlways: true})
	s, err := js.Stream(t.Context(), "REQUESTS")
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.GetMsg(t.Context(), 1)
	if err != nil || string(m.Data) != "kept" {
		t.Errorf("after a restart the message is %v (%v)", m, err)
	}
}

func TestNATSHasOneOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	startNATS(t, NATSConfig{Dir: dir})
	if _, err := StartNATS(t.Context(), NATSConfig{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("a second owner gets %v, want ErrInUse", err)
	}
}

func TestNATSOnAPortInUseSaysSo(t *testing.T) {
	t.Parallel()
	taken := listen(t, 0)
	_, err := StartNATS(t.Context(), NATSConfig{Dir: t.TempDir(), Port: portOf(taken)})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v, want the server's own reason", err)
	}
}
