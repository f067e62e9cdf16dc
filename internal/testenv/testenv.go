// Package testenv is what the tests of all packages of this module share about the
// process that they run in: that no goroutine is left, how much memory is in use, and
// whether the race detector slows them down. JSONDepth says how deep a JSON value nests.
// It imports none of the packages, so that the tests of each can import it.
package testenv

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Main is the body of a TestMain. It runs the tests, fails the run if a goroutine of this
// module outlives them or one of checks returns an error afterwards, and exits.
func Main(m *testing.M, checks ...func() error) {
	code := m.Run()
	for _, check := range append(checks, allGoroutinesEnd) {
		if code != 0 { // one failure is reported at a time: it may be the cause of others
			break
		}
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Fewer returns n, or a tenth of it under the race detector, which makes everything several
// times as slow: the full numbers are tested without it.
func Fewer(n int) int {
	if RaceEnabled {
		return n / 10
	}
	return n
}

// HeapInUse returns the bytes of all that can be reached. It blocks for two garbage
// collections.
func HeapInUse() int64 {
	runtime.GC()
	runtime.GC() // a sync.Pool gives up what it holds at the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// allGoroutinesEnd returns an error if goroutines are left that do not end within a few
// seconds: what they wait for has happened, but they may not have run since.
func allGoroutinesEnd() error {
	for deadline := time.Now().Add(5 * time.Second); ; {
		left := goroutines()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d goroutines are left:\n\n%s", len(left), strings.Join(left, "\n\n"))
		}
		<-time.After(time.Millisecond)
	}
}

// goroutines returns the stacks of all goroutines but the caller's that are in code of
// this module.
func goroutines() (stacks []string) {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i > 0 && strings.Contains(g, "github.com/vibetools/gvstream") {
			stacks = append(stacks, g)
		}
	}
	return stacks
}

// JSONDepth is how deep a valid JSON value nests.
func JSONDepth(src []byte) (deepest int) {
	depth, dec := 0, json.NewDecoder(bytes.NewReader(src))
	dec.UseNumber()
	for {
		token, err := dec.Token()
		if err != nil {
			return deepest
		}
		switch token {
		case json.Delim('['), json.Delim('{'):
			depth++
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
		deepest = max(deepest, depth)
	}
}
