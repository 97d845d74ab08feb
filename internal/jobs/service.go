package jobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"latchkey/internal/portal"
)

// Subjects of the micro service `latchkey`, which answers the standard $SRV verbs as well.
const (
	ServiceName   = "latchkey"
	CreateSubject = "portal.links.create"
	GetSubject    = "portal.links.get"
	RevokeSubject = "portal.links.revoke"

	CampaignsSubject     = "portal.campaigns.list"
	CampaignSubject      = "portal.campaigns.get"
	CampaignCheckSubject = "portal.campaigns.check"
)

// Error codes of the service beside the contract's codes of a rejected request.
const (
	CodeNotFound    = "not_found"
	CodeBadRequest  = "bad_request"
	CodeUnavailable = "unavailable"
)

const (
	serviceInFlight = 64
	serviceChecks   = 8 // of campaigns that wait for their turn or are at it: creates are not to wait for them
	serviceTimeout  = 30 * time.Second
	serviceLinger   = 2 * time.Millisecond // a caller's way back, and some
	serviceStart    = 10 * time.Second
	serviceStop     = 5 * time.Second // what a stop leaves to requests in flight
)

// Service is the synchronous way in.
type Service struct {
	Issuer    *Issuer
	Store     *portal.Store
	Log       *slog.Logger
	Preflight *portal.Preflight // answers portal.campaigns.check

	creates portal.Group[*Item] // concurrent ones share a transaction
	checks  chan struct{}       // holds one for each campaign check that waits or is being answered
	asking  chan struct{}       // holds the one that is being answered: they share one pace
}

// NewService makes the service; what answers by another way than NATS uses its methods.
func NewService(issuer *Issuer, store *portal.Store, log *slog.Logger) *Service {
	return &Service{Issuer: issuer, Store: store, Log: log, checks: make(chan struct{}, serviceChecks), asking: make(chan struct{}, 1), creates: portal.Group[*Item]{Commit: issuer.issueAtOnce, Most: serviceInFlight, Linger: serviceLinger}}
}

// GetRequest asks for a link by its id, its request's id, a click's (the reference on an error page) or an
// event's.
type GetRequest struct {
	ID string `json:"id"`
}

// Status is a link, or a rejected request, and what happened to it. It has no URL: status is what
// gets pasted into tickets.
type Status struct {
	Link     *LinkStatus `json:"link,omitzero"` // nil for a request that was rejected
	Timeline []Happening `json:"timeline"`
	Omitted  int         `json:"omitted,omitzero"` // rows that the timeline leaves out: older openings first
}

// LinkStatus is the state of a link.
type LinkStatus struct {
	EventData
	State           portal.State `json:"state"`
	CreatedAt       time.Time    `json:"created_at"`
	ExpiresAt       time.Time    `json:"expires_at"`
	RevokedAt       *time.Time   `json:"revoked_at,omitzero"`
	SessionsCreated int          `json:"sessions_created"`
	MaxSessions     int          `json:"max_sessions,omitzero"`
}

// Happening is an audit row.
type Happening struct {
	At     time.Time      `json:"at"`
	Kind   portal.Kind    `json:"kind"`
	ID     uuid.UUID      `json:"id"`
	Click  uuid.UUID      `json:"click_id,omitzero"` // the reference that an error page shows
	Detail map[string]any `json:"detail"`
}

// RevokeResponse tells how many links ended.
type RevokeResponse struct {
	Revoked int `json:"revoked"`
}

