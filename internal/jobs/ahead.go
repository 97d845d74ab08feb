package jobs

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ahead serves the few requests of a source ahead of the backlog of another: the stream hands requests out in
// the order in which they came, so that a dunning request published behind a campaign of a hundred thousand
// would wait for all of it. While there is a backlog, ahead reads what other sources hold straight from the
// stream and issues it. It acknowledges nothing: in its turn each such request comes to intake as any
// other, which finds its link, as it would after a lost acknowledgement (invariant 1).
type ahead struct {
	intake *Intake
	places map[string]place // by subject, or a pattern of all below a source
}

// place is how far ahead has come on a subject.
type place struct {
	next     uint64 // stream sequence to look from
	caughtUp bool   // all before it is issued, so what the stream still holds of it is no backlog
}

const (
	aheadBacklog  = 2000 // requests behind a message, from which on there is a backlog
	aheadMost     = 1000 // a source with more waiting is a backlog itself
	aheadBatch    = 500  // requests of a round, all sources together
	aheadSubjects = 1000 // with more in the stream, nobody goes ahead: to list them would cost more than it helps
	aheadEvery    = 100 * time.Millisecond
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

// round issues what has come since the last one from the sources that have few waiting.
func (a *ahead) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, intakeDeadline)
	defer cancel()
	stream, err := a.intake.JetStream.Stream(ctx, RequestsStream)
	if err != nil {
		return err
	}
	if stream.CachedInfo().State.NumSubjects > aheadSubjects {
		return nil
	}
	info, err := stream.Info(ctx, jetstream.WithSubjectFilter(RequestsPrefix+">"))
	if err != nil {
		return err
	}
	items, places, readErr := a.read(ctx, stream, a.admitted(info.State))
	if len(items) > 0 {
		if err := a.issue(ctx, items); err != nil {
			return err
		}
	}
	a.places = places
	return readErr
}

// read takes messages off no queue. What it returns beside an error is good.
func (a *ahead) read(ctx context.Context, stream jetstream.Stream, subjects []string) (items []*Item, places map[string]place, err error) {
	places = map[string]place{}
	size := 0
	for _, subject := range subjects {
		p := place{next: a.places[subject].next}
		for err == nil && !p.caughtUp && len(items) < aheadBatch && size < intakeBytes {
			var msg *jetstream.RawStreamMsg
			msg, err = stream.GetMsg(ctx, p.next, jetstream.WithGetMsgSubject(subject))
			switch {
			case errors.Is(err, jetstream.ErrMsgNotFound):
				p.caughtUp, err = true, nil
			case err == nil:
				p.next = msg.Sequence + 1
				size += len(msg.Data)
				items = append(items, newItem(msg.Data, msg.Subject, RequestsStream, msg.Sequence, msg.Time))
			}
		}
		places[subject] = p
	}
	return items, places, err
}

func (a *ahead) issue(ctx context.Context, items []*Item) error {
	for _, part := range a.intake.Issuer.issueApart(ctx, items) {
		if part.err != nil {
			return part.err
		}
		// A rejection counts in its turn, when it is dead-lettered too.
		a.intake.metrics.count(slices.DeleteFunc(part.items, func(i *Item) bool { return i.Rejection != nil }))
	}
	return nil
}

// admitted are the subjects of the sources that may go ahead, those with fewest waiting first: sources beside the one
// with most that have few, or had few and are served as they come. Deeper subjects of a source are one pattern.
func (a *ahead) admitted(state jetstream.StreamState) (subjects []string) {
	bySource, patterns := map[string]uint64{}, map[string]string{}
	most := ""
	for subject, n := range state.Subjects {
		source, _, deeper := strings.Cut(strings.TrimPrefix(subject, RequestsPrefix), ".")
		pattern := subject
		if deeper {
			pattern = RequestsPrefix + source + ".>"
		}
		patterns[pattern] = source
		bySource[source] += n
		if bySource[source] > bySource[most] {
			most = source
		}
	}
	for pattern, source := range patterns {
		if a.places[pattern].next > state.LastSeq+1 { // of a stream that is no more
			delete(a.places, pattern)
		}
		if source != most && (bySource[source] <= aheadMost || a.places[pattern].caughtUp) {
			subjects = append(subjects, pattern)
		}
	}
	slices.SortFunc(subjects, func(x, y string) int {
		return cmp.Or(cmp.Compare(bySource[patterns[x]], bySource[patterns[y]]), cmp.Compare(x, y))
	})
	return subjects
}
