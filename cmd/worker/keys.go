package main

import (
	"crypto/rand"

	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/portal"
)

func newKeysCommand() *cobra.Command {
	keys := &cobra.Command{Use: "keys", Short: "Signing keys of links", Example: "  worker keys new"}
	var id int
	newKey := &cobra.Command{
		Use:   "new",
		Short: "Print a fresh signing key in the form that LINK_KEYS takes",
		Long: `Prints id:base64key. The first key of LINK_KEYS signs, all verify, so links that are out keep
working. To rotate, add the new key behind the old ones, with another id, on every process; when
all of them know it, move it to the front.`,
		Example: "  export LINK_KEYS=$(worker keys new)\n  export LINK_KEYS=$LINK_KEYS,$(worker keys new --id 2)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id < 0 || id > 255 {
				return cli.Usagef("--id must be from 0 to 255")
			}
			var key [32]byte
			_, _ = rand.Read(key[:]) // never fails: crypto/rand ends the process instead
			cmd.Println(portal.FormatKey(byte(id), key))
			return nil
		},
	}
	newKey.Flags().IntVar(&id, "id", 1, "the key's id, 0 to 255")
	keys.AddCommand(newKey)
	return keys
}
