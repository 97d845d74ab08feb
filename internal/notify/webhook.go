package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"code.dny.dev/ssrf"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// WebhookConfig is what posting webhooks needs.
type WebhookConfig struct {
	Secrets      []string // whsec_…: all sign, in this order, so that a receiver may hold any of them
	AllowPrivate bool     // loopback and private targets, and http to them
	UserAgent    string
	RootTLS      *tls.Config // nil: the system's certificate authorities
}

// Webhooks posts events by Standard Webhooks
// (https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md).
//
// A target is a stranger's URL. It is connected to only where its address is a public one, looked at
// when dialling, behind DNS and whatever it answers; there is no proxy, no redirect is followed, and
// nothing of its answer is kept but status and Retry-After.
type Webhooks struct {
	signers   []*standardwebhooks.Webhook
	client    *http.Client
	userAgent string
	private   bool
	lanes     lanes
}

// webhookTimeout is the standard's upper bound for one attempt (15 to 30 s recommended at most).
const webhookTimeout = 10 * time.Second

// NewWebhooks checks the secrets; its error tells which one is wrong, by place.
func NewWebhooks(cfg WebhookConfig) (*Webhooks, error) {
	w := &Webhooks{userAgent: cfg.UserAgent, private: cfg.AllowPrivate, lanes: newLanes()}
	for i, secret := range cfg.Secrets {
		signer, err := newSigner(secret)
		if err != nil {
			return nil, fmt.Errorf("entry %d %w", i+1, err)
		}
		w.signers = append(w.signers, signer)
	}
	if len(w.signers) == 0 {
		return nil, errors.New("names no secret; webhooks must be signed")
	}
	dialer := &net.Dialer{Timeout: webhookTimeout}
	if !cfg.AllowPrivate {
		dialer.Control = ssrf.New(ssrf.WithAnyPort()).Safe
	}
	w.client = &http.Client{
		Timeout:       webhookTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{ // no Proxy: one would dial in our place
			DialContext: dialer.DialContext, TLSClientConfig: cfg.RootTLS, TLSHandshakeTimeout: webhookTimeout, ForceAttemptHTTP2: true,
			MaxIdleConns: 100, MaxIdleConnsPerHost: 4, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 32 << 10,
		},
	}
	return w, nil
}

// newSigner takes whsec_ and base64 of 24 to 64 bytes, as the standard has it.
func newSigner(secret string) (*standardwebhooks.Webhook, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(secret), "whsec_")
	if !ok {
		return nil, errors.New("must begin with whsec_")
	}
	key, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(key) < 24 || len(key) > 64 {
		return nil, errors.New("must be whsec_ and base64 of 24 to 64 bytes, such as of 'openssl rand -base64 32'")
	}
	return standardwebhooks.NewWebhookRaw(key)
}

// Close gives idle connections back.
func (w *Webhooks) Close() { w.client.CloseIdleConnections() }

// WebhookError is returned when a target did not take an event. Its text has no URL, which may hold a
// secret, and nothing that the target wrote.
type WebhookError struct {
	Status     int           // HTTP's; 0 = no answer
	RetryAfter time.Duration // asked for by the target; 0 = none
	reason     string
}

func (e *WebhookError) Error() string { return e.reason }

// Gone tells that the target wants no more events, ever (410, by the standard).
func (e *WebhookError) Gone() bool { return e.Status == http.StatusGone }

// BusyError is returned when a target has as many posts under way as it may have.
type BusyError struct{ Wait time.Duration } // until the target can be expected to have room

func (e *BusyError) Error() string { return "the target has as many posts under way as it may have" }

