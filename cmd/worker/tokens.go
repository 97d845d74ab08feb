package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"latchkey/internal/api"
	"latchkey/internal/cli"
	"latchkey/migrations"
)

func newTokensCommand() *cobra.Command {
	tokens := &cobra.Command{
		Use:   "tokens",
		Short: "Bearer tokens of the HTTP API",
		Long: `Makes, lists and revokes the tokens of the HTTP API on ADMIN_ADDR. The user of DATABASE_URL must be
the schema's owner, as for 'worker migrate': the worker itself may only check tokens.`,
		Example: "  worker tokens new --name zendesk --scope create,read --source support\n  worker tokens list\n  worker tokens revoke zendesk",
	}
	tokens.AddCommand(newTokensNewCommand(), newTokensListCommand(), newTokensRevokeCommand())
	return tokens
}

func newTokensNewCommand() *cobra.Command {
	var name string
	var scopes, sources []string
	cmd := &cobra.Command{
		Use:   "new --name NAME",
		Short: "Make a token and print it, once",
		Long: `Prints the token alone; it can't be shown again. A name serves once: revocations bear it. Without
--scope the token may do all three; without --source, with links of every source.`,
		Example: "  TOKEN=$(worker tokens new --name zendesk --scope create,read --source support)",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// An empty list, of a variable that is not set, must not make a token that may do all.
			for flag, list := range map[string][]string{"scope": scopes, "source": sources} {
				if cmd.Flags().Changed(flag) && len(list) == 0 {
					return cli.Usagef("--%s: is empty; leave it out for all", flag)
				}
			}
			granted := make([]api.Scope, len(scopes))
			for i, s := range scopes {
				granted[i] = api.Scope(s)
			}
			return withTokens(cmd, func(db *pgxpool.Pool) error {
				secret, err := api.NewToken(cmd.Context(), db, name, granted, sources, time.Now())
				if err == nil {
					cmd.Println(secret)
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "who uses it, [A-Za-z0-9._-]{1,100}; stands in the audit where it revokes (required)")
	_ = cmd.MarkFlagRequired("name")
	cmd.Flags().StringSliceVar(&scopes, "scope", []string{"create", "read", "revoke"}, "what it may do")
	cmd.Flags().StringSliceVar(&sources, "source", nil, "links of which sources it may make, see and revoke (default: of all)")
	return cmd
}

func newTokensListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the tokens, without what is secret",
		Example: "  worker tokens list --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withTokens(cmd, func(db *pgxpool.Pool) error {
				list, err := api.ListTokens(cmd.Context(), db)
				if err != nil {
					return err
				}
				if asJSON {
					enc := json.NewEncoder(cmd.OutOrStdout())
					enc.SetIndent("", "  ")
					return enc.Encode(list)
				}
				printTokens(cmd, list)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newTokensRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "revoke NAME",
		Short:   "End a token, from its next request on",
		Example: "  worker tokens revoke zendesk",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withTokens(cmd, func(db *pgxpool.Pool) error {
				err := api.RevokeToken(cmd.Context(), db, args[0], time.Now())
				if err == nil {
					cmd.Println("revoked " + args[0])
				}
				return err
			})
		},
	}
}

// withTokens gives f the database under the user that DATABASE_URL names, and tells what to do about the
// errors of package api.
func withTokens(cmd *cobra.Command, f func(*pgxpool.Pool) error) error {
	url, err := loadDatabaseURL()
	if err != nil {
		return err
	}
	pool, err := plainPool(cmd.Context(), url)
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := migrations.Check(cmd.Context(), pool); errors.Is(err, migrations.ErrBehind) {
		return fmt.Errorf("%w; run 'worker migrate' first", err)
	} else if err != nil {
		return err
	}
	switch err := f(pool); {
	case errors.Is(err, api.ErrTokenForm):
		return cli.Usagef("%v; see 'worker tokens new --help'", err)
	case errors.Is(err, api.ErrNameTaken):
		return fmt.Errorf("%w; choose another, such as NAME-2", err)
	case errors.Is(err, api.ErrNoToken):
		return fmt.Errorf("%w; 'worker tokens list' shows all", err)
	default:
		return err
	}
}

func printTokens(cmd *cobra.Command, list []api.Token) {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tSCOPES\tSOURCES\tCREATED\tLAST USED\tREVOKED")
	for _, t := range list {
		scopes := make([]string, len(t.Scopes))
		for i, s := range t.Scopes {
			scopes[i] = string(s)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", t.Name, strings.Join(scopes, ","), cmp.Or(strings.Join(t.Sources, ","), "all"),
			localTime(&t.CreatedAt), localTime(t.LastUsedAt), localTime(t.RevokedAt))
	}
	_ = w.Flush()
}

func localTime(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04 -07:00")
}
