package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/config"
)

func newHealthCommand() *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a running worker whether it is ready, for container health checks",
		Long: `Exits 0 if /readyz of the internal server (ADMIN_ADDR, on this machine) answers 200, else 1. It is
here because the image has no shell and no HTTP client.`,
		Example: "  worker health\n  worker health --url http://127.0.0.1:12111/healthz",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url == "" {
				var settings struct {
					AdminAddr string `envconfig:"ADMIN_ADDR" default:"127.0.0.1:9090"`
				}
				if problems := config.Load(&settings); len(problems) > 0 {
					return problems
				}
				host, port, err := net.SplitHostPort(settings.AdminAddr)
				if err != nil {
					return fmt.Errorf("ADMIN_ADDR must be host:port")
				}
				if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
					host = loopback // it listens on every address
				}
				url = "http://" + net.JoinHostPort(host, port) + "/readyz"
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 3*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
			if err != nil {
				return fmt.Errorf("--url: %w", err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return fmt.Errorf("no answer: %w", err)
			}
			defer func() { _ = resp.Body.Close() }()
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("not ready: HTTP %d", resp.StatusCode)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&url, "url", "", "ask this URL instead")
	return cmd
}
