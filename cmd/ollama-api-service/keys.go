package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/store"
)

// keyring is what a keys command works on.
type keyring struct {
	*program
	cfg    *config.Config
	store  *store.Store
	secret auth.Secret
	by     api.Change
	json   bool
}

func (p *program) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys",
		Short: "Make, list, change, rotate and revoke API keys",
		Long: `Make, list, change, rotate and revoke API keys. The commands work on the database in DATA_DIR directly, whether the service
runs or not; a running service obeys within a second. Run them as the user the service runs as.`,
		Example: `  ollama-api-service keys create --name "Anna's laptop" --models 'llama3.2:*,qwen3:*' --expires 30d
  ollama-api-service keys change oas_8rT2kLmN0q --rate-limit 500
  ollama-api-service keys rotate oas_8rT2kLmN0q --grace 2h
  ollama-api-service keys revoke oas_8rT2kLmN0q`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	asJSON := cmd.PersistentFlags().Bool("json", false, "print JSON, with the names of the HTTP API")
	// with opens what a command works on. All of them check the secret, so that a wrong DATA_DIR or SECRET_KEY is noticed
	// by whichever comes first.
	with := func(do func(context.Context, *keyring, []string) error) func(*cobra.Command, []string) error {
		return func(cmd *cobra.Command, args []string) error {
			cfg, err := p.settings()
			if err != nil {
				return err
			}
			st, secret, err := openKeys(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			defer st.Close()
			now := p.now().UTC().Truncate(time.Millisecond)
			return do(cmd.Context(), &keyring{
				p, cfg, st, secret,
				api.Change{Actor: "command-line", From: "local", At: now, KeepAdmin: cfg.AdminAPIKey == ""},
				*asJSON,
			}, args)
		}
	}
	cmd.AddCommand(createCommand(with), listCommand(with), showCommand(with), changeCommand(with), rotateCommand(with), revokeCommand(with))
	for _, c := range cmd.Commands() {
		if strings.Contains(c.Use, "KEY_PREVIEW") {
			c.ValidArgsFunction = p.completeKeys
		}
	}
	return cmd
}

// completeKeys is what a shell offers for KEY_PREVIEW: the keys with their names. It offers nothing where it cannot look.
func (p *program) completeKeys(cmd *cobra.Command, args []string, _ string) (offers []cobra.Completion, _ cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	st, err := p.database(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer st.Close()
	keys, err := st.Keys(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, k := range keys {
		if k.RevokedAt == nil {
			offers = append(offers, cobra.CompletionWithDesc(k.Preview, k.Name))
		}
	}
	return offers, cobra.ShellCompDirectiveNoFileComp
}

type runner func(func(context.Context, *keyring, []string) error) func(*cobra.Command, []string) error

func createCommand(with runner) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create --name NAME",
		Short: "Make a key and print it, this once",
		Long: `Make a key and print it, this once: only a hash of it is kept. The key alone goes to standard output, what is said about it to
standard error. Without --rate-limit a key gets the default of its role from the settings.`,
		Example: `  ollama-api-service keys create --name "Anna's laptop"
  ollama-api-service keys create --name operations --role admin --rate-limit none --allowed-ips 10.0.0.0/8
  ollama-api-service keys create --name batch --models 'qwen3:*,nomic-embed-text' --max-concurrent 2 --expires 30d
  KEY=$(ollama-api-service keys create --name script)`,
		Args: cobra.NoArgs,
	}
	flags := newKeyFlags(cmd.Flags())
	cmd.RunE = with(func(ctx context.Context, r *keyring, _ []string) error {
		patch, err := flags.patch(r.by.At)
		if err != nil {
			return err
		}
		if patch.Name == nil {
			return usagef("a key needs a name: add --name \"Anna's laptop\"")
		}
		k := api.Key{Role: api.RoleUser, Weight: api.DefaultWeight, Class: api.ClassInteractive, CreatedAt: r.by.At}
		patch.Apply(&k)
		if !patch.RateLimit.Set {
			k.RateLimit = defaultLimit(r.cfg, k.Role)
		}
		secret, preview, err := auth.Mint(r.random)
		if err != nil {
			return err
		}
		k.Preview = preview
		if err := r.store.CreateKey(ctx, k, r.secret.MAC(secret), r.by); err != nil {
			return err
		}
		return r.reveal(secret, k, fmt.Sprintf("%s key %s for %q, %s. It is shown this once: keep it now, and send it as\n  Authorization: Bearer KEY\n",
			title(k.Role), k.Preview, k.Name, perHour(k.RateLimit)))
	})
	return cmd
}

