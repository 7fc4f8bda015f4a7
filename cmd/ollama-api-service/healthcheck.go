package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/spf13/cobra"

	"ollama-api-service/internal/config"
)

const healthTimeout = 3 * time.Second

func (p *program) healthcheckCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "healthcheck",
		Short: "Check that the service is running and healthy; exit 0 or 1",
		Long:  "Request /healthz from the service at HOST and PORT, with a timeout of 3 seconds. Exit 0 if the service is healthy, otherwise 1. For containers.",
		Example: `  ollama-api-service healthcheck
  HEALTHCHECK CMD ["ollama-api-service", "healthcheck"]`,
		Args: cobra.NoArgs,
	}
	asJSON := cmd.Flags().Bool("json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := p.settings()
		if err != nil {
			return err
		}
		if cfg.Port == 0 && cfg.Socket() == "" {
			return usagef("PORT is 0, so the address of the service is not known: set PORT to the port it uses")
		}
		if err := askHealth(cmd.Context(), cfg); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(p.stdout, map[string]string{"status": "ok", "url": healthURL(cfg)})
		}
		_, err = fmt.Fprintf(p.stdout, "ok: %s answers\n", healthURL(cfg))
		return err
	}
	return cmd
}

func healthURL(cfg *config.Config) string {
	return cfg.Scheme() + "://" + localAddress(cfg) + string(cfg.BasePath) + "/healthz"
}

// askHealth returns nil if the running service is healthy.
func askHealth(ctx context.Context, cfg *config.Config) error {
	url := healthURL(cfg)
	// Connect directly: no proxy from the environment, no redirects, no retry. The certificate is not verified: it is for the public
	// name, nothing secret is sent, and only a status is read.
	client := &http.Client{
		Timeout:       healthTimeout,
		Transport:     localTransport(cfg),
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no answer from %s: check that the service is running, and that HOST and PORT match its settings", url)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, io.LimitReader(resp.Body, 4096))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: look at the log of the service, and check that no other program uses its port", url, resp.Status)
	}
	return nil
}

// localTransport connects to the service on this machine, over its Unix socket if it has one.
func localTransport(cfg *config.Config) *http.Transport {
	anyName := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // to this machine: the certificate is for the public name
	t := &http.Transport{DisableKeepAlives: true, TLSClientConfig: anyName}
	network, at := "tcp", ""
	if path := cfg.Socket(); path != "" {
		network, at = "unix", path
	}
	t.DialContext = func(ctx context.Context, _, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, cmp.Or(at, address))
		if err == nil && bool(cfg.ProxyProtocol) {
			// A proxy sends this header before its own health checks: the connection has no other client.
			_, err = proxyproto.HeaderProxyFromAddrs(2, nil, nil).WriteTo(c)
		}
		return c, err
	}
	return t
}

// localAddress is where this machine reaches the service: not every system can connect to 0.0.0.0.
func localAddress(cfg *config.Config) string {
	host := cfg.Host
	if cfg.Socket() != "" {
		return "localhost" // it is not looked up
	}
	if a, err := netip.ParseAddr(host); err == nil && a.IsUnspecified() {
		host = "127.0.0.1"
		if a.Is6() {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(int(cfg.Port)))
}
