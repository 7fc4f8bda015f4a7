package main

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

const healthTimeout = 3 * time.Second

// buildVersion is set by the linker: -X main.buildVersion=v1.2.3.
var buildVersion string

// version is what was built.
func version() string {
	if buildVersion != "" {
		return buildVersion
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.asJSON {
				return a.printJSON(map[string]string{"version": version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
			}
			_, err := fmt.Fprintf(a.out, "ollama-api-service %s (%s, %s/%s)\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

func (a *app) healthcheckCommand() *cobra.Command {
	return &cobra.Command{
		Use: "healthcheck", Short: "Ask the running service whether it is alive", Args: noArgs,
		Long: "Ask the service at HOST and PORT whether it is alive: exit 0 if it is, 1 if it is not. For container health checks.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.settings()
			if err != nil {
				return err
			}
			host := cfg.Host
			if addr, err := netip.ParseAddr(host); err == nil && addr.IsUnspecified() {
				host = "localhost"
			}
			url := "http://" + net.JoinHostPort(host, strconv.Itoa(int(cfg.Port))) + "/healthz"
			req, err := http.NewRequestWithContext(c.Context(), http.MethodGet, url, nil)
			if err != nil {
				return err
			}
			client := http.Client{Timeout: healthTimeout, Transport: &http.Transport{}} // no proxy of the environment
			resp, err := client.Do(req)
			if err != nil {
				return fmt.Errorf("the service does not answer at %s: start it, or set HOST and PORT as it has them", url)
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("the service at %s answers %d", url, resp.StatusCode)
			}
			if a.asJSON {
				return a.printJSON(map[string]string{"status": "ok", "url": url})
			}
			_, err = fmt.Fprintln(a.out, "alive:", url)
			return err
		},
	}
}