func listCommand(with runner) *cobra.Command {
	var q api.KeyQuery
	cmd := &cobra.Command{
		Use: "list", Short: "List keys, newest first, revoked ones too", Args: cobra.NoArgs,
		Example: `  ollama-api-service keys list
  ollama-api-service keys list --state expiring --sort expires_at
  ollama-api-service keys list --search laptop --state active`,
	}
	flags := cmd.Flags()
	flags.StringVar(&q.Text, "search", "", "keys with this in their name, preview or note")
	flags.StringSliceVar(&q.States, "state", nil, "keys in these states: "+strings.Join(api.KeyStates, ", "))
	flags.StringVar((*string)(&q.Role), "role", "", "keys of this role: user or admin")
	flags.StringVar(&q.Sort, "sort", "-created_at", "the order: "+strings.Join(api.KeyOrders, ", ")+"; a hyphen in front turns it around")
	cmd.RunE = with(func(ctx context.Context, r *keyring, _ []string) error {
		for _, state := range q.States {
			if !slices.Contains(api.KeyStates, state) {
				return usagef("--state must be of %s, separated by commas", strings.Join(api.KeyStates, ", "))
			}
		}
		switch {
		case q.Role != "" && q.Role != api.RoleUser && q.Role != api.RoleAdmin:
			return usagef("--role must be user or admin")
		case !slices.Contains(api.KeyOrders, strings.TrimPrefix(q.Sort, "-")):
			return usagef("--sort must be one of %s, with or without a hyphen in front", strings.Join(api.KeyOrders, ", "))
		}
		all, err := r.store.Keys(ctx)
		if err != nil {
			return err
		}
		keys := q.Select(slices.Clone(all), r.by.At)
		if r.json {
			return printJSON(r.stdout, map[string]any{"api_keys": append([]api.Key{}, keys...), "total": len(keys)})
		}
		if len(keys) == 0 && len(all) > 0 {
			_, err := fmt.Fprintln(r.stdout, "No key is like that.")
			return err
		}
		return printKeys(r.stdout, keys, r.by.At)
	})
	return cmd
}

func showCommand(with runner) *cobra.Command {
	return &cobra.Command{
		Use: "show KEY_PREVIEW", Short: "Show one key", Args: cobra.ExactArgs(1),
		Example: `  ollama-api-service keys show oas_8rT2kLmN0q`,
		RunE: with(func(ctx context.Context, r *keyring, args []string) error {
			preview, err := previewOf(args[0])
			if err != nil {
				return err
			}
			k, err := r.store.Key(ctx, preview)
			if err != nil {
				return err
			}
			return r.print(k.Key)
		}),
	}
}

func changeCommand(with runner) *cobra.Command {
	cmd := &cobra.Command{
		Use: "change KEY_PREVIEW", Short: "Change a key's name, role, limits or permissions",
		Long: "Change a key. What is not named stays as it is; the key's text stays the same too.",
		Example: `  ollama-api-service keys change oas_8rT2kLmN0q --rate-limit 500 --max-concurrent none
  ollama-api-service keys change oas_8rT2kLmN0q --models all --expires never
  ollama-api-service keys change oas_8rT2kLmN0q --allow-cloud=false --allowed-ips any`,
		Args: cobra.ExactArgs(1),
	}
	flags, force := newKeyFlags(cmd.Flags()), lastAdminFlag(cmd)
	cmd.RunE = with(func(ctx context.Context, r *keyring, args []string) error {
		r.force(*force)
		preview, err := previewOf(args[0])
		if err != nil {
			return err
		}
		patch, err := flags.patch(r.by.At)
		if err != nil {
			return err
		}
		if patch == (api.KeyPatch{}) {
			return usagef("nothing to change: name it, like --rate-limit 500; see %s keys change --help", programName)
		}
		k, err := r.store.ChangeKey(ctx, preview, patch, r.by)
		if err != nil {
			return orForce(err)
		}
		return errors.Join(r.print(k), r.sayIfNoAdmin(ctx))
	})
	return cmd
}

