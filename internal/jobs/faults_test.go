package jobs

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/testkit"
)

// lossyMsg is a request whose acknowledgement fails: lost on the way, or, with delivered, stored
// by JetStream while the worker is told that it was not.
type lossyMsg struct {
	jetstream.Msg
	delivered bool
}

func (m lossyMsg) Ack() error {
	if m.delivered {
		_ = m.Msg.DoubleAck(context.Background())
	}
	return testkit.ErrFault
}

func (m lossyMsg) TermWithReason(reason string) error {
	if m.delivered {
		_ = m.Msg.TermWithReason(reason)
	}
	return testkit.ErrFault
}

// lossyJetStream loses the acks of the first publishes: JetStream has stored the message and the
// worker does not hear of it.
type lossyJetStream struct {
	jetstream.JetStream
	lose atomic.Int32
}

func (js *lossyJetStream) PublishMsgAsync(msg *nats.Msg, opts ...jetstream.PublishOpt) (jetstream.PubAckFuture, error) {
	ack, err := js.JetStream.PublishMsgAsync(msg, opts...)
	if err != nil || js.lose.Add(-1) < 0 {
		return ack, err
	}
	select {
	case <-ack.Ok():
		return lostAck{ack}, nil
	case err := <-ack.Err():
		return nil, err
	}
}

type lostAck struct{ jetstream.PubAckFuture }

func (lostAck) Ok() <-chan *jetstream.PubAck { return nil }

func (lostAck) Err() <-chan error {
	failed := make(chan error, 1)
	failed <- testkit.ErrFault
	return failed
}

// logBuffer keeps a test's log, to look for secrets in it and to show it on failure.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) tail() string {
	s := l.String()
	return s[max(0, len(s)-4000):]
}
