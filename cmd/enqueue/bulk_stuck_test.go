package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// A pipe that nothing comes out of is left behind once the command is to stop; what ends in time is waited for.
func TestUnlessStuck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		pipe := make(chan int)
		defer close(pipe)
		ctx, stop := context.WithCancel(t.Context())
		stop()
		if _, err := unlessStuck(ctx, func() (int, error) { return <-pipe, nil }); !errors.Is(err, errStopped) {
			t.Errorf("stuck: %v", err)
		}
		if n, err := unlessStuck(ctx, func() (int, error) { <-ctx.Done(); return 7, nil }); n != 7 || err != nil {
			t.Errorf("ended: %d, %v", n, err)
		}
	})
}
