package stripesim

import (
	"net/http"
	"strings"
)

// defaultConfigurationID is the account's default portal configuration.
const defaultConfigurationID = "bpc_1SimulatedDefault"

// configurationCreated is a fixed moment: the object is older than any session.
const configurationCreated = 1767225600

// apiHeader sets what each answer of the API carries.
func apiHeader(h http.Header, r *http.Request, requestID string) {
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-cache, no-store")
	h.Set("Request-Id", requestID)
	version := r.Header.Get("Stripe-Version")
	if version == "" {
		version = defaultVersion
	}
	h.Set("Stripe-Version", version)
	if account := r.Header.Get("Stripe-Account"); account != "" {
		h.Set("Stripe-Account", account)
	}
}

// read answers a GET of the API: authenticate, then the object.
func (s *Sim) read(w http.ResponseWriter, r *http.Request, permission string, get func(caller) (any, *apiError)) {
	requestID := newID("req_")
	c, err := s.authenticate(r, permission)
	var object any
	if err == nil && !s.reads.allow(c.scope(), s.now()) {
		err = errRateLimited("global-rate")
	}
	if err == nil {
		object, err = get(c)
	}
	apiHeader(w.Header(), r, requestID)
	if err != nil {
		if err.reason != "" {
			w.Header().Set("Stripe-Rate-Limited-Reason", err.reason)
		}
		w.WriteHeader(err.status)
		_, _ = w.Write(err.body(requestID, c.live))
		return
	}
	_, _ = w.Write(mustJSON(object))
}

func (s *Sim) listConfigurations(w http.ResponseWriter, r *http.Request) {
	s.read(w, r, "customer_portal_read", func(c caller) (any, *apiError) {
		for name := range r.URL.Query() {
			switch base, _, _ := strings.Cut(name, "["); base {
			case "active", "is_default", "limit", "starting_after", "ending_before", "expand":
			default:
				return nil, errUnknown([]string{name})
			}
		}
		data := []any{}
		p := s.world.portal()
		if p.exists && r.URL.Query().Get("is_default") != "false" && r.URL.Query().Get("active") != "false" {
			data = append(data, s.configurationObject(r, c, defaultConfigurationID, p))
		}
		return map[string]any{
			"object": "list", "url": "/v1/billing_portal/configurations", "has_more": false, "data": data,
		}, nil
	})
}

func (s *Sim) getConfiguration(w http.ResponseWriter, r *http.Request) {
	s.read(w, r, "customer_portal_read", func(c caller) (any, *apiError) {
		id, p := r.PathValue("id"), s.world.portal()
		if !strings.HasPrefix(id, "bpc_") || isMissing(id) || id == defaultConfigurationID && !p.exists {
			return nil, notFoundErr(errNoSuch("configuration", "configuration", id))
		}
		return s.configurationObject(r, c, id, p), nil
	})
}

// configurationObject is a billing_portal.configuration.
func (s *Sim) configurationObject(r *http.Request, c caller, id string, p portal) map[string]any {
	var returnURL any
	if p.returnURL != "" {
		returnURL = p.returnURL
	}
	mode := "test_"
	if c.live {
		mode = "live_"
	}
	on := func(flow string) bool { return !p.featureOff[flow] }
	return map[string]any{
		"id": id, "object": "billing_portal.configuration", "active": true, "application": nil,
		"business_profile": map[string]any{"headline": nil, "privacy_policy_url": nil, "terms_of_service_url": nil},
		"created":          configurationCreated, "updated": configurationCreated,
		"default_return_url": returnURL, "is_default": id == defaultConfigurationID, "livemode": c.live,
		"login_page": map[string]any{"enabled": true, "url": s.origin(r) + "/p/login/" + mode + "simulator"},
		"metadata":   map[string]any{}, "name": nil,
		"features": map[string]any{
			"customer_update":       map[string]any{"enabled": on("customer_update"), "allowed_updates": []string{"email", "address"}},
			"invoice_history":       map[string]any{"enabled": true},
			"payment_method_update": map[string]any{"enabled": on("payment_method_update"), "payment_method_configuration": nil},
			"subscription_cancel": map[string]any{"enabled": on("subscription_cancel"), "mode": "at_period_end",
				"proration_behavior": "none", "cancellation_reason": map[string]any{"enabled": false, "options": []string{}}},
			"subscription_update": map[string]any{"enabled": on("subscription_update"), "proration_behavior": "none",
				"default_allowed_updates": []string{"price"}, "products": []any{}},
		},
	}
}

func (s *Sim) getCustomer(w http.ResponseWriter, r *http.Request) {
	s.read(w, r, "customer_read", func(c caller) (any, *apiError) {
		id := r.PathValue("id")
		if s.world.deleted(id) {
			return map[string]any{"id": id, "object": "customer", "deleted": true}, nil
		}
		if !strings.HasPrefix(id, "cus_") || !s.world.exists(id) {
			return nil, notFoundErr(errNoSuch("id", "customer", id))
		}
		if m := magicOf(id); m != nil && (m.prefix == "live" && !c.live || m.prefix == "test" && c.live) {
			return nil, notFoundErr(errOtherMode("id", "customer", id, c.live))
		}
		return map[string]any{"id": id, "object": "customer", "created": configurationCreated,
			"livemode": c.live, "email": nil, "name": nil, "metadata": map[string]any{}}, nil
	})
}

func (s *Sim) getAccount(w http.ResponseWriter, r *http.Request) {
	s.read(w, r, "", func(c caller) (any, *apiError) {
		id := platformAccount
		if c.account != "" {
			id = c.account
		}
		return map[string]any{"id": id, "object": "account", "charges_enabled": true, "country": "US"}, nil
	})
}

// getBalance is the cheapest read that tells the mode of a key.
func (s *Sim) getBalance(w http.ResponseWriter, r *http.Request) {
	s.read(w, r, "", func(c caller) (any, *apiError) {
		return map[string]any{"object": "balance", "livemode": c.live, "available": []any{}, "pending": []any{}}, nil
	})
}

// notFound is Stripe's answer to a URL, or a method, that it does not have.
func (s *Sim) notFound(w http.ResponseWriter, r *http.Request) {
	e := &apiError{status: http.StatusNotFound, Type: "invalid_request_error",
		Message: "Unrecognized request URL (" + r.Method + ": " + r.URL.Path + "). If you are trying to list objects, " +
			"remove the trailing slash. If you are trying to retrieve an object, make sure you passed a valid (non-empty) " +
			"identifier in your code."}
	requestID := newID("req_")
	apiHeader(w.Header(), r, requestID)
	w.WriteHeader(e.status)
	_, _ = w.Write(e.body(requestID, false))
}

// notFoundErr makes a 404 of a 400: reads of what does not exist are 404, while
// a parameter that names it is 400.
func notFoundErr(e *apiError) *apiError {
	e.status = http.StatusNotFound
	return e
}

func healthz(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte("ok\n"))
}
