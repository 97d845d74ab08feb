package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/uuid"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

// create makes the link of a request, or finds the one that it made before.
func (s *Server) create(r *http.Request, token *Token) (*answer, error) {
	body, err := readJSON(r)
	if err != nil {
		return nil, err
	}
	if body, err = withKey(body, r.Header.Values("Idempotency-Key")); err != nil {
		return nil, err
	}
	if err := s.checkSource(body, token); err != nil {
		return nil, err
	}
	issued, err := s.service.Create(r.Context(), body)
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusCreated, location: "/v1/links/" + issued.LinkID.String(), body: issued}, nil
}

// checkSource holds a request against its token. One whose source can't be read goes on to be rejected,
// since a link needs one.
func (s *Server) checkSource(body []byte, token *Token) error {
	if token.Sources == nil {
		return nil
	}
	req, _ := jobs.ParseRequest(body, s.service.Issuer.Rules, s.service.Store.Now())
	if req.Source == "" || token.sees(req.Source) {
		return nil
	}
	return &problem{code: codeForbidden, detail: "this token makes links of these sources only: " + strings.Join(token.Sources, ", "),
		header: "WWW-Authenticate", value: realm + `, error="insufficient_scope"`}
}

// withKey puts an Idempotency-Key into a request that has no id. A body that is no JSON object stays as it
// is, to be rejected for what it is.
func withKey(body []byte, header []string) ([]byte, error) {
	if len(header) == 0 {
		return body, nil
	}
	key := unquoted(header[0])
	if len(header) > 1 || key == "" || !utf8.ValidString(key) {
		return nil, &problem{code: jobs.CodeBadRequest, detail: "Idempotency-Key: must be given once, in 1 to 200 printable characters of UTF-8"}
	}
	var fields map[string]jsontext.Value
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return body, nil
	}
	quoted, err := jsontext.AppendQuote(nil, key)
	if err != nil {
		return nil, err
	}
	switch id := fields["id"]; {
	case len(id) == 0 || id.Kind() == 'n':
		fields["id"] = quoted
		return json.Marshal(fields)
	case !sameString(id, key):
		return nil, &problem{code: jobs.CodeBadRequest, detail: "Idempotency-Key and $.id differ; give one of them"}
	}
	return body, nil
}

func sameString(id jsontext.Value, key string) bool {
	var s string
	return json.Unmarshal(id, &s) == nil && s == key
}

// unquoted takes a key as it stands, or as the string of a structured field (RFC 9651), which
// draft-ietf-httpapi-idempotency-key-header wants.
func unquoted(key string) string {
	if len(key) >= 2 && key[0] == '"' && key[len(key)-1] == '"' {
		return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(key[1 : len(key)-1])
	}
	return key
}

// get tells a link's state and timeline.
func (s *Server) get(r *http.Request, token *Token) (*answer, error) {
	id := r.PathValue("id")
	if token.Sources != nil { // a rejected request has no link, so nobody knows whose it is
		link, err := s.find(r.Context(), id, token)
		if err != nil {
			return nil, err
		}
		id = link.ID.String()
	}
	status, err := s.service.Get(r.Context(), id)
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: status}, nil
}

// find finds a link by any of its ids, if it exists for the token.
func (s *Server) find(ctx context.Context, id string, token *Token) (*portal.Link, error) {
	return s.service.Find(ctx, id, token.Sources)
}

// maxReason is the longest reason of a revocation, in characters.
const maxReason = 200

// revoke ends a link and what it was renewed to. All of a chain has one source.
func (s *Server) revoke(r *http.Request, token *Token) (*answer, error) {
	reason, err := readReason(r)
	if err != nil {
		return nil, err
	}
	link, err := s.find(r.Context(), r.PathValue("id"), token)
	if err != nil {
		return nil, err
	}
	n, err := s.service.Store.Revoke(r.Context(), portal.Revocation{LinkID: link.ID.String(), By: token.Name, Reason: reason})
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: jobs.RevokeResponse{Revoked: n}}, nil
}

