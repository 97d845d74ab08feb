package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"latchkey/migrations"
)

func newMigrateCommand() *cobra.Command {
	var status bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Bring the database schema up (own tables and River's)",
		Long: `Applies the migrations that the database lacks and prints each. Runs at the same time wait for
one another. The user of DATABASE_URL must own the schema and, the first time, may need to
create the role latchkey_app.`,
		Example: "  DATABASE_URL=postgres://owner:…@db:5432/latchkey worker migrate\n  worker migrate --status",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			url, err := loadDatabaseURL()
			if err != nil {
				return err
			}
			pool, err := plainPool(cmd.Context(), url)
			if err != nil {
				return err
			}
			defer pool.Close()
			if status {
				steps, err := migrations.Status(cmd.Context(), pool)
				printSteps(cmd, steps)
				return err
			}
			steps, err := migrations.Up(cmd.Context(), pool)
			printSteps(cmd, steps)
			if err == nil && len(steps) == 0 {
				cmd.Println("the schema is up to date; nothing to do")
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&status, "status", false, "only list the migrations, applied or not")
	return cmd
}

func printSteps(cmd *cobra.Command, steps []migrations.Step) {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	for _, s := range steps {
		state := "missing"
		if s.Applied {
			state = "applied"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", state, s.Line, s.Version, s.Name)
	}
	_ = w.Flush()
}
