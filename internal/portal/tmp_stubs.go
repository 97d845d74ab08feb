package portal

import (
	"net/http"
	"net/netip"
	"time"

	"github.com/google/uuid"
)

type Limits struct{}

func NewLimits() *Limits                                           { return &Limits{} }
func (*Limits) Forged(netip.Addr, time.Time) (time.Duration, bool) { return 0, true }
func (*Limits) Visit(netip.Addr, uuid.UUID, string, time.Time) (time.Duration, bool) {
	return 0, true
}

type Verdict struct {
	Verdict string
	Signals []string
}
type Detector struct{}

func NewDetector() *Detector { return &Detector{} }
func (d *Detector) Look(r *http.Request, ip netip.Addr, link uuid.UUID, campaign string, now time.Time) Verdict {
	if r.Method == "HEAD" {
		return Verdict{"scanner", []string{"head"}}
	}
	return Verdict{"person", nil}
}
func (d *Detector) Press(r *http.Request, ip netip.Addr, link uuid.UUID, campaign string, now time.Time) Verdict {
	return Verdict{"person", nil}
}

const (
	pageWaiting      page = "waiting"
	pageCustomerGone page = "customer_gone"
	pageTooMany      page = "too_many"
	pageRenewed      page = "renewed"
)

func init() {
	english[pageWaiting] = words{200, "You’re in line", ""}
	english[pageCustomerGone] = words{502, "gone", ""}
	english[pageTooMany] = words{429, "many", ""}
	english[pageRenewed] = words{202, "renewed", ""}
}