// Serve answers until ctx ends, then lets requests in flight end. It calls up once the server knows the
// endpoints: who asks from then on is answered.
func (s *Service) Serve(ctx context.Context, nc *nats.Conn, version string, up func()) error {
	srv, err := micro.AddService(nc, micro.Config{
		Name:        ServiceName,
		Version:     version,
		Description: "Signed links to Stripe's customer portal",
		ErrorHandler: func(_ micro.Service, e *micro.NATSError) {
			s.Log.Warn("micro service", "subject", e.Subject, "error", e.Description)
		},
	})
	if err != nil {
		return fmt.Errorf("micro service: %w", err)
	}
	// Serving hangs on a context of its own: a stop lets answers that were begun go out.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	calls, stopped := make(chan serviceCall), make(chan struct{})
	var serving sync.WaitGroup
	for range serviceInFlight {
		serving.Go(func() { s.serveCalls(work, nc, calls, stopped) })
	}
	stop := sync.OnceFunc(func() {
		close(stopped)
		serving.Wait() // requests in flight end
	})
	defer stop()
	for name, endpoint := range map[string]struct {
		subject string
		handle  func(context.Context, []byte) (any, error)
	}{
		"create": {CreateSubject, s.answerCreate}, "get": {GetSubject, s.answerGet}, "revoke": {RevokeSubject, s.answerRevoke},
		"campaigns-list": {CampaignsSubject, s.answerCampaigns}, "campaigns-get": {CampaignSubject, s.answerCampaign},
		"campaigns-check": {CampaignCheckSubject, s.answerCampaignCheck},
	} {
		err := srv.AddEndpoint(name, micro.HandlerFunc(func(req micro.Request) {
			select {
			case calls <- serviceCall{req, endpoint.handle}:
			case <-stopped:
				s.reply(nc, req, nil, errStopping)
			}
		}), micro.WithEndpointSubject(endpoint.subject))
		if err != nil {
			return fmt.Errorf("micro endpoint %s: %w", name, errors.Join(err, srv.Stop()))
		}
	}
	if err := nc.FlushTimeout(serviceStart); err != nil {
		return fmt.Errorf("micro service: NATS does not answer: %w", errors.Join(err, srv.Stop()))
	}
	up()
	<-ctx.Done()
	defer time.AfterFunc(serviceStop, cancel).Stop() // a campaign's revocation goes on where it was at the next call
	err = srv.Stop()                                 // drains the subscriptions, without waiting: what comes late is told to try again
	stop()
	if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
		return fmt.Errorf("micro service: %w", err)
	}
	return nil
}

type serviceCall struct {
	req    micro.Request
	handle func(context.Context, []byte) (any, error)
}

// serveCalls answers one after the other. (A goroutine for each took a tenth of a create's time to grow its stack.)
func (s *Service) serveCalls(ctx context.Context, nc *nats.Conn, calls <-chan serviceCall, stopped <-chan struct{}) {
	for {
		select {
		case c := <-calls:
			s.respond(ctx, nc, c)
		case <-stopped:
			return
		}
	}
}

func (s *Service) respond(ctx context.Context, nc *nats.Conn, c serviceCall) {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	answer, err := c.handle(ctx, c.req.Data())
	s.reply(nc, c.req, answer, err)
}

// reply sends what micro's RespondJSON or Error would. Those write to the request, which micro
// reads when its handler returns: from the goroutine of a request that is a data race. (The price:
// STATS count no errors.)
func (s *Service) reply(nc *nats.Conn, req micro.Request, answer any, err error) {
	msg := nats.NewMsg(req.Reply())
	if err == nil {
		msg.Data, err = json.Marshal(answer)
	}
	if err != nil {
		code, text := Explain(err)
		if code == CodeUnavailable {
			s.Log.Error("micro request failed", "subject", req.Subject(), "error", err)
		}
		msg.Header.Set(micro.ErrorCodeHeader, code)
		msg.Header.Set(micro.ErrorHeader, text)
	}
	err = nc.PublishMsg(msg)
	if errors.Is(err, nats.ErrMaxPayload) {
		msg.Data = nil
		msg.Header.Set(micro.ErrorCodeHeader, CodeUnavailable)
		msg.Header.Set(micro.ErrorHeader, "the answer is larger than this NATS server carries")
		err = nc.PublishMsg(msg)
	}
	if err != nil {
		s.Log.Warn("a micro answer could not be sent", "subject", req.Subject(), "error", err)
	}
}

