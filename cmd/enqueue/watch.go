package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/notify"
	"latchkey/internal/producer"
)

func newWatchCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show events as they happen",
		Long: `Prints a line for each event until Ctrl-C; with --json the event itself, a line each. The lines
leave the links' URLs out, the JSON of link.issued has them.`,
		Example: "  enqueue watch\n  enqueue watch --json | jq -r 'select(.type == \"latchkey.link.issued\") | .data.url'",
		Args:    cobra.NoArgs,
		RunE: withClient(func(ctx context.Context, cmd *cobra.Command, client *producer.Client, _ []string) error {
			return client.Watch(ctx, func(event notify.Event, raw []byte) error {
				line := string(raw)
				if !asJSON {
					line = watchLine(event)
				}
				_, err := fmt.Fprintln(cmd.OutOrStdout(), line)
				return err
			})
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the events themselves")
	return cmd
}

func watchLine(event notify.Event) string {
	var data map[string]any
	if err := json.Unmarshal(event.Data, &data); err != nil {
		data = map[string]any{}
	}
	request, customer := fmt.Sprint(data["request_id"]), fmt.Sprint(data["customer"])
	for _, shown := range []string{"url", "request_id", "customer", "link_id", "metadata"} {
		delete(data, shown)
	}
	return fmt.Sprintf("%s  %-16s %s  %s  %s", event.Time.Local().Format(time.TimeOnly+".000"),
		strings.TrimPrefix(event.Type, notify.TypePrefix), cli.Printable(request), cli.Printable(customer), detailLine(data))
}
