// Package overlay builds the root package's tests from changed sources, with the -overlay
// flag of go test, so that the sources themselves hold nothing for the tests' sake.
package overlay

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Sources are texts of source files by their absolute names.
type Sources map[string]string

// Read returns the sources of the package in a directory, without those of its tests.
func Read(dir string) (Sources, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	s := make(Sources)
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		s[name] = string(text)
	}
	if len(s) == 0 {
		return nil, fmt.Errorf("no Go files in %s", dir)
	}
	return s, nil
}

// Add adds files to the package in a directory, under their own base names.
func (s Sources) Add(dir string, files ...string) error {
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		s[filepath.Join(dir, filepath.Base(file))] = string(text)
	}
	return nil
}

// Build builds the tests of the package in a directory from these sources in place of
// its own, and returns the binary. All files that it makes are in temp, an empty directory
// that the caller removes.
func (s Sources) Build(dir, temp string) (binary string, err error) {
	replace := make(map[string]string)
	for name, text := range s {
		replace[name] = filepath.Join(temp, filepath.Base(name))
		if err := os.WriteFile(replace[name], []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(temp, "overlay.json")
	if err := os.WriteFile(overlay, list, 0o600); err != nil {
		return "", err
	}
	binary = filepath.Join(temp, "overlay.test")
	cmd := exec.Command("go", "test", "-c", "-overlay", overlay, "-o", binary, ".")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return binary, nil
}
