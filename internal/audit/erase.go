package audit

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/portal"
)

// Erased is how many rows an Erase took something out of.
type Erased struct {
	Visitors int64 // rows of audit_visitors, which are gone
	Links    int64 // links whose deliveries, with their addresses and template data, are gone
}

// Erasure says whose data goes, and for the audit who erases it and why.
type Erasure struct {
	Customer string // as in links.stripe_customer
	By       string
	Reason   string // may be empty; a ticket's number, say
}

// ErrNoSuchCustomer is returned where there is no link of that customer.
var ErrNoSuchCustomer = errors.New("no link is of that customer, so nothing was erased; look whether it is spelled as in Stripe")

// Erase deletes what is personal of a customer: who visited their links, from where and with what, and where their
// links were sent and with what data. The audit stays, and its proof, and tells that it was erased. A link stays what
// it is, and can't be renewed or delivered any more. Its request_hash, by which an address could be tried, becomes a
// random one: the request's id can't be used again, not even by the same request.
//
// The database's user must own the schema, or it is portal.ErrNotOwner. Without a link of the customer it is ErrNoSuchCustomer.
func Erase(ctx context.Context, db *pgxpool.Pool, of Erasure) (e Erased, err error) {
	err = pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		var known bool
		var now time.Time
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM links WHERE stripe_customer = $1), now()`, of.Customer).Scan(&known, &now); err != nil {
			return fmt.Errorf("look for the customer: %w", err)
		}
		if !known {
			return ErrNoSuchCustomer
		}
		links, err := tx.Exec(ctx, `UPDATE links SET deliver = NULL, request_hash = sha256(uuid_send(gen_random_uuid()))
			WHERE stripe_customer = $1 AND deliver IS NOT NULL`, of.Customer)
		if err != nil {
			return fmt.Errorf("erase deliveries: %w", err)
		}
		visitors, err := tx.Exec(ctx, `DELETE FROM audit_visitors WHERE event_id IN
			(SELECT e.id FROM links l JOIN audit_events e ON e.link_id = l.id WHERE l.stripe_customer = $1)`, of.Customer)
		if err != nil {
			return fmt.Errorf("erase visitors: %w", err)
		}
		e = Erased{Visitors: visitors.RowsAffected(), Links: links.RowsAffected()}
		ids, err := portal.NewIDs(1)
		if err != nil {
			return err
		}
		return portal.InsertAudit(ctx, tx, []portal.AuditEvent{{ID: ids.First, At: now, Kind: portal.AuditErased, Detail: map[string]any{
			"customer": of.Customer, "visitors": e.Visitors, "links": e.Links, "by": of.By, "reason": of.Reason}}})
	})
	if portal.RefusesUser(err) {
		return Erased{}, portal.ErrNotOwner
	}
	return e, err
}
