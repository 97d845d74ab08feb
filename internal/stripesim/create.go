package stripesim

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// exchange is one create call on its way through the steps of the package doc.
type exchange struct {
	r         *http.Request
	caller    caller
	form      url.Values
	key       string // idempotency key
	requestID string
	call      *Call

	fault    Fault
	answer   answer
	reason   string // Stripe-Rate-Limited-Reason
	original string // id of the call that executed, where a key was used
	replayed bool
}

// create serves POST /v1/billing_portal/sessions.
func (s *Sim) create(w http.ResponseWriter, r *http.Request) {
	x := &exchange{r: r, key: r.Header.Get("Idempotency-Key"), requestID: newID("req_")}
	// The body is read in full first: only then does the server notice a
	// client that leaves, and the record shows what refused calls sent.
	form, formErr := readForm(w, r)
	x.form = form
	s.record(x)
	if err := s.process(x, formErr); err != nil {
		x.refuse(err)
	}
	s.complete(x)
	s.deliver(w, x)
}

// process takes the call up to its answer; an error is one that is not saved
// (rule 9).
func (s *Sim) process(x *exchange, formErr *apiError) *apiError {
	var err *apiError
	if x.caller, err = s.authenticate(x.r, "customer_portal_write"); err != nil {
		return err
	}
	if !s.rate.allow(x.caller.scope(), s.now()) {
		return errRateLimited("endpoint-rate")
	}
	if formErr != nil {
		return formErr
	}
	x.fault = s.world.next(customerOf(x.form))
	if x.fault.beforeExecution() {
		wait(x.r.Context(), x.fault.Latency)
		if x.fault.Kind == FaultStatus {
			return x.fault.err(x.key)
		}
		return nil // no answer at all; deliver sees to it
	}
	return s.once(x)
}

// once executes the call, or replays what its idempotency key holds.
func (s *Sim) once(x *exchange) *apiError {
	entry, saved, err := s.saved.begin(x.caller, x.key, x.form, s.now())
	if err != nil {
		return err
	}
	if saved != nil { // nothing is executed, so nothing takes long
		x.answer, x.original, x.replayed = *saved, saved.requestID, true
		return nil
	}
	params, err := parseSession(x.form, x.caller.version)
	if err != nil {
		s.saved.end(entry, nil)
		return err
	}
	// In flight: a second call under the same key is 409 from here to end.
	wait(x.r.Context(), x.fault.Latency)
	if err := s.execute(x, params); err != nil {
		x.refuse(err)
	}
	if x.key != "" {
		x.original = x.requestID
	}
	// Saved ahead of the delivery: whatever happens to the answer on its way,
	// the next call under the key gets this one.
	saved = new(answer)
	*saved = x.answer
	s.saved.end(entry, saved)
	return nil
}

// execute makes the session, or finds out why it can't (rules 5 and 12).
func (s *Sim) execute(x *exchange, params *value) *apiError {
	if x.fault.Kind == FaultStatus {
		return x.fault.err(x.key)
	}
	if err := s.checkCustomer(params, x.caller.live); err != nil {
		return err
	}
	if err := sessionSpec.findMissing(params); err != nil {
		return err
	}
	p := s.world.portal()
	if err := checkPortal(params, p, x.caller.live); err != nil {
		return err
	}
	sess, body := s.newSession(x, params, p)
	x.answer = answer{status: http.StatusOK, body: body, requestID: x.requestID, sessionID: sess.ID}
	return nil
}

func (s *Sim) checkCustomer(params *value, live bool) *apiError {
	name, noun := "customer", "customer"
	if params.field(name) == nil {
		name, noun = "customer_account", "account"
	}
	v := params.field(name)
	if !s.world.exists(v.text) {
		return errNoSuch(v.path, noun, v.text)
	}
	if m := magicOf(v.text); m != nil && (m.prefix == "live" && !live || m.prefix == "test" && live) {
		return errOtherMode(v.path, noun, v.text, live)
	}
	return nil
}

func checkPortal(params *value, p portal, live bool) *apiError {
	scenario := ""
	if m := magicOf(params.textAt("customer") + params.textAt("customer_account")); m != nil {
		scenario = m.prefix
	}
	flow := params.textAt("flow_data", "type")
	switch {
	case params.field("configuration") == nil && (!p.exists || scenario == "noconfig"):
		return errNoConfiguration(live)
	case params.field("return_url") == nil && p.returnURL == "":
		return bad("return_url", "parameter_missing",
			"Missing required param: return_url. It may be left out only when the portal configuration has a default return URL.")
	case p.featureOff[feature(flow)] || scenario == "featureoff":
		return errFeatureOff(flow)
	}
	return nil
}

// newSession makes the session and its object in the answer.
func (s *Sim) newSession(x *exchange, params *value, p portal) (*Session, []byte) {
	mode := "test_"
	if x.caller.live {
		mode = "live_"
	}
	secret := mode + rand.Text() + rand.Text()
	sess := &Session{
		ID:              newID("bps_"),
		URL:             s.origin(x.r) + "/p/session/" + secret,
		Customer:        params.textAt("customer"),
		CustomerAccount: params.textAt("customer_account"),
		Configuration:   params.textAt("configuration"),
		Account:         x.caller.account,
		FlowType:        params.textAt("flow_data", "type"),
		Locale:          params.textAt("locale"),
		ReturnURL:       params.textAt("return_url"),
		Livemode:        x.caller.live,
		Created:         s.now(),
		IdempotencyKey:  x.key,
		RequestID:       x.requestID,
		Params:          x.form,
		doneURL:         params.textAt("flow_data", "after_completion", "redirect", "return_url"),
		message:         params.textAt("flow_data", "after_completion", "hosted_confirmation", "custom_message"),
	}
	if sess.Configuration == "" {
		sess.Configuration = defaultConfigurationID
	}
	if sess.ReturnURL == "" {
		sess.ReturnURL = p.returnURL
	}
	if x.fault.Kind == FaultURL {
		sess.URL = x.fault.URL
	}
	// Rendered first: once in the ledger, a visitor may change the session.
	body := mustJSON(s.sessionObject(x, sess, params, p))
	s.ledger.addSession(secret, sess)
	return sess, body
}

