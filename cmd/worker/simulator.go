package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"latchkey/internal/stripesim"
)

func newSimulatorCommand() *cobra.Command {
	var addr string
	cmd := &cobra.Command{
		Use:   "stripe-simulator",
		Short: "Run the simulator of Stripe's portal sessions",
		Long: `Serves the part of Stripe's API that Latchkey calls, with Stripe's checks, errors, idempotency and
five minutes of life, and a page where the real portal would be. Its start page lists the customer
ids that make it fail. It accepts the keys sk_test_simulator and rk_test_simulator. Point
STRIPE_API_BASE at it; it is for loopback, and keeps everything in memory.`,
		Example: "  worker stripe-simulator --addr 127.0.0.1:12111\n  STRIPE_API_BASE=http://127.0.0.1:12111 STRIPE_API_KEY=sk_test_simulator worker run",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("--addr can't be listened on: %w", err)
			}
			cmd.Printf("Stripe simulator on http://%s\n", l.Addr())
			srv := simulatorServer(stripesim.Config{})
			defer context.AfterFunc(cmd.Context(), func() { _ = srv.Close() })()
			if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&addr, "addr", "127.0.0.1:12111", "address to listen on")
	return cmd
}

func simulatorServer(cfg stripesim.Config) *http.Server {
	return &http.Server{Handler: stripesim.New(cfg), ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
}
