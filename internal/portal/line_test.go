package portal

import (
	"container/heap"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// crowd plays people against a line, without a database and in no time: each presses, is held or
// sent to the waiting page, comes back by its refresh, and calls Stripe in its slot.
type crowd struct {
	line   line
	rate   float64
	began  time.Time
	events agenda
	rand   *rand.Rand
	wont   func(person int) bool          // leaves when the waiting page is shown
	late   func(person int) time.Duration // comes back that much after the page's time
	calls  []call                         // in the order of their slots
}

type call struct {
	person  int
	pressed time.Time
	at      time.Time
}

type step struct {
	at      time.Time
	person  int
	pressed time.Time
	ticket  int64
	since   time.Time // the request's begin
}

type agenda []step

func (a agenda) Len() int           { return len(a) }
func (a agenda) Less(i, j int) bool { return a[i].at.Before(a[j].at) }
func (a agenda) Swap(i, j int)      { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(x any)        { *a = append(*a, x.(step)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

func newCrowd(rate float64) *crowd {
	began := time.Date(2026, 11, 2, 9, 0, 0, 0, time.UTC)
	return &crowd{line: line{slotAt: began, head: 1}, rate: rate, began: began, rand: rand.New(rand.NewPCG(1, 2)),
		wont: func(int) bool { return false }, late: func(int) time.Duration { return 0 }}
}

func (c *crowd) press(person int, after time.Duration) {
	at := c.began.Add(after)
	heap.Push(&c.events, step{at: at, person: person, pressed: at, since: at})
}

// play runs until nobody has anything left to do, or until a time.
func (c *crowd) play(until time.Duration) {
	for len(c.events) > 0 && c.events[0].at.Before(c.began.Add(until)) {
		e := heap.Pop(&c.events).(step)
		got := c.line.take(e.at, e.ticket, c.rate)
		network := time.Duration(c.rand.IntN(40)) * time.Millisecond
		switch {
		case got.slot:
			c.calls = append(c.calls, call{e.person, e.pressed, e.at.Add(got.wait)})
			continue
		case e.at.Sub(e.since)+got.wait <= hold: // as Budget.Wait does
			e.at = e.at.Add(max(0, got.wait-early*3/4) + time.Duration(c.rand.IntN(3))*time.Millisecond)
		case c.wont(e.person):
			continue
		default:
			e.at = e.at.Add(time.Duration(refreshAfter(got.wait, c.rand.Float64()))*time.Second + network + c.late(e.person))
			e.since = e.at
		}
		e.ticket = got.ticket
		heap.Push(&c.events, e)
	}
	slices.SortStableFunc(c.calls, func(a, b call) int { return a.at.Compare(b.at) })
}

// check holds the calls against the promises: never more than the rate in any second, and nobody
// overtaken by more than a second.
func (c *crowd) check(t *testing.T, overtaken time.Duration) (last time.Duration) {
	t.Helper()
	n := int(c.rate)
	for i := range c.calls {
		if i >= n && c.calls[i].at.Sub(c.calls[i-n].at) < time.Second-time.Millisecond {
			t.Fatalf("%d calls within %s", n+1, c.calls[i].at.Sub(c.calls[i-n].at))
		}
	}
	latest := time.Time{}
	for _, call := range c.calls {
		if latest.Sub(call.pressed) > overtaken {
			t.Fatalf("person %d was overtaken by somebody who pressed %s later", call.person, latest.Sub(call.pressed))
		}
		latest = later(latest, call.pressed)
	}
	return c.calls[len(c.calls)-1].at.Sub(c.began)
}

func TestLineServesAStampedeInOrder(t *testing.T) {
	t.Parallel()
	c := newCrowd(20)
	for p := range 1000 {
		c.press(p, time.Duration(p)*2*time.Millisecond)
	}
	c.play(time.Hour)
	last := c.check(t, time.Second)
	if len(c.calls) != 1000 || last > 52*time.Second {
		t.Errorf("%d of 1000 were served, the last after %s; 50 s is what 20 a second allow", len(c.calls), last)
	}
	// In terms of places: nobody is served more than early and a slot off their turn.
	for i, call := range c.calls {
		if d := call.person - i; d > 15 || d < -15 {
			t.Errorf("person %d was served as number %d", call.person, i)
		}
	}
}

// A free line serves at once, and a pause earns no credit.
func TestLineWhenFree(t *testing.T) {
	t.Parallel()
	c := newCrowd(20)
	for p := range 10 {
		c.press(p, time.Minute)
	}
	c.press(10, 2*time.Minute)
	c.play(time.Hour)
	c.check(t, 0)
	if first, eleventh := c.calls[0].at.Sub(c.began), c.calls[10].at.Sub(c.began); first != time.Minute || eleventh != 2*time.Minute {
		t.Errorf("served after %s and %s", first, eleventh)
	}
}

// Every second person leaves the waiting page: those who stay are served sooner than they were
// told, and nobody waits for those who left.
func TestLineGoesOnWithoutThoseWhoLeave(t *testing.T) {
	t.Parallel()
	c := newCrowd(20)
	c.wont = func(p int) bool { return p%2 == 1 }
	for p := range 1000 {
		c.press(p, time.Duration(p)*time.Millisecond)
	}
	c.play(time.Hour)
	last := c.check(t, 2*time.Second)
	if len(c.calls) < 500 || last > 42*time.Second {
		t.Errorf("%d served, the last after %s; with everybody there it would be 50 s", len(c.calls), last)
	}
}

// All but the last leave: the last is served no later than told.
func TestLineOfNobody(t *testing.T) {
	t.Parallel()
	c := newCrowd(20)
	c.wont = func(p int) bool { return p < 400 }
	for p := range 401 {
		c.press(p, time.Duration(p)*time.Millisecond)
	}
	c.play(time.Hour)
	if last := c.calls[len(c.calls)-1]; last.person != 400 || last.at.Sub(c.began) > 401*50*time.Millisecond+early {
		t.Errorf("%+v", last)
	}
}

// Who comes back late has lost nothing: the next slot is theirs.
func TestLineServesLateComersNext(t *testing.T) {
	t.Parallel()
	c := newCrowd(20)
	c.late = func(p int) time.Duration {
		if p%10 == 3 {
			return 10 * time.Second
		}
		return 0
	}
	for p := range 600 {
		c.press(p, 0)
	}
	c.play(time.Hour)
	last := c.check(t, time.Second)
	if len(c.calls) != 600 || last > 45*time.Second {
		t.Errorf("%d served, the last after %s", len(c.calls), last)
	}
}

// A 429 stops the calls for a moment, halves the pace and raises it over a minute.
func TestLineAfterA429(t *testing.T) {
	t.Parallel()
	c := newCrowd(20)
	for p := range 2000 {
		c.press(p, 0)
	}
	c.play(10 * time.Second)
	at := c.began.Add(10 * time.Second)
	for range 5 { // one burst
		c.line.lower(at, c.rate)
	}
	before := len(c.calls)
	c.play(time.Hour)
	count := func(from, to time.Duration) (n int) {
		for _, call := range c.calls[before:] {
			if d := call.at.Sub(at); d >= from && d < to {
				n++
			}
		}
		return n
	}
	if n := count(early, lowerPause); n != 0 {
		t.Errorf("%d calls in the second after a 429", n)
	}
	if n := count(lowerPause, lowerPause+5*time.Second); n < 45 || n > 65 {
		t.Errorf("%d calls in the next 5 s, want 50 and a little more", n)
	}
	if n := count(40*time.Second, 50*time.Second); n < 190 || n > 200 {
		t.Errorf("%d calls in 10 s later on, want the full rate again", n)
	}
	if len(c.calls) != 2000 {
		t.Errorf("%d of 2000 served", len(c.calls))
	}
}

func TestLineLowersToOneASecondAtMost(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := line{slotAt: now, head: 1}
	for range 20 {
		now = now.Add(lowerPause)
		l.lower(now, 20)
	}
	if r := l.rateAt(now, 20); r != 1 {
		t.Errorf("%v calls a second", r)
	}
	if r := l.rateAt(now.Add(raiseTime), 20); r != 20 {
		t.Errorf("%v calls a second a minute later", r)
	}
}

// Retries share the slots with everybody, and none waits for long.
func TestLineRetries(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := line{slotAt: now, head: 1}
	n := 0
	for ; ; n++ {
		wait, ok := l.retry(now, 20)
		if !ok {
			break
		}
		if want := time.Duration(n) * 50 * time.Millisecond; wait != want {
			t.Fatalf("retry %d waits %s, want %s", n, wait, want)
		}
	}
	if n != 41 {
		t.Errorf("%d retries have a slot within 2 s", n)
	}
	if got := l.take(now, 0, 20); got.slot || got.wait < retryHold {
		t.Errorf("%+v behind %d retries", got, n)
	}
}

// A clock that is set back stops no line, and a 429 counts after it.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	l := line{slotAt: now, head: 1}
	l.take(now, 0, 20)
	l.lower(now, 20)
	back := now.Add(-time.Hour)
	if got := l.take(back, 0, 20); got.wait > 5*time.Second {
		t.Errorf("a newcomer waits %s", got.wait)
	}
	back = back.Add(10 * time.Minute)
	l.lower(back, 20)
	if rate := l.rateAt(back, 20); rate != 10 {
		t.Errorf("after a 429 the pace is %v", rate)
	}
}
