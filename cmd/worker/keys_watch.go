package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"latchkey/internal/config"
	"latchkey/internal/portal"
)

// keysEvery is how often LINK_KEYS_FILE is looked at: a change is taken within two seconds.
const keysEvery = time.Second

// watchKeys takes the keys of LINK_KEYS_FILE each time it changes, for signing and verifying at once, until ctx
// ends. A file that can't be used changes nothing.
func watchKeys(ctx context.Context, cfg *Config, db *pgxpool.Pool, every time.Duration, log *slog.Logger) {
	refused := false
	config.Watch(ctx, cfg.keysFile, cfg.LinkKeys, every, func(content string, err error) {
		var next *portal.Keyring
		if err == nil {
			next, err = portal.ParseKeys(content)
		}
		if err != nil {
			log.Error("LINK_KEYS_FILE has changed and can't be used; the keys stay as they were until it is mended", "error", err)
			refused = true
			return
		}
		lost := next.Lost(cfg.keys)
		cfg.keys.Replace(next)
		level := slog.LevelInfo
		if refused {
			level, refused = slog.LevelWarn, false // whoever was shown the error is to see its end
		}
		log.Log(ctx, level, "LINK_KEYS_FILE has changed, and its keys are in use", "keys", cfg.keys.String())
		if len(lost) > 0 {
			warnOfLost(ctx, db, lost, log)
		}
	})
}

// warnOfLost tells what a key was needed for that is in use no more. It was taken out all the same: a key that leaked
// must go, whatever it serves. One that is retired serves nothing, and is not to come back.
func warnOfLost(ctx context.Context, db *pgxpool.Pool, lost []byte, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	live, err := portal.LiveOf(ctx, db, lost, time.Now())
	if err != nil {
		log.Warn("keys were taken out, and how many live links need them can't be told; ask 'worker keys'", "keys", fmt.Sprint(lost), "error", err)
	} else if live > 0 {
		log.Warn("keys were taken out that live links need: these answer 404 until the keys are back", "keys", fmt.Sprint(lost), "live_links", live)
	}
}