// Explain gives a caller the code of a Service's error and what to do, and keeps the inside in.
func Explain(err error) (code, text string) {
	var rejection *Rejection
	var unread *portal.ReadError
	switch {
	case errors.As(err, &rejection):
		return string(rejection.Code), rejection.Reason
	case errors.Is(err, portal.ErrNoLink):
		return CodeNotFound, "no link, request, click or event has this id"
	case errors.Is(err, portal.ErrNoCampaign):
		return CodeNotFound, "no link is of this campaign; the list of campaigns tells which there are"
	case errors.Is(err, portal.ErrRevocation), errors.Is(err, portal.ErrCampaignLimit), errors.Is(err, errBadRequest):
		return CodeBadRequest, err.Error()
	case errors.Is(err, errChecksBusy):
		return CodeUnavailable, errChecksBusy.Error()
	case errors.Is(err, portal.ErrNoRead):
		return CodeUnavailable, portal.ErrNoRead.Error()
	case errors.As(err, &unread):
		return CodeUnavailable, unread.Error()
	case errors.Is(err, portal.ErrCounting):
		return CodeUnavailable, portal.ErrCounting.Error()
	case errors.Is(err, portal.ErrCountTooLong):
		return CodeUnavailable, portal.ErrCountTooLong.Error()
	case portal.RefusesValue(err):
		return CodeBadRequest, "the request holds a value that can't be stored or looked up, such as U+0000"
	}
	return CodeUnavailable, "can't be served right now; try again in a few seconds"
}

var (
	errBadRequest = errors.New("the request is not the JSON object that this endpoint takes; check the names of its fields")
	errStopping   = errors.New("this worker stops")
	errChecksBusy = errors.New("campaigns are being checked for others; try again in a minute")
)

// Create issues the link of a request and returns, after the same commit that intake makes, the data of
// link.issued. A request that can't be served is a *Rejection.
func (s *Service) Create(ctx context.Context, body []byte) (*IssuedData, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, err
	}
	item := &Item{Body: body, Published: s.Issuer.Now(), MessageID: id}
	s.Issuer.parseAhead(item, item.Published)
	err = s.creates.Do(ctx, item)
	if portal.RefusesValue(err) && !lostRace(err) { // it was tried by itself, or the group would have gone apart
		err = s.Issuer.reject(ctx, item, err)
	}
	if err != nil {
		return nil, err
	}
	if item.Rejection != nil {
		return nil, item.Rejection
	}
	return s.Issuer.Issued(item.Link)
}

func (s *Service) answerCreate(ctx context.Context, body []byte) (any, error) {
	return s.Create(ctx, body)
}

func (s *Service) answerRevoke(ctx context.Context, body []byte) (any, error) {
	var r portal.Revocation
	// Strict: a selector misspelled beside another one must not revoke more than was meant.
	if err := json.Unmarshal(body, &r, json.RejectUnknownMembers(true)); err != nil {
		return nil, errBadRequest
	}
	n, err := s.Store.Revoke(ctx, r)
	return RevokeResponse{Revoked: n}, err
}

func (s *Service) answerGet(ctx context.Context, body []byte) (any, error) {
	var r GetRequest
	if err := json.Unmarshal(body, &r, json.RejectUnknownMembers(true)); err != nil || r.ID == "" {
		return nil, errBadRequest
	}
	return s.Get(ctx, r.ID)
}

