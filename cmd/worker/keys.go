package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"latchkey/internal/cli"
	"latchkey/internal/config"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

func newKeysCommand() *cobra.Command {
	list := newKeysListCommand()
	keys := &cobra.Command{
		Use:     "keys",
		Short:   "Signing keys of links: make one, see what each serves, retire one",
		Long:    "Without a command of its own it lists them, as 'worker keys list' does.",
		Example: "  worker keys\n  worker keys new --id 2\n  worker keys retire 1 --reason 'was in a backup that leaked'",
		Args:    cobra.NoArgs,
		RunE:    list.RunE,
	}
	keys.Flags().AddFlagSet(list.Flags())
	keys.AddCommand(newKeysNewCommand(), list, newKeysRetireCommand())
	return keys
}

func newKeysNewCommand() *cobra.Command {
	var id uint8
	cmd := &cobra.Command{
		Use:   "new",
		Short: "Print a fresh signing key in the form that LINK_KEYS takes",
		Long: `Prints id:base64key. The first key of LINK_KEYS signs, all verify, so links that are out keep
working. To rotate, add the new key behind the old ones, with another id, on every process; when
all of them know it, move it to the front. A process that has its keys from LINK_KEYS_FILE takes
the file's changes by itself.`,
		Example: "  export LINK_KEYS=$(worker keys new)\n  export LINK_KEYS=$LINK_KEYS,$(worker keys new --id 2)",
		Args:    cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			var key [32]byte
			_, _ = rand.Read(key[:]) // never fails: crypto/rand ends the process instead
			cmd.Println(portal.FormatKey(id, key))
		},
	}
	cmd.Flags().Uint8Var(&id, "id", 1, "the key's id, 0 to 255")
	return cmd
}

// What a key is to the processes that have this LINK_KEYS.
const (
	keySigns    = "signs"
	keyVerifies = "verifies"
	keyRetired  = "retired"
	keyMissing  = "missing" // from LINK_KEYS: its links answer 404
	keyUnknown  = "-"       // LINK_KEYS is not given
)

type keyStatus struct {
	portal.KeyUse
	State string `json:"state"`
}

func newKeysListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the keys: which signs, how many live links each serves and until when",
		Long: `A link is live that is neither expired nor revoked. A key may be taken out of LINK_KEYS once it has
none. Needs DATABASE_URL, and LINK_KEYS (or LINK_KEYS_FILE) to tell which key signs and which are
missing there.`,
		Example: "  worker keys list --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withKeys(cmd.Context(), func(db *pgxpool.Pool, ring *portal.Keyring) error {
				list, err := keyList(cmd.Context(), db, ring)
				if err != nil {
					return err
				}
				if asJSON {
					enc := json.NewEncoder(cmd.OutOrStdout())
					enc.SetIndent("", "  ")
					return enc.Encode(list)
				}
				printKeys(cmd, list)
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newKeysRetireCommand() *cobra.Command {
	var reason, by string
	var force bool
	cmd := &cobra.Command{
		Use:   "retire ID",
		Short: "Close a key for ever: its links die, and none is signed by it any more",
		Long: `From the moment on that it says so, no link of the key serves a click and none is made, on any
process, whatever its LINK_KEYS. The links that were live are revoked one by one, with an audit row
and an event each; interrupted, the same command goes on. It can't be undone, and the id can't be
used again. The user of DATABASE_URL must be the schema's owner, as for 'worker migrate'.

Put another key first in LINK_KEYS before, and take this one out after. It needs LINK_KEYS (or
LINK_KEYS_FILE), to tell that the key is not the one that signs; --force does without. To end a key's links and go on using it:
'enqueue revoke --key'.`,
		Example: "  worker keys retire 1 --reason 'was in a backup that leaked'",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[0], 10, 8)
			if err != nil {
				return cli.Usagef("ID must be a key's id, 0 to 255")
			}
			return withKeys(cmd.Context(), func(db *pgxpool.Pool, ring *portal.Keyring) error {
				if err := mayRetire(cmd.Context(), db, ring, byte(id), force); err != nil {
					return err
				}
				before, err := portal.RetiredKeys(cmd.Context(), db)
				if err != nil {
					return err
				}
				n, err := retireKey(cmd.Context(), db, byte(id), by, reason)
				switch {
				case err != nil:
					return err
				case slices.Contains(before, byte(id)):
					cmd.Printf("key %d was retired before; links revoked: %d\n", id, n)
				default:
					cmd.Printf("retired key %d; links revoked: %d\n", id, n)
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "for the audit")
	cmd.Flags().StringVar(&by, "by", cli.UserName(), "who retires it, for the audit")
	cmd.Flags().BoolVar(&force, "force", false, "without LINK_KEYS: it could be the only key, and then no links are made until there is another")
	return cmd
}

// mayRetire refuses what would leave nothing to sign by, and an id that is mistyped: both can't be undone.
func mayRetire(ctx context.Context, db *pgxpool.Pool, ring *portal.Keyring, id byte, force bool) error {
	switch {
	case ring == nil && !force:
		return errors.New("LINK_KEYS is not set, so this could be the only key that signs; set it as the workers have it, or add --force")
	case ring != nil && ring.IDs()[0] == id:
		return fmt.Errorf("key %d is the first of LINK_KEYS, so it signs; put another one first, on every process, and then retire it", id)
	case ring != nil && slices.Contains(ring.IDs(), id):
		return nil
	}
	uses, err := portal.KeyUses(ctx, db, time.Now())
	if err == nil && !slices.ContainsFunc(uses, func(u portal.KeyUse) bool { return u.ID == id }) {
		err = fmt.Errorf("key %d is not in LINK_KEYS, and no link was signed by it; 'worker keys' lists those that are known", id)
	}
	return err
}

func retireKey(ctx context.Context, db *pgxpool.Pool, id byte, by, reason string) (int, error) {
	n, err := portal.NewStore(db, jobs.PublishByJob, time.Now).RetireKey(ctx, id, by, reason)
	if errors.Is(err, portal.ErrRevocation) {
		return 0, cli.Usagef("--by must not be empty, and neither it nor --reason longer than 200 characters")
	}
	return n, err
}

// withKeys gives f the database, under the user that DATABASE_URL names, and the keys of LINK_KEYS, nil where that
// is not set.
func withKeys(ctx context.Context, f func(*pgxpool.Pool, *portal.Keyring) error) error {
	url, err := loadDatabaseURL()
	if err != nil {
		return err
	}
	c := &struct {
		Keys string `envconfig:"LINK_KEYS" secret:"true"`
	}{}
	problems := config.Load(c)
	var ring *portal.Keyring
	if c.Keys != "" {
		if ring, err = portal.ParseKeys(c.Keys); err != nil {
			problems.Add("LINK_KEYS", "%v", err)
		}
	}
	if len(problems) > 0 {
		return problems
	}
	if err := checkSchema(ctx, url); err != nil {
		return err
	}
	pool, err := plainPool(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	return f(pool, ring)
}

// keyList is what each key is and serves, by id: those of the ring, nil for none, and those that the database knows.
// The ring gets to know which are retired.
func keyList(ctx context.Context, db *pgxpool.Pool, ring *portal.Keyring) ([]keyStatus, error) {
	uses, err := portal.KeyUses(ctx, db, time.Now())
	if err != nil {
		return nil, err
	}
	var have []byte
	if ring != nil {
		have = ring.IDs()
	}
	for _, id := range have {
		if !slices.ContainsFunc(uses, func(u portal.KeyUse) bool { return u.ID == id }) {
			uses = append(uses, portal.KeyUse{ID: id})
		}
	}
	slices.SortFunc(uses, func(a, b portal.KeyUse) int { return int(a.ID) - int(b.ID) })
	for _, u := range uses {
		if u.RetiredAt != nil && ring != nil {
			ring.Retire(u.ID)
		}
	}
	list := make([]keyStatus, len(uses))
	for i, u := range uses {
		list[i] = keyStatus{u, keyVerifies}
		switch {
		case u.RetiredAt != nil:
			list[i].State = keyRetired
		case ring == nil:
			list[i].State = keyUnknown
		case !slices.Contains(have, u.ID):
			list[i].State = keyMissing
		case ring.SignerID() == u.ID:
			list[i].State = keySigns
		}
	}
	return list, nil
}

func printKeys(cmd *cobra.Command, list []keyStatus) {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tSTATE\tLIVE LINKS\tUNTIL\tISSUED\tRETIRED")
	for _, k := range list {
		fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%d\t%s\n", k.ID, k.State, k.Live, localTime(k.LastExpires), k.Issued, localTime(k.RetiredAt))
	}
	_ = w.Flush()
}
