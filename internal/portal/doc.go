// Package portal owns a link from its token to the portal session that a customer's click makes.
//
// A link is a row that intake wrote. Its URL is LINK_BASE_URL/l/<token>, and the token is computed
// from the link's id wherever it is needed (token.go); it is stored nowhere. GET and HEAD of it
// show a page with one button, for the mail gateways that open every link; only the button's POST
// acts (click.go). A POST runs three steps whose order is the promise to the auditor:
//
//  1. StartClick commits a reserved use and click.started (click_store.go).
//  2. CreateSession asks Stripe, under the click's own idempotency key (stripe.go).
//  3. EndClick commits the outcome, the use count and the event's job; then the customer is
//     redirected.
//
// Invariants, by the numbers of docs/design.md; a test of this package names each:
//
//	3  The token is never stored: it is derived from the link's id by the key that the row names.
//	4  GET and HEAD change nothing but the audit; only a POST reserves a use and calls Stripe.
//	5  click.started is committed before Stripe is called; outcome, use count and event job commit
//	   together; a click left open by a crash is closed by Sweep as session.failed, interrupted.
//	6  A session URL lives in memory, in one response, and nowhere else.
//
// What is durable when: after step 1 the click; after step 3 everything. A crash in between
// leaves an open click and, at worst, a session that nobody got the URL of, which dies in five
// minutes.
//
// This package knows nothing of NATS and River. Audit rows that are events are handed to a
// PublishFunc from above, in the transaction that writes them.
package portal