// Get tells of a link by its id, its request's id, a click's or an event's, and of a rejected request by its id. It
// returns portal.ErrNoLink where there is none of these.
func (s *Service) Get(ctx context.Context, id string) (*Status, error) {
	link, err := s.Find(ctx, id, nil)
	if errors.Is(err, portal.ErrNoLink) {
		return s.rejected(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	// Whoever holds a link can add to its timeline by opening it; what happened otherwise goes first. Of its request's id it also
	// tells what was rejected: another request under the same id.
	rows, err := portal.LoadAudit(ctx, s.Store.Pool, `id IN (SELECT id FROM audit_events WHERE (link_id = $2 OR kind = 'request.rejected' AND request_id = $3) AND id >= $5
		ORDER BY kind = 'link.opened', at DESC LIMIT $4)`, link.ID, link.RequestID, timelineRows, portal.FirstID(link.CreatedAt.Add(-time.Hour)))
	if err != nil {
		return nil, err
	}
	var total int
	if err := s.Store.Pool.QueryRow(ctx, `SELECT count(*) FROM audit_events WHERE link_id = $1 OR kind = 'request.rejected' AND request_id = $2`, link.ID, link.RequestID).Scan(&total); err != nil {
		return nil, fmt.Errorf("count audit rows: %w", err)
	}
	return &Status{Link: s.linkStatus(link), Timeline: timeline(rows), Omitted: max(0, total-len(rows))}, nil
}

func (s *Service) linkStatus(link *portal.Link) *LinkStatus {
	status := &LinkStatus{EventData: newEventData(link), State: link.StateAt(s.Store.Now()),
		CreatedAt: link.CreatedAt.UTC(), ExpiresAt: link.ExpiresAt.UTC(), SessionsCreated: link.SessionsCreated, MaxSessions: link.MaxSessions}
	if !link.RevokedAt.IsZero() {
		at := link.RevokedAt.UTC()
		status.RevokedAt = &at
	}
	return status
}

// timelineRows bounds an answer; the audit itself has all.
const timelineRows = 200

// Find looks an id up as a link's, a click's, an event's and a request's, among links of the given sources (nil:
// of all). It returns portal.ErrNoLink where it is none of these.
func (s *Service) Find(ctx context.Context, id string, sources []string) (*portal.Link, error) {
	where, args := `request_id = $1 AND ($2::text[] IS NULL OR source = ANY($2)) LIMIT 1`, []any{id, sources}
	if u, err := uuid.Parse(id); err == nil { // a request may bear another's id, so it comes last
		where, args = `(id = $3 OR id = (SELECT link_id FROM clicks WHERE id = $3) OR id = (SELECT link_id FROM audit_events WHERE id = $3) OR request_id = $1)
			AND ($2::text[] IS NULL OR source = ANY($2)) ORDER BY id = $3 DESC, request_id = $1 LIMIT 1`, []any{id, sources, u}
	}
	links, err := portal.LoadLinks(ctx, s.Store.Pool, where, args...)
	if err != nil {
		return nil, err
	}
	if len(links) == 0 {
		return nil, portal.ErrNoLink
	}
	return links[0], nil
}

// rejected finds what became of a request that has no link.
func (s *Service) rejected(ctx context.Context, requestID string) (*Status, error) {
	rows, err := portal.LoadAudit(ctx, s.Store.Pool, `id IN (SELECT id FROM audit_events WHERE kind = 'request.rejected' AND request_id = $2
		ORDER BY at DESC LIMIT $3)`, requestID, timelineRows)
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, portal.ErrNoLink
	}
	var total int
	if err := s.Store.Pool.QueryRow(ctx, `SELECT count(*) FROM audit_events WHERE kind = 'request.rejected' AND request_id = $1`, requestID).Scan(&total); err != nil {
		return nil, fmt.Errorf("count audit rows: %w", err)
	}
	return &Status{Timeline: timeline(rows), Omitted: max(0, total-len(rows))}, nil
}

func timeline(rows []portal.AuditEvent) []Happening {
	out := make([]Happening, len(rows))
	for i, row := range rows {
		out[i] = Happening{At: row.At.UTC(), Kind: row.Kind, ID: row.ID, Click: row.ClickID, Detail: row.Detail}
	}
	return out
}
