package notify

import (
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"time"
)

// lanes bound how much of the webhook workers one target may take, so that a slow one holds up nobody
// else. A lane is a host's: it widens with each answer in good time and halves with each late or failed one. A
// post that finds it full is told when there will be room, each a different time, in the order in which
// they asked: so a backlog is put off about once for each post, not again and again.
type lanes struct {
	mu    sync.Mutex
	hosts map[string]*lane
}

type lane struct {
	width    int           // posts that may be under way
	underWay int           //
	took     time.Duration // a post, on a sliding average
	next     time.Time     // when the next one that is put off may come
}

const (
	laneStart = 4
	laneMost  = 32
	inTime    = webhookTimeout / 2 // an answer within it widens the lane
	lanesMost = 4096               // hosts remembered
	waitMost  = 30 * time.Minute   // a longer wait is one of up to twice this, at random: a queue of days is not kept in order
)

func newLanes() lanes { return lanes{hosts: map[string]*lane{}} }

// Lane is what the lane of a target is known by: a hash of its host, whatever port and spelling.
func Lane(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")))
	return hex.EncodeToString(sum[:8])
}

// enter takes a place in a lane, or returns a *BusyError.
func (l *lanes) enter(host string, now time.Time) (*lane, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	way := l.hosts[host]
	if way == nil {
		l.forget(now)
		way = &lane{width: laneStart, took: time.Second}
		l.hosts[host] = way
	}
	if way.underWay < way.width {
		way.underWay++
		return way, nil
	}
	if way.next.Before(now) {
		way.next = now
	}
	wait := way.next.Add(way.took / time.Duration(way.width)).Sub(now)
	if wait > waitMost {
		return nil, &BusyError{waitMost + rand.N(waitMost)}
	}
	way.next = now.Add(wait)
	return nil, &BusyError{wait}
}

// leave gives a place back. tried is false where nothing was sent, which tells nothing of the target.
func (l *lanes) leave(way *lane, tried bool, took time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	way.underWay--
	switch {
	case !tried:
		return
	case ok && took <= inTime:
		way.width = min(way.width+1, laneMost)
	default:
		way.width = max(way.width/2, 1)
	}
	way.took = (3*way.took + took) / 4
}

// forget makes room for another host.
func (l *lanes) forget(now time.Time) {
	if len(l.hosts) < lanesMost {
		return
	}
	for host, way := range l.hosts {
		if way.underWay == 0 && way.next.Before(now) {
			delete(l.hosts, host)
		}
	}
}