// sessionObject is the billing_portal.session of the answer. Stripe's has no
// expires_at.
func (s *Sim) sessionObject(x *exchange, sess *Session, params *value, p portal) map[string]any {
	var configuration any = sess.Configuration
	if items, _ := params.fieldItems("expand"); len(items) > 0 {
		configuration = s.configurationObject(x.r, x.caller, sess.Configuration, p)
	}
	flow := flowSpec.render(params.field("flow_data"))
	if f, ok := flow.(map[string]any); ok && f["after_completion"] == nil {
		f["after_completion"] = map[string]any{"type": "portal_homepage", "hosted_confirmation": nil, "redirect": nil}
	}
	orNull := func(name string) any {
		if t := params.textAt(name); t != "" {
			return t
		}
		return nil
	}
	return map[string]any{
		"id": sess.ID, "object": "billing_portal.session",
		"configuration": configuration, "created": sess.Created.Unix(),
		"customer": orNull("customer"), "customer_account": orNull("customer_account"),
		"flow": flow, "livemode": sess.Livemode, "locale": orNull("locale"),
		"on_behalf_of": orNull("on_behalf_of"), "return_url": orNull("return_url"), "url": sess.URL,
	}
}

// refuse makes an error the answer.
func (x *exchange) refuse(err *apiError) {
	x.answer = answer{
		status: err.status, body: err.body(x.requestID, x.caller.live),
		requestID: x.requestID, errorCode: err.Code,
	}
	x.reason = err.reason
}

func (s *Sim) record(x *exchange) {
	scheme, key := presentedKey(x.r)
	if scheme != "none" {
		scheme += " " + keyKind(key)
	}
	x.call = &Call{
		At: s.now(), RequestID: x.requestID, IdempotencyKey: x.key, Auth: scheme,
		Account: x.r.Header.Get("Stripe-Account"), Version: x.r.Header.Get("Stripe-Version"), Params: x.form,
	}
	s.ledger.addCall(x.call)
}

// complete writes the outcome into the call's record, ahead of the delivery: a
// caller that has its answer finds it there.
func (s *Sim) complete(x *exchange) {
	status := x.answer.status
	switch x.fault.Kind {
	case FaultDropBefore, FaultDropAfter, FaultCutAnswer, FaultHang:
		status = 0
	case FaultGarbage:
		status = http.StatusOK
	}
	s.ledger.edit(x.call, func(c *Call) {
		c.Status, c.ErrorCode, c.SessionID = status, x.answer.errorCode, x.answer.sessionID
		c.Replayed, c.Fault = x.replayed, x.fault.Kind
	})
	s.log.LogAttrs(x.r.Context(), slog.LevelDebug, "stripe simulator: create portal session",
		slog.Int("status", status), slog.String("code", x.answer.errorCode), slog.String("request_id", x.requestID),
		slog.String("session_id", x.answer.sessionID), slog.Bool("replayed", x.replayed),
		slog.String("fault", string(x.fault.Kind)))
}

// deliver sends the answer, unless the fault has it lost.
func (s *Sim) deliver(w http.ResponseWriter, x *exchange) {
	switch x.fault.Kind {
	case FaultHang:
		<-x.r.Context().Done()
		panic(http.ErrAbortHandler)
	case FaultDropBefore, FaultDropAfter:
		panic(http.ErrAbortHandler) // net/http's way to cut the connection
	}
	x.header(w.Header())
	switch x.fault.Kind {
	case FaultCutAnswer:
		w.Header().Set("Content-Length", strconv.Itoa(len(x.answer.body)))
		w.WriteHeader(x.answer.status)
		_, _ = w.Write(x.answer.body[:len(x.answer.body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case FaultGarbage:
		body := x.fault.Body
		if body == "" {
			body = "<html><body>502 Bad Gateway, says a proxy that answers 200</body></html>"
		}
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(body))
		return
	}
	w.WriteHeader(x.answer.status)
	_, _ = w.Write(x.answer.body)
}

func (x *exchange) header(h http.Header) {
	apiHeader(h, x.r, x.requestID)
	if x.key != "" {
		h.Set("Idempotency-Key", x.key)
	}
	if x.original != "" {
		h.Set("Original-Request", x.original)
	}
	if x.replayed {
		h.Set("Idempotent-Replayed", "true")
	}
	if x.reason != "" {
		h.Set("Stripe-Rate-Limited-Reason", x.reason)
	}
}

// customerOf is the customer of a call, before its parameters are checked. Of a
// repeated one the last counts, as in tree.
func customerOf(form url.Values) string {
	for _, name := range []string{"customer", "customer_account"} {
		if all := form[name]; len(all) > 0 {
			return all[len(all)-1]
		}
	}
	return ""
}

// wait lets time pass; no lock is held. A client that leaves ends the wait, not
// the call: Stripe goes on without it.
func wait(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