// CheckTarget tells whether a URL can be a target: https, or http where private targets are allowed,
// without user and fragment. Where its name leads to is looked at when it is dialled. It may be called on
// nil, which allows no private target.
func (w *Webhooks) CheckTarget(raw string) error {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "" || strings.HasSuffix(u.Host, ":") || !utf8.ValidString(raw):
		return errors.New("must be a URL, such as https://hooks.example.com/latchkey")
	case u.Scheme != "https" && !(u.Scheme == "http" && w != nil && w.private):
		return errors.New("must be https (http only with WEBHOOK_ALLOW_PRIVATE)")
	case u.User != nil || strings.Contains(raw, "#"):
		return errors.New("must have no user, password or fragment")
	case len(raw) > 2048:
		return errors.New("may have at most 2048 characters")
	}
	return nil
}

// Place is a place in a target's lane, to be given back by Leave.
type Place struct {
	webhooks *Webhooks
	lane     *lane
	tried    bool
	took     time.Duration
	ok       bool
}

// Enter takes a place in a lane, or returns a *BusyError: ask again after its Wait.
func (w *Webhooks) Enter(lane string, now time.Time) (*Place, error) {
	way, err := w.lanes.enter(lane, now)
	if err != nil {
		return nil, err
	}
	return &Place{webhooks: w, lane: way}, nil
}

// Leave gives the place back.
func (p *Place) Leave() { p.webhooks.lanes.leave(p.lane, p.tried, p.took, p.ok) }

// Post sends an event, once for each Place. It returns nil for an answer of 2xx, and else a *WebhookError. at is
// the time of this attempt.
func (p *Place) Post(ctx context.Context, target, id string, at time.Time, body []byte) error {
	p.tried = true
	began := time.Now()
	err := p.webhooks.post(ctx, target, id, at, body)
	p.took, p.ok = time.Since(began), err == nil
	return err
}

func (w *Webhooks) post(ctx context.Context, target, id string, at time.Time, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return &WebhookError{reason: "the target is not a URL"}
	}
	signatures := make([]string, len(w.signers))
	for i, s := range w.signers {
		if signatures[i], err = s.Sign(id, at, body); err != nil {
			return &WebhookError{reason: "the event can't be signed"}
		}
	}
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("User-Agent", w.userAgent)
	req.Header.Set(standardwebhooks.HeaderWebhookID, id)
	req.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(at.Unix(), 10))
	req.Header.Set(standardwebhooks.HeaderWebhookSignature, strings.Join(signatures, " "))
	resp, err := w.client.Do(req)
	if err != nil {
		return &WebhookError{reason: noAnswer(err)}
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be kept
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return nil
	}
	return &WebhookError{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header.Get("Retry-After"), at),
		reason: statusReason(resp.StatusCode)}
}

func statusReason(status int) string {
	if status >= 300 && status < 400 {
		return fmt.Sprintf("the target answered %d; redirects are not followed, give its final URL", status)
	}
	return fmt.Sprintf("the target answered %d", status)
}

// noAnswer says why in our own words: the error itself quotes the URL.
func noAnswer(err error) string {
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.Is(err, ssrf.ErrProhibitedIP), errors.Is(err, ssrf.ErrProhibitedPort), errors.Is(err, ssrf.ErrProhibitedNetwork), errors.Is(err, ssrf.ErrInvalidHostPort):
		return "the target's address is not a public one; WEBHOOK_ALLOW_PRIVATE=true would allow it"
	case errors.As(err, &dns):
		return "the target's name can't be resolved"
	case errors.As(err, &cert):
		return "the target's certificate is not valid"
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("the target did not answer within %s", webhookTimeout)
	}
	return "no connection to the target"
}

// maxRetryAfter bounds what a target can ask for.
const maxRetryAfter = 24 * time.Hour

// retryAfter reads the header's two forms (RFC 9110, 10.2.3).
func retryAfter(header string, now time.Time) time.Duration {
	var d time.Duration
	if seconds, err := strconv.ParseUint(header, 10, 32); err == nil {
		d = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(header); err == nil {
		d = at.Sub(now)
	}
	return max(0, min(d, maxRetryAfter))
}
