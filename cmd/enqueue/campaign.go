package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// campaignPatience is above what a worker takes to count at most.
const campaignPatience = 30 * time.Second

func newCampaignCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "campaign",
		Short: "List campaigns, see how one does, end one",
		Long: `A campaign is the links whose requests name it in 'campaign', and their renewals. It needs no
setting up.`,
		Example: "  enqueue campaign list\n  enqueue campaign status 2026-11-card-expiry\n  enqueue campaign revoke 2026-11-card-expiry --reason 'wrong list'",
	}
	cmd.AddCommand(newCampaignListCommand(), newCampaignStatusCommand(), newCampaignRevokeCommand())
	return cmd
}

// oneCampaign takes one argument, the name of a campaign.
func oneCampaign(_ *cobra.Command, args []string) error {
	if len(args) != 1 || !jobs.ValidCampaign(args[0]) {
		return errors.New("takes the name of one campaign, [A-Za-z0-9._-]{1,100}; 'enqueue campaign list' shows them")
	}
	return nil
}

func newCampaignListCommand() *cobra.Command {
	var limit int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List campaigns, the one with the newest link first",
		Long: `Prints a line for each campaign: its name, who sent its requests, how many links it has, how many of
these are live (neither expired, used up nor revoked), and when the first and the last one were made.`,
		Example: "  enqueue campaign list\n  enqueue campaign list --limit 200 --json | jq -r '.campaigns[] | select(.live > 0).campaign'",
		Args:    cobra.NoArgs,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, _ []string) error {
			if limit < 1 || limit > portal.MostCampaigns {
				return cli.Usagef("--limit takes 1 to %d", portal.MostCampaigns)
			}
			ctx, cancel := context.WithTimeout(ctx, campaignPatience)
			defer cancel()
			list, err := client.Campaigns(ctx, limit)
			if err != nil {
				return plain(err)
			}
			if asJSON {
				return printJSON(cmd, list)
			}
			printCampaigns(cmd.OutOrStdout(), list)
			if more := list.Total - len(list.Campaigns); more > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "enqueue: %s more; --limit shows them\n", number(more))
			} else if list.Total == 0 {
				fmt.Fprintln(cmd.ErrOrStderr(), "enqueue: there are no campaigns: no link's request has named one")
			}
			return nil
		}),
	}
	cmd.Flags().IntVar(&limit, "limit", jobs.DefaultCampaigns, "at most so many")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCampaignStatusCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Tell what became of a campaign's links",
		Long: `Counts links, each once, renewals included; shares are of the links issued.

  issued           links made, and how many of them are renewals of an expired one
  delivered        taken by the mail server, or by the webhook's target
  delivery failed  given up by one channel or more
  opened           looked at by a person, as far as can be told from a mail scanner
  clicked          button pressed, and Stripe asked or to be asked
  live, used up, expired, revoked
                   what each link is now; together they are those issued

Sessions are not links: one link can make several. Failed are presses that got none; their share is of all
presses. Rejected requests have no link and are of no campaign: 'enqueue dead list' has them.`,
		Example: "  enqueue campaign status 2026-11-card-expiry\n  enqueue campaign status 2026-11-card-expiry --json | jq .clicked",
		Args:    oneCampaign,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, args []string) error {
			ctx, cancel := context.WithTimeout(ctx, campaignPatience)
			defer cancel()
			c, err := client.Campaign(ctx, args[0])
			if err != nil {
				return plain(err)
			}
			if asJSON {
				return printJSON(cmd, c)
			}
			printCampaign(cmd.OutOrStdout(), c)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCampaignRevokeCommand() *cobra.Command {
	var r portal.Revocation
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "End a campaign's links for ever",
		Long: `Does what 'enqueue revoke --campaign NAME' does: at once, without asking back, effective on the next
click. Links that are made for the campaign later are not ended.`,
		Example: "  enqueue campaign revoke 2026-11-card-expiry --reason 'wrong list'",
		Args:    oneCampaign,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, args []string) error {
			r.Campaign = args[0]
			n, err := revoke(ctx, cmd, client, r)
			if err == nil && n == 0 { // a name misspelt must not look like work done
				var unknown *producer.ServiceError
				if _, err := client.Campaign(ctx, r.Campaign); errors.As(err, &unknown) && unknown.Code == jobs.CodeNotFound {
					return plain(err)
				}
			}
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(cmd, jobs.RevokeResponse{Revoked: n})
			case n > 0:
				fmt.Fprintf(cmd.OutOrStdout(), "revoked %s of %s\n", count(n, "link"), r.Campaign)
			}
			return nil
		}),
	}
	revocationFlags(cmd, &r, &asJSON)
	return cmd
}

