package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

func newStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status ID",
		Short: "Tell the state and the timeline of a link",
		Long: `ID is a request's id, a link's id, an event's id, or the reference number of an error page. The link's URL is not
shown: a status gets pasted into tickets. To get the URL, ask again with the same request.`,
		Example: "  enqueue status in_1PqR-attempt-2\n  enqueue status 0193a1f0-… --json",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("takes one ID: a request's, a link's, an event's, or the reference of an error page")
			}
			return nil
		},
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, args []string) error {
			ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
			defer cancel()
			id := args[0]
			if link, ok := portal.TokenLinkID(id); ok {
				id = link.String() // somebody pasted the link itself
			}
			status, err := client.Status(ctx, id)
			if err != nil {
				return plain(err)
			}
			if asJSON {
				return printJSON(cmd, status)
			}
			printStatus(cmd.OutOrStdout(), status)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// plain drops the code where the text says all.
func plain(err error) error {
	var service *producer.ServiceError
	if errors.As(err, &service) && (service.Code == jobs.CodeNotFound || service.Code == jobs.CodeUnavailable) {
		return errors.New(service.Text)
	}
	return err
}

func printStatus(w io.Writer, s *jobs.Status) {
	if l := s.Link; l != nil {
		fmt.Fprintf(w, "link      %s  %s\n", l.LinkID, l.State)
		fmt.Fprintf(w, "request   %s  from %s\n", l.RequestID, l.Source)
		if l.Campaign != "" {
			fmt.Fprintf(w, "campaign  %s\n", l.Campaign)
		}
		fmt.Fprintf(w, "customer  %s\n", l.Customer)
		fmt.Fprintf(w, "expires   %s\n", l.ExpiresAt.Local().Format("2006-01-02 15:04:05 -07:00"))
		limit := "no limit"
		if l.MaxSessions > 0 {
			limit = fmt.Sprintf("of %d", l.MaxSessions)
		}
		fmt.Fprintf(w, "sessions  %d (%s)\n", l.SessionsCreated, limit)
	} else {
		fmt.Fprintln(w, "The request was rejected; there is no link.")
	}
	fmt.Fprintln(w)
	for _, h := range s.Timeline {
		fmt.Fprintf(w, "%s  %-18s %s\n", h.At.Local().Format("2006-01-02 15:04:05.000 -07:00"), h.Kind, happened(h))
	}
	if s.Omitted > 0 {
		fmt.Fprintf(w, "… and %d older rows; the audit has them all\n", s.Omitted)
	}
}

// happened is a row's detail, and the reference by which a customer may name it.
func happened(h jobs.Happening) string {
	line := detailLine(h.Detail)
	if h.Click != uuid.Nil {
		line = strings.TrimSpace(line + " reference=" + h.Click.String())
	}
	return line
}

// detailLine writes name=value pairs in a fixed order, without what is empty.
func detailLine(detail map[string]any) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(detail)) {
		if v := fmt.Sprint(detail[k]); v != "" {
			parts = append(parts, k+"="+cli.Printable(v))
		}
	}
	return strings.Join(parts, " ")
}

func newRevokeCommand() *cobra.Command {
	var r portal.Revocation
	var key uint8
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke",
		Short: "End links for ever",
		Long: `Ends one link, a request's, a customer's or a campaign's links, or the live ones of a signing key;
effective on the next click. A link that was renewed ends with its renewals. Prints how many it ended.
A key goes on signing; 'worker keys retire' closes it, and is the way among tens of millions of
links: the worker that answers this command stops after 30 s, and may have ended none.`,
		Example: "  enqueue revoke --customer cus_9s6XKzkNRiz8i3 --reason 'account closed'\n  enqueue revoke --campaign 2026-11-card-expiry",
		Args:    cobra.NoArgs,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, _ []string) error {
			if link, ok := portal.TokenLinkID(r.LinkID); ok {
				r.LinkID = link.String() // what leaked is the link itself
			}
			if _, err := uuid.Parse(r.LinkID); r.LinkID != "" && err != nil {
				return cli.Usagef("--link takes a link, or its id, a UUID")
			}
			if cmd.Flags().Changed("key") {
				r.KeyID = &key
			}
			n, err := revoke(ctx, cmd, client, r)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, jobs.RevokeResponse{Revoked: n})
			}
			fmt.Fprintln(cmd.OutOrStdout(), n)
			return nil
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&r.LinkID, "link", "", "a link, or its id")
	flags.StringVar(&r.RequestID, "request", "", "a request's id")
	flags.StringVar(&r.Customer, "customer", "", "cus_… or acct_…")
	flags.StringVar(&r.Campaign, "campaign", "", "a campaign's name")
	flags.Uint8Var(&key, "key", 0, "a signing key's id, of LINK_KEYS")
	revocationFlags(cmd, &r, &asJSON)
	cmd.MarkFlagsOneRequired("link", "request", "customer", "campaign", "key")
	cmd.MarkFlagsMutuallyExclusive("link", "request", "customer", "campaign", "key")
	return cmd
}

// revocationFlags are those of every way to revoke.
func revocationFlags(cmd *cobra.Command, r *portal.Revocation, asJSON *bool) {
	flags := cmd.Flags()
	flags.StringVar(&r.Reason, "reason", "", "for the audit")
	flags.StringVar(&r.By, "by", cli.UserName(), "who revokes, for the audit")
	flags.BoolVar(asJSON, "json", false, "print JSON")
}

// revoke ends links, and says so where there is none to end.
func revoke(ctx context.Context, cmd *cobra.Command, client *producer.Client, r portal.Revocation) (int, error) {
	if r.By == "" {
		return 0, cli.Usagef("--by must not be empty")
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n, err := client.Revoke(ctx, r)
	if err != nil {
		return 0, plain(err)
	}
	if n == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "enqueue: nothing to end: no link fits, or all that fit were revoked before")
	}
	return n, nil
}