// readReason reads the body of a revocation, which may be missing.
func readReason(r *http.Request) (string, error) {
	first := bufio.NewReader(r.Body) // a proxy may send no body in chunks
	if _, err := first.Peek(1); errors.Is(err, io.EOF) {
		return "", nil
	}
	r.Body = io.NopCloser(first)
	body, err := readJSON(r)
	if err != nil {
		return "", err
	}
	var in struct {
		Reason string `json:"reason"`
	}
	var syntax *jsontext.SyntacticError
	switch err := json.Unmarshal(body, &in, json.RejectUnknownMembers(true)); {
	case err == nil && utf8.RuneCountInString(in.Reason) <= maxReason && !strings.ContainsRune(in.Reason, 0):
		return in.Reason, nil
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return "", &problem{code: string(jobs.InvalidJSON), detail: "the body must be one JSON object, or missing"}
	}
	return "", &problem{code: string(jobs.InvalidField), detail: fmt.Sprintf("$.reason: must be a string of at most %d characters without U+0000, and the only field", maxReason)}
}

// Sizes of a page of a list.
const (
	defaultLimit = 20
	maxLimit     = 100
)

// page is a part of a list.
type page struct {
	Data       []*jobs.LinkStatus `json:"data"`
	NextCursor string             `json:"next_cursor,omitempty"` // empty = there is no more
}

// list tells a customer's links, newest first.
func (s *Server) list(r *http.Request, token *Token) (*answer, error) {
	before, limit, err := listQuery(r.URL.RawQuery)
	if err != nil {
		return nil, err
	}
	links, err := s.service.CustomerLinks(r.Context(), r.PathValue("id"), token.Sources, before, limit+1) // one more tells whether there are more
	if err != nil {
		return nil, err
	}
	p := page{Data: links}
	if len(links) > limit {
		p.Data = links[:limit]
		p.NextCursor = p.Data[limit-1].LinkID.String()
	}
	return &answer{status: http.StatusOK, body: p}, nil
}

// listQuery is strict, as bodies are: a parameter misspelled would give another list than was meant.
func listQuery(raw string) (before uuid.UUID, limit int, err error) {
	query, err := url.ParseQuery(raw)
	if err != nil {
		return before, 0, &problem{code: jobs.CodeBadRequest, detail: "the query can't be read"}
	}
	limit = defaultLimit
	for name, values := range query {
		if !slices.Contains([]string{"limit", "cursor"}, name) || len(values) > 1 {
			return before, 0, &problem{code: jobs.CodeBadRequest, detail: "the query takes limit and cursor, each once"}
		}
	}
	if query.Has("limit") {
		if limit, err = strconv.Atoi(query.Get("limit")); err != nil || limit < 1 || limit > maxLimit {
			return before, 0, &problem{code: jobs.CodeBadRequest, detail: fmt.Sprintf("limit: must be from 1 to %d", maxLimit)}
		}
	}
	if query.Has("cursor") {
		if before, err = uuid.Parse(query.Get("cursor")); err != nil || before == uuid.Nil {
			return before, 0, &problem{code: jobs.CodeBadRequest, detail: "cursor: must be the next_cursor of an earlier page"}
		}
	}
	return before, limit, nil
}

// readJSON reads a whole body that says it is JSON.
func readJSON(r *http.Request) ([]byte, error) {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	isJSON := media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json")
	if charset, ok := params["charset"]; err != nil || !isJSON || ok && !strings.EqualFold(charset, "utf-8") {
		return nil, &problem{code: codeUnsupportedMedia, detail: "Content-Type must be application/json, in UTF-8"}
	}
	if coding := r.Header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return nil, &problem{code: codeUnsupportedMedia, detail: "Content-Encoding must be left out: a body is read as it is"}
	}
	body, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return nil, &problem{code: string(jobs.TooLarge), detail: fmt.Sprintf("a body may have at most %d bytes", jobs.MaxRequestBytes)}
	}
	if err != nil {
		return nil, &problem{code: jobs.CodeBadRequest, detail: "the body did not arrive whole"}
	}
	return body, nil
}
