// Package jobs carries requests from NATS to links, and what happened to links back to NATS.
//
//	PORTAL_REQUESTS ─► intake.go: fetch a batch ─► request.go: parse, check
//	                   ─► issue.go: one transaction (links, audit, one publish job) ─► ack
//	                   room.go: when it fetches no more; ahead.go: few requests before a backlog
//	portal.links.*  ─► service.go: the same, answered at once
//	campaigns       ─► campaign.go: what became of their links, by the same service
//	expired link    ─► renew.go: a request made of its row, and the same transaction
//	a commit        ─► express.go: its events, published at once by the process that made it
//	                   publish.go: audit rows become CloudEvents on PORTAL_EVENTS; the job that sees to it
//	River           ─► deliver.go, email.go, webhook.go: how a link is delivered
//	                   river.go: the client, its settings, and the sweeper of interrupted clicks
//
// Invariants, by the numbers of docs/design.md; a test of this package names each:
//
//	1  A request is acknowledged only after one transaction committed its link, its audit row and
//	   its publish job. A redelivery finds the link and adds nothing.
//	2  One link for one request id, for ever, by links' unique key.
//	7  Every audit row of an event kind is published at least once under a stable id.
//	8  Jobs carry ids only.
//	9  Intake stops fetching when events pile up, in this process or as jobs.
//
// A redelivery and a repeat by the producer look alike but for the time at which JetStream stored
// the message: it is the link's own for a redelivery, which adds nothing, and another for a
// repeat, which is audited as request.duplicate and answered by link.issued once more.
package jobs
