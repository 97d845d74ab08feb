// Package portal owns a link from its token to the portal session that a customer's click makes.
//
// A link is a row that intake wrote. Its URL is LINK_BASE_URL/l/<token>, and the token is computed
// from the link's id wherever it is needed (token.go); it is stored nowhere. GET and HEAD of it
// show a page with one button, for the mail gateways that open every link; only the button's POST
// acts (click.go). A POST runs four steps whose order is the promise to the auditor:
//
//  1. StartClick reads the link and commits a reserved use and click.started (click_store.go).
//  2. Budget.Wait waits for a slot in which Stripe may be called (budget.go, line.go). Where that
//     takes longer than a request waits, the customer gets a page that comes back by itself to a
//     signed place (place.go), and goes on from here.
//  3. CreateSession asks Stripe, under the click's own idempotency key (stripe.go).
//  4. EndClick commits the outcome, the use count and the event's job; then the customer is
//     redirected.
//
// A link has one open click at most, from step 1 to step 4. A press that finds one joins it, on
// any replica and after a crash too: Stripe answers the same key with the same session. What
// concurrent requests ask of the database shares a query or a transaction (group.go).
//
// Ahead of all that stand the token's signature and the limits (limits.go), without a query. Each
// look and each press gets a verdict, person or scanner (verdict.go), which counts and blocks
// nobody. Pages are rendered once for each language (pages.go, words.go, language.go, brand.go).
//
// Invariants, by the numbers of docs/design.md; a test of this package names each:
//
//	3  The token is never stored: it is derived from the link's id by the key that the row names.
//	4  GET and HEAD change nothing but the audit; only a POST, or the return to the signed place
//	   that a POST gave, reserves a use and calls Stripe.
//	5  click.started is committed before Stripe is called; outcome, use count and event job commit
//	   together; a click left open by a crash is taken up by the next press, or closed by Sweep
//	   as session.failed, interrupted.
//	6  A session URL lives in memory, in the response to its press or the presses that shared it,
//	   and nowhere else.
//
// What is durable when: after step 1 the click; after step 4 everything. A crash in between
// leaves an open click and, at worst, a session that nobody got the URL of, which dies in five
// minutes.
//
// This package knows nothing of NATS and River. Audit rows that are events are handed to a
// PublishFunc from above, in the transaction that writes them, their rows with it where they are at hand.
package portal
