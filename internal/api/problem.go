package api

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"latchkey/internal/jobs"
)

// Codes of problems, beside those of a rejected request and of jobs.Service.
const (
	codeUnauthorized     = "unauthorized"
	codeForbidden        = "forbidden"
	codeMethodNotAllowed = "method_not_allowed"
	codeNotAcceptable    = "not_acceptable"
	codeUnsupportedMedia = "unsupported_media_type"
	codeRateLimited      = "rate_limited"
	codeInternal         = "internal"
)

// kinds are the status and title of each code.
var kinds = map[string]struct {
	status int
	title  string
}{
	string(jobs.InvalidJSON):         {http.StatusBadRequest, "The body is not a JSON object"},
	string(jobs.TooLarge):            {http.StatusRequestEntityTooLarge, "The body is too large"},
	string(jobs.InvalidField):        {http.StatusUnprocessableEntity, "A field breaks a rule"},
	string(jobs.IDConflict):          {http.StatusConflict, "The id was used with other content"},
	string(jobs.Expired):             {http.StatusUnprocessableEntity, "The request came too late"},
	string(jobs.DeliveryUnavailable): {http.StatusUnprocessableEntity, "This way of delivery is not available"},
	string(jobs.ModeMismatch):        {http.StatusUnprocessableEntity, "Live mode and test mode don't match"},
	jobs.CodeBadRequest:              {http.StatusBadRequest, "The request can't be understood"},
	jobs.CodeNotFound:                {http.StatusNotFound, "Not found"},
	jobs.CodeUnavailable:             {http.StatusServiceUnavailable, "Can't be served right now"},
	codeUnauthorized:                 {http.StatusUnauthorized, "No valid token"},
	codeForbidden:                    {http.StatusForbidden, "The token does not allow this"},
	codeMethodNotAllowed:             {http.StatusMethodNotAllowed, "Not a method of this resource"},
	codeNotAcceptable:                {http.StatusNotAcceptable, "Answers are JSON"},
	codeUnsupportedMedia:             {http.StatusUnsupportedMediaType, "A body must be JSON"},
	codeRateLimited:                  {http.StatusTooManyRequests, "Too many requests"},
	codeInternal:                     {http.StatusInternalServerError, "A fault of ours"},
}

// unavailableRetry is what a caller is told to wait for when the database is away.
const unavailableRetry = 5 * time.Second

// problem is an error that the caller is told, in the form of RFC 9457.
type problem struct {
	code, detail string
	header       string        // name of a header that goes along; empty = none
	value        string        // its value
	retryAfter   time.Duration // 0 = none
}

func (p *problem) Error() string { return p.code + ": " + p.detail }

// problemOf tells a caller of an error, and keeps the inside in.
func problemOf(err error) *problem {
	var p *problem
	if errors.As(err, &p) {
		return p
	}
	code, text := jobs.Explain(err)
	p = &problem{code: code, detail: text}
	if code == jobs.CodeUnavailable {
		p.retryAfter = unavailableRetry
	}
	return p
}

// details is a problem as it is sent. Its type is a relative reference, as no document lies there; what a
// program looks at is the code.
type details struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
}

func writeProblem(w http.ResponseWriter, p *problem) {
	kind := kinds[p.code]
	if p.header != "" {
		w.Header().Set(p.header, p.value)
	}
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(seconds(p.retryAfter)))
	}
	write(w, kind.status, "application/problem+json", details{"/problems/" + p.code, kind.title, kind.status, p.detail, p.code})
}

// write sends a whole answer.
func write(w http.ResponseWriter, status int, mediaType string, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic(err) // our own types, of strings that Postgres or our checks hold to be UTF-8
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// seconds rounds up.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// gone tells whether an error only says that nobody waits for the answer any more.
func gone(ctx context.Context, err error) bool {
	return errors.Is(ctx.Err(), context.Canceled) && errors.Is(err, context.Canceled)
}
