// Command enqueue is the producer's tool: it asks for links, tells what became of them, and ends
// them. It talks to NATS only.
package main

import (
	"context"
	"encoding/json"
	"os"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/producer"
)

func main() { os.Exit(cli.Main(newRoot())) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "enqueue",
		Short: "Ask Latchkey for links to Stripe's customer portal",
		Long: `Talks to NATS only: NATS_URL (default nats://127.0.0.1:4222), with NATS_CREDS and NATS_CA where
the server wants them.`,
		Example: "  enqueue link --customer cus_9s6XKzkNRiz8i3 --wait\n  enqueue status in_1PqR-attempt-2",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(newLinkCommand(), newBulkCommand(), newCampaignCommand(), newStatusCommand(), newRevokeCommand(), newDeadCommand(), newWatchCommand())
	return root
}

// withClient connects for the time of one command.
func withClient(f func(ctx context.Context, cmd *cobra.Command, client *producer.Client, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		nc, err := connect()
		if err != nil {
			return err
		}
		defer nc.Close()
		client, err := producer.New(nc)
		if err != nil {
			return err
		}
		return f(cmd.Context(), cmd, client, args)
	}
}

func connect(more ...nats.Option) (*nats.Conn, error) {
	var settings struct{ NATS config.NATS }
	if problems := config.Load(&settings); len(problems) > 0 {
		return nil, problems
	}
	return settings.NATS.Connect("enqueue", more...)
}

// printJSON writes a value for programs, one line.
func printJSON(cmd *cobra.Command, v any) error {
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetEscapeHTML(false) // URLs are to be readable
	return enc.Encode(v)
}
