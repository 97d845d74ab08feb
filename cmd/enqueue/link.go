package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
)

// linkFlags are the request's fields as flags; --request takes a whole one instead.
type linkFlags struct {
	request                                         string
	id, customer, configuration, locale, onBehalfOf string
	returnURL, flow, subscription, account          string
	source, campaign, expiresIn, expiresAt          string
	maxSessions                                     int
	email, template, webhook                        string
	data, metadata                                  []string // key=value
	wait, json                                      bool
	timeout                                         time.Duration
}

func newLinkCommand() *cobra.Command {
	f := &linkFlags{}
	cmd := &cobra.Command{
		Use:   "link",
		Short: "Ask for one link",
		Long: `Publishes one request. With --wait prints the link once a worker has made it: the URL alone on
stdout. A second call with the same --id and the same content gives the same link. Without --wait
the request is only stored; 'enqueue status ID' tells later if it was rejected.`,
		Example: `  enqueue link --customer cus_9s6XKzkNRiz8i3 --flow payment_method_update --wait
  enqueue link --id in_1PqR-attempt-2 --customer cus_9s6XKzkNRiz8i3 --source dunning --metadata invoice=in_1PqR
  enqueue link --customer cus_9s6XKzkNRiz8i3 --email jo@example.com --template payment_failed --data name=Jo --data 'amount=€ 49.00'
  enqueue link --request request.json --wait --json`,
		Args: cobra.NoArgs,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, _ []string) error {
			return f.send(ctx, cmd, client)
		}),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.request, "request", "", "file with a whole request in JSON (- for stdin), in place of the fields below")
	flags.StringVar(&f.id, "id", "", "idempotency key (default: a new one)")
	flags.StringVar(&f.customer, "customer", "", "cus_…, or acct_… for an account that is a customer")
	flags.StringVar(&f.flow, "flow", "", "flow_data.type, such as payment_method_update")
	flags.StringVar(&f.subscription, "subscription", "", "sub_…, for a subscription flow")
	flags.StringVar(&f.configuration, "configuration", "", "portal configuration, bpc_…")
	flags.StringVar(&f.locale, "locale", "", "one of Stripe's locales, such as de")
	flags.StringVar(&f.onBehalfOf, "on-behalf-of", "", "acct_…")
	flags.StringVar(&f.returnURL, "return-url", "", "where the portal sends the customer back to")
	flags.StringVar(&f.account, "stripe-account", "", "connected account, acct_…")
	flags.StringVar(&f.source, "source", "cli", "who asks: dunning, support, …")
	flags.StringVar(&f.campaign, "campaign", "", "campaign that the link belongs to")
	flags.StringVar(&f.expiresIn, "expires-in", "", "life of the link, such as 336h")
	flags.StringVar(&f.expiresAt, "expires-at", "", "end of the link's life, RFC 3339")
	flags.IntVar(&f.maxSessions, "max-sessions", 0, "how many sessions the link may make (default: no limit)")
	flags.StringVar(&f.email, "email", "", "mail the link to this address")
	flags.StringVar(&f.template, "template", "", "of that mail, such as payment_failed (default: generic)")
	flags.StringArrayVar(&f.data, "data", nil, "key=value for that mail's template, such as name=Jo")
	flags.StringVar(&f.webhook, "webhook", "", "post link.issued to this https URL")
	flags.StringArrayVar(&f.metadata, "metadata", nil, "key=value, comes back in every event")
	flags.BoolVar(&f.wait, "wait", false, "wait for the link and print its URL")
	flags.BoolVar(&f.json, "json", false, "print JSON: with --wait all of link.issued's data")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "how long --wait waits")
	cmd.MarkFlagsOneRequired("request", "customer")
	for _, field := range []string{"id", "customer", "flow", "subscription", "configuration", "locale", "on-behalf-of", "return-url", "stripe-account", "source",
		"campaign", "expires-in", "expires-at", "max-sessions", "email", "template", "data", "webhook", "metadata"} {
		cmd.MarkFlagsMutuallyExclusive("request", field)
	}
	cmd.MarkFlagsMutuallyExclusive("expires-in", "expires-at")
	return cmd
}

