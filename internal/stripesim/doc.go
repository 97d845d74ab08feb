// Package stripesim is an HTTP fake of Stripe's customer-portal sessions that
// enforces Stripe's contract itself: a caller that passes here sends what
// Stripe accepts and copes with what Stripe answers. The same handler serves
// tests, a development stack in one process, and a container of its own.
//
// # Mechanism
//
// A call to POST /v1/billing_portal/sessions runs through these steps, in
// Stripe's order; the first that objects answers:
//
//	key and permission → API version → rate limit → fault before execution →
//	idempotency key → parameters → latency → execution → answer saved → delivery
//
// "Execution" is where a session comes to exist. Everything ahead of it leaves
// no trace under the idempotency key; everything from there on is saved and
// replayed. "Delivery" is where an answer can still get lost. A caller that
// hangs up during the latency does not stop the execution, as with Stripe.
//
// # Rules
//
// Each has a test that names its number.
//
//  1. The key comes as Bearer or as the user name of Basic. An unknown key is
//     401, shown redacted; a restricted key that contains "noportal" is 403 and
//     the message names rak_customer_portal_write. The mode of the key is the
//     livemode of the session. Permission is checked before parameters, so an
//     empty call tells whether a key may create sessions.
//  2. The body is form-encoded in bracket notation. Any parameter that is not
//     Stripe's, in any place, is 400 parameter_unknown.
//  3. Enums, id prefixes, lengths, integers, URLs, required sub-objects and the
//     match of sub-object and type are checked, each error with its param.
//  4. Exactly one of customer and customer_account.
//  5. return_url may be left out only while the configuration has a default.
//  6. after_expiration needs Stripe-Version 2026-10-28 or newer.
//  7. An idempotency key (≤ 255 characters) holds the answer of the execution,
//     4xx and 5xx included, for 24 hours. A replay says Idempotent-Replayed and
//     gives the first call's id in Original-Request.
//  8. The same idempotency key with other parameters or another account is 400
//     idempotency_error; while the first call runs it is 409.
//  9. Answers that no execution made (401, 403, 409, 429, parameter errors) are
//     not saved.
//  10. At most RatePerSecond create calls pass in any one second, for each
//     account and mode; more is 429 with Stripe-Rate-Limited-Reason.
//  11. A session nobody visited is gone after 5 minutes, a visited one an hour
//     after the last visit.
//  12. Customer, configuration and feature must exist: 400 of the execution.
//  13. API keys appear in no answer, log, record or page.
//
// Exact wordings that could not be checked against Stripe: those about
// sub-objects of another type, about return_url without a default, and about
// features other than subscription_update. Callers should look at status, type,
// code and param.
//
// # Customer ids with a meaning
//
// A customer id (or customer_account) that begins like this behaves so; any
// other well-formed one exists. They work from outside the process, too.
//
//	cus_deleted… cus_missing…  400 resource_missing "No such customer: '…'"
//	cus_live…                  the same with a test key; adds that a similar object exists in live mode
//	cus_test…                  the same with a live key, the other way round
//	cus_noconfig…              400 no default portal configuration has been created yet
//	cus_featureoff…            400 the feature of the flow is disabled in the configuration
//	cus_slow…                  answers after 5 seconds
//	cus_hang…                  never answers
//	cus_409…                   409 idempotency_key_in_use
//	cus_429lock…               429 lock_timeout, without Stripe-Rate-Limited-Reason
//	cus_429…                   429 rate_limit, reason endpoint-rate
//	cus_500…                   500, saved under the idempotency key
//	cus_503…                   503 ahead of the execution: not saved
//	cus_flaky…                 503 the first time (not saved), then a session
//	cus_dropped…               the first time: the session is made, the connection is cut amid the answer
//	cus_garbage…               200 with a body that is not JSON (the session is made)
//	cus_badurl…                a session whose url is javascript:
//
// Likewise sub_missing…, bpc_missing…, si_missing…, promo_missing… and
// acct_missing… do not exist.
//
// # A trap in net/http
//
// Go's transport repeats a POST by itself when it carries an Idempotency-Key,
// the connection was a reused one and it closed before the first byte of an
// answer. FaultDropBefore and FaultDropAfter may thus go unseen by the caller
// (Calls shows both tries); FaultCutAnswer is always seen.
package stripesim
