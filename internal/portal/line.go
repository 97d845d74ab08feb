package portal

import (
	"math"
	"time"
)

// line is the arithmetic of the Stripe budget: the row of one account in stripe_budget at one
// moment. It knows no database and no clock.
//
// A slot is a moment at which one call to Stripe may be made; slots are 1/rate apart. Everybody
// gets a ticket, the next number. Tickets are called in order, and a slot is handed out no more
// than early ahead of its time, to a request that is there to use it: so a 429 slows down at once
// whoever has not called yet. Who would have to wait longer than a request does comes back when
// the turn is near. Each slot that is handed out, and each slot's time that passes unused, moves
// head on: a person who does not come back holds up nobody, whoever is there next takes the slot,
// and one who comes late is served by the next.
type line struct {
	slotAt    time.Time // the next free slot
	head      int64     // the ticket whose turn it is at slotAt
	last      int64     // the newest ticket given; head ≤ last+1
	loweredTo float64   // calls a second after Stripe's last 429; 0 = never
	loweredAt time.Time

	expected int64 // after a pause: the lowest ticket of who was told to come back; 0 = nobody was
}

// Bounds of the line.
const (
	// hold is how long a request waits for its slot; contract of the waiting page.
	hold = 3 * time.Second
	// early is how far ahead of its turn a ticket is given its slot. It is the most by which two
	// people can change places, and what keeps slots back to back although requests come a
	// little late and some people not at all.
	early = 500 * time.Millisecond
	// retryHold is how long a retry waits for its slot: longer than lowerPause, so that one 429
	// makes a person wait and not fail.
	retryHold = 2 * time.Second
	// lowerPause is how long nobody calls Stripe after a 429, and how long further 429s are taken
	// for the same one.
	lowerPause = time.Second
	// pause is how long nobody asks before the line counts who is still to come. In a line that
	// moves, questions follow each other much closer.
	pause = 2 * time.Second
	// raiseTime is how long it takes to get from no calls to the full rate again.
	raiseTime = time.Minute
)

// turn is what a request gets: a slot, or a place in the line.
type turn struct {
	ticket int64
	wait   time.Duration // until the slot, or until the ticket's turn
	slot   bool
}

// rateAt is the pace: the configured rate, or less for a while after a 429.
func (l *line) rateAt(now time.Time, rate float64) float64 {
	if l.loweredTo == 0 {
		return rate
	}
	return min(rate, l.loweredTo+rate*now.Sub(l.loweredAt).Seconds()/raiseTime.Seconds())
}

// take gives a slot or a place in the line; ticket is 0 for who has none.
func (l *line) take(now time.Time, ticket int64, rate float64) turn {
	step := l.skip(now, rate)
	if ticket == 0 {
		l.last++
		ticket = l.last
	}
	free := later(l.slotAt, now).Sub(now)
	due := free + time.Duration(max(0, ticket-l.head))*step
	if due > max(early, step) {
		return turn{ticket: ticket, wait: due}
	}
	l.slotAt, l.head = now.Add(free+step), max(l.head, ticket+1)
	return turn{ticket: ticket, wait: free, slot: true}
}

// retry gives a slot to a call that failed and is worth another try, or says that there is none
// soon enough.
func (l *line) retry(now time.Time, rate float64) (wait time.Duration, ok bool) {
	step := l.skip(now, rate)
	first := later(l.slotAt, now)
	if first.Sub(now) > retryHold {
		return 0, false
	}
	l.slotAt = first.Add(step)
	return first.Sub(now), true
}

// lower halves the pace at once and lets nobody call for a moment. The 429s of one burst count as
// one.
func (l *line) lower(now time.Time, rate float64) {
	l.loweredAt = earlier(l.loweredAt, now)
	if l.loweredTo > 0 && now.Sub(l.loweredAt) < lowerPause {
		return
	}
	l.loweredTo, l.loweredAt = max(l.rateAt(now, rate)/2, min(1, rate)), now
	l.slotAt = later(l.slotAt, now.Add(lowerPause))
}

// paused tells that nobody was in line for a while, or nobody could ask: then l.expected counts.
func (l *line) paused(now time.Time) bool { return now.Sub(l.slotAt) > pause }

// skip calls the numbers whose slots passed unused, and returns the time between slots. After a
// pause it does not pass over people who were told to come back.
func (l *line) skip(now time.Time, rate float64) (step time.Duration) {
	l.loweredAt = earlier(l.loweredAt, now) // the database's clock may have been set back
	step = time.Duration(float64(time.Second) / l.rateAt(now, rate))
	// No slot is given further ahead than this.
	l.slotAt = earlier(l.slotAt, now.Add(retryHold+lowerPause+2*step))
	if passed := int64(math.Floor(float64(now.Sub(l.slotAt)) / float64(step))); passed > 0 {
		head := min(l.head+passed, l.last+1)
		if l.expected > 0 {
			head = min(head, max(l.head, l.expected))
		}
		l.head = head
		l.slotAt = l.slotAt.Add(time.Duration(passed) * step)
	}
	return step
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
