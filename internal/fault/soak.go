package main

import (
	"context"
	"errors"
	"time"
)

type soakResult struct{}

func (s *suite) soak(context.Context, time.Duration, string) error { return errors.New("not yet") }
