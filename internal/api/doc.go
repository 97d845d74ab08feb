// Package api is the way in over HTTP, on the internal server, for helpdesks and back ends that speak no
// NATS. docs/openapi.yaml is its contract; a test holds the two against each other.
//
//	request ─► server.go: route ─► auth.go: whose token, is it within its limit
//	        ─► links.go: create, get, revoke, list, by jobs.Service ─► problem.go: what went wrong
//	token.go: the table of tokens, for here and for 'worker tokens'
//
// Invariants; a test names each:
//
//  1. Nothing below /v1/ is answered but to a token that is in the table and not revoked. It is looked up
//     for each request, so that a revocation holds from the next one on, on every replica.
//  2. To a token that is limited to sources, a link of another source does not exist: it gets the answer
//     that an unknown id gets, after the same statement. Only a request's id that is taken shows, since ids
//     are unique over all sources.
//  3. Every error is a problem of RFC 9457, and says nothing of the inside.
//  4. No token is kept, logged or counted; what is stored is the SHA-256 of its 256 random bits, which
//     cannot be guessed, so that neither a slow hash nor a comparison in constant time is of use.
package api
