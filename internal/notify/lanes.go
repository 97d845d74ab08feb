package notify

import (
	"sync"
	"time"
)

// lanes bound how much of the webhook workers one target may take, so that a slow one holds up nobody
// else. A lane is a host's: it widens with each quick answer and halves with each slow or failed one. A
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
	quick     = time.Second // an answer within it widens the lane
	lanesMost = 4096        // hosts remembered
	waitMost  = 10 * time.Minute
)

func newLanes() lanes { return lanes{hosts: map[string]*lane{}} }

// enter takes a place in a host's lane, which leave gives back, or returns a *BusyError.
func (l *lanes) enter(host string, now time.Time) (leave func(took time.Duration, ok bool), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	way := l.hosts[host]
	if way == nil {
		l.forget(now)
		way = &lane{width: laneStart, took: quick}
		l.hosts[host] = way
	}
	if way.underWay >= way.width {
		if way.next.Before(now) {
			way.next = now
		}
		way.next = way.next.Add(way.took / time.Duration(way.width))
		if wait := way.next.Sub(now); wait < waitMost {
			return nil, &BusyError{wait}
		}
		way.next = now.Add(waitMost)
		return nil, &BusyError{waitMost}
	}
	way.underWay++
	return func(took time.Duration, ok bool) { l.leave(way, took, ok) }, nil
}

func (l *lanes) leave(way *lane, took time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	way.underWay--
	way.took = (3*way.took + took) / 4
	if ok && took <= quick {
		way.width = min(way.width+1, laneMost)
	} else {
		way.width = max(way.width/2, 1)
	}
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
