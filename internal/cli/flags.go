package cli

import "github.com/spf13/cobra"

// NoneEmpty refuses filters that are given and empty: a script's variable that is not set must not mean everything.
func NoneEmpty(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "" {
			return Usagef("--%s: is empty", name)
		}
	}
	return nil
}
