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
	type look struct{ content, problem string }
	last := look{content: known}
	seen := last
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var now look
		content, err := readSecret(path)
		if now.content = content; err != nil {
			now.problem = err.Error()
		}
		if now == seen && now != last {
			last = now
			changed(content, err)
		}
		seen = now
	}
}
