package portal

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
)

// comeBack answers the GET of a place in the line: the same person's return, by the page's own
// refresh. It serves the click that the place names. A click that is over is not begun again by
// a GET: the history of a browser can hold this URL.
func (s *ClickServer) comeBack(ctx context.Context, v *visit, id uuid.UUID) answer {
	if v.link.StateAt(s.Store.Now()) == StateRevoked || isPrefetch(v.r) {
		return s.look(ctx, v)
	}
	click, err := s.lastOf(ctx, v.link, id)
	switch {
	case errors.Is(err, ErrNoClick) && s.Stripe.Spared():
		return s.tryAgain(v, click.ID)
	case errors.Is(err, ErrNoClick): // its worker was lost, or Stripe or the database was away when the button was pressed
		if v.link.StateAt(s.Store.Now()) != StateLive {
			return s.look(ctx, v)
		}
		v.look = returned
		return s.together(ctx, v, func() served { return s.begin(ctx, v, click.ID) })
	case err != nil:
		return s.databaseAway(v, id, err)
	case s.justCreated(click) && s.Limits.Replay(v.id, s.Store.Now()):
		v.look = returned
		if err := s.share(ctx, v, click.ID); err != nil {
			return s.databaseAway(v, click.ID, err)
		}
		return s.again(ctx, v, click)
	case click.Outcome != "":
		return s.look(ctx, v)
	case s.Stripe.Spared():
		if err := s.Store.Keep(ctx, click, s.Store.Now().Add(retryLatest)); err != nil {
			return s.databaseAway(v, click.ID, err)
		}
		return s.tryAgain(v, click.ID)
	}
	return s.together(ctx, v, func() served { return served{answer: s.serve(ctx, v, click), click: click.ID} })
}

func returned(*Link) map[string]any { return map[string]any{"returned": true} }

// lastOf reads the click that a place names, or the one that took its place after its worker was
// lost. With ErrNoClick it returns the id under which a click is to be begun.
func (s *ClickServer) lastOf(ctx context.Context, link *Link, id uuid.UUID) (Click, error) {
	for closed := 0; ; {
		click, err := s.Store.Click(ctx, link, id)
		if err != nil {
			return Click{ID: id}, err
		}
		if click.Outcome == "" && click.Asked && !s.Store.Now().Before(click.Until) {
			// Stripe's answer to its key could be a session that has died.
			if closed++; closed > 5 {
				return click, errors.New("the row of an overdue click is held")
			}
			err := s.Store.CloseOverdue(ctx, link)
			if err == nil {
				err = sleep(ctx, time.Duration(closed-1)*20*time.Millisecond) // whoever holds the row is done with it in a moment
			}
			if err != nil {
				return click, err
			}
			continue
		}
		if click.Outcome != outcomeInterrupted {
			return click, nil
		}
		id = successor(id)
	}
}

// replayed is how long the session of a click is given out again, to a browser that did not get
// its redirect: it dies five minutes after it was made.
const replayed = time.Minute

func (s *ClickServer) justCreated(click Click) bool {
	return click.Outcome == outcomeCreated && s.Store.Now().Before(click.Ended.Add(replayed))
}

// again asks Stripe under the same idempotency key, and gets the same session: its person reloaded,
// or tapped twice, and the browser dropped the answer. It spends no use and ends no click.
func (s *ClickServer) again(ctx context.Context, v *visit, click Click) answer {
	if err := s.Budget.Retry(ctx, v.link.StripeAccount); err != nil && !errors.Is(err, errNoSlot) {
		return s.databaseAway(v, click.ID, err)
	} else if err != nil {
		return s.tryAgain(v, click.ID)
	}
	session, err := s.Stripe.CreateSession(ctx, v.link, click.ID)
	if err != nil { // it comes back until the minute is over, and then sees the link as it is
		s.Log.Warn("a session that was made could not be given out again", "link_id", v.id, "click_id", click.ID, "code", classify(err).Code)
		return s.tryAgain(v, click.ID)
	}
	return answer{location: session.URL}
}

// Returns of a page that has to come back.
const (
	// returnLead is how long before its turn a page comes back, so that it is there in time: what
	// is left is within hold, and waited for in the request.
	returnLead = time.Second
	// longestRefresh is how long a page waits at most before it looks how the line moves.
	longestRefresh = 10 * time.Second
	// A page without a time of its own returns at one of its own choice in between, so that
	// nobody who waited for Stripe comes back at the same time as all others.
	retryEarliest, retryLatest = 5 * time.Second, 15 * time.Second
)

// waiting is the page of a person whose turn is further off than a request waits.
func (s *ClickServer) waiting(v *visit, click uuid.UUID, left time.Duration) answer {
	return answer{page: pageWaiting, token: v.token, place: s.Keys.SignPlace(v.keyID, v.id, click, s.Store.Now().Add(placeLife)), wait: left, refresh: refreshAfter(left, rand.Float64())}
}

// refreshAfter is when a page comes back whose turn is left away, in whole seconds, which is all
// that Refresh knows. jitter, from 0 to 1, takes up to a tenth off.
func refreshAfter(left time.Duration, jitter float64) int {
	back := left - returnLead
	if back > longestRefresh {
		back = min(left/2, longestRefresh)
	}
	return max(1, int(back.Seconds()*(1-jitter/10)))
}

// tryAgain is the page of a person who pressed the button at a bad time. It comes back by itself,
// for the click that it names, for an hour at most; then it shows the button again.
func (s *ClickServer) tryAgain(v *visit, click uuid.UUID) answer {
	end := v.end
	if end.IsZero() {
		end = s.Store.Now().Add(placeLife)
	}
	seconds := int((retryEarliest + rand.N(retryLatest-retryEarliest)).Seconds())
	return answer{page: pageTryAgain, token: v.token, place: s.Keys.SignPlace(v.keyID, v.id, click, end), retryAfter: seconds, refresh: seconds}
}