func rotateCommand(with runner) *cobra.Command {
	cmd := &cobra.Command{
		Use: "rotate KEY_PREVIEW", Short: "Give a key a new text; the old one works on for a while",
		Long: `Give a key a new text and print it, this once. Preview, limits and statistics stay. The old text works on for --grace, at most
72h; after a leak take --grace 0s. While the text that an earlier rotation replaced still works, another rotation needs --force.`,
		Example: `  ollama-api-service keys rotate oas_8rT2kLmN0q
  ollama-api-service keys rotate oas_8rT2kLmN0q --grace 0s --force`,
		Args: cobra.ExactArgs(1),
	}
	grace := cmd.Flags().String("grace", api.DefaultGrace.String(), "how long the old text works on: 0s to 72h")
	force := cmd.Flags().Bool("force", false, "rotate although the text that an earlier rotation replaced still works: it ends now")
	cmd.RunE = with(func(ctx context.Context, r *keyring, args []string) error {
		preview, err := previewOf(args[0])
		if err != nil {
			return err
		}
		span, err := parseSpan(*grace)
		if err != nil || span < 0 || span > api.MaxGrace {
			return usagef("--grace must be a time from 0s to 72h, like 24h or 2d")
		}
		r.by.Force = *force
		secret, err := auth.Reissue(r.random, preview)
		if err != nil {
			return err
		}
		k, err := r.store.RotateKey(ctx, preview, r.secret.MAC(secret), span, r.by)
		if err != nil {
			return err
		}
		old := "The old text works no longer."
		if span > 0 {
			old = "The old text works until " + instant(r.by.At.Add(span)) + "."
		}
		return r.reveal(secret, k, fmt.Sprintf("New text of key %s (%q). It is shown this once: keep it now. %s\n", k.Preview, k.Name, old))
	})
	return cmd
}

func revokeCommand(with runner) *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke KEY_PREVIEW", Short: "End a key for good; its record and statistics stay", Args: cobra.ExactArgs(1),
		Example: `  ollama-api-service keys revoke oas_8rT2kLmN0q`,
	}
	force := lastAdminFlag(cmd)
	cmd.RunE = with(func(ctx context.Context, r *keyring, args []string) error {
		r.force(*force)
		preview, err := previewOf(args[0])
		if err != nil {
			return err
		}
		k, err := r.store.RevokeKey(ctx, preview, r.by)
		if err != nil {
			return orForce(err)
		}
		message := fmt.Sprintf("API key %s is revoked", k.Preview)
		if k.RevokedAt != nil && k.RevokedAt.Before(r.by.At) {
			message = fmt.Sprintf("API key %s was revoked already, %s", k.Preview, instant(*k.RevokedAt))
		}
		if r.json {
			err = printJSON(r.stdout, map[string]any{"message": message, "key": k})
		} else {
			_, err = fmt.Fprintf(r.stdout, "%s (%q).\n", message, k.Name)
		}
		return errors.Join(err, r.sayIfNoAdmin(ctx))
	})
	return cmd
}

// lastAdminFlag is --force of the commands that may take the last admin key away: on the machine itself another one is made as easily.
func lastAdminFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("force", false, "do it although no admin key would be left that works from everywhere")
}

func (r *keyring) force(asked bool) { r.by.KeepAdmin, r.by.Force = r.by.KeepAdmin && !asked, asked }

// orForce adds to a refusal that --force does it.
func orForce(err error) error {
	if e := api.AsError(err); e.Code == api.CodeConflict && strings.Contains(e.Message, "admin key") {
		return api.Errorf(e.Code, "%s, or add --force", e.Message)
	}
	return err
}

// sayIfNoAdmin says when a forced change has left no admin key that works from everywhere, and how to make one.
func (r *keyring) sayIfNoAdmin(ctx context.Context) error {
	if r.by.KeepAdmin || r.cfg.AdminAPIKey != "" {
		return nil
	}
	exists, err := r.store.AdminEverywhere(ctx, r.by.At)
	if err != nil || exists {
		return err
	}
	_, err = fmt.Fprintf(r.stderr, "No admin key is left that works from everywhere. To make one: %s keys create --role admin --name NAME\n", programName)
	return err
}

// previewOf takes a preview, or a whole key text where somebody pastes one that leaked. What it refuses it does not repeat:
// it may be a key with a typing error.
func previewOf(arg string) (string, error) {
	if preview, ok := auth.Parse(arg); ok {
		return preview, nil
	}
	switch {
	case auth.ValidPreview(arg):
		return arg, nil
	case arg == "env-admin":
		return "", usagef("env-admin lives in the setting ADMIN_API_KEY: change or remove it there")
	case arg == "demo-admin" || arg == "demo-user":
		return "", usagef("demo keys live in the setting DEMO_KEYS and in --demo: leave those out to end them")
	}
	return "", usagef("that is no key preview: it is oas_ and ten characters, as `%s keys list` shows", programName)
}

func defaultLimit(cfg *config.Config, role api.Role) *int64 {
	limit := cfg.DefaultUserRateLimit
	if role == api.RoleAdmin {
		limit = cfg.DefaultAdminRateLimit
	}
	return &limit
}
