package config

import (
	"fmt"
	"io"
)

// Redacted is embedded in settings that hold secrets. It prints in place of all of them, by whichever verb, in a
// log and as JSON: a dump that leaves out the secrets only would have to be told of each new one.
type Redacted struct{}

const redacted = "(settings, not printed: they hold secrets)"

// Format implements fmt.Formatter, for every verb.
func (Redacted) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, redacted) }

// MarshalText is for encoding/json and log/slog.
func (Redacted) MarshalText() ([]byte, error) { return []byte(redacted), nil }
