package jobs

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ahead serves the few requests of a source ahead of the backlog of another: the stream hands requests out in
// the order in which they came, so that a dunning request published behind a campaign of a hundred thousand
// would wait for all of it. While there is a backlog, ahead reads what other subjects hold straight from the
// stream and issues it. It acknowledges nothing: in its turn each such request comes to intake as any
// other, which finds its link, as it would after a lost acknowledgement (invariant 1).
type ahead struct {
	intake *Intake
	next   map[string]uint64 // by subject, the stream sequence to look from
}

const (
	aheadBacklog = 2000 // requests behind a message, from which on there is a backlog
	aheadMost    = 1000 // a subject with more waiting is a backlog itself
	aheadBatch   = 500  // requests of a round, all subjects together
	aheadEvery   = 100 * time.Millisecond
)

// backlogged tells ahead that a message has many behind it.
func (in *Intake) backlogged(pending uint64) {
	if pending >= aheadBacklog {
		select {
		case in.backlog <- struct{}{}:
		default: // told already
		}
	}
}

// run serves rounds, as long as there is a backlog, until ctx ends.
func (a *ahead) run(ctx context.Context) {
	for {
		select {
		case <-a.intake.backlog:
		case <-ctx.Done():
			return
		}
		if err := a.round(ctx); err != nil && ctx.Err() == nil {
			a.intake.Log.Warn("requests could not be served ahead of a backlog and wait for their turn", "error", err)
		}
		if !sleep(ctx, aheadEvery) {
			return
		}
	}
}

// round issues what has come since the last one on the subjects that have few waiting.
func (a *ahead) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, intakeDeadline)
	defer cancel()
	stream, err := a.intake.JetStream.Stream(ctx, RequestsStream)
	if err != nil {
		return err
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(RequestsPrefix+">"))
	if err != nil {
		return err
	}
	var items []*Item
	size := 0
	next := map[string]uint64{}
	for _, subject := range waiting(info.State.Subjects) {
		next[subject] = a.next[subject]
		for len(items) < aheadBatch && size < intakeBytes {
			msg, err := stream.GetMsg(ctx, next[subject], jetstream.WithGetMsgSubject(subject))
			if errors.Is(err, jetstream.ErrMsgNotFound) {
				break
			}
			if err != nil {
				return err
			}
			next[subject] = msg.Sequence + 1
			size += len(msg.Data)
			items = append(items, newItem(msg.Data, subject, RequestsStream, msg.Sequence, msg.Time))
		}
	}
	if len(items) > 0 {
		for _, part := range a.intake.Issuer.issueApart(ctx, a.intake.Log, items) {
			if part.err != nil {
				return part.err
			}
			a.intake.metrics.count(part.items)
		}
	}
	a.next = next
	return nil
}

// waiting are the subjects beside the one with most requests that have few, those with fewest first.
func waiting(subjects map[string]uint64) (few []string) {
	most := ""
	for subject, n := range subjects {
		if most == "" || n > subjects[most] {
			most = subject
		}
	}
	for subject, n := range subjects {
		if subject != most && n <= aheadMost {
			few = append(few, subject)
		}
	}
	slices.SortFunc(few, func(a, b string) int {
		return cmp.Or(cmp.Compare(subjects[a], subjects[b]), cmp.Compare(a, b))
	})
	return few
}
