package jobs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"latchkey/internal/notify"
)

// Names of the contract.
const (
	RequestsStream   = "PORTAL_REQUESTS"
	RequestsSubjects = "portal.requests.>"
	RequestsPrefix   = "portal.requests."
	DeadStream       = "PORTAL_DEAD"
	DeadPrefix       = "portal.dead."
	IntakeConsumer   = "latchkey-intake"
)

// duplicateWindow is how long JetStream itself drops a repeated Nats-Msg-Id; Postgres is the
// real dedupe.
const duplicateWindow = 2 * time.Minute

func wantedStreams() []jetstream.StreamConfig {
	return []jetstream.StreamConfig{{
		Name:        RequestsStream,
		Description: "Latchkey intake: one message a requested link",
		Subjects:    []string{RequestsSubjects},
		Retention:   jetstream.WorkQueuePolicy,
		Storage:     jetstream.FileStorage,
		Duplicates:  duplicateWindow,
		// The dead letter of a request must fit into a message together with its reason.
		MaxMsgSize: 1_000_000,
	}, {
		Name:        notify.EventsStream,
		Description: "Latchkey events: CloudEvents 1.0",
		Subjects:    []string{notify.SubjectPrefix + ">"},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Duplicates:  duplicateWindow,
		MaxAge:      72 * time.Hour,
	}, {
		Name:        DeadStream,
		Description: "Latchkey requests that can't be served, as they came",
		Subjects:    []string{DeadPrefix + ">"},
		Retention:   jetstream.LimitsPolicy,
		Storage:     jetstream.FileStorage,
		Duplicates:  duplicateWindow,
	}}
}

// EnsureStreams creates the streams that are missing. A stream that is there keeps its operator's
// settings (replicas, age, size); only subjects that it lacks are added. With manage false it
// changes nothing and reports what does not fit.
func EnsureStreams(ctx context.Context, js jetstream.JetStream, manage bool) error {
	for _, want := range wantedStreams() {
		if err := ensureStream(ctx, js, want, manage); err != nil {
			return fmt.Errorf("stream %s: %w", want.Name, err)
		}
	}
	return nil
}

func ensureStream(ctx context.Context, js jetstream.JetStream, want jetstream.StreamConfig, manage bool) error {
	stream, err := js.Stream(ctx, want.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		if !manage {
			return errors.New("is missing; create it, or set NATS_MANAGE_STREAMS=true")
		}
		// Two workers that start together both create it: the same configuration is no conflict.
		_, err = js.CreateStream(ctx, want)
		return err
	}
	if err != nil {
		return err
	}
	have := stream.CachedInfo().Config
	if have.Retention != want.Retention {
		return fmt.Errorf("has %s retention and must have %s; retention can't be changed, so drain and delete the stream first", have.Retention, want.Retention)
	}
	missing := slices.DeleteFunc(slices.Clone(want.Subjects), func(s string) bool { return slices.Contains(have.Subjects, s) })
	if len(missing) == 0 {
		return nil
	}
	if !manage {
		return fmt.Errorf("lacks the subjects %v; add them, or set NATS_MANAGE_STREAMS=true", missing)
	}
	have.Subjects = append(have.Subjects, missing...)
	_, err = js.UpdateStream(ctx, have)
	return err
}

// ensureConsumer creates the durable consumer that all replicas share. MaxDeliver has no limit: a
// message that waits for the database must not be left undelivered in the work queue; what can
// never be served is dead-lettered by intake itself.
func ensureConsumer(ctx context.Context, js jetstream.JetStream) (jetstream.Consumer, error) {
	c, err := js.CreateOrUpdateConsumer(ctx, RequestsStream, jetstream.ConsumerConfig{
		Durable:       IntakeConsumer,
		Description:   "Latchkey workers; shared by all replicas",
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       30 * time.Second,
		MaxDeliver:    -1,
		MaxAckPending: 32 * intakeBatch,
	})
	if err != nil {
		return nil, fmt.Errorf("consumer %s: %w", IntakeConsumer, err)
	}
	return c, nil
}
