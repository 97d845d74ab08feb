package jobs

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"latchkey/internal/notify"
	"latchkey/internal/portal"
)

// Subscription wants the events of some kinds posted to a target.
type Subscription struct {
	URL   string
	Kinds []portal.Kind // none: all events
}

// ParseSubscriptions reads the form of WEBHOOK_SUBSCRIPTIONS, "kind,kind=url *=url …", separated by
// white space. Its errors name an entry by its place, never its URL.
func ParseSubscriptions(text string, webhooks *notify.Webhooks) ([]Subscription, error) {
	var all []Subscription
	for i, entry := range strings.Fields(text) {
		kinds, url, _ := strings.Cut(entry, "=")
		if err := webhooks.CheckTarget(url); err != nil {
			return nil, fmt.Errorf("entry %d must be kinds=url, and the url %w", i+1, err)
		}
		s := Subscription{URL: url}
		for kind := range strings.SplitSeq(kinds, ",") {
			if kind == "*" {
				s.Kinds = nil
				break
			}
			if !slices.Contains(portal.EventKinds, portal.Kind(kind)) {
				return nil, fmt.Errorf("entry %d: the kinds before = must be * or some of %v, separated by commas", i+1, portal.EventKinds)
			}
			s.Kinds = append(s.Kinds, portal.Kind(kind))
		}
		if slices.ContainsFunc(all, func(other Subscription) bool { return other.URL == url }) {
			return nil, fmt.Errorf("entry %d has the url of an earlier one; name all its kinds in one entry", i+1)
		}
		all = append(all, s)
	}
	return all, nil
}

func (s *Subscription) wants(kind portal.Kind) bool {
	return len(s.Kinds) == 0 || slices.Contains(s.Kinds, kind)
}

// args are a job's of the subscription.
func (s *Subscription) args(event uuid.UUID) WebhookArgs {
	return WebhookArgs{Event: event, Target: s.target(), Lane: notify.Lane(s.URL)}
}

// target is what the subscription's target is known by in a job.
func (s *Subscription) target() string { return hex.EncodeToString(targetID(s.URL)) }
