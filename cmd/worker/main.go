// Command worker is Latchkey's service and its operator's tools. run.go wires the service in the
// order in which a request flows; dev.go brings the servers along that run needs.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"latchkey/internal/cli"
)

func main() { os.Exit(cli.Main(newRoot())) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "worker",
		Short: "Links to Stripe's customer portal that live for weeks",
		Long: `Latchkey issues signed links to Stripe's customer portal and creates the portal session
when the customer presses the button.

Start with 'worker dev': everything on this machine, nothing to configure.`,
		Example: "  worker dev\n  worker migrate && worker run",
		Args:    cobra.NoArgs,
		RunE:    runService,
	}
	root.AddCommand(newRunCommand(), newDevCommand(), newMigrateCommand(), newCheckCommand(), newKeysCommand(), newTokensCommand(), newAuditCommand(),
		newMailCommand(), newJobsCommand(), newHealthCommand(), newSimulatorCommand())
	return root
}

func newRunCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "run",
		Short: "Run the service (the default command)",
		Long: `Takes requests from NATS, issues links, serves clicks and publishes events until SIGINT or
SIGTERM; a clean stop takes at most 15 s and exits 0. Configured by the environment.`,
		Example: "  LINK_BASE_URL=https://pay.example.com worker run",
		Args:    cobra.NoArgs,
		RunE:    runService,
	}
}

func runService(cmd *cobra.Command, _ []string) error {
	cfg, err := loadConfig()
	if err != nil {
		return err
	}
	l, err := listen(cfg)
	if err != nil {
		return err
	}
	return run(cmd.Context(), cfg, cfg.logger(), l, nil)
}
