package load_test

import (
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vibetools/gvstream/internal/testenv"
)

// size is how large a load test is.
func size(full, small int) int {
	if os.Getenv("GVSTREAM_LOAD") != "" {
		return full
	}
	return small
}

// A meter logs what things cost.
type meter struct {
	t   *testing.T
	now func() time.Time
}

// bubble runs a test in a bubble, with a meter whose time is the one outside: that in
// the bubble stands still while there is work.
func bubble(t *testing.T, test func(t *testing.T, m meter)) {
	ask, answer := make(chan bool), make(chan time.Time)
	go func() {
		for range ask {
			answer <- time.Now()
		}
	}()
	defer close(ask)
	synctest.Test(t, func(t *testing.T) {
		test(t, meter{t, func() time.Time { ask <- true; return <-answer }})
	})
}

// measure runs f, which does n things, and logs what one cost and what is left.
func (m meter) measure(what string, n int, f func()) {
	m.t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := m.now()
	f()
	took := m.now().Sub(start)
	runtime.ReadMemStats(&after)
	each := func(total uint64) float64 { return float64(total) / float64(n) }
	m.t.Logf("%-44s %8d times %9v: %8.2f µs %7.2f allocs %8.0f B each; then heap %6.1f MB, %d goroutines",
		what, n, took.Round(time.Millisecond), float64(took.Microseconds())/float64(n),
		each(after.Mallocs-before.Mallocs), each(after.TotalAlloc-before.TotalAlloc),
		float64(testenv.HeapInUse())/1e6, runtime.NumGoroutine())
}
