package config

import (
	"context"
	"time"
)

// Watch calls changed with what the file of a secret holds, as Load reads it, each time that is not what it was any
// more, or with why it can't be read. known is what it held when it was loaded. It returns when ctx ends.
//
// It looks at the file every so often, and does not ask the system to be told. So it does not matter how the file is
// changed: written over, another one renamed over it, or, in Kubernetes, a link swapped above it; nor where it lies:
// of network and container file systems many tell nothing. Content counts once it was read twice in a row, because
// half of a key list can be a key list too.
func Watch(ctx context.Context, path, known string, every time.Duration, changed func(content string, err error)) {
	w := watched{told: look{content: known}, seen: look{content: known}}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		content, err := readSecret(path)
		now := look{content: content}
		if err != nil {
			now.problem = err.Error()
		}
		if w.news(now) {
			changed(content, err)
		}
	}
}

// look is what a file held, or why it could not be read.
type look struct{ content, problem string }

type watched struct{ told, seen look }

// news tells whether a look is worth telling of: the same twice in a row, and not what was told last.
func (w *watched) news(now look) bool {
	settled := now == w.seen
	w.seen = now
	if !settled || now == w.told {
		return false
	}
	w.told = now
	return true
}