func (f *linkFlags) send(ctx context.Context, cmd *cobra.Command, client *producer.Client) error {
	message, err := f.message(cmd)
	if err != nil {
		return err
	}
	if !jobs.ValidSource(message.Source) {
		return cli.Usagef("the source must match [a-z0-9_-]{1,40}")
	}
	if f.timeout <= 0 {
		return cli.Usagef("--timeout must be above 0")
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	if !f.wait {
		if _, err := client.Send(ctx, message); err != nil {
			return err
		}
		if f.json {
			return printJSON(cmd, map[string]string{"request_id": message.ID})
		}
		fmt.Fprintln(cmd.OutOrStdout(), message.ID)
		return nil
	}
	link, err := client.SendAndWait(ctx, message)
	if err != nil {
		return fmt.Errorf("request %s: %w", message.ID, err)
	}
	// A repeat gives the same link for ever, dead or alive: who pastes it should know.
	if status, err := client.Status(ctx, link.LinkID.String()); err == nil && status.Link.State != portal.StateLive {
		fmt.Fprintf(cmd.ErrOrStderr(), "enqueue: this link is %s; ask under another --id for a new one\n", status.Link.State)
	}
	if f.json {
		return printJSON(cmd, link)
	}
	fmt.Fprintln(cmd.OutOrStdout(), link.URL)
	return nil
}

// message is the request of the flags or of the file. The worker checks it; what is checked here
// is only what keeps it from being sent.
func (f *linkFlags) message(cmd *cobra.Command) (producer.Message, error) {
	if f.request != "" {
		return f.read(cmd)
	}
	req, err := f.build(cmd)
	if err != nil {
		return producer.Message{}, err
	}
	return producer.NewMessage(req)
}

func (f *linkFlags) build(cmd *cobra.Command) (*jobs.Request, error) {
	metadata, err := pairs("metadata", f.metadata)
	if err != nil {
		return nil, err
	}
	req := &jobs.Request{ID: f.id, Source: f.source, Campaign: f.campaign, StripeAccount: f.account,
		ExpiresIn: f.expiresIn, ExpiresAt: f.expiresAt, Metadata: metadata,
		Session: &portal.SessionParams{Configuration: f.configuration, Locale: f.locale, OnBehalfOf: f.onBehalfOf, ReturnURL: f.returnURL}}
	if strings.HasPrefix(f.customer, "acct_") {
		req.Session.CustomerAccount = f.customer
	} else {
		req.Session.Customer = f.customer
	}
	if cmd.Flags().Changed("max-sessions") {
		req.MaxSessions = &f.maxSessions
	}
	if req.ID == "" {
		req.ID = "cli-" + uuid.NewString()
	}
	if err := f.deliver(req); err != nil {
		return nil, err
	}
	switch f.flow {
	case "":
		if f.subscription != "" {
			return nil, cli.Usagef("--subscription needs --flow, such as subscription_cancel")
		}
		return req, nil
	case "subscription_cancel":
		req.Session.FlowData = &portal.FlowData{Type: f.flow, SubscriptionCancel: &portal.SubscriptionCancel{Subscription: f.subscription}}
	case "subscription_update":
		req.Session.FlowData = &portal.FlowData{Type: f.flow, SubscriptionUpdate: &portal.SubscriptionUpdate{Subscription: f.subscription}}
	default: // what needs more than a subscription comes by --request
		req.Session.FlowData = &portal.FlowData{Type: f.flow}
	}
	return req, nil
}

// deliver adds the deliveries of the flags.
func (f *linkFlags) deliver(req *jobs.Request) error {
	if f.email == "" && (f.template != "" || len(f.data) > 0) {
		return cli.Usagef("--template and --data need --email")
	}
	if f.email != "" {
		mail := jobs.Delivery{Channel: jobs.ChannelEmail, To: f.email, Template: f.template}
		if len(f.data) > 0 {
			values, err := pairs("data", f.data)
			if err != nil {
				return err
			}
			data, err := json.Marshal(values)
			if err != nil {
				return err
			}
			mail.Data = data
		}
		req.Deliver = append(req.Deliver, mail)
	}
	if f.webhook != "" {
		req.Deliver = append(req.Deliver, jobs.Delivery{Channel: jobs.ChannelWebhook, URL: f.webhook})
	}
	return nil
}

// pairs reads key=value of each flag; a value may hold anything, = and commas too.
func pairs(flag string, given []string) (map[string]string, error) {
	values := make(map[string]string, len(given))
	for _, pair := range given {
		key, value, ok := strings.Cut(pair, "=")
		if _, twice := values[key]; !ok || key == "" || twice {
			return nil, cli.Usagef("--%s takes key=value, each key once", flag)
		}
		values[key] = value
	}
	return values, nil
}

// read takes the request as it stands in the file: a misspelt field is for the worker to refuse,
// not for us to drop.
func (f *linkFlags) read(cmd *cobra.Command) (producer.Message, error) {
	in := cmd.InOrStdin()
	if f.request != "-" {
		file, err := os.Open(f.request)
		if err != nil {
			return producer.Message{}, cli.Usagef("--request: %v", err)
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	body, err := io.ReadAll(io.LimitReader(in, jobs.MaxRequestBytes+1))
	if err != nil {
		return producer.Message{}, fmt.Errorf("--request: %w", err)
	}
	var head struct {
		ID     string `json:"id"`
		Source string `json:"source"`
	}
	switch err := json.Unmarshal(body, &head); {
	case len(body) > jobs.MaxRequestBytes:
		return producer.Message{}, cli.Usagef("--request: more than %d bytes", jobs.MaxRequestBytes)
	case err != nil:
		return producer.Message{}, cli.Usagef("--request: not a JSON object with an id and a source")
	case head.ID == "" || head.Source == "":
		return producer.Message{}, cli.Usagef("--request: the request needs an id and a source")
	}
	return producer.Message{ID: head.ID, Source: head.Source, Body: body}, nil
}
