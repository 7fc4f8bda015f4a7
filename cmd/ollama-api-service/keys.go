package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/api"
	"ollama-api-service/internal/auth"
	"ollama-api-service/internal/config"
	"ollama-api-service/internal/store"
)

// keyring holds the objects that a keys command works on.
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
		Short: "Create, list, change, rotate and revoke API keys",
		Long: `Create, list, change, rotate and revoke API keys. The commands work directly on the database in DATA_DIR, whether the service
		is running or not. A running service applies a change within a second. Run them as the user that the service runs as.`,
		Example: `  ollama-api-service keys create --name "Anna's laptop" --models 'llama3.2:*,qwen3:*' --expires 30d
  ollama-api-service keys change oas_8rT2kLmN0q --rate-limit 500
  ollama-api-service keys rotate oas_8rT2kLmN0q --grace 2h
  ollama-api-service keys revoke oas_8rT2kLmN0q`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	asJSON := cmd.PersistentFlags().Bool("json", false, "print JSON, with the names of the HTTP API")
	// with opens the database and the secret for a command. Every command checks the secret, so that the first one notices a wrong
	// DATA_DIR or SECRET_KEY.
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

// completeKeys returns the completions for KEY_PREVIEW: keys with their names. It returns none if the database cannot be read.
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
		Short: "Create a key and print it once",
		Long: `Create a key and print it. The key cannot be shown again, because only its hash is stored. Standard output gets only the key;
		explanations go to standard error. Without --rate-limit, the key gets the default of its role from the settings.`,
		Example: `  ollama-api-service keys create --name "Anna's laptop"
  ollama-api-service keys create --name operations --role admin --rate-limit none --allowed-ips 10.0.0.0/8
  ollama-api-service keys create --name batch --models 'qwen3:*,nomic-embed-text' --max-concurrent 2 --expires 30d
  KEY=$(ollama-api-service keys create --name script)`,
		Args: cobra.NoArgs,
	}
	addKeyFlags(cmd.Flags())
	cmd.RunE = with(func(ctx context.Context, r *keyring, _ []string) error {
		patch, err := keyPatch(cmd.Flags(), r.by.At)
		if err != nil {
			return err
		}
		if !patch.Has("name") {
			return usagef("a key needs a name: add --name \"Anna's laptop\"")
		}
		k := api.NewKey("", api.RoleUser, nil)
		patch.Apply(&k)
		if !patch.Has("rate_limit") {
			k.RateLimit = defaultLimit(r.cfg, k.Role)
		}
		secret, preview, err := auth.Mint(r.random)
		if err != nil {
			return err
		}
		k.Preview, k.CreatedAt = preview, r.by.At
		if err := r.store.CreateKey(ctx, k, r.secret.MAC(secret), r.by); err != nil {
			return err
		}
		return r.reveal(secret, k, fmt.Sprintf("%s key %s for %q, %s. It is shown only once: store it now, and send it as\n  Authorization: Bearer KEY\n",
			title(k.Role), k.Preview, k.Name, k.PerHour()))
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
	flags.StringVar(&q.Text, "search", "", "only keys with this text in their name, preview or note")
	flags.StringSliceVar(&q.States, "state", nil, "only keys in these states: "+strings.Join(api.KeyStates, ", "))
	filter := reflect.ValueOf(&q.KeyFilter).Elem()
	for i, field := range reflect.VisibleFields(filter.Type()) {
		flags.StringVar(filter.Field(i).Addr().Interface().(*string), field.Tag.Get("query"), "", field.Tag.Get("help"))
	}
	flags.StringVar(&q.Sort, "sort", "-created_at", "sort by "+strings.Join(api.KeyOrders, ", ")+"; a leading hyphen reverses the order")
	cmd.RunE = with(func(ctx context.Context, r *keyring, _ []string) error {
		for _, state := range q.States {
			if !slices.Contains(api.KeyStates, state) {
				return usagef("--state takes a comma-separated list of %s", strings.Join(api.KeyStates, ", "))
			}
		}
		switch {
		case q.Role != "" && q.Role != string(api.RoleUser) && q.Role != string(api.RoleAdmin):
			return usagef("--role must be user or admin")
		case !slices.Contains(api.KeyOrders, strings.TrimPrefix(q.Sort, "-")):
			return usagef("--sort must be one of %s, with or without a leading hyphen", strings.Join(api.KeyOrders, ", "))
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
			_, err := fmt.Fprintln(r.stdout, "No matching keys.")
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
		Long: "Change a key. Only the named fields change; the text of the key stays the same.",
		Example: `  ollama-api-service keys change oas_8rT2kLmN0q --rate-limit 500 --max-concurrent none
  ollama-api-service keys change oas_8rT2kLmN0q --models all --expires never
  ollama-api-service keys change oas_8rT2kLmN0q --allow-cloud=false --allowed-ips any`,
		Args: cobra.ExactArgs(1),
	}
	addKeyFlags(cmd.Flags())
	force := lastAdminFlag(cmd)
	cmd.RunE = with(func(ctx context.Context, r *keyring, args []string) error {
		r.force(*force)
		preview, err := previewOf(args[0])
		if err != nil {
			return err
		}
		patch, err := keyPatch(cmd.Flags(), r.by.At)
		if err != nil {
			return err
		}
		if patch.Empty() {
			return usagef("nothing to change: name a field, like --rate-limit 500; see %s keys change --help", programName)
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
		Use: "rotate KEY_PREVIEW", Short: "Replace a key's text; the old one works for a while",
		Long: `Give a key a new text and print it once. Preview, limits and statistics stay. The old text keeps working for --grace, at most
		72h; after a leak, use --grace 0s. If the text that an earlier rotation replaced still works, another rotation needs --force.`,
		Example: `  ollama-api-service keys rotate oas_8rT2kLmN0q
  ollama-api-service keys rotate oas_8rT2kLmN0q --grace 0s --force`,
		Args: cobra.ExactArgs(1),
	}
	grace := cmd.Flags().String("grace", api.DefaultGrace.String(), "how long the old text keeps working: 0s to 72h")
	force := cmd.Flags().Bool("force", false, "rotate even if the text that an earlier rotation replaced still works; that text stops working now")
	cmd.RunE = with(func(ctx context.Context, r *keyring, args []string) error {
		preview, err := previewOf(args[0])
		if err != nil {
			return err
		}
		span, err := api.ParseSpan(*grace)
		if err != nil || span < 0 || span > api.MaxGrace {
			return usagef("--grace must be a duration from 0s to 72h, like 24h or 2d")
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
		old := "The old text no longer works."
		if span > 0 {
			old = "The old text works until " + api.ShowTime(r.by.At.Add(span)) + "."
		}
		return r.reveal(secret, k, fmt.Sprintf("New text of key %s (%q). It is shown only once: store it now. %s\n", k.Preview, k.Name, old))
	})
	return cmd
}

func revokeCommand(with runner) *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke KEY_PREVIEW", Short: "End a key permanently; its record and statistics stay", Args: cobra.ExactArgs(1),
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
			message = fmt.Sprintf("API key %s was already revoked, %s", k.Preview, api.ShowTime(*k.RevokedAt))
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

// lastAdminFlag adds --force to the commands that may remove the last admin key. Here this is safe: this machine can create another one.
func lastAdminFlag(cmd *cobra.Command) *bool {
	return cmd.Flags().Bool("force", false, "proceed even if no admin key would be left that works from every address")
}

func (r *keyring) force(asked bool) { r.by.KeepAdmin, r.by.Force = r.by.KeepAdmin && !asked, asked }

// orForce adds to a refusal that --force overrides it.
func orForce(err error) error {
	if e := api.AsError(err); e.Code == api.CodeConflict && strings.Contains(e.Message, "admin key") {
		return api.Errorf(e.Code, "%s, or add --force", e.Message)
	}
	return err
}

// sayIfNoAdmin warns if a forced change left no admin key that works from every address, and says how to create one.
func (r *keyring) sayIfNoAdmin(ctx context.Context) error {
	if r.by.KeepAdmin || r.cfg.AdminAPIKey != "" {
		return nil
	}
	exists, err := r.store.AdminEverywhere(ctx, r.by.At)
	if err != nil || exists {
		return err
	}
	_, err = fmt.Fprintf(r.stderr, "No admin key is left that works from every address. To create one: %s keys create --role admin --name NAME\n", programName)
	return err
}

// previewOf takes a preview, or a whole key, which an admin may paste after a leak. Its errors do not repeat the argument, because it may
// be a key with a typing error.
func previewOf(arg string) (string, error) {
	if preview, ok := auth.Parse(arg); ok {
		return preview, nil
	}
	switch {
	case auth.ValidPreview(arg):
		return arg, nil
	case arg == "env-admin":
		return "", usagef("env-admin is the key of the setting ADMIN_API_KEY: change or remove it there")
	case arg == "demo-admin" || arg == "demo-user":
		return "", usagef("demo keys come from the setting DEMO_KEYS and from --demo: remove those to end the keys")
	}
	return "", usagef("this is not a key preview: a preview is oas_ and ten characters, as `%s keys list` shows", programName)
}

func defaultLimit(cfg *config.Config, role api.Role) *int64 {
	limit := cfg.DefaultUserRateLimit
	if role == api.RoleAdmin {
		limit = cfg.DefaultAdminRateLimit
	}
	return &limit
}
