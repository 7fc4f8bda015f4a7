package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/recipe"
)

// Placeholders for an unknown key or model.
const (
	keyPlace   = "KEY"
	modelPlace = "MODEL"
)

// connectFlags are the options of connect as they were typed.
type connectFlags struct {
	url, key, keyFile, model string
	json                     bool
}

func (p *program) connectCommand() *cobra.Command {
	var f connectFlags
	cmd := &cobra.Command{
		Use:   "connect [CLIENT]",
		Short: "Print how to set up a client program",
		Long: `Print the settings with which a client program uses the service: the text for its shell, configuration file or form, with address, key
		and model filled in, and notes. Without CLIENT, list the clients. docs/clients.md shows all recipes.

		The address is --url, or HOST and PORT of the settings. The key comes from --key, --key-file or ` + queueKey + ` in the environment;
		other users of this machine can read a key on the command line. Without --model, the command asks the service for the first chat
		model that the key may use and that runs on its own servers. Values are quoted for the language of the text.`,
		Example: `  ollama-api-service connect
  ollama-api-service connect claude-code --url https://gateway.example.net --key oas_…
  ollama-api-service connect codex --key-file key --model qwen3-coder
  ollama-api-service connect opencode --key-file - --json < key`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: cobra.FixedCompletions(recipeIDs(), cobra.ShellCompDirectiveNoFileComp),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.url, "url", "", "address of the service for clients; the default is HOST and PORT of the settings")
	flags.StringVar(&f.key, "key", "", "the client's key")
	flags.StringVar(&f.keyFile, "key-file", "", "file that holds the key; - is standard input")
	flags.StringVar(&f.model, "model", "", "the model to use; the default is the first chat model that the key may use")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return listRecipes(p.stdout, f.json)
		}
		r, err := recipe.Find(args[0])
		if err != nil {
			return err
		}
		if f.key != "" && f.keyFile != "" {
			return usagef("give the key with --key or with --key-file, not both")
		}
		values, err := f.values(cmd.Context(), p, cmd.InOrStdin())
		if err != nil {
			return err
		}
		if r, err = r.Fill(values); err != nil {
			return err
		}
		if f.json {
			return printJSON(p.stdout, r)
		}
		_, err = io.WriteString(p.stdout, recipeText(r))
		return err
	}
	return cmd
}

func recipeIDs() []cobra.Completion {
	var ids []cobra.Completion
	for _, r := range recipe.All() {
		ids = append(ids, cobra.CompletionWithDesc(r.ID, r.Name))
	}
	return ids
}

// listRecipes prints the list of clients.
func listRecipes(out io.Writer, asJSON bool) error {
	if asJSON {
		type row struct {
			ID    string       `json:"id"`
			Name  string       `json:"name"`
			Group recipe.Group `json:"group"`
		}
		var rows []row
		for _, r := range recipe.All() {
			rows = append(rows, row{r.ID, r.Name, r.Group})
		}
		return printJSON(out, rows)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	var group recipe.Group
	for _, r := range recipe.All() {
		if r.Group != group {
			group = r.Group
			fmt.Fprintf(w, "%s\n", group)
		}
		fmt.Fprintf(w, "  %s\t%s\n", r.ID, r.Name)
	}
	return w.Flush()
}

// values returns the values for the recipe. A missing value keeps its placeholder, and a line on stderr says how to fill it.
func (f *connectFlags) values(ctx context.Context, p *program, stdin io.Reader) (recipe.Values, error) {
	at, err := f.at(p)
	if err != nil {
		return recipe.Values{}, err
	}
	key := f.key
	if key == "" {
		if key, err = p.namedKey(f.keyFile, stdin); err != nil {
			return recipe.Values{}, err
		}
	}
	if err := oneWord(key); err != nil {
		return recipe.Values{}, err
	}
	model := f.model
	switch {
	case key == "":
		fmt.Fprintf(p.stderr, "No key is given. Replace %s with one: `%s keys create --name NAME` creates a key.\n", keyPlace, programName)
	case model == "":
		if model, err = chatModel(ctx, at, key); err != nil {
			fmt.Fprintf(p.stderr, "No model was found for the key (%v). Replace %s, or set --model.\n", err, modelPlace)
		}
	}
	return recipe.Values{URL: at.String(), Key: cmp.Or(key, keyPlace), Model: cmp.Or(model, modelPlace)}, nil
}

// at returns the address of the service. It reads the settings only if it must, because a client's machine has none.
func (f *connectFlags) at(p *program) (*url.URL, error) {
	if f.url != "" {
		return serviceAddress(f.url, nil)
	}
	cfg, err := p.settings()
	if err != nil {
		return nil, err
	}
	return serviceAddress("", cfg)
}

// chatModel returns the first model that the key may use, that can chat and that does not run in the cloud.
func chatModel(ctx context.Context, at *url.URL, key string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, maxSearch)
	defer cancel()
	body, err := askService(ctx, at.JoinPath("/api/tags").String(), key, nil)
	if err != nil {
		return "", err
	}
	var list struct {
		Models []struct{ Name string }
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return "", fmt.Errorf("the answer of %s is not one of this service: correct --url", at.Host)
	}
	if len(list.Models) == 0 {
		return "", fmt.Errorf("the key may use no installed model")
	}
	asked, failed := 0, error(nil)
	for _, m := range list.Models {
		if strings.HasSuffix(m.Name, "cloud") {
			continue
		}
		if asked++; asked > maxAsked {
			break
		}
		chats, err := canChat(ctx, at, key, m.Name)
		if chats {
			return m.Name, nil
		}
		failed = cmp.Or(failed, err)
	}
	if failed != nil {
		return "", failed
	}
	return "", fmt.Errorf("no chat model is among the first %d local models that the key may use", maxAsked)
}

// Limits of the search for a chat model.
const (
	maxAsked  = 20
	maxSearch = 2 * queueTimeout
)

// canChat reports whether a model can chat, as the service describes it.
func canChat(ctx context.Context, at *url.URL, key, model string) (bool, error) {
	question, err := json.Marshal(map[string]string{"model": model})
	if err != nil {
		return false, err
	}
	body, err := askService(ctx, at.JoinPath("/api/show").String(), key, question)
	if err != nil {
		return false, err
	}
	var about struct {
		Capabilities []string
		Details      struct{ Family string }
	}
	if err := json.Unmarshal(body, &about); err != nil {
		return false, fmt.Errorf("the description of the model %[2]s from %[1]s cannot be read: check the Ollama server", at.Host, model)
	}
	if about.Capabilities == nil { // Ollama before 0.6.4
		return !strings.Contains(about.Details.Family, "bert"), nil
	}
	return slices.Contains(about.Capabilities, "completion"), nil
}

// recipeText formats a recipe for a terminal.
func recipeText(r recipe.Recipe) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", r.Name)
	for _, part := range r.Parts {
		fmt.Fprintf(&b, "\n%s:\n\n", partDestination(part))
		for line := range strings.Lines(part.Text) {
			if line == "\n" {
				b.WriteString(line)
			} else {
				b.WriteString("    " + line)
			}
		}
	}
	if len(r.Traps) > 0 {
		b.WriteString("\nNotes:\n\n")
	}
	for _, trap := range r.Traps {
		fmt.Fprintf(&b, "  - %s\n", trap)
	}
	return b.String()
}

func partDestination(part recipe.Part) string {
	switch {
	case part.Where == "shell":
		return "In a shell"
	case part.Language == recipe.Form:
		return "Under " + part.Where
	case strings.HasPrefix(part.Where, "a "):
		return "In " + part.Where
	}
	return "In the file " + part.Where
}
