package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"ollama-api-service/internal/config"
)

func (p *program) settingsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "settings",
		Short: "Show every setting, its value and its source",
		Long: `Show every setting that the service would start with now, its value, and its source: the environment, a line of the settings file,
		or the default. Secrets are shown only as set. Exit 2 if the settings are not valid.`,
		Example: `  ollama-api-service settings
  ollama-api-service settings --json
  ollama-api-service settings --quiet && systemctl reload ollama-api-service`,
		Args: cobra.NoArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	quiet := cmd.Flags().Bool("quiet", false, "print nothing; only check that the settings are valid")
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, err := p.settings()
		if err != nil || *quiet {
			return err
		}
		list := cfg.InForce()
		if *asJSON {
			return printJSON(p.stdout, struct {
				Settings []config.InForce `json:"settings"`
				Warnings []string         `json:"warnings"`
			}{list, orEmpty(cfg.Warnings)})
		}
		rows := [][]string{{"SETTING", "VALUE", "FROM"}}
		for _, s := range list {
			from := s.From
			if s.Hidden != "" {
				from += ", which overrides " + s.Hidden
			}
			rows = append(rows, []string{s.Name, s.Value, from})
		}
		if err := table(p.stdout, nil, rows); err != nil {
			return err
		}
		for _, w := range cfg.Warnings {
			fmt.Fprintf(p.stderr, "warning: %s\n", w)
		}
		return nil
	}
	return cmd
}

// orEmpty returns list, or an empty list instead of nil, so that JSON has [] and not null.
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
