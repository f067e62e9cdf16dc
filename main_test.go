package gvstream

import (
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if a goroutine of this package outlives the tests, or if
// something was written into what all sessions without events share.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := leakedGoroutines(5 * time.Second); code == 0 && len(left) > 0 {
		fmt.Fprintf(os.Stderr, "%d goroutines are left:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	if code == 0 && !reflect.ValueOf(unborn).IsZero() {
		fmt.Fprintf(os.Stderr, "sessions without events have become %+v\n", unborn)
		code = 1
	}
	os.Exit(code)
}

// leakedGoroutines returns the stacks of this package's goroutines that are still
// there after so long.
func leakedGoroutines(patience time.Duration) []string {
	for deadline := time.Now().Add(patience); ; {
		left := ourGoroutines()
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		runtime.Gosched()
		<-time.After(time.Millisecond)
	}
}

// ourGoroutines returns the stacks of all goroutines but the caller's that are in
// code of this module.
func ourGoroutines() (stacks []string) {
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
