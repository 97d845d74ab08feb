// Package notify is how word gets out:
//
//	events.go     CloudEvents 1.0 in structured JSON on PORTAL_EVENTS
//	webhook.go    the same events by HTTP, signed as Standard Webhooks; lanes.go bounds a slow target's share
//	templates.go  what a mail says, in each locale
//	mail.go       how it looks on the wire; mailer.go and smtp.go send it
//
// Each may be sent twice, never lost, and carries an id to drop repeats by: an event's is its audit row's, as
// Nats-Msg-Id (JetStream drops a repeat within the stream's duplicate window) and as webhook-id; a mail's is
// the Message-ID. What needs retries is the caller's: a job each.
//
// A mail is composed by go-mail (mail.go), goes over a kept connection or a new one (mailer.go), and each
// step of its conversation (smtp.go) has an outcome of three kinds (mail_error.go): the server took
// the mail, it answered about the mail (*MailError), or it can't be used (ErrMailServer). go-mail's own
// client is not used: it tells neither the step that failed nor a kept connection that died, waits
// without looking at the context, and leaves connections open whose beginning failed. Its protocol package is.
//
// Invariants of mails:
//
//  1. A mail is final only by the server's 5xx about this mail: no fault of the server, of the network or of
//     our settings loses one.
//  2. Off loopback, nothing but EHLO and STARTTLS is said before TLS with a verified name.
//  3. Nothing that a mail holds adds a field, a recipient, a part or a command.
//  4. No error and no log line holds the password, an address of a recipient, or text of the server.
//  5. A repeat has the same Message-ID and Date.
//  6. A Send returns soon after its context ends, whatever the server does.
package notify
