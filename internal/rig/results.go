package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ReadResults reads what a suite has measured, which it keeps beside the page that tells of it. Where nothing was measured
// yet, all stays as it is.
func ReadResults(file string, all any) error {
	body, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, all); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// WriteResults replaces them. What ends this process in between leaves the old ones.
func WriteResults(file string, all any) error {
	body, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	fresh := file + ".new"
	if err := os.WriteFile(fresh, append(body, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, file)
}
