// Package testenv is what the tests of all packages of this module share about the
// process that they run in. It imports none of them, so that the tests of each can
// import it.
package testenv

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Main is the body of a TestMain. It runs the tests, and fails the run if a goroutine
// of this module outlives them, or if one of checks returns an error after them. It
// exits.
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

// Fewer is n, or a tenth of it under the race detector, which makes everything several
// times as slow: the numbers of the tests are reached without it.
func Fewer(n int) int {
	if RaceEnabled {
		return n / 10
	}
	return n
}

// HeapInUse is the bytes of all that can be reached.
func HeapInUse() int64 {
	runtime.GC()
	runtime.GC() // pools give up what they hold at the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// allGoroutinesEnd gives goroutines that have been told to end a few seconds for it.
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