// number groups digits: 100,000.
func number(n int) string { return message.NewPrinter(language.English).Sprintf("%d", n) }

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return number(n) + " " + what + "s"
}

// share is n of all in percent. Neither a few nor all but a few are rounded away.
func share(n, all int) string {
	percent := 100 * float64(n) / float64(max(all, 1))
	switch {
	case n > 0 && percent < 0.1:
		return "<0.1 %"
	case n < all && percent > 99.9:
		return ">99.9 %"
	}
	return fmt.Sprintf("%.1f %%", percent)
}

// span is from when until when.
func span(from, until time.Time) string {
	const layout = "2006-01-02 15:04:05 -07:00"
	first, last := from.Local().Format(layout), until.Local().Format(layout)
	if first == last {
		return first
	}
	return first + " to " + last
}

func printCampaign(w io.Writer, c *portal.Campaign) {
	fmt.Fprintf(w, "campaign  %s\ncreated   %s\nexpires   %s\n", cli.Printable(c.Campaign),
		span(c.FirstCreatedAt, c.LastCreatedAt), span(c.FirstExpiresAt, c.LastExpiresAt))
	line := func(name string, n int, rest string) {
		fmt.Fprintf(w, "%s\n", strings.TrimRight(fmt.Sprintf("%-15s %11s  %s", name, number(n), rest), " "))
	}
	of := func(name string, n, all int) { line(name, n, fmt.Sprintf("%7s", share(n, all))) }
	renewals := ""
	if c.Renewals > 0 {
		renewals = "with " + count(c.Renewals, "renewal")
	}
	fmt.Fprintln(w)
	line("issued", c.Issued, renewals)
	of("delivered", c.Delivered, c.Issued)
	of("delivery failed", c.DeliveryFailed, c.Issued)
	of("opened", c.Opened, c.Issued)
	of("clicked", c.Clicked, c.Issued)
	fmt.Fprintln(w)
	line("sessions", c.Sessions, "")
	of("sessions failed", c.SessionsFailed, c.Sessions+c.SessionsFailed)
	fmt.Fprintln(w)
	of("live", c.Live, c.Issued)
	of("used up", c.UsedUp, c.Issued)
	of("expired", c.Expired, c.Issued)
	of("revoked", c.Revoked, c.Issued)
}

func printCampaigns(w io.Writer, list *portal.CampaignList) {
	if len(list.Campaigns) == 0 {
		return
	}
	digits := func(of func(portal.CampaignSummary) int) (width int) {
		for _, c := range list.Campaigns {
			width = max(width, len(number(of(c))))
		}
		return width
	}
	links := max(len("LINKS"), digits(func(c portal.CampaignSummary) int { return c.Links }))
	live := max(len("LIVE"), digits(func(c portal.CampaignSummary) int { return c.Live }))
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintf(tab, "CAMPAIGN\tSOURCE\t%*s\t%*s\tFIRST\tLAST\n", links, "LINKS", live, "LIVE")
	for _, c := range list.Campaigns {
		const layout = "2006-01-02 15:04"
		sources := slices.Clone(c.Sources)
		if len(sources) > 3 {
			sources = append(sources[:2], fmt.Sprintf("%d more", len(sources)-2))
		}
		fmt.Fprintf(tab, "%s\t%s\t%*s\t%*s\t%s\t%s\n", cli.Printable(c.Campaign), cli.Printable(strings.Join(sources, ", ")),
			links, number(c.Links), live, number(c.Live), c.FirstCreatedAt.Local().Format(layout), c.LastCreatedAt.Local().Format(layout))
	}
	_ = tab.Flush()
}
